"""Facility location in one pass over a stream of pairs: Sieve-Streaming++ (Kazemi et al. 2019, arXiv 1905.00948).

Each of a geometric row of thresholds, of which one is near the best objective over 2 k (Badanidiyuru et al. 2014), has a set of its
own, and a pair joins every set that has room and gains at least its threshold by it. Sets whose threshold is too low beside what has
been reached are given up. Represented is a fixed sample of rows. Left out: deletions, and batches of several machines.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.randomness import permutation
from coreclip.selection.checks import check_indices, check_k, check_weights
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

if TYPE_CHECKING:
    from coreclip.selection.sieving import Sieves

_BLOCK = 2048  # rows; with 4,096 represented ones their cosines take 64 MiB
_STREAM_SAMPLE, _STREAM_ORDER = 162, 163


def sieve(
    features: Features | np.ndarray,
    k: int,
    *,
    epsilon: float = 0.1,
    represented: int = 4096,
    shuffle: bool = False,
    modality: str = "image",
    seed: int = 0,
) -> Subset:
    """Choose k pairs that represent a random sample of all, seeing each pair once and never all together.

    Parameters
    ----------
    features : Features or float (n, d)
        Read in blocks.
    k : int
        1 to n.
    epsilon : float
        Between 0 and 1/2; the less it is, the more sets are held.
    represented : int
        Pairs of the sample, all of them where there are no more.
    shuffle : bool
        Go over the pairs in a random order, not in that of their indices.
    modality : {"image", "text", "both"}
    seed : int
        Of the sample and the order.

    Returns
    -------
    Subset
        As :func:`sieve_streaming`. Each sampled pair counts n / represented: the objective estimates the one over all pairs, a
        little too high as the choice is fitted to the sample, and is it where all are represented.
        :func:`facility_objective` computes the one over all.

    Raises
    ------
    CoreclipError
        For parameters out of range, and features that lack the modality.
    """
    start = time.perf_counter()
    features = as_features(features)
    n = features.n
    check_k(k, n)
    if represented < 1:
        raise CoreclipError(f"represented = {represented} is not allowed: at least 1 pair")
    sample = np.sort(permutation(n, seed, stream=_STREAM_SAMPLE)[:represented])
    order = permutation(n, seed, stream=_STREAM_ORDER) if shuffle else np.arange(n)
    with Progress(n, "sieving") as progress:
        sieves = _sift(
            _blocks(features, modality, order, progress), k, epsilon, features.take(sample).vectors(modality),
            np.full(len(sample), n / len(sample)),
        )  # fmt: skip
    parameters = {"modality": modality, "represented": len(sample), "shuffle": shuffle}
    return _subset(sieves, parameters, n, start, seed, features.fingerprint)


def sieve_streaming(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
    *,
    reference: np.ndarray,
    epsilon: float = 0.1,
    weights: np.ndarray | None = None,
) -> Subset:
    """Choose k rows of a stream that represent the reference rows, by Sieve-Streaming++.

    Parameters
    ----------
    chunks : iterable of (int (b,), float (b, d))
        Indices, each of which comes once, and rows, which are scaled to unit length. How they are cut into chunks does not matter.
    k : int
        At least 1.
    reference : float (r, d)
        The represented rows, such as a sample of the stream; scaled to unit length.
    epsilon : float
        Between 0 and 1/2; the less it is, the more sets are held.
    weights : float (r,) or None
        How much each represented row counts, >= 0; None for 1.

    Returns
    -------
    Subset
        The best of the sets. Where it has fewer than k rows, rows of the other sets and the first k of the stream are put behind it,
        those with the largest gains first: this only adds. Fewer than k come back where the stream has fewer. Gains sum to the
        objective, sum_i w_i max_{j in S} max(0, cos_ij) over the reference. ``parameters`` has the number of ``sets`` at the end, the
        pairs ``filled`` in and the most rows ``held``. ``n`` is one more than the largest index; training weights are 1.

    Raises
    ------
    CoreclipError
        For parameters out of range, rows that are not finite, are zeros or have another width than the reference, indices that come
        twice among what is held, and an empty stream.

    Notes
    -----
    The objective is at least 1 / (2 (1 + epsilon)) > 1/2 - epsilon of the best for k rows of the stream. Held are at most
    log(2 k) / log(1 + epsilon) + 3 sets of at most k rows, and for each set one number per reference row.
    """
    start = time.perf_counter()
    if k < 1:
        raise CoreclipError(f"k = {k} is not allowed: at least 1")
    rows = _unit(reference, "reference")
    row_weights = check_weights(weights, len(rows))
    sieves = _sift(_checked(chunks, rows.shape[1]), k, epsilon, rows, row_weights)
    if not sieves.n_seen:
        raise CoreclipError("the stream is empty; give at least one chunk with a row")
    return _subset(sieves, {"represented": len(rows)}, sieves.largest_index + 1, start, 0, None)


def _sift(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
    epsilon: float,
    reference: np.ndarray,
    weights: np.ndarray,
) -> "Sieves":
    from coreclip.selection.sieving import Sieves

    if not 0 < epsilon < 0.5:
        raise CoreclipError(f"epsilon = {epsilon} is not allowed: 0 < epsilon < 1/2, else nothing is guaranteed")
    sieves = Sieves(k, epsilon, reference, weights)
    for indices, rows in _regroup(chunks):
        sieves.offer(indices, rows)
    return sieves


def _subset(
    sieves: "Sieves", parameters: dict[str, Any], n: int, start: float, seed: int, fingerprint: str | None
) -> Subset:
    indices, gains, filled = sieves.result()
    report = {"epsilon": sieves.epsilon, "sets": sieves.n_sets, "filled": filled, "held": sieves.held}
    k = sieves.k
    note = {"note": f"the stream has only {len(indices)} rows, {k} were asked for"} if len(indices) < k else {}
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=gains,
        objective=float(gains.sum()),
        method="sieve",
        parameters=parameters | report | note,
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )


def _blocks(
    features: Features, modality: str, order: np.ndarray, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(order), _BLOCK):
        indices = order[start : start + _BLOCK]
        yield indices, features.take(indices).vectors(modality)
        progress.advance(len(indices))


def _regroup(chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the stream in blocks of equal size, so that nothing depends on how it came."""
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    room = _BLOCK
    for indices, rows in chunks:
        first = 0
        while first < len(rows):
            pending.append((indices[first : first + room], rows[first : first + room]))
            first += len(pending[-1][0])
            room -= len(pending[-1][0])
            if not room:
                yield _joined(pending)
                pending, room = [], _BLOCK
    if pending:
        yield _joined(pending)


def _joined(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([indices for indices, _ in pieces]), np.concatenate([rows for _, rows in pieces])


def _checked(chunks: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number, (indices, rows) in enumerate(chunks):
        if not len(rows) and not len(indices):
            continue
        unit = _unit(rows, f"chunk {number}")
        if unit.shape[1] != width or len(indices) != len(unit):
            raise CoreclipError(
                f"chunk {number}: {len(indices)} indices and rows of shape {unit.shape}; "
                f"it must be as many, and {width} wide like the reference"
            )
        yield check_indices(indices, np.iinfo(np.int64).max, f"chunk {number}: indices"), unit


def _unit(rows: np.ndarray, name: str) -> np.ndarray:
    return Features.from_arrays(np.asarray(rows), source=name).vectors("image")
