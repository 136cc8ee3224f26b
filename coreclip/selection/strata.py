"""Random pairs, drawn by strata: in proportion to the strata, evenly over difficulty, or from some of the classes only.

Coverage-centric coreset selection is that of Zheng et al. 2023 (arXiv 2210.15809); half of the classes as a proxy data set is
Shleifer & Prokop's (2019, arXiv 1906.04887). Left out: choosing CCS's ``beta`` by a search, which needs training.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection.checks import check_k, check_labels
from coreclip.selection.clusters import apportion, groups, take_turns
from coreclip.selection.difficulty import difficulty_scores
from coreclip.selection.features import Features
from coreclip.selection.scores import clip_scores
from coreclip.selection.subset import Subset

_STREAM_STRATA, _STREAM_CLASSES = 131, 132


def stratified(
    n: int,
    k: int,
    *,
    labels: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    signal: str | None = None,
    bins: int = 10,
    passes: int | None = None,
    seed: int = 0,
) -> Subset:
    """Choose k pairs at random, from every stratum in proportion to its size.

    Parameters
    ----------
    n : int
        Pairs to choose from.
    k : int
        1 to n, shared out by largest remainder.
    labels : int (n,) or None
        Class of each pair: the strata where no signal is named.
    signals : mapping of str to array (..., n), or None
    signal : str or None
        Instead: bins of the difficulty of that name, see :func:`coreclip.selection.difficulty_scores`.
    bins : int
        Of as many pairs each as equal scores allow, which share a bin. Pairs without a score are a stratum of their own.
    passes : int or None
        Of the signal; None for its usual number.
    seed : int

    Returns
    -------
    Subset
        Strata take turns, so that prefixes are balanced. Gains are 0 and weights 1.

    Raises
    ------
    CoreclipError
        For neither labels nor a signal, those that do not fit, and parameters out of range.
    """
    start = time.perf_counter()
    check_k(k, n)
    _check_bins(bins)
    parameters: dict[str, Any]
    if signal is not None:
        scores, parameters = difficulty_scores(signals or {}, signal, passes=passes, method="stratified")
        if len(scores) != n:
            raise CoreclipError(f"signal {signal} is of {len(scores)} pairs, n = {n}; give the signals of these pairs")
        strata = _equal_counts(scores, bins)
    elif labels is not None:
        strata, parameters = check_labels(labels, n), {"strata_from": "labels"}
    else:
        raise CoreclipError(
            "stratified needs strata, and the pairs have no labels and no signal is named; "
            "name one, as in stratified(signal=loss), or select from a data set with labels"
        )
    indices, parameters["strata"] = _draw(strata, np.ones(n, bool), k, seed, apportion)
    return _random_choice(indices, n, seed, "stratified", parameters, start)


def ccs(
    k: int,
    *,
    signals: Mapping[str, np.ndarray] | None = None,
    features: Features | None = None,
    signal: str | None = None,
    beta: float = 0.1,
    bins: int = 50,
    passes: int | None = None,
    seed: int = 0,
) -> Subset:
    """Choose k pairs at random, evenly over the range of difficulty, leaving out the hardest.

    Parameters
    ----------
    k : int
        1 to the number of pairs that are left.
    signals : mapping of str to array (..., n), or None
    features : Features or None
    signal : str or None
        What difficulty is measured by: a name of :func:`coreclip.selection.difficulty_scores`, or ``clipscore`` for minus the
        cosine of the features' image and text. None for ``el2n`` where there are signals, else ``clipscore``.
    beta : float
        Share of the pairs with a score that is left out as too hard, at least 0, below 1. The best one rises as k falls: the paper
        has 0 for half of CIFAR-10 and 0.3 for a tenth.
    bins : int
        Of equal width, from the easiest to the hardest pair that is left. An infinite score belongs to the bin at its end.
    passes : int or None
        Of the signal; None for its usual number.
    seed : int

    Returns
    -------
    Subset
        Bins take turns, so that prefixes are balanced. Gains are 0 and weights 1; pairs without a score are not chosen.

    Raises
    ------
    CoreclipError
        For neither signals nor features, a k above the number of pairs that are left, and parameters out of range.
    """
    start = time.perf_counter()
    _check_bins(bins)
    if not 0 <= beta < 1:
        raise CoreclipError(f"beta = {beta} is not allowed: a share that is at least 0 and below 1; the default is 0.1")
    scores, parameters = _difficulty(signals, features, signal, passes)
    n = len(scores)
    check_k(k, n)
    order = np.argsort(scores, kind="stable")  # the easiest first, NaN last
    n_known = n - int(np.isnan(scores).sum())
    n_left = n_known - math.floor(beta * n_known + 0.5)
    if k > n_left:
        raise CoreclipError(
            f"ccs: k = {k}, and {n_left} of {n} pairs are left ({n - n_known} have no score, beta = {beta} leaves out "
            f"{n_known - n_left}); choose at most {n_left} or lower beta"
        )
    left = np.zeros(n, bool)
    left[order[:n_left]] = True
    indices, n_strata = _draw(_equal_widths(scores, left, bins), left, k, seed, ccs_budgets)
    parameters |= {"beta": beta, "bins": bins, "left_out": n_known - n_left, "strata": n_strata}
    fingerprint = None if features is None else features.fingerprint
    return _random_choice(indices, n, seed, "ccs", parameters, start, fingerprint)


def ccs_budgets(sizes: np.ndarray, k: int) -> np.ndarray:
    """Share k out evenly, from the smallest stratum to the largest: what one cannot take goes on to the others.

    Parameters
    ----------
    sizes : int64 (c,)
    k : int
        0 to the sum of the sizes.

    Returns
    -------
    int64 (c,)
        Sums to k; no budget exceeds its size. Among equal sizes the first comes first.

    Raises
    ------
    CoreclipError
        For a k out of range.
    """
    sizes = np.asarray(sizes, np.int64)
    if not 0 <= k <= sizes.sum():
        raise CoreclipError(f"k = {k} can't be shared out among strata of {sizes.sum()} pairs together; 0 to that")
    budgets, rest = np.zeros(len(sizes), np.int64), k
    for turn, stratum in enumerate(np.argsort(sizes, kind="stable")):
        budgets[stratum] = min(int(sizes[stratum]), rest // (len(sizes) - turn))
        rest -= int(budgets[stratum])
    return budgets


def classes(
    labels: np.ndarray | None, k: int | None = None, *, share: float = 0.5, first: bool = False, seed: int = 0
) -> Subset:
    """Choose the pairs of some of the classes, in random order.

    Parameters
    ----------
    labels : int (n,)
        Class of each pair.
    k : int or None
        Keep at most k of them, chosen at random.
    share : float
        Of the classes to keep, to the nearest whole number, at least one.
    first : bool
        Keep the classes of the lowest labels, instead of random ones.
    seed : int

    Returns
    -------
    Subset
        Gains are 0 and weights 1.

    Raises
    ------
    CoreclipError
        For labels that are not there or do not fit, and parameters out of range.
    """
    start = time.perf_counter()
    if labels is None:
        raise CoreclipError("classes needs the class of each pair, and this data set has no labels; use another method")
    labels = check_labels(labels, np.size(labels))
    n = len(labels)
    if k is not None:
        check_k(k, n)
    if not 0 < share <= 1:
        raise CoreclipError(f"share = {share} is not allowed: a share of the classes, above 0, at most 1")
    known = np.unique(labels)
    n_kept = max(1, math.floor(share * len(known) + 0.5))
    kept = known[:n_kept] if first else known[permutation(len(known), seed, stream=_STREAM_CLASSES)[:n_kept]]
    order = permutation(n, seed, stream=_STREAM_STRATA)
    indices = order[np.isin(labels[order], kept)][:k]
    parameters = {"share": share, "first": first, "classes": n_kept, "of_classes": len(known)}
    return _random_choice(indices, n, seed, "classes", parameters, start)


def _difficulty(
    signals: Mapping[str, np.ndarray] | None, features: Features | None, signal: str | None, passes: int | None
) -> tuple[np.ndarray, dict[str, Any]]:
    if signal is None:
        signal = "el2n" if signals else "clipscore"
        if not signals and features is None:
            raise CoreclipError(
                "ccs needs the signals of a training run, or features of image and text; give one by --signals or --features"
            )
    if signal != "clipscore":
        return difficulty_scores(signals or {}, signal, passes=passes, method="ccs")
    if passes is not None:
        raise CoreclipError(
            f"passes = {passes} has no meaning for clipscore, which is of no training run; leave it out"
        )
    if features is None:
        raise CoreclipError("ccs(signal=clipscore) needs features and none are given; make them with coreclip embed")
    return -clip_scores(features).astype(np.float64), {"signal": "clipscore"}


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise CoreclipError(f"bins = {bins} is not allowed: at least 1")


def _equal_counts(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return each score's bin, of as many pairs each as ties allow; ``bins`` for NaN."""
    known = np.sort(scores[~np.isnan(scores)])
    edges = known[np.arange(1, bins) * len(known) // bins] if len(known) else known
    return np.where(np.isnan(scores), bins, np.searchsorted(edges, scores, side="right"))


def _equal_widths(scores: np.ndarray, left: np.ndarray, bins: int) -> np.ndarray:
    """Return each score's bin, of equal widths between the lowest and the highest finite score that is left."""
    finite = scores[left & np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    place = np.zeros(len(scores)) if low == high else (np.clip(scores, low, high) - low) / (high - low)
    place = np.where(np.isposinf(scores), 1, np.nan_to_num(place))
    return np.minimum((place * bins).astype(np.int64), bins - 1)


def _draw(
    strata: np.ndarray, left: np.ndarray, k: int, seed: int, share_out: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[np.ndarray, int]:
    """Return k random pairs of those left, strata taking turns, and the number of strata."""
    order = permutation(len(strata), seed, stream=_STREAM_STRATA)
    order = order[left[order]]
    members = [order[rows] for rows in groups(strata[order])]  # each in random order
    budgets = share_out(np.array([len(rows) for rows in members]), k)
    chosen = np.concatenate([rows[:budget] for rows, budget in zip(members, budgets, strict=True)])
    return chosen[take_turns(budgets)], len(members)


def _random_choice(
    indices: np.ndarray,
    n: int,
    seed: int,
    method: str,
    parameters: dict[str, Any],
    start: float,
    fingerprint: str | None = None,
) -> Subset:
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=np.zeros(len(indices)),
        method=method,
        parameters=parameters,
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )
