"""Joint example selection while training: of each large batch, the rows that are worth a step.

After JEST (Evans et al. 2024, arXiv 2406.17711). Rows are drawn in chunks, in proportion to exp(learnability): a pair's loss under the
learner less its loss under a reference model, each in the company of the rows that are chosen already. The paper defines it for any
contrastive loss and gives pseudo-code for the sigmoid loss; this is the softmax loss's. What there is to choose is
``data.batch_size / jest.keep`` pairs, and ``data.batch_size`` of them are trained on. Left out: scoring at a lower resolution
(Flexi-JEST), the weights of a subset in the scores.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.files import sha256_file
from coreclip.pipeline import Dataset, Tokenizer
from coreclip.randomness import uniform
from coreclip.selection import Features
from coreclip.training import streams
from coreclip.training.clip_model import ClipModel
from coreclip.training.features import features_of
from coreclip.training.loss import LEAST_ROWS, pairs_of
from coreclip.training.model import Clip, set_statistics_share
from coreclip.training.pretrained import is_pretrained
from coreclip.training.store import weights_file

if TYPE_CHECKING:
    from coreclip.training.steps import Rows


def jest_rows(
    learner: np.ndarray, reference: np.ndarray, k: int, *, chunks: int = 4, seed: int = 0, step: int = 0
) -> np.ndarray:
    """Choose k of the m rows of a batch.

    Parameters
    ----------
    learner, reference : float (m, m)
        Scaled cosines of all images (rows) and texts (columns) under the two models; -inf where two pairs are not each other's
        negatives.
    k : int
        1 to m; for m all rows are returned.
    chunks : int
        Rounds of nearly equal size.
    seed, step : int
        The choice is a pure function of them and the two matrices.

    Returns
    -------
    int64 (k,)
        Rising.

    Raises
    ------
    CoreclipError
        For matrices that are not square, unequal or hold NaN, and numbers out of range.

    Notes
    -----
    Within a round rows are drawn one after the other without replacement, in proportion to exp(s_i), s_i being the
    :func:`conditional_learnability` given the rows of the earlier rounds. That is the same as taking the largest
    ``s_i + g_i`` with independent Gumbel variables g_i (Kool et al. 2019, arXiv 1903.06059).
    """
    learner, reference = _checked("learner", learner), _checked("reference", reference)
    m = len(learner)
    if reference.shape != learner.shape:
        raise CoreclipError(
            f"the reference's logits are {reference.shape}, the learner's {learner.shape}; both must be of the same rows"
        )
    if not 1 <= k <= m:
        raise CoreclipError(f"k = {k} of {m} rows is not allowed: 1 to {m}; ask for fewer rows")
    if chunks < 1:
        raise CoreclipError(f"chunks = {chunks} is not allowed: at least 1; 1 chooses all rows at once")
    if k == m:
        return np.arange(m, dtype=np.int64)
    chosen = np.zeros(0, dtype=np.int64)
    for number, size in enumerate(_sizes(k, chunks)):
        scores = conditional_learnability(learner, reference, chosen)
        draws = uniform(seed, step, np.arange(m), streams.JEST + number)
        keys = scores - np.log(-np.log(np.maximum(draws, 2.0**-54)))
        keys[chosen] = -np.inf
        chosen = np.concatenate([chosen, np.argsort(-keys, kind="stable")[:size]])
    return np.sort(chosen)


def conditional_learnability(learner: np.ndarray, reference: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return each pair's loss under the learner less that under the reference, given the rows that are chosen already.

    Parameters
    ----------
    learner, reference : float64 (m, m)
        As of :func:`jest_rows`.
    chosen : int64 (c,)
        With none, a pair is contrasted with all the others.

    Returns
    -------
    float64 (m,)

    Notes
    -----
    The loss of pair i given C is half the cross-entropy of its image among the texts of C and its own, plus half that of its text
    among the images of C and its own.
    """
    return _conditional_loss(learner, chosen) - _conditional_loss(reference, chosen)


def _conditional_loss(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    own = np.diagonal(logits)
    if not len(chosen):
        others = logits.copy()
        np.fill_diagonal(others, -np.inf)
        among = others, others.T
    else:
        among = logits[:, chosen], logits[chosen].T
        # A chosen row is its own company; it can't be drawn again, but its loss should be finite and right.
        for part in (among[0], among[1]):
            part[chosen, np.arange(len(chosen))] = -np.inf
    return sum(np.logaddexp(0, _log_sum(part) - own) for part in among) / 2


def _log_sum(rows: np.ndarray) -> np.ndarray:
    """Log of the sum of the exponentials of each row; -inf for a row of -inf."""
    top = rows.max(axis=1, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(rows - shift[:, None]).sum(axis=1)) + shift


def _sizes(k: int, chunks: int) -> list[int]:
    chunks = min(chunks, k)
    return [k // chunks + (number < k % chunks) for number in range(chunks)]


def _checked(name: str, logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or not len(logits):
        raise CoreclipError(
            f"the {name}'s logits have shape {logits.shape}; they must be (m, m), of all images and texts"
        )
    if np.isnan(logits).any() or not np.isfinite(np.diagonal(logits)).all() or logits.max() == np.inf:
        raise CoreclipError(
            f"the {name}'s logits hold NaN or infinity; a choice needs finite ones; train with a lower train.lr"
        )
    return logits


class JestSelector:
    """Chooses the rows to train on; made by :func:`make_selector`.

    Attributes
    ----------
    sha256 : str
        Of the reference: its weights, or its image features.
    """

    def __init__(self, config: Config, reference: ClipModel | Features, sha256: str) -> None:
        self._config, self._reference, self.sha256 = config, reference, sha256

    def wanted(self, n: int) -> int:
        """Return how many of ``n`` delivered pairs are trained on."""
        size, whole = self._config.data.batch_size, self._config.super_batch_size
        return size if n >= whole else min(n, max(LEAST_ROWS, round(n * size / whole)))

    def choose(self, model: Clip, rows: "Rows", k: int, *, step: int, bf16: bool) -> "Rows":
        """Return ``k`` of the rows, or all where there are no more; the model's state is left as it was."""
        if k >= len(rows.index):
            return rows
        config = self._config
        size = config.train.micro_batch or len(rows.index)
        # As in a training step, with the batch's (or its pieces') own statistics, of which nothing is kept.
        set_statistics_share(model, 0.0)
        with torch.no_grad(), torch.autocast(rows.images.device.type, torch.bfloat16, enabled=bf16):
            images, texts = _in_pieces(model.encode_image, model.encode_text, rows, size)
        scale = model.logit_scale.detach()
        pairs = pairs_of(rows.tokens, rows.labels, rows.weight, index=rows.index, caption=rows.caption_number)
        others = pairs.same.fill_diagonal_(False)
        chosen = jest_rows(
            _logits(images, texts, scale.exp(), others),
            self._reference_logits(rows, others, size),
            k,
            chunks=config.jest.chunks,
            seed=config.train.seed,
            step=step,
        )
        return take_rows(rows, chosen, k / config.data.batch_size)

    def _reference_logits(self, rows: "Rows", others: Tensor, size: int) -> np.ndarray:
        reference = self._reference
        if isinstance(reference, ClipModel):
            with torch.inference_mode():
                images, texts = _in_pieces(reference.encode_image, reference.network.encode_text, rows, size)
            return _logits(images, texts, torch.tensor(reference.logit_scale).exp(), others)
        taken = reference.take(rows.index)
        images, texts = (torch.from_numpy(taken.vectors(name)) for name in ("image", "text"))
        return _logits(images, texts, torch.tensor(float(reference.info["logit_scale"])), others.cpu())


def make_selector(dataset: Dataset, config: Config, tokenizer: Tokenizer, device: torch.device) -> JestSelector | None:
    """Return the selector that ``[jest]`` asks for; None where it keeps all.

    Raises
    ------
    CoreclipError
        For a reference that can't be loaded, a RUN with another tokenizer, FEATURES of another data set, without texts or without
        a scale.
    """
    if config.jest.keep == 1:
        return None
    path = Path(config.jest.reference)
    if not is_pretrained(path) and (path / "features.json").exists():
        return JestSelector(config, features_of(dataset, path, "jest.reference"), sha256_file(path / "image.npy"))
    clip = ClipModel.load(path, str(device))
    if clip.tokenizer.sha256 != tokenizer.sha256:
        raise CoreclipError(
            f"jest.reference = {path} has another tokenizer than this run; both must read the same tokens; "
            "train it on this data set, or give FEATURES that it embedded"
        )
    clip.network.requires_grad_(False)
    return JestSelector(config, clip, sha256_file(weights_file(path)))


def _logits(images: Tensor, texts: Tensor, scale: Tensor, others: Tensor) -> np.ndarray:
    logits = scale * (images.float() @ texts.float().T)
    return logits.masked_fill(others, -torch.inf).cpu().numpy()


def _in_pieces(
    encode_image: Callable[[Tensor], Tensor], encode_text: Callable[[Tensor, Tensor], Tensor], rows: "Rows", size: int
) -> tuple[Tensor, Tensor]:
    """Return the features of images and captions, ``size`` pairs at a time."""
    images = [encode_image(part) for part in rows.images.split(size)]
    texts = [encode_text(*parts) for parts in zip(rows.tokens.split(size), rows.lengths.split(size), strict=True)]
    return torch.cat(images), torch.cat(texts)


def take_rows(rows: "Rows", chosen: np.ndarray, share: float) -> "Rows":
    """Return some rows of a batch, int64 (k,); ``share`` is what they are of a whole one, 0 to 1."""
    at = torch.from_numpy(chosen).to(rows.images.device)
    return replace(
        rows,
        images=rows.images[at],
        tokens=rows.tokens[at],
        caption_number=None if rows.caption_number is None else rows.caption_number[chosen],
        lengths=rows.lengths[chosen],
        weight=rows.weight[at],
        labels=None if rows.labels is None else rows.labels[at],
        index=rows.index[chosen],
        caption=None if rows.caption is None else rows.caption[chosen],
        share=share,
    )
