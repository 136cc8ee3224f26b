"""Inputs for calibrating and comparing exported towers: pairs of a data set, or drawn ones where there is none.

Drawn images are waves of low frequency with noise, from faint to harsh, and a black and a white one; drawn captions are made-up
words from none to more than the context holds, and a row of padding alone. They reach every branch of the towers; how a model
looks on what it was trained for only a data set tells.
"""

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, make_loader
from coreclip.randomness import permutation
from coreclip.training.clip_model import ClipModel
from coreclip.training.export_job import TowerInputs

N_CHECK, N_CALIBRATION = 40, 128
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def drawn_inputs(clip: ClipModel, n: int, *, seed: int = 0) -> TowerInputs:
    """Draw ``n`` inputs of each tower, three at least; a pure function of the arguments."""
    random = np.random.default_rng(seed)
    context = clip.config.model.context
    texts = [_drawn_text(random, number * (context + 2) // max(n - 2, 1)) for number in range(n - 1)]
    tokens = np.concatenate([clip.tokenizer.encode(texts, context), np.zeros((1, context), np.int64)])
    images = np.stack([_drawn_image(random, clip.image_size) for _ in range(n)])
    images[0], images[1] = 0, 255
    return TowerInputs(images, tokens, "drawn")


def _drawn_text(random: np.random.Generator, n_words: int) -> str:
    return " ".join("".join(random.choice(list(_LETTERS), random.integers(1, 8))) for _ in range(n_words))


def _drawn_image(random: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    waves = sum(
        random.normal(size=(3, 1, 1)) * np.cos(2 * np.pi * (fy * y + fx * x) + random.uniform(0, 2 * np.pi, (3, 1, 1)))
        for fy, fx in random.uniform(-4, 4, (6, 2))
    )
    contrast, noise = random.uniform(5, 60), random.uniform(0, 20)
    pixels = random.uniform(60, 200) + contrast * waves + noise * random.normal(size=(3, size, size))
    return pixels.round().clip(0, 255).astype(np.uint8)


def dataset_inputs(clip: ClipModel, dataset: Dataset, n: int, *, seed: int = 0, skip: int = 0) -> TowerInputs:
    """Take ``n`` pairs (fewer where there are fewer) from place ``skip`` on in a random order: images as evaluation sees them, first captions.

    Raises
    ------
    CoreclipError
        Where none of them has an image that decodes.
    """
    order = permutation(dataset.n, seed)
    chosen = np.sort(order[skip : skip + n] if skip + n <= dataset.n else order[-n:])
    loader = make_loader(
        dataset,
        batch_size=n,
        image_size=clip.image_size,
        train=False,
        subset=chosen,
        workers=1,
        tokenizer=clip.tokenizer,
    )
    (batch,) = loader
    valid = batch.valid.numpy()
    if not valid.any():
        raise CoreclipError(
            f"no image of the {len(chosen)} pairs that were drawn from {dataset.path} can be decoded; run its convert command "
            "again: it checks every file"
        )
    texts = [dataset.captions(int(i))[0] for i in batch.index.numpy()[valid]]
    return TowerInputs(batch.images.numpy()[valid], clip.tokenizer.encode(texts, clip.config.model.context), "data set")
