"""Choosing anew, between two passes, which pairs a run trains on: by its own model, as it is at that moment.

CRAIG as its paper uses it for deep models, where gradients change (Mirzasoleiman et al. 2020, arXiv 1906.01827), and, where only some
pairs drawn anew each time are looked at, CREST's way of bounding the cost (Yang et al. 2023, arXiv 2306.01244). Any expression of
:mod:`coreclip.selection` can choose: by the embeddings of the model under way (the centre crop and the first caption of each pair, in
float32), and by the signals that the run has recorded. What was chosen is kept as ``RUN/subsets/PASS.parquet``. Left out: CREST's
quadratic test of when a choice is outdated (``reselect.every`` is fixed), and its dropping of learned pairs.
"""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, Loader, Tokenizer, make_loader, thumbnails
from coreclip.randomness import hash64, permutation
from coreclip.selection import Features, Subset, load_signals, metadata_of, needs_features, select
from coreclip.selection.expression import count_of, parse, stages_of
from coreclip.selection.signals import checkpoint_signals_of
from coreclip.training import streams
from coreclip.training.device import decoding_threads
from coreclip.training.loss import LEAST_ROWS
from coreclip.training.model import MAX_LOGIT_SCALE, Clip


class Reselector:
    """Chooses the pairs of the passes to come; made by :func:`make_reselector`.

    Parameters
    ----------
    run : path
    dataset : Dataset
    config : Config
        With ``reselect.every`` above 0.
    tokenizer : Tokenizer
        The model's.
    subset : None, int (k,), or an object with ``indices`` and ``weights``
        The pairs that the run was given. Their weights are multiplied with those of a choice.
    device : torch.device
    """

    def __init__(
        self, run: Path, dataset: Dataset, config: Config, tokenizer: Tokenizer, subset: Any, device: torch.device
    ) -> None:
        self._folder, self._signals = run / "subsets", run / "signals"
        self._dataset, self._config, self._device = dataset, config, device
        self._given, self._weights = _distinct(subset, dataset.n)
        if len(self._given) < LEAST_ROWS:
            raise CoreclipError(
                f"{len(self._given)} different pairs with a weight above 0 to choose among; a contrast needs {LEAST_ROWS}; "
                "look at the subset"
            )
        self._loader = make_loader(
            dataset,
            batch_size=config.data.batch_size,
            image_size=config.data.image_size,
            train=False,
            subset=self._given,
            workers=decoding_threads(config.data.workers, device),
            tokenizer=tokenizer,
            context=config.model.context,
        )

    def is_due(self, passes: int) -> bool:
        """Return whether the pairs are to be chosen anew after so many passes."""
        since = passes - self._config.reselect.after
        return since >= 0 and since % self._config.reselect.every == 0

    def choose(self, model: Clip, passes: int, image_size: int) -> Subset:
        """Choose among the pairs that were given, or some of them, and keep the choice.

        Parameters
        ----------
        model : Clip
            On the device; it is left in training mode and otherwise as it was.
        passes : int
            That are over. The choice is a function of it, the model, the run's seed and its signals.
        image_size : int
            That the model is going to see, pixels.

        Returns
        -------
        Subset
            Of the whole data set.

        Raises
        ------
        CoreclipError
            What the method refuses, and a pool in which fewer than two images decode.
        """
        asked, seed, data = self._config.reselect, self._config.train.seed, self._dataset
        pool = self._given
        if 0 < asked.pool < len(pool):
            pool = pool[np.sort(permutation(len(pool), seed, passes, streams.POOL)[: asked.pool])]
        features = None
        if needs_features(asked.method):
            self._loader.set_subset(pool)
            self._loader.set_image_size(image_size)
            pool, features = embed_pairs(model, self._loader, self._device)
        if len(pool) < LEAST_ROWS:
            raise CoreclipError(
                f"{len(pool)} of the pairs to select among have an image that decodes; a contrast needs {LEAST_ROWS}; "
                "the data set is damaged: convert it again"
            )
        chosen = select(
            features,
            len(pool),
            method=asked.method,
            k=min(len(pool), max(LEAST_ROWS, count_of(asked.fraction, len(pool)))),
            signals=self._signals_of(pool),
            metadata={name: _metadata(data, name)[pool] for name in metadata_of(asked.method)},
            labels=None if data.labels is None else data.labels[pool],
            seed=int(hash64(seed, passes, np.zeros(1, np.int64), streams.RESELECTION)[0] >> np.uint64(33)),
            fingerprint=data.fingerprint,
        )
        indices = pool[chosen.indices]
        chosen = replace(
            chosen,
            indices=indices,
            weights=chosen.weights * self._weights[indices],
            n=data.n,
            scores=None,
            parameters=chosen.parameters | {"passes": passes, "pool": len(pool)},
        )
        chosen.save(self._path(passes))
        return chosen

    def load(self, passes: int) -> Subset:
        """Return the choice that was made after so many passes; those that were made later are removed, to be made again."""
        for path in self._folder.glob("*.parquet"):
            if path.stem.isdecimal() and int(path.stem) > passes:
                path.unlink()
        return Subset.load(self._path(passes))

    def _path(self, passes: int) -> Path:
        return self._folder / f"{passes:08d}.parquet"

    def _signals_of(self, pool: np.ndarray) -> dict[str, np.ndarray]:
        if not _takes("signals", self._config.reselect.method) or not any(self._signals.glob("*.npy")):
            return {}
        return {name: signal[..., pool] for name, signal in load_signals(self._signals).items()}


def make_reselector(
    run: Path, dataset: Dataset, config: Config, tokenizer: Tokenizer, subset: Any, device: torch.device
) -> Reselector | None:
    """Return what ``[reselect]`` asks for; None where it asks for nothing.

    Raises
    ------
    CoreclipError
        For an expression that is none, and methods that read what a run under way does not have.
    """
    asked = config.reselect
    if not asked.every:
        return None
    parse(asked.method)
    if found := checkpoint_signals_of(asked.method):
        raise CoreclipError(
            f"reselect.method = {asked.method!r} reads {', '.join(sorted(found))}, which are made from a finished run's weights; "
            "choose by another method, e.g. craig, or by el2n, which is recorded in training"
        )
    if _takes("signals", asked.method) and not config.train.signals and not needs_features(asked.method):
        raise CoreclipError(
            f"reselect.method = {asked.method!r} reads the run's signals, and train.signals is off; set train.signals=true"
        )
    return Reselector(run, dataset, config, tokenizer, subset, device)


@torch.no_grad()
def embed_pairs(model: Clip, loader: Loader, device: torch.device) -> tuple[np.ndarray, Features]:
    """Embed the pairs of a loader with a model that is being trained.

    Parameters
    ----------
    model : Clip
        In evaluation mode meanwhile, so that its statistics are left alone; in training mode afterwards.
    loader : Loader
        Made with ``train=False``.
    device : torch.device
        The model's.

    Returns
    -------
    index : int64 (m,)
        The loader's pairs, without those whose image does not decode.
    features : Features
        Of them, float32 (m, d); of each pair the loader's caption.
    """
    model.eval()
    index, images, texts = [], [], []
    for batch in loader:
        valid = batch.valid
        index.append(batch.index[valid].numpy())
        images.append(model.encode_image(batch.images[valid].to(device)).cpu().numpy())
        texts.append(model.encode_text(batch.tokens[valid].to(device)).cpu().numpy())
    model.train()
    scale = float(np.exp(min(model.logit_scale.item(), MAX_LOGIT_SCALE)))
    info = {"logit_scale": scale, "fingerprint": loader.dataset.fingerprint}
    found = np.concatenate(index)
    if not len(found):
        return found, Features(None)
    features = Features.from_arrays(np.concatenate(images), np.concatenate(texts), info=info, source="the model's")
    return found, features


def _distinct(subset: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the different indices that weigh something, int64 (k,), and the weight of each of the n pairs, float64 (n,)."""
    if subset is None:
        return np.arange(n), np.ones(n)
    indices = np.asarray(getattr(subset, "indices", subset), np.int64)
    weights = np.asarray(getattr(subset, "weights", np.ones(len(indices))), np.float64)
    total = np.bincount(indices, weights, minlength=n)
    return np.flatnonzero(total > 0), total


def _takes(name: str, expression: str) -> bool:
    """Return whether any of an expression's methods has a parameter of this name."""
    return any(name in inspect.signature(stage.method.function).parameters for stage in stages_of(parse(expression)))


def _metadata(dataset: Dataset, name: str) -> np.ndarray:
    return thumbnails(dataset) if name == "thumbnail" else dataset.metadata(name)
