"""GradMatch (Killamsetty et al. 2021, arXiv 2103.00123): few pairs, and weights, whose gradients add up to those of all.

Per class, min over w >= 0 with at most k entries above 0 of ||sum_j w_j g_j - sum_i g_i||^2 + lambda ||w||^2, by orthogonal
matching pursuit: the pair whose gradient agrees best with what is missing comes in, all weights are fitted again under w >= 0
(the active sets of Lawson & Hanson 1974, on a Cholesky factor that changes by a row at a time). A pair whose weight falls to 0
leaves. Left out: the variant that matches batches, and selecting again during training.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.selection.checks import check_k, check_labels
from coreclip.selection.clusters import take_turns
from coreclip.selection.coresets import classes_of, describe, share
from coreclip.selection.features import Features
from coreclip.selection.gradients import FactoredGradients, as_gradients, clip_gradients
from coreclip.selection.subset import Subset

if TYPE_CHECKING:
    from coreclip.selection.triangular import Cholesky

_LEAST = 1e-10  # agreement with what is missing that counts, of the largest that there could be


@dataclass(frozen=True, eq=False)
class Match:
    """A weighted sum of gradients.

    Attributes
    ----------
    indices : int64 (at most k,)
        In the order in which they came in, classes taking turns.
    weights : float64 (at most k,)
        Above 0; not rescaled.
    gains : float64 (at most k,)
        What each took off the objective that is minimised, together with those that left because of it; they sum to ``objective``.
    objective, upper_bound : float
        What was taken off, and what there was: the sum over the served classes of ||sum_i g_i||^2.
    relative_error : float
        ||sum_j w_j g_j - sum_i g_i|| / ||sum_i g_i||, over all rows; 0 where both are.
    unserved : int
        Rows of classes whose share of k is 0: nothing stands for them.
    """

    indices: np.ndarray
    weights: np.ndarray
    gains: np.ndarray
    objective: float
    upper_bound: float
    relative_error: float
    unserved: int


def gradmatch(
    features: Features,
    k: int,
    *,
    lam: float = 0.1,
    temperature: float | None = None,
    bank: int = 1024,
    labels: np.ndarray | None = None,
    clusters: int | None = None,
    seed: int = 0,
) -> Subset:
    """Choose at most k pairs, and weights, so that the weighted sum of their gradients is near the sum of all.

    Parameters
    ----------
    features : Features
        With image and text.
    k : int
        1 to n, shared out among the classes in proportion to their sizes.
    lam : float
        Weight of ||w||^2, in units of the class's mean squared gradient, 0 or more. It spreads the weights; with 0 a class needs no
        more pairs than gradients have dimensions.
    temperature, bank, labels, clusters, seed
        As of :func:`coreclip.selection.craig`.

    Returns
    -------
    Subset
        ``weights`` is w / ``scale``, of mean 1, with ``scale`` in the parameters. Pairs are in the order in which they came in; gains
        are what they took off the objective of the fit, which is what the objective sums up; the upper bound is the fit that misses
        nothing. Fewer than k are chosen, and ``parameters["note"]`` says so, where no further pair of a class would improve the fit:
        nothing is filled up.

    Raises
    ------
    CoreclipError
        For a missing modality, labels that do not fit, parameters out of range, and gradients that add up to 0 in every class.
    """
    start = time.perf_counter()
    n = features.n
    check_k(k, n)
    _check_lam(lam)
    gradients = np.hstack(clip_gradients(features, temperature=temperature, bank=bank, seed=seed))
    classes = classes_of(features, labels, clusters, seed)
    found = gradmatch_of_gradients(gradients, k, classes, lam=lam)
    scale = float(found.weights.mean())
    return Subset(
        indices=found.indices,
        weights=found.weights / scale,
        gains=found.gains,
        objective=found.objective,
        upper_bound=found.upper_bound,
        method="gradmatch",
        parameters={
            "lam": lam,
            **describe(features, temperature, bank, classes, labels),
            "scale": scale,
            "weights": "w / scale, where w are the weights whose sum of gradients is near that of all",
            "relative_error": found.relative_error,
            **_notes(found, k),
        },
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


def gradmatch_of_gradients(
    gradients: np.ndarray | FactoredGradients, k: int, classes: np.ndarray, *, lam: float = 0.1
) -> Match:
    """Run GradMatch on given gradients.

    Parameters
    ----------
    gradients : float (n, d) or FactoredGradients
        The factors of a classifier's are used as they are: a pick costs O(m c d) for a class of m rows, and no gradient is formed.
    k : int
        1 to n.
    classes : int64 (n,)
        A class's rows are matched by its own.
    lam : float
        See :func:`gradmatch`.

    Returns
    -------
    Match

    Raises
    ------
    CoreclipError
        For parameters out of range, and gradients that add up to 0 in every class.
    """
    gradients = as_gradients(gradients)
    check_k(k, len(gradients))
    _check_lam(lam)
    served, unserved = share(check_labels(classes, len(gradients)), k)
    fits = []
    with Progress(k, "gradmatch", "picks") as progress:
        for rows, budget in served:
            fits.append(_fit(gradients.take(rows), budget, lam))
            progress.advance(budget)
    chosen = [rows[fit.picks] for (rows, _), fit in zip(served, fits, strict=True)]
    if not sum(len(picks) for picks in chosen):
        raise CoreclipError("gradmatch: the gradients of each class add up to 0, there is nothing to match; use craig")
    order = take_turns([len(picks) for picks in chosen])
    indices, weights = np.concatenate(chosen), np.concatenate([fit.weights for fit in fits])
    return Match(
        indices[order],
        weights[order],
        np.concatenate([fit.gains for fit in fits])[order],
        float(sum(fit.gains.sum() for fit in fits)),
        float(sum(fit.bound for fit in fits)),
        _relative_error(gradients, indices, weights),
        len(unserved),
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    picks: np.ndarray
    weights: np.ndarray
    gains: np.ndarray
    bound: float


def _fit(gradients: FactoredGradients, budget: int, lam: float) -> _Fit:
    """Match the sum of one class's gradients."""
    from coreclip.selection.triangular import Cholesky

    target = gradients.total()
    wanted = gradients.project(target)  # <g_i, sum of all>
    squares = gradients.squared_norms()
    ridge = lam * float(squares.mean())
    least = _LEAST * float(np.sqrt(squares.max()) * np.sqrt(squares).sum())
    factor, picks, weights, gains = Cholesky(), np.empty(0, np.int64), np.empty(0), np.empty(0)
    missing, blocked, value = wanted.copy(), np.zeros(len(gradients), bool), 0.0
    while len(picks) < budget:
        missing[picks] = missing[blocked] = -np.inf
        j = int(np.argmax(missing))
        if missing[j] <= least:
            break
        row = gradients.dot(picks, np.array([j]))[:, 0]
        if not factor.append(row, float(squares[j]) + ridge, float(wanted[j])):
            blocked[j] = True  # in the span of the others, to rounding
            continue
        picks, weights, gains = np.append(picks, j), np.append(weights, 0.0), np.append(gains, 0.0)
        picks, weights, gains = _fit_again(factor, picks, weights, gains)
        if j in picks and factor.value > value:
            blocked[:] = False
        else:
            blocked[j] = True  # it would come in by rounding only
        value = factor.value
        gains[-1:] += value - gains.sum()  # the newcomer's own, and those of the pairs that left
        fitted = gradients.total(picks, weights)
        missing = gradients.project([whole - part for whole, part in zip(target, fitted, strict=True)])
    return _Fit(picks, weights, gains, float(sum((part**2).sum() for part in target)))


def _fit_again(
    factor: "Cholesky", picks: np.ndarray, weights: np.ndarray, gains: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit all weights, those of 0 and above; pairs whose weight would fall below leave one after the other."""
    solution = factor.solve()
    while (solution <= 0).any():
        # On the way from the weights to the solution the first of them reaches 0 here.
        falling = np.flatnonzero(solution <= 0)
        lengths = weights[falling] - solution[falling]
        steps = np.divide(weights[falling], lengths, out=np.zeros(len(falling)), where=lengths > 0)
        weights = weights + steps.min() * (solution - weights)
        weights[falling[steps == steps.min()]] = 0.0
        stays = weights > 0
        for at in np.flatnonzero(~stays)[::-1]:
            factor.remove(at)
        picks, weights, gains = picks[stays], weights[stays], gains[stays]
        solution = factor.solve()
    return picks, solution, gains


def _relative_error(gradients: FactoredGradients, picks: np.ndarray, weights: np.ndarray) -> float:
    target, fitted = gradients.total(), gradients.total(picks, weights)
    missed = sum(float(((whole - part) ** 2).sum()) for whole, part in zip(target, fitted, strict=True))
    length = sum(float((whole**2).sum()) for whole in target)
    return float(np.sqrt(missed / length)) if length else 0.0


def _notes(found: Match, k: int) -> dict[str, str]:
    notes = []
    if len(found.indices) < k:
        notes.append(f"{len(found.indices)} pairs instead of {k}: no further one would improve its class's fit")
    if found.unserved:
        notes.append(f"{found.unserved} pairs are of classes too small for a share of {k}: nothing stands for them")
    return {"note": "; ".join(notes)} if notes else {}


def _check_lam(lam: float) -> None:
    if not 0 <= lam < np.inf:
        raise CoreclipError(f"lam = {lam} is not allowed: 0 or more; the default is 0.1")
