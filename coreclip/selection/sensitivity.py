"""Weighted (1 +- eps) coresets for k-means, by importance sampling, of a data set or of a stream.

For any centres, the weighted sum of the squared distances of the sample to them is near that of all rows, and equal in expectation.
Sensitivity sampling after Feldman & Langberg 2011, with the bounds of Bachem, Lucic & Krause 2017 (arXiv 1703.06476) from a
k-means++ solution (Arthur & Vassilvitskii 2007); lightweight coresets after Bachem, Lucic & Krause 2018 (arXiv 1702.08248), with an
error in units of the data's variance; merge-and-reduce after Har-Peled & Mazumdar 2004. Left out: other losses than k-means'.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import uniform
from coreclip.selection.checks import check_k
from coreclip.selection.features import Features, as_features
from coreclip.selection.subset import Subset

if TYPE_CHECKING:
    from coreclip.selection.rows import Rows

CORESETS = ("sensitivity", "lightweight")
_DEFAULT_CLUSTERS = 10
_DEFAULT_BUFFER = 4  # times k
_STREAM_DRAWS = 135
_STREAM_CENTERS = 136
_WEIGHTS = "w / scale, where w = draws / (k p) and p is the probability of a pair in each of k draws"


def sensitivity_sample(
    features: Features | np.ndarray,
    k: int,
    *,
    n_clusters: int | None = None,
    modality: str = "image",
    seed: int = 0,
) -> Subset:
    """Draw k pairs, each with a probability in proportion to a bound of what it can be of any k-means cost.

    Parameters
    ----------
    features : Features or float (n, d)
    k : int
        Draws, 1 to n, with replacement: at most as many pairs are chosen.
    n_clusters : int or None
        Centres that costs are taken to, 1 to n; None for 10.
    modality : {"image", "text", "both"}
    seed : int

    Returns
    -------
    Subset
        ``weights`` is w / ``scale``, of mean 1, with ``scale`` in the parameters; w = draws / (k p) makes the weighted sum of
        anything equal to the sum over all pairs in expectation. Pairs are in the order of their first draw, so that a larger k
        only adds to them; gains are the probabilities p; there is no objective.

    Raises
    ------
    CoreclipError
        For parameters out of range, and a modality that is unknown or not there.

    Notes
    -----
    With b(x) the nearest of ``n_clusters`` k-means++ centres, B(x) its rows, c the mean of d^2(x, b(x)), and a = 16 (ln n_clusters + 2):
    s(x) = a d^2(x, b(x)) / c + 2 a sum_{B(x)} d^2 / (|B(x)| c) + 4 n / |B(x)|, and p = s / sum s.
    """
    n_clusters = _check_clusters(n_clusters, as_features(features).n)

    def probabilities(rows: "Rows") -> np.ndarray:
        return sensitivities(rows, n_clusters, np.ones(len(rows.values)), seed)

    return _sample(features, k, "sensitivity", probabilities, modality, {"n_clusters": n_clusters}, seed)


def lightweight_sample(features: Features | np.ndarray, k: int, *, modality: str = "image", seed: int = 0) -> Subset:
    """Draw k pairs, half of the probability being uniform, half in proportion to the squared distance to the mean.

    Parameters
    ----------
    features : Features or float (n, d)
    k : int
        Draws, 1 to n, with replacement: at most as many pairs are chosen.
    modality : {"image", "text", "both"}
    seed : int

    Returns
    -------
    Subset
        As of :func:`sensitivity_sample`.

    Raises
    ------
    CoreclipError
        For a k out of range, and a modality that is unknown or not there.
    """

    def probabilities(rows: "Rows") -> np.ndarray:
        return lightness(rows, np.ones(len(rows.values)))

    return _sample(features, k, "lightweight", probabilities, modality, {}, seed)


def merge_and_reduce(
    chunks: Iterable[np.ndarray],
    k: int,
    *,
    coreset: str = "sensitivity",
    n_clusters: int | None = None,
    buffer: int | None = None,
    seed: int = 0,
) -> Subset:
    """Make a coreset of a stream that is read once and never held as a whole.

    Parameters
    ----------
    chunks : iterable of float (any, d)
        The rows as they come, taken as they are (not normalised). How they are cut into chunks makes no difference.
    k : int
        Draws of the last reduction.
    coreset, n_clusters, buffer, seed
        See :class:`StreamCoreset`.

    Returns
    -------
    Subset
        Of the rows by their position in the stream; as of :func:`sensitivity_sample`. ``parameters["held"]`` is the largest
        number of rows that were held at a time, apart from the chunk that came in.

    Raises
    ------
    CoreclipError
        As :class:`StreamCoreset`.
    """
    start = time.perf_counter()
    stream = StreamCoreset(k, coreset=coreset, n_clusters=n_clusters, buffer=buffer, seed=seed)
    for chunk in chunks:
        stream.add(chunk)
    found, probabilities = stream.result()
    parameters: dict[str, Any] = {"coreset": coreset, "buffer": stream.buffer, "held": stream.held}
    if coreset == "sensitivity":
        parameters["n_clusters"] = stream.n_clusters
    return _subset(
        found.indices, found.weights, probabilities, k, "merge-and-reduce", parameters, seed, stream.n_rows, start, None
    )


@dataclass(frozen=True, eq=False)
class _Weighted:
    """Rows of a stream, float (m, d), with their weights, float64 (m,), and positions, int64 (m,)."""

    x: np.ndarray
    weights: np.ndarray
    indices: np.ndarray

    def joined(self, other: "_Weighted") -> "_Weighted":
        return _Weighted(
            np.concatenate([self.x, other.x]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.indices, other.indices]),
        )


class StreamCoreset:
    """A coreset of a stream: blocks of rows, two of a level being merged and reduced to one of the next.

    Parameters
    ----------
    k : int
        Draws of the last reduction, at least 1.
    coreset : {"sensitivity", "lightweight"}
    n_clusters : int or None
        Of ``sensitivity``: centres that costs are taken to; None for 10.
    buffer : int or None
        Rows of a block, at least k; None for 4 k. The error of each of the log2(n / buffer) levels is that of a coreset of this size.
    seed : int

    Attributes
    ----------
    n_rows : int
        Rows that came in.
    held : int
        The most rows that were held at a time: at most ``buffer`` (log2(n / buffer) + 3).

    Raises
    ------
    CoreclipError
        For parameters out of range.
    """

    def __init__(
        self,
        k: int,
        *,
        coreset: str = "sensitivity",
        n_clusters: int | None = None,
        buffer: int | None = None,
        seed: int = 0,
    ) -> None:
        if k < 1:
            raise CoreclipError(f"k = {k} is not allowed: at least 1 draw")
        if coreset not in CORESETS:
            raise CoreclipError(f"unknown coreset {coreset!r}; known: {', '.join(CORESETS)}")
        self.buffer = _DEFAULT_BUFFER * k if buffer is None else buffer
        if self.buffer < k:
            raise CoreclipError(f"buffer = {buffer} is not allowed: at least k = {k} rows; the default is 4 k")
        self.n_clusters = _check_clusters(n_clusters, None)
        self.n_rows = self.held = 0
        self._k, self._coreset, self._seed = k, coreset, seed
        self._pending: list[np.ndarray] = []  # together less than a block
        self._n_pending = self._reductions = 0
        self._levels: dict[int, _Weighted] = {}

    def add(self, chunk: np.ndarray) -> None:
        """Take in some rows.

        Parameters
        ----------
        chunk : float (any, d)

        Raises
        ------
        CoreclipError
            For NaN, infinity, and another width than that of the rows before.
        """
        from coreclip.selection.rows import check_rows

        chunk = np.asarray(chunk)
        if chunk.ndim == 2 and not len(chunk):
            return
        chunk = check_rows(chunk, f"chunk at row {self.n_rows}")
        width = self._width()
        if width not in (None, chunk.shape[1]):
            raise CoreclipError(f"chunk at row {self.n_rows} has {chunk.shape[1]} dimensions, those before {width}")
        at = 0
        while at < len(chunk):
            piece = chunk[at : at + self.buffer - self._n_pending]
            # A copy: the caller may read the next chunk into the same memory.
            self._pending.append(np.array(piece, np.promote_types(piece.dtype, np.float32)))
            self._n_pending += len(piece)
            self.n_rows += len(piece)
            at += len(piece)
            self._note_held()
            if self._n_pending == self.buffer:
                self._rise(self._block(), 0)

    def result(self) -> tuple[_Weighted, np.ndarray]:
        """Reduce all that is held to the coreset; more rows may follow, and another result.

        Returns
        -------
        coreset : rows, weights and positions
            At most k, in the order of their first draw.
        probabilities : float64
            Of each of them in a draw.

        Raises
        ------
        CoreclipError
            For a stream without k rows.
        """
        if self.n_rows < self._k:
            raise CoreclipError(f"k = {self._k} draws of a stream of {self.n_rows} rows; at most as many as there are")
        parts = [self._levels[level] for level in sorted(self._levels, reverse=True)]
        if self._n_pending:
            parts.append(self._block(peek=True))
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.joined(part)
        return self._reduce(whole, self._k, self._reductions)

    def _width(self) -> int | None:
        if self._pending:
            return int(self._pending[0].shape[1])
        return next((int(level.x.shape[1]) for level in self._levels.values()), None)

    def _block(self, *, peek: bool = False) -> _Weighted:
        size = self._n_pending
        block = _Weighted(
            np.concatenate(self._pending), np.ones(size), np.arange(self.n_rows - size, self.n_rows, dtype=np.int64)
        )
        if not peek:
            self._pending, self._n_pending = [], 0
        return block

    def _rise(self, block: _Weighted, level: int) -> None:
        """Put a block in its level; where there is one already, the two become one of the next level."""
        while level in self._levels:
            both = self._levels.pop(level).joined(block)
            self._note_held(len(both.x))
            block, _ = self._reduce(both, self.buffer, self._reductions)
            self._reductions += 1
            level += 1
        self._levels[level] = block

    def _note_held(self, more: int = 0) -> None:
        self.held = max(self.held, self._n_pending + more + sum(len(level.x) for level in self._levels.values()))

    def _reduce(self, block: _Weighted, size: int, reduction: int) -> tuple[_Weighted, np.ndarray]:
        from coreclip.selection.rows import plain_rows

        rows = plain_rows(block.x)
        if self._coreset == "lightweight":
            probabilities = lightness(rows, block.weights)
        else:
            probabilities = sensitivities(
                rows, min(self.n_clusters, len(block.x)), block.weights, self._seed, reduction
            )
        drawn, draws = draw(probabilities, size, self._seed, reduction)
        weights = block.weights[drawn] * draws / (size * probabilities[drawn])
        return _Weighted(block.x[drawn], weights, block.indices[drawn]), probabilities[drawn]


def lightness(rows: "Rows", weights: np.ndarray) -> np.ndarray:
    """Return the probabilities of lightweight coresets.

    Parameters
    ----------
    rows : Rows
    weights : float64 (n,)
        Of the rows, above 0.

    Returns
    -------
    float64 (n,)
        w (1/2 / sum w + 1/2 d^2(x, mean) / sum w d^2), which sum to 1.
    """
    from coreclip.selection.rows import mean_row, squared_distances

    uniform_part = weights / weights.sum()
    costs = weights * squared_distances(rows, mean_row(rows, weights))
    total = costs.sum()
    # Where all rows are equal (to rounding) only the uniform part is left.
    return (uniform_part + costs / total) / 2 if total > 0 else uniform_part


def sensitivities(rows: "Rows", n_clusters: int, weights: np.ndarray, seed: int, epoch: int = 0) -> np.ndarray:
    """Return the probabilities of sensitivity sampling (see :func:`sensitivity_sample`).

    Parameters
    ----------
    rows : Rows
    n_clusters : int
        1 to n.
    weights : float64 (n,)
        Of the rows, above 0; sums, means and sizes of clusters are weighted.
    seed, epoch : int
        Of the k-means++ solution.

    Returns
    -------
    float64 (n,)
        Sums to 1.
    """
    squares, owners = _kmeans_plus_plus(rows, n_clusters, weights, seed, epoch)
    costs = weights * squares
    sizes = np.bincount(owners, weights, minlength=n_clusters)[owners]
    mean = costs.sum() / weights.sum()
    bounds = 4 * weights.sum() / sizes
    if mean > 0:  # else every row is a centre
        a = 16 * (math.log(n_clusters) + 2)
        bounds += a * (squares + 2 * np.bincount(owners, costs, minlength=n_clusters)[owners] / sizes) / mean
    bounds *= weights
    return bounds / bounds.sum()


def draw(probabilities: np.ndarray, k: int, seed: int, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw k rows with replacement; more draws of the same seed and epoch begin with these.

    Returns
    -------
    rows : int64 (at most k,)
        In the order of their first draw.
    draws : int64
        How often each was drawn; they sum to k.
    """
    drawn = _invert(probabilities, uniform(seed, epoch, np.arange(k), _STREAM_DRAWS))
    rows, first, draws = np.unique(drawn, return_index=True, return_counts=True)
    order = np.argsort(first)
    return rows[order], draws[order]


def _invert(masses: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Return the row in which each number of [0, 1) falls when rows lie side by side with widths in proportion to ``masses``."""
    edges = np.cumsum(masses)
    # A product may round up to the last edge, which belongs to no row; and a row of mass 0 is never met.
    last = int(np.flatnonzero(masses)[-1])
    return np.minimum(np.searchsorted(edges, uniforms * edges[-1], side="right"), last)


def _kmeans_plus_plus(
    rows: "Rows", n_clusters: int, weights: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's squared distance to the nearest of the centres drawn, and the number of that centre."""
    from coreclip.selection.rows import Nearest, in_pieces

    nearest = Nearest(rows)
    uniforms = uniform(seed, epoch, np.arange(n_clusters), _STREAM_CENTERS)
    with in_pieces(*rows.values.shape) as run:
        for t in range(n_clusters):
            masses = weights * nearest.squares if t else weights
            if not masses.any():
                break  # every row is a centre, or equal to one
            nearest.add(run, int(_invert(masses, uniforms[t : t + 1])[0]))
    return nearest.squares, nearest.owners


def _sample(
    features: Features | np.ndarray,
    k: int,
    method: str,
    probabilities_of: Callable[["Rows"], np.ndarray],
    modality: str,
    parameters: dict[str, Any],
    seed: int,
) -> Subset:
    from coreclip.selection.rows import unit_rows

    start = time.perf_counter()
    features = as_features(features)
    check_k(k, features.n)
    probabilities = probabilities_of(unit_rows(features, modality))
    rows, draws = draw(probabilities, k, seed)
    chances = probabilities[rows]
    return _subset(
        rows, draws / (k * chances), chances, k, method, {"modality": modality, **parameters}, seed, features.n, start,
        features.fingerprint,
    )  # fmt: skip


def _subset(
    indices: np.ndarray,
    weights: np.ndarray,
    chances: np.ndarray,
    k: int,
    method: str,
    parameters: dict[str, Any],
    seed: int,
    n: int,
    start: float,
    fingerprint: str | None,
) -> Subset:
    scale = float(weights.mean())
    note = f"{k} draws met {len(indices)} pairs; those drawn more than once weigh more"
    return Subset(
        indices=indices,
        weights=weights / scale,
        gains=chances,
        method=method,
        parameters={
            **parameters,
            "draws": k,
            "scale": scale,
            "weights": _WEIGHTS,
            **({"note": note} if len(indices) < k else {}),
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )


def _check_clusters(n_clusters: int | None, n: int | None) -> int:
    if n_clusters is None:
        return _DEFAULT_CLUSTERS if n is None else min(_DEFAULT_CLUSTERS, n)
    if n_clusters < 1 or (n is not None and n_clusters > n):
        upper = "" if n is None else f" to {n}"
        raise CoreclipError(f"n_clusters = {n_clusters} is not allowed: 1{upper or ' or more'}; the default is 10")
    return n_clusters
