"""Facility location over parts of the pairs: GreeDi, RandGreeDi, and more rounds of them where there are many candidates.

GreeDi after Mirzasoleiman et al. 2013 (arXiv 1411.0541), RandGreeDi after Barbosa et al. 2015 (arXiv 1502.02606): each part's
picks are made by themselves, by one process or one machine each, and a last greedy chooses among the union of them. Left out:
the transport between machines (:func:`select_part` is what to run there), and other functions than facility location.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.randomness import uniform
from coreclip.selection.checks import check_indices, check_k
from coreclip.selection.facility import (
    DEFAULT_NEIGHBORS,
    DENSE_LIMIT,
    facility_location,
    maximise_features,
    resolve_neighbors,
)
from coreclip.selection.features import MODALITIES, Features, as_features
from coreclip.selection.subset import Subset

REPRESENTED = ("part", "all")

_ALL_ENTRIES = 50_000_000  # similarities of pairs with candidates, all of which are kept: 0.2 GB
_STREAM_PARTS = 161


@dataclass(frozen=True, eq=False)
class PartPicks:
    """What was picked in a part.

    Attributes
    ----------
    indices : int64 (k,)
        Rows of the features that were given, in order of choice.
    gains : float64 (k,)
        What each added; they sum to the objective.
    objective : float
        Over the pairs that the picks were to represent.
    """

    indices: np.ndarray
    gains: np.ndarray
    objective: float


def select_part(
    features: Features | np.ndarray | str | Path,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    represented: str = "part",
    modality: str = "image",
    neighbors: int | None = None,
) -> PartPicks:
    """Pick k pairs of a part by facility location; a function of its arguments that any process or machine can run.

    Parameters
    ----------
    features : Features, float (n, d), or a path that :meth:`Features.load` reads
        A path is the least to send: an ``.npy`` is memory-mapped, and only the part is read.
    k : int
        At least 1; a part of fewer pairs is picked whole.
    candidates : int (m,) or None
        The part, as rows of the features; None for all of them.
    represented : {"part", "all"}
        The pairs over which the objective is summed up: those of the part, or all of the features.
    modality : {"image", "text", "both"}
    neighbors : int or None
        Similarities kept per represented pair; None keeps all where they fit, and 64 above.

    Returns
    -------
    PartPicks

    Raises
    ------
    CoreclipError
        For parameters out of range, candidates that are no rows or listed twice, and features that lack the modality.
    """
    from coreclip.selection.greedy import maximise
    from coreclip.selection.representation import compare_parts

    loaded = _open(features)
    if k < 1:
        raise CoreclipError(f"k = {k} is not allowed: at least 1")
    _check_common(represented, modality, neighbors)
    rows = np.arange(loaded.n) if candidates is None else _check_candidates(candidates, loaded.n)
    k = min(k, len(rows))
    if represented == "all" and len(rows) < loaded.n:
        kept = _kept(loaded.n, len(rows), neighbors)
        found = maximise(compare_parts(loaded, modality, [rows], kept)[1], np.ones(loaded.n), k)
    else:
        part = loaded if candidates is None else loaded.take(rows)
        settings: dict[str, Any] = {"optimizer": "lazy"}
        kept_of_part = resolve_neighbors(neighbors, part.n)
        found = maximise_features(part, k, modality, kept_of_part, np.ones(part.n), settings)
    return PartPicks(rows[found.picks], found.gains, found.objective)


def greedi(
    features: Features | np.ndarray | str | Path,
    k: int,
    *,
    parts: int | None = None,
    rounds: int = 1,
    picks: int | None = None,
    randomised: bool = True,
    represented: str = "part",
    capacity: int = DENSE_LIMIT,
    workers: int = 1,
    neighbors: int | None = None,
    modality: str = "image",
    seed: int = 0,
) -> Subset:
    """Choose k pairs by facility location in each of several parts, and then among what was picked in them.

    Parameters
    ----------
    features : Features, float (n, d), or a path that :meth:`Features.load` reads
        Held once; a worker gets one part at a time, and opens a path by itself.
    k : int
        1 to n.
    parts : int or None
        1 to n; None for the fewest of which each holds at most ``capacity`` pairs.
    rounds : int
        At most. After each but the last, picks of more than ``capacity`` pairs are cut into parts again, in which they alone are
        candidates (and represented, with ``represented="part"``). A round that would not leave fewer, or fewer than k, is left out.
    picks : int or None
        Of each part; None for k, which the guarantees are of. With k near the size of a part nothing is gained by parts: say less.
    randomised : bool
        RandGreeDi: each pair is put into a random part, by itself. False cuts the pairs in their order (GreeDi).
    represented : {"part", "all"}
        What a part's picks are to represent: its own pairs, which needs nothing of the other parts, or all pairs.
    capacity : int
        Pairs that fit together.
    workers : int
        Processes; the choice is the same for every number. A script that asks for more than 1 must guard its main part by
        ``if __name__ == "__main__"``, as it is imported by each of them.
    neighbors : int or None
        Similarities kept per pair in the parts, and candidates kept per pair in the last step; None keeps all where they fit, and
        64 above.
    modality : {"image", "text", "both"}
    seed : int
        Of the random parts.

    Returns
    -------
    Subset
        The better, by the exact objective over all pairs, of the choice among all picks and the picks of the best part, which are
        filled up from the others where they are fewer than k. Gains are exact and sum to the objective. ``parameters`` has both
        objectives (``merged_objective``, ``best_part_objective``), which won (``chosen``), and the number of ``candidates`` of the
        last step. One part is :func:`facility_location` itself, its upper bound included; for more parts there is none, as it would
        take the similarities of all pairs.

    Raises
    ------
    CoreclipError
        For parameters out of range, parts that have fewer than k picks together, and features that lack the modality.

    Notes
    -----
    With m parts, one round, ``represented="all"`` and all similarities kept, the objective is at least (1 - 1/e) / min(m, k) of
    the best for any parts, and (1 - 1/e) / 2 of it in expectation for random ones. With ``represented="part"`` a part's objective
    is a sample of the whole one: for random parts that are large the two differ little, as the first paper shows of decomposable
    functions; for parts cut from an order that means something they may differ much, and neither guarantee holds.
    """
    start = time.perf_counter()
    loaded = _open(features)
    n = loaded.n
    check_k(k, n)
    _check_common(represented, modality, neighbors)
    m = _check_cut(n, k, parts, rounds, picks, capacity, workers)
    settings = {"represented": represented, "modality": modality, "neighbors": neighbors}
    if m == 1:
        whole = facility_location(loaded, k, modality=modality, neighbors=neighbors, seed=seed)
        parameters = whole.parameters | {"parts": 1, "rounds": 0, "candidates": n, "chosen": "merged"}
        indices, gains, objective, bound = whole.indices, whole.gains, whole.objective, whole.upper_bound
    else:
        source = features if isinstance(features, str | Path) else loaded

        def run(cut: list[np.ndarray]) -> list[np.ndarray]:
            return _run_parts(source, loaded, cut, picks or k, workers, settings)

        lists, done = _rounds(n, k, m, rounds, picks or k, capacity, seed if randomised else None, run)
        indices, gains, report = _merge(loaded, k, lists, modality, neighbors)
        objective, bound = float(gains.sum()), None
        parameters = settings | {"parts": m, "rounds": done, "randomised": randomised} | report
    return Subset(
        indices=indices,
        weights=np.ones(k),
        gains=gains,
        objective=objective,
        upper_bound=bound,
        method="greedi",
        parameters=parameters,
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=loaded.fingerprint,
    )


def _rounds(
    n: int,
    k: int,
    m: int,
    rounds: int,
    picks: int,
    capacity: int,
    seed: int | None,
    run: Callable[[list[np.ndarray]], list[np.ndarray]],
) -> tuple[list[np.ndarray], int]:
    """Return the picks of each part of the last round, and the rounds made."""
    cut = _cut(np.arange(n), m, seed, 0)
    if _left(cut, picks) < k:
        raise CoreclipError(
            f"picks = {picks} of each of {len(cut)} parts are {_left(cut, picks)} pairs, fewer than k = {k}; raise picks"
        )
    lists = run(cut)
    for done in range(1, rounds):
        candidates = np.sort(np.concatenate(lists))
        if len(candidates) <= capacity:
            return lists, done
        cut = _cut(candidates, _parts_for(len(candidates), capacity), seed, done)
        if not k <= _left(cut, picks) < len(candidates):
            return lists, done
        lists = run(cut)
    return lists, rounds


def _cut(candidates: np.ndarray, m: int, seed: int | None, number: int) -> list[np.ndarray]:
    """Return m parts of the candidates, each ascending, without empty ones; by their order where there is no seed."""
    if seed is None:
        return [part for part in np.array_split(candidates, m) if len(part)]
    part_of = (uniform(seed, number, candidates, _STREAM_PARTS) * m).astype(np.int64)
    order = np.argsort(part_of, kind="stable")
    edges = np.cumsum(np.bincount(part_of, minlength=m))[:-1]
    return [part for part in np.split(candidates[order], edges) if len(part)]


def _left(cut: list[np.ndarray], picks: int) -> int:
    return sum(min(picks, len(part)) for part in cut)


def _parts_for(n: int, capacity: int) -> int:
    # Random parts differ in size: seven standard deviations are left free.
    return 1 if n <= capacity else -(-n // max(-(-capacity // 2), capacity - 7 * math.isqrt(capacity)))


def _run_parts(
    source: Features | str | Path,
    loaded: Features,
    cut: list[np.ndarray],
    picks: int,
    workers: int,
    settings: dict[str, Any],
) -> list[np.ndarray]:
    """Return the picks of each part, in the order of the parts."""
    local = settings["represented"] == "part" and isinstance(source, Features)

    def calls() -> Iterator[tuple[Any, int, dict[str, Any]]]:
        for part in cut:
            # Each part is taken out when its turn comes, so that no more of them exist than there are workers.
            given = {} if local else {"candidates": part}
            yield (loaded.take(part) if local else source), picks, given | settings

    found = []
    with Progress(len(cut), "parts", "parts") as progress:
        for part, result in zip(cut, _results(calls(), workers), strict=True):
            found.append(part[result.indices] if local else result.indices)
            progress.advance()
    return found


def _results(calls: Iterator[tuple[Any, int, dict[str, Any]]], workers: int) -> Iterator[PartPicks]:
    if workers == 1:
        for source, picks, keywords in calls:
            yield select_part(source, picks, **keywords)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from multiprocessing import get_context

    # Spawned, not forked: the threads of numba, of BLAS and of the caller do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: deque[Future[PartPicks]] = deque()
        for source, picks, keywords in calls:
            running.append(pool.submit(select_part, source, picks, **keywords))
            if len(running) == workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _merge(
    features: Features, k: int, lists: Sequence[np.ndarray], modality: str, neighbors: int | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the better of the choice among all picks and the best part's picks, its gains, and what to note."""
    from coreclip.selection.greedy import maximise
    from coreclip.selection.representation import compare_parts, represent

    candidates = np.sort(np.concatenate(lists))
    kept = _kept(features.n, len(candidates), neighbors)
    gains_of_parts, similarity = compare_parts(features, modality, lists, kept)
    merged = candidates[maximise(similarity, np.ones(features.n), k).picks]
    merged_gains = represent(features, modality, merged)[1]
    best = int(np.argmax([gains[:k].sum() for gains in gains_of_parts]))
    own, own_gains = lists[best][:k], gains_of_parts[best][:k]
    if len(own) < k:
        own = candidates[_go_on(similarity, np.searchsorted(candidates, own), features.n, k)]
        own_gains = represent(features, modality, own)[1]
    objectives = {"merged_objective": float(merged_gains.sum()), "best_part_objective": float(own_gains.sum())}
    is_merged = objectives["merged_objective"] >= objectives["best_part_objective"]
    report = {"candidates": len(candidates), "candidates_per_pair": kept, **objectives}
    if is_merged:
        return merged, merged_gains, report | {"chosen": "merged"}
    return own, own_gains, report | {"chosen": "best part"}


def _go_on(similarity: Any, picks: np.ndarray, n: int, k: int) -> np.ndarray:
    """Return the picks and others that greedy adds to them, k together."""
    from coreclip.selection.functions import facility
    from coreclip.selection.greedy import add_all, candidate_gains, lazy_from

    function = facility(similarity, np.ones(n))
    add_all(function, picks)
    more, gains = np.empty(k - len(picks), np.int64), np.empty(k - len(picks))
    lazy_from(function, candidate_gains(function), np.setdiff1d(np.arange(function.m), picks), more, gains)
    return np.concatenate([picks, more])


def _kept(n: int, m: int, neighbors: int | None) -> int:
    """Return how many of m candidates are kept for each of n pairs."""
    if neighbors is None:
        neighbors = m if n * m <= _ALL_ENTRIES else DEFAULT_NEIGHBORS
    return min(neighbors, m)


def _open(features: Features | np.ndarray | str | Path) -> Features:
    return Features.load(features) if isinstance(features, str | Path) else as_features(features)


def _check_common(represented: str, modality: str, neighbors: int | None) -> None:
    if represented not in REPRESENTED:
        raise CoreclipError(f"unknown represented = {represented!r}; known: {', '.join(REPRESENTED)}")
    if modality not in MODALITIES:
        raise CoreclipError(f"unknown modality {modality!r}; known: {', '.join(MODALITIES)}")
    if neighbors is not None and neighbors < 1:
        raise CoreclipError(f"neighbors = {neighbors} is not allowed: at least 1, the pair itself")


def _check_candidates(candidates: np.ndarray, n: int) -> np.ndarray:
    rows = np.sort(check_indices(candidates, n, "candidates"))
    if not len(rows):
        raise CoreclipError("a part without candidates has nothing to pick; leave it out")
    twice = rows[1:][np.diff(rows) == 0]
    if len(twice):
        raise CoreclipError(f"candidate {twice[0]} is listed twice; list each once")
    return rows


def _check_cut(n: int, k: int, parts: int | None, rounds: int, picks: int | None, capacity: int, workers: int) -> int:
    """Return the number of parts of the first round."""
    for name, value in (("rounds", rounds), ("capacity", capacity), ("workers", workers), ("picks", picks)):
        if value is not None and value < 1:
            raise CoreclipError(f"{name} = {value} is not allowed: at least 1")
    if parts is not None and not 1 <= parts <= n:
        raise CoreclipError(f"parts = {parts} of {n} pairs is not allowed: 1 to {n}")
    m = _parts_for(n, capacity) if parts is None else parts
    if picks is not None and m * picks < k:
        raise CoreclipError(
            f"picks = {picks} of each of {m} parts are {m * picks} pairs, fewer than k = {k}; raise picks"
        )
    return m
