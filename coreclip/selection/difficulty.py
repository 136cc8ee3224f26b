"""How hard each pair was for a training run, and the selections that rank by it.

EL2N and GraNd (Paul et al. 2021, arXiv 2107.07075), forgetting events (Toneva et al. 2018, arXiv 1812.05159), variance of gradients
(Agarwal et al. 2020, arXiv 2008.11600), the self-influence of TracIn-CP (Pruthi et al. 2020, arXiv 2002.08484), the area under the
margin (Pleiss et al. 2020, arXiv 2001.10528), and the easiest or hardest pairs as a proxy data set (Shleifer & Prokop 2019,
arXiv 1906.04887). Each score has a function of plain arrays; the selections read what training has stored, see
:mod:`coreclip.selection.signals`. A pair without the numbers that a score needs has the score NaN and is not chosen.
Left out: computing gradients, which needs the model; TracIn between two different pairs.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_labels
from coreclip.selection.scores import ranked
from coreclip.selection.signals import check_passes, mean_over_passes, signal_of
from coreclip.selection.subset import Subset

_BLOCK_NUMBERS = 1 << 22  # numbers that are computed with at a time
_PROBABILITY_TOLERANCE = 1e-2  # sums of float16 probabilities miss 1 by up to 1e-3


class _Source(NamedTuple):
    """What a difficulty is made of: the mean of the signal of its name over some passes, times ``sign``, plus ``offset``."""

    passes: int | None
    last: bool
    sign: int = 1
    offset: int = 0


_PER_PASS = {
    "loss": _Source(1, True),
    "el2n": _Source(10, False),
    "grand": _Source(None, False),
    "margin": _Source(None, False, -1),
    "confidence": _Source(1, True, -1, 1),
    "probability_margin": _Source(1, True, -1),
    "entropy": _Source(1, True),
}
_PER_PAIR = ("vog", "tracin")
DIFFICULTIES = (*_PER_PASS, "forgetting", *_PER_PAIR)


def el2n(signals: Mapping[str, np.ndarray], k: int, *, passes: int = 10) -> Subset:
    """Choose the k pairs of the largest error norm in the first passes of training, the largest first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``el2n``, float (passes, n).
    k : int
        1 to the number of pairs that were seen in those passes.
    passes : int
        First passes of the run that the norm is averaged over.

    Returns
    -------
    Subset
        Gains are the scores; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, "el2n", passes=passes, method="el2n")


def grand(signals: Mapping[str, np.ndarray], k: int, *, checkpoints: int | None = None) -> Subset:
    """Choose the k pairs of the largest gradient norm, the largest first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``grand``, float (checkpoints, n).
    k : int
        1 to the number of pairs that have a norm.
    checkpoints : int or None
        First checkpoints that the norm is averaged over; None for all.

    Returns
    -------
    Subset
        Gains are the scores; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, a k that is too large, and ``checkpoints`` below 1.
    """
    check_passes(checkpoints, "checkpoints")
    return rank_by(signals, k, "grand", passes=checkpoints, method="grand")


def forgetting(signals: Mapping[str, np.ndarray], k: int, *, passes: int | None = None) -> Subset:
    """Choose the k pairs that training forgot most often; those that it never learned come first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``correct``, int8 (passes, n), -1 where a pair was not seen.
    k : int
        1 to the number of pairs that were seen.
    passes : int or None
        First passes that are counted over; None for all.

    Returns
    -------
    Subset
        Gains are the counts, infinity noted as the largest float64; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, "forgetting", passes=passes, method="forgetting")


def vog(signals: Mapping[str, np.ndarray], k: int, *, labels: np.ndarray | None = None) -> Subset:
    """Choose the k pairs whose pixel gradients varied most over the checkpoints, the largest variance first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``vog``, float (n,).
    k : int
        1 to the number of pairs that have a score.
    labels : int (n,) or None
        Class of each pair; the scores are z-scored per class then, which changes nothing where they are so already.

    Returns
    -------
    Subset
        Gains are the scores; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, labels that do not fit, and a k that is too large.
    """
    start = time.perf_counter()
    scores, parameters = difficulty_scores(signals, "vog", method="vog")
    if labels is not None:
        scores = _standardised(scores, check_labels(labels, len(scores)))
        parameters["z_scored_by"] = "labels"
    return ranked(scores, k, method="vog", start=start, parameters=parameters)


def tracin(signals: Mapping[str, np.ndarray], k: int) -> Subset:
    """Choose the k pairs whose training steps changed their own loss most, the largest self-influence first.

    Parameters
    ----------
    signals : mapping of str to array
        With ``tracin``, float (n,).
    k : int
        1 to the number of pairs that have a score.

    Returns
    -------
    Subset
        Gains are the scores; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there, and a k that is too large.
    """
    return rank_by(signals, k, "tracin", method="tracin")


def easy(signals: Mapping[str, np.ndarray], k: int, *, signal: str = "loss", passes: int | None = None) -> Subset:
    """Choose the k easiest pairs, the easiest first.

    Parameters
    ----------
    signals : mapping of str to array
    k : int
        1 to the number of pairs that have a score.
    signal : str
        What difficulty is measured by, see :func:`difficulty_scores`.
    passes : int or None
        None for the usual number of the signal; of the loss it is the last pass that a pair was seen in.

    Returns
    -------
    Subset
        Gains are the difficulties, the lowest first; ties go to the lowest index. There is no objective.

    Raises
    ------
    CoreclipError
        For a signal that is not there or unknown, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, signal, passes=passes, method="easy", easiest_first=True)


def hard(signals: Mapping[str, np.ndarray], k: int, *, signal: str = "loss", passes: int | None = None) -> Subset:
    """Choose the k hardest pairs, the hardest first; the parameters are those of :func:`easy`.

    Returns
    -------
    Subset
        Gains are the difficulties; ties go to the lowest index.

    Raises
    ------
    CoreclipError
        For a signal that is not there or unknown, a k that is too large, and ``passes`` below 1.
    """
    return rank_by(signals, k, signal, passes=passes, method="hard")


def rank_by(
    signals: Mapping[str, np.ndarray],
    k: int,
    name: str,
    *,
    method: str,
    passes: int | None = None,
    easiest_first: bool = False,
) -> Subset:
    """Return the k hardest (or easiest) pairs by a difficulty, as the selection that ``method`` names."""
    start = time.perf_counter()
    scores, parameters = difficulty_scores(signals, name, passes=passes, method=method)
    return ranked(scores, k, method=method, start=start, higher_is_better=not easiest_first, parameters=parameters)


def difficulty_scores(
    signals: Mapping[str, np.ndarray], name: str, *, passes: int | None = None, method: str = "difficulty_scores"
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return how hard each pair was, by one of the signals of a training run.

    Parameters
    ----------
    signals : mapping of str to array (..., n)
    name : str
        ``loss``, ``entropy``: in the last pass that a pair was seen in; ``confidence`` (1 - it) and ``probability_margin`` (minus
        it) likewise. ``el2n``: mean over the first 10 passes. ``grand``: mean over the checkpoints. ``margin``: minus the mean over
        the passes. ``forgetting``: :func:`forgetting_events` of ``correct``. ``vog``, ``tracin``: as they are stored.
    passes : int or None
        Other than those: the mean over the last so many (``loss``, ``entropy``, ``confidence``, ``probability_margin``), or over
        the first so many of the run.
    method : str
        Is named in errors.

    Returns
    -------
    scores : float64 (n,)
        Higher is harder; NaN for a pair that was not seen.
    parameters : dict
        What they are made of: ``signal``, ``passes``, ``unscored`` (pairs without a score, where there are any).

    Raises
    ------
    CoreclipError
        For a signal that is unknown, not there or of a wrong shape, and for ``passes`` below 1.
    """
    check_passes(passes)
    if name in _PER_PASS:
        scores, used = _of_passes(signals, name, passes, method)
    elif name == "forgetting":
        correct = _check_passes_by_pairs(signal_of(signals, "correct", method), "correct")[:passes]
        scores, used = forgetting_events(correct), f"first {len(correct)}"
    elif name in _PER_PAIR:
        scores, used = _of_pairs(signals, name, passes, method), None
    else:
        raise CoreclipError(f"{method}: no difficulty is known by {name!r}; known: {', '.join(DIFFICULTIES)}")
    parameters: dict[str, Any] = {"signal": name} | ({"passes": used} if used else {})
    unscored = int(np.isnan(scores).sum())
    return scores, parameters | ({"unscored": unscored} if unscored else {})


def el2n_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean over runs of the length of the error, ||p - y||_2, where y is 1 at the label.

    Parameters
    ----------
    probabilities : float (runs, n, C)
        Of each class, a few passes into each run; NaN for a pair that a run did not see.
    labels : int (n,)
        0 to C - 1.

    Returns
    -------
    float64 (n,)
        0 to the square root of 2, higher is harder; NaN for a pair that no run has seen.

    Raises
    ------
    CoreclipError
        For other shapes, labels out of range, and rows that are no probabilities.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 3 or 0 in probabilities.shape:
        raise CoreclipError(
            f"probabilities have shape {probabilities.shape}; it must be (runs, n, classes), none of them 0"
        )
    n_runs, n, n_classes = probabilities.shape
    labels = check_labels(labels, n)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise CoreclipError(
            f"labels are {labels.min()} to {labels.max()}; {n_classes} classes have the labels 0 to {n_classes - 1}"
        )
    norms = np.empty((n_runs, n))
    for run in range(n_runs):
        for rows in blocks(n, n_classes):
            error = check_probabilities(probabilities[run, rows])
            error[np.arange(len(error)), labels[rows]] -= 1
            norms[run, rows] = np.sqrt(np.einsum("ij,ij->i", error, error))
    return mean_over_passes(norms)


def grand_scores(norms: np.ndarray) -> np.ndarray:
    """Return the mean over runs of the gradient norms ||grad loss||_2.

    Parameters
    ----------
    norms : float (runs, n)
        NaN for a pair that a run did not see.

    Returns
    -------
    float64 (n,)
        Higher is harder; NaN for a pair that no run has seen.

    Raises
    ------
    CoreclipError
        For another shape and for a negative norm.
    """
    return mean_over_passes(_check_norms(norms, "gradient norms"))


def forgetting_events(correct: np.ndarray) -> np.ndarray:
    """Return how often each pair went from correct to wrong.

    Parameters
    ----------
    correct : int (passes, n)
        1 or 0, -1 where a pair was not seen; such passes are passed over.

    Returns
    -------
    float64 (n,)
        Infinity for a pair that was never correct, NaN for one that was never seen.

    Raises
    ------
    CoreclipError
        For another shape and for other numbers.
    """
    correct = _check_passes_by_pairs(np.asarray(correct), "correct")
    events, before = np.zeros(correct.shape[1]), np.zeros(correct.shape[1], bool)
    seen, learned = before.copy(), before.copy()
    for row in correct:
        if not np.isin(row, (-1, 0, 1)).all():
            wrong = row[~np.isin(row, (-1, 0, 1))][0]
            raise CoreclipError(f"correct holds {wrong}; it must be 1 (correct), 0 (wrong) or -1 (not seen)")
        right = row == 1
        events += before & (row == 0)
        before = np.where(row == -1, before, right)
        seen |= row != -1
        learned |= right
    events[~learned] = np.inf
    events[~seen] = np.nan
    return events


def vog_scores(gradients: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the variance of gradients: the mean over pixels of the standard deviation over checkpoints, z-scored per class.

    Parameters
    ----------
    gradients : float (checkpoints, n, pixels), or with more axes of pixels
        Of the true class's pre-softmax logit, with respect to the pixels; may be memory-mapped.
    labels : int (n,) or None
        Class of each pair; None for one class.

    Returns
    -------
    float64 (n,)
        Higher is harder; 0 in a class whose pairs are all alike (as when it has one), NaN for a pair that has not got finite
        gradients at every checkpoint.

    Raises
    ------
    CoreclipError
        For other shapes and for fewer than 2 checkpoints.

    Notes
    -----
    Both standard deviations divide by the number of values, as in the paper.
    """
    gradients = np.asarray(gradients)
    if gradients.ndim < 3 or 0 in gradients.shape:
        raise CoreclipError(
            f"gradients have shape {gradients.shape}; it must be (checkpoints, n, pixels), none of them 0"
        )
    n_checkpoints, n = gradients.shape[:2]
    if n_checkpoints < 2:
        raise CoreclipError(
            f"gradients are of {n_checkpoints} checkpoint; a variance over checkpoints needs at least 2"
        )
    classes = np.zeros(n, np.int64) if labels is None else check_labels(labels, n)
    spreads = np.empty(n)
    for rows in blocks(n, gradients[:, 0].size):
        block = gradients[:, rows].reshape(n_checkpoints, -1, gradients[0, 0].size).astype(np.float64)
        block[:, ~np.isfinite(block).all(axis=(0, 2))] = np.nan
        # Added one checkpoint after the other, so that the rounding is the same for any block.
        centred = block - sum(block) / n_checkpoints
        spreads[rows] = np.sqrt(sum(centred**2) / n_checkpoints).mean(axis=1)
    return _standardised(spreads, classes)


def tracin_self_influence(squared_norms: np.ndarray, learning_rates: np.ndarray) -> np.ndarray:
    """Return TracIn-CP's influence of each pair on its own loss: sum_t eta_t ||grad loss(theta_t, z)||^2.

    Parameters
    ----------
    squared_norms : float (checkpoints, n)
        NaN for a pair without a gradient at that checkpoint.
    learning_rates : float (checkpoints,)
        Of the steps around each checkpoint; a checkpoint of rate 0 counts for nothing.

    Returns
    -------
    float64 (n,)
        Higher is harder; NaN for a pair that lacks a gradient at a checkpoint that counts.

    Raises
    ------
    CoreclipError
        For other shapes, a negative squared norm, and rates that are negative, not finite or all 0.
    """
    squared_norms = _check_norms(squared_norms, "squared gradient norms")
    rates = np.asarray(learning_rates, np.float64)
    if rates.shape != squared_norms.shape[:1]:
        raise CoreclipError(
            f"learning rates have shape {rates.shape}; it must be ({len(squared_norms)},), one for each checkpoint"
        )
    if not (np.isfinite(rates).all() and (rates >= 0).all() and rates.any()):
        raise CoreclipError(
            f"learning rates {rates.tolist()} are not allowed: finite, not negative, at least one above 0"
        )
    scores = np.zeros(squared_norms.shape[1])
    for rate, row in zip(rates, squared_norms, strict=True):
        if rate > 0:
            scores += rate * row.astype(np.float64)
    return scores


def blocks(n: int, numbers: int) -> list[slice]:
    """Return slices that cover n rows, each of so many rows, at least one, that they hold a bounded count of numbers."""
    step = max(1, _BLOCK_NUMBERS // numbers)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def check_probabilities(rows: np.ndarray) -> np.ndarray:
    """Return rows (b, C) as float64, all NaN where one is; refuse those that are negative or do not sum to 1."""
    rows = np.array(rows, np.float64)
    rows[np.isnan(rows).any(axis=1)] = np.nan
    sums = np.where(np.isnan(rows[:, 0]), 1, rows.sum(axis=1))
    wrong = (np.abs(sums - 1) > _PROBABILITY_TOLERANCE) | (rows < 0).any(axis=1)
    if wrong.any():
        raise CoreclipError(
            f"probabilities of a pair sum to {sums[wrong][0]:g} with {rows[wrong][0].min():g} as the lowest; "
            f"they must not be negative and sum to 1: give the softmax, not the logits"
        )
    return rows


def _of_passes(signals: Mapping[str, np.ndarray], name: str, passes: int | None, method: str) -> tuple[np.ndarray, str]:
    source = _PER_PASS[name]
    signal = _check_passes_by_pairs(signal_of(signals, name, method), name)
    passes = min(passes or source.passes or len(signal), len(signal))
    mean = mean_over_passes(signal, passes, last=source.last)
    return source.sign * mean + source.offset, f"{'last' if source.last else 'first'} {passes}"


def _of_pairs(signals: Mapping[str, np.ndarray], name: str, passes: int | None, method: str) -> np.ndarray:
    signal = signal_of(signals, name, method)
    if signal.ndim != 1:
        raise CoreclipError(f"signal {name} has shape {signal.shape}; it must be (n,), one number for each pair")
    if passes is not None:
        raise CoreclipError(
            f"passes = {passes} has no meaning for {name}, which is one number for each pair; leave it out"
        )
    return signal.astype(np.float64)


def _check_passes_by_pairs(signal: np.ndarray, name: str) -> np.ndarray:
    if signal.ndim != 2 or 0 in signal.shape:
        raise CoreclipError(f"signal {name} has shape {signal.shape}; it must be (passes, n), neither of them 0")
    return signal


def _check_norms(norms: np.ndarray, name: str) -> np.ndarray:
    norms = np.asarray(norms)
    if norms.ndim != 2 or 0 in norms.shape:
        raise CoreclipError(f"{name} have shape {norms.shape}; it must be (runs or checkpoints, n), neither of them 0")
    lowest = float(np.fmin.reduce(norms, axis=None))
    if lowest < 0:
        raise CoreclipError(f"{name} go down to {lowest:g}; they must not be negative")
    return norms


def _standardised(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return (score - mean) / standard deviation of each class, 0 where all scores of a class are equal."""
    result = np.full(len(scores), np.nan)
    rows_with_scores = np.flatnonzero(~np.isnan(scores))
    order = rows_with_scores[np.lexsort((scores[rows_with_scores], classes[rows_with_scores]))]
    if not len(order):
        return result
    # Added in ascending order, so that the rounding does not depend on the order of the pairs.
    for rows in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        values = scores[rows]
        if values[0] == values[-1]:
            result[rows] = 0
        else:
            centred = values - values.mean()
            centred /= np.abs(centred).max()  # squares of tiny differences would be 0
            result[rows] = centred / np.sqrt((centred**2).mean())
    return result
