"""Running selections in stages: ``semdedup(eps=0.05) | clipscore(keep=0.6) | facility-location``.

Each stage chooses among the survivors of the one before. ``keep=`` (a fraction of what comes in) or ``k=`` says how many a stage
leaves; the last one leaves the fraction or k of the whole selection. ``a & b`` and ``a + b`` are the intersection and the union
of what the two choose among the same pairs; ``a @ class`` and ``a @ cluster`` run a method in each group. The language itself is
in ``expression``.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import hash64
from coreclip.selection.clusters import apportion, groups, share_equally, spherical_kmeans, take_turns
from coreclip.selection.expression import Combination, Node, Stage, count_of, describe, fail, parse, stages_of
from coreclip.selection.features import Features
from coreclip.selection.registry import Inputs
from coreclip.selection.subset import NoPairChosen, Subset

_STREAM_GROUPS = 141


@dataclass(frozen=True)
class _Request:
    """What the stages of one selection share."""

    expression: str
    seed: int
    single: bool  # one method alone: its errors need no caret


def select(
    features: Features | None,
    n: int,
    *,
    method: str,
    fraction: float | None = None,
    k: int | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
) -> Subset:
    """Run one method, or several in stages.

    Parameters
    ----------
    features : Features or None
        Of the n pairs; None is enough for ``random``.
    n : int
        Pairs of the data set.
    method : str
        See :func:`parse`.
    fraction : float or None
        Of the n pairs to choose, above 0, at most 1.
    k : int or None
        Pairs to choose, 1 to n; instead of ``fraction``. Neither is needed where the last stage says how many it keeps.
    signals : mapping of str to array, or None
        Of a training run, the last axis being the pairs.
    metadata : mapping of str to array (n, ...), or None
        What else is known of the pairs: ``caption``, ``width``, ``height``, ``uid``, ``thumbnail`` ...
    labels : int (n,) or None
        Class of each pair.
    seed : int
    fingerprint : str or None
        The data set's; must agree with the features' where both are known.

    Returns
    -------
    Subset
        Weights, gains, objective and upper bound are those of the last stage, over the pairs that reached it. With several stages
        ``parameters["stages"]`` lists each one's numbers; ``parameters["note"]`` says so when fewer pairs than asked for were left.
        A combination is what :meth:`Subset.intersection` or :meth:`Subset.union` makes of its operands, cut to the number asked
        for in that order. In groups each one's gains and weights are its own, the objective and its bound are the sums over the
        groups with their budgets, and groups take turns, so that prefixes are balanced.

    Raises
    ------
    CoreclipError
        For a wrong expression, a wrong number of pairs, and whatever the methods refuse.
    """
    start = time.perf_counter()
    nodes = parse(method)
    inputs = _check_inputs(features, n, signals or {}, metadata or {}, labels, fingerprint)
    asked = _check_budget(method, nodes, n, fraction, k)
    single = len(nodes) == 1 and isinstance(nodes[0], Stage)
    chosen = _run_stages(nodes, inputs, asked, _Request(method, seed, single))
    return dataclasses.replace(
        chosen,
        parameters=_note(asked, chosen.k) | chosen.parameters,  # a method that knows why there are fewer says it better
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint or (features.fingerprint if features is not None else None),
    )


def _run_stages(nodes: Sequence[Node], inputs: Inputs, asked: int | None, request: _Request) -> Subset:
    start = time.perf_counter()
    survivors: np.ndarray | None = None  # None for all: no copy of the features is made then
    reports: list[dict[str, Any]] = []
    for position, node in enumerate(nodes):
        here = inputs if survivors is None else inputs.take(survivors)
        budget = None if asked is None or position < len(nodes) - 1 else min(asked, here.n)
        chosen = _run(node, here, budget, request)
        reached = survivors
        survivors = chosen.indices if survivors is None else survivors[chosen.indices]
        reports.append(
            {
                "method": node.name,
                "n": here.n,
                "k": chosen.k,
                "seconds": chosen.seconds,
                "parameters": chosen.parameters,
            }
        )
    assert survivors is not None
    scores = chosen.scores
    if scores is not None and reached is not None:
        scores = np.full(inputs.n, np.nan)
        scores[reached] = chosen.scores
    return dataclasses.replace(
        chosen,
        indices=survivors,
        scores=scores,
        method=describe(nodes),
        parameters=reports[0]["parameters"] if len(reports) == 1 else {"stages": reports},
        seed=request.seed,
        n=inputs.n,
        seconds=time.perf_counter() - start,
    )


def _run(node: Node, inputs: Inputs, budget: int | None, request: _Request) -> Subset:
    if isinstance(node, Combination):
        return _run_combination(node, inputs, budget, request)
    return _run_stage(node, inputs, budget, request)


def _run_combination(node: Combination, inputs: Inputs, budget: int | None, request: _Request) -> Subset:
    first, *others = (_run_stages(operand, inputs, None, request) for operand in node.operands)
    try:
        chosen = first.intersection(*others) if node.mark == "&" else first.union(*others)
    except NoPairChosen:
        fail(request.expression, node.column, "no pair is in all of these; let each of them keep more")
    return chosen if budget is None or chosen.k <= budget else chosen.prefix(budget)


def _run_stage(stage: Stage, inputs: Inputs, budget: int | None, request: _Request) -> Subset:
    sizes = [size for size in (stage.size(inputs.n), budget) if size is not None]
    size = min(sizes) if sizes else None
    if stage.groups is not None:
        return _run_in_groups(stage, inputs, size, request)
    try:
        return stage.method.run(inputs, size, request.seed, **stage.parameters)
    except CoreclipError as error:
        if request.single:
            raise
        fail(request.expression, stage.column, f"{stage.name}: {error}")


def _run_in_groups(stage: Stage, inputs: Inputs, size: int | None, request: _Request) -> Subset:
    assert stage.groups is not None
    start = time.perf_counter()
    names, members = _members(stage, inputs, request)
    budgets: list[int | None] = [None] * len(members)
    if size is not None:
        share = share_equally if stage.groups.equal else apportion
        budgets = share(np.array([len(rows) for rows in members]), size).tolist()
    served: list[np.ndarray] = []
    runs: list[Subset] = []
    for number, (rows, budget) in enumerate(zip(members, budgets, strict=True)):
        if budget == 0:
            continue
        try:
            run = stage.method.run(inputs.take(rows), budget, _seed_of(request.seed, number), **stage.parameters)
        except NoPairChosen:
            continue  # a filter may leave nothing of a group
        except CoreclipError as error:
            where = f"{stage.groups.by} {names[number]}, {len(rows)} pairs"
            fail(request.expression, stage.column, f"{stage.name} in {where}: {error}")
        runs.append(run)
        served.append(rows[run.indices])
    if not runs:
        fail(
            request.expression, stage.column, f"{stage.name} leaves no pair of any {stage.groups.by}; let it keep more"
        )
    order = take_turns([run.k for run in runs])
    report = {
        "by": stage.groups.by,
        "quota": "equal" if stage.groups.equal else "proportional",
        "number": len(members),
        "without_pairs": len(members) - len(runs),
    }
    return Subset(
        indices=np.concatenate(served)[order],
        weights=np.concatenate([run.weights for run in runs])[order],
        gains=np.concatenate([run.gains for run in runs])[order],
        objective=_sum([run.objective for run in runs]),
        upper_bound=_sum([run.upper_bound for run in runs]),
        method=stage.describe(),
        parameters={**_common(runs), "groups": report},
        seed=request.seed,
        n=inputs.n,
        seconds=time.perf_counter() - start,
        fingerprint=runs[0].fingerprint,
    )


def _members(stage: Stage, inputs: Inputs, request: _Request) -> tuple[list[int], list[np.ndarray]]:
    """Return the number of each group that is not empty, and its rows."""
    wanted = stage.groups
    assert wanted is not None
    if wanted.by == "class":
        if inputs.labels is None:
            fail(request.expression, wanted.column, "the data set has no class labels; group by @ cluster")
        labels = inputs.labels
    elif inputs.features is None or inputs.features.image is None:
        fail(
            request.expression,
            wanted.column,
            "clusters are of image features and none are given; make them with coreclip embed",
        )
    else:
        n_clusters = wanted.clusters or max(1, math.isqrt(inputs.n))
        try:
            labels, _ = spherical_kmeans(inputs.features.vectors("image"), n_clusters, request.seed)
        except CoreclipError as error:
            fail(request.expression, wanted.column, str(error))
    members = groups(labels)
    return [int(labels[rows[0]]) for rows in members], members


def _seed_of(seed: int, number: int) -> int:
    """Return the seed of a group; one seed for all would choose at the same places in groups of the same size."""
    return seed if not number else int(hash64(seed, 0, np.array([number]), _STREAM_GROUPS)[0] >> np.uint64(33))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _common(runs: list[Subset]) -> dict[str, Any]:
    """Return the parameters that all runs report alike."""
    first, *others = (run.parameters for run in runs)
    return {name: value for name, value in first.items() if all(repr(o.get(name)) == repr(value) for o in others)}


def _note(asked: int | None, left: int) -> dict[str, str]:
    if asked is not None and left < asked:
        return {"note": f"{left} pairs instead of the {asked} asked for: the stages left no more"}
    return {}


def _check_inputs(
    features: Features | None,
    n: int,
    signals: Mapping[str, np.ndarray],
    metadata: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    fingerprint: str | None,
) -> Inputs:
    if features is not None and features.n != n:
        raise CoreclipError(f"the features are of {features.n} pairs, the data set has {n}; embed this data set")
    if features is not None and None not in (features.fingerprint, fingerprint) and features.fingerprint != fingerprint:
        raise CoreclipError(
            f"the features were made from the data set with fingerprint {features.fingerprint}, this one has {fingerprint}; "
            f"embed this data set"
        )
    if labels is not None and np.shape(labels) != (n,):
        raise CoreclipError(f"labels have shape {np.shape(labels)}; it must be ({n},), one for each pair")
    for name, signal in signals.items():
        if np.shape(signal)[-1:] != (n,):
            raise CoreclipError(f"signal {name} has shape {np.shape(signal)}; its last axis must be the {n} pairs")
    for name, column in metadata.items():
        if np.shape(column)[:1] != (n,):
            raise CoreclipError(f"metadata {name} have shape {np.shape(column)}; the first axis must be the {n} pairs")
    return Inputs(n, features, None if labels is None else np.asarray(labels), signals, metadata)


def _check_budget(expression: str, nodes: Sequence[Node], n: int, fraction: float | None, k: int | None) -> int | None:
    if fraction is not None and k is not None:
        raise CoreclipError(f"fraction = {fraction} and k = {k} are both given; give one of them")
    if fraction is not None and not 0 < fraction <= 1:
        raise CoreclipError(f"fraction = {fraction} is not allowed: above 0, at most 1")
    if k is not None and not 1 <= k <= n:
        raise CoreclipError(f"k = {k} of {n} pairs is not allowed: 1 to {n}")
    asked = count_of(fraction, n) if fraction is not None else k
    _check_sizes(expression, nodes[:-1])
    if isinstance(nodes[-1], Combination):
        _check_sizes(expression, nodes[-1:])  # what is asked for is cut from its outcome
    elif asked is None:
        _check_sizes(expression, nodes[-1:], "give a fraction or k")
    return asked


def _check_sizes(expression: str, nodes: Sequence[Node], remedy: str | None = None) -> None:
    """Refuse a method that says nowhere how many pairs it leaves."""
    for stage in stages_of(nodes):
        if stage.keep is None and stage.k is None and not stage.method.filters:
            mend = remedy or f"write {stage.name}(keep=0.5) or {stage.name}(k=1000)"
            fail(expression, stage.column, f"{stage.name} does not say how many pairs it leaves; {mend}")
