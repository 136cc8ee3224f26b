"""NegCLIPLoss (Wang et al. 2024, CLIPLoss and Norm-Based Data Selection, arXiv 2405.19547).

CLIPScore less what a pair's image and text agree with everything else: a caption that fits any picture no longer scores high.
Left out: the batches that the teacher model was trained with, which nobody has; they are drawn at random, several times.
"""

import time

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.randomness import permutation
from coreclip.selection.checks import check_k
from coreclip.selection.features import Features
from coreclip.selection.gradients import resolve_temperature
from coreclip.selection.scores import ranked
from coreclip.selection.subset import Subset
from coreclip.selection.threads import in_threads

DEFAULT_BATCH_SIZE = 32_768  # what OpenAI's CLIP was trained with, and the paper's choice
DEFAULT_REPETITIONS = 5
_TILE = 2048  # rows; a tile of float32 logits is 16 MiB
_SPREAD = 60.0  # float32 holds e^-87: terms that matter stay normal numbers below a common maximum
_STREAM_BATCHES = 121


def negcliploss(
    features: Features,
    k: int,
    *,
    temperature: float | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    repetitions: int = DEFAULT_REPETITIONS,
    seed: int = 0,
) -> Subset:
    """Choose the k pairs with the lowest contrastive loss, measured by their own embeddings.

    Parameters
    ----------
    features : Features
        With image and text.
    k : int
        1 to n.
    temperature : float or None
        Of CLIP's softmax; None for 1 / the features' ``logit_scale``, or 0.01 where they name none.
    batch_size : int
        Pairs that are contrasted with each other, at least 2; no more than n are taken.
    repetitions : int
        Times that batches are drawn; scores are the mean over them.
    seed : int
        Of the batches.

    Returns
    -------
    Subset
        The best first, ties to the lowest index. Gains are the scores of :func:`negclip_scores`, the objective is their sum.

    Raises
    ------
    CoreclipError
        For a missing modality and parameters out of range.
    """
    start = time.perf_counter()
    check_k(k, features.n)
    scores = negclip_scores(
        features, temperature=temperature, batch_size=batch_size, repetitions=repetitions, seed=seed
    )
    return ranked(
        scores,
        k,
        method="negcliploss",
        start=start,
        parameters={
            "temperature": resolve_temperature(features, temperature),
            "batch_size": -(-features.n // n_batches(features.n, batch_size)),
            "repetitions": repetitions,
        },
        seed=seed,
        fingerprint=features.fingerprint,
    )


def negclip_scores(
    features: Features,
    *,
    temperature: float | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    repetitions: int = DEFAULT_REPETITIONS,
    seed: int = 0,
) -> np.ndarray:
    """Return each pair's negative CLIP loss times the temperature; higher is better.

    Parameters
    ----------
    features, temperature, batch_size, repetitions, seed
        See :func:`negcliploss`.

    Returns
    -------
    float64 (n,)
        At most 0; a pure function of the seed.

    Raises
    ------
    CoreclipError
        For a missing modality and parameters out of range.

    Notes
    -----
    With s_ij = <u_i, t_j>, over the batch of pair i: s_ii - tau/2 (LSE_j(s_ij / tau) + LSE_j(s_ji / tau)). In each repetition
    every pair is in exactly one batch, and sizes of batches differ by one at most. Products are float32, maxima are taken out
    before exponentials, sums are kept in float64: the result is finite for every temperature. The work is n batch_size d
    multiplications per repetition, the memory that of one batch.
    """
    temperature = resolve_temperature(features, temperature)
    features.check_both("negcliploss compares")
    if batch_size < 2:
        raise CoreclipError(f"batch_size = {batch_size} is not allowed: at least 2 pairs to tell apart; try 32768")
    if repetitions < 1:
        raise CoreclipError(f"repetitions = {repetitions} is not allowed: at least 1, better 5")
    total = np.zeros(features.n)
    with Progress(features.n * repetitions, "contrasting", "pairs") as progress:
        for repetition in range(repetitions):
            order = permutation(features.n, seed, repetition, _STREAM_BATCHES)
            for rows in np.array_split(order, n_batches(features.n, batch_size)):
                rows = np.sort(rows)  # ascending, as they lie in the file
                batch = features.take(rows)
                total[rows] += batch_scores(batch.vectors("image"), batch.vectors("text"), temperature)
                progress.advance(len(rows))
    return total / repetitions


def n_batches(n: int, batch_size: int) -> int:
    """Return the number of batches of at most ``batch_size`` among which n pairs are spread evenly."""
    return -(-n // min(n, batch_size))


def batch_scores(images: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    """Return the scores of one batch of pairs.

    Parameters
    ----------
    images, texts : float32 (b, d)
        Unit rows.
    temperature : float

    Returns
    -------
    float64 (b,)
    """
    b = len(images)
    by_image, by_text = _RunningSums(b), _RunningSums(b)
    scaled = images / np.float32(temperature)
    own = np.empty(b)
    for start in range(0, b, _TILE):
        rows = slice(start, min(start + _TILE, b))
        for column in range(0, b, _TILE):
            columns = slice(column, min(column + _TILE, b))
            logits = scaled[rows] @ texts[columns].T  # (rows, columns), for both directions
            if column == start:
                # From the same product as the sums, so that a pair alone gets 0.
                own[rows] = np.diagonal(logits)
            _add(logits, by_image, rows, by_text, columns)
    return temperature * np.minimum(own - (by_image.logarithms() + by_text.logarithms()) / 2, 0)  # rounding can pass 0


class _RunningSums:
    """Sums of exponentials that are seen in pieces: e^top total, one for each row."""

    def __init__(self, n: int) -> None:
        self.top = np.full(n, -np.inf)
        self.total = np.zeros(n)

    def add(self, where: slice, top: np.ndarray | float, total: np.ndarray) -> None:
        """Add ``total`` (m,) e^top to the sums at ``where``."""
        highest = np.maximum(self.top[where], top)
        self.total[where] = self.total[where] * np.exp(self.top[where] - highest) + total * np.exp(top - highest)
        self.top[where] = highest

    def logarithms(self) -> np.ndarray:
        return self.top + np.log(self.total)


def _add(logits: np.ndarray, rows_sums: _RunningSums, rows: slice, columns_sums: _RunningSums, columns: slice) -> None:
    """Add a tile's exponentials to the sums of its rows and of its columns; the tile is used up."""
    row_tops, column_tops = logits.max(axis=1), logits.max(axis=0)
    top = row_tops.max()
    if top - min(row_tops.min(), column_tops.min()) < _SPREAD:
        exponentials = _exponentials(logits, top, out=logits)
        rows_sums.add(rows, float(top), _sum(exponentials, 1))
        columns_sums.add(columns, float(top), _sum(exponentials, 0))
        return
    # One maximum for all would lose the rows that lie far below it: sharp softmaxes take the exponentials twice.
    rows_sums.add(rows, row_tops, _sum(_exponentials(logits, row_tops[:, None]), 1))
    columns_sums.add(columns, column_tops, _sum(_exponentials(logits, column_tops, out=logits), 0))


def _exponentials(logits: np.ndarray, top: np.ndarray | np.floating, out: np.ndarray | None = None) -> np.ndarray:
    result = np.empty_like(logits) if out is None else out
    tops = np.broadcast_to(top, logits.shape)

    def work(start: int, stop: int) -> None:
        piece = np.subtract(logits[start:stop], tops[start:stop], out=result[start:stop])
        np.exp(piece, out=piece)

    in_threads(work, len(logits))
    return result


def _sum(exponentials: np.ndarray, axis: int) -> np.ndarray:
    ones = np.ones(exponentials.shape[axis], np.float32)
    return (exponentials @ ones if axis else ones @ exponentials).astype(np.float64)
