"""Stalls that come back: every so many steps one that takes much longer, as where a checkpoint is written.

Steps that a busy machine delays are long too, but not at equal distances. So a stall is a class of calls, number = r mod P,
all of which are long, while most calls that are long lie in it. Left out: stalls that time, not the step's number, brings
about, and work that is spread over steps on purpose (gradients of several batches before an optimiser's step).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coreclip.profiling.recorder import LOADER_STAGES, StepRecords

_LEAST_CALLS = 3  # of a class
_LEAST_EXCESS = 0.5  # of a median step, each
_MOST_ELSEWHERE = 0.5  # of the long calls may lie outside the class
_MOST_RECORDS = 2000  # the newest ones
_MOST_PERIOD = 500
_OWN_WORK = ("forward", "backward", "optimiser")
_SHORT_PERIOD = 4  # of the model's own work: it gathers gradients


@dataclass(frozen=True, kw_only=True)
class Stalls:
    """A stall that comes back.

    Attributes
    ----------
    stage : str
        The stage that takes longer in them.
    period, first : int
        Calls ``first``, ``first + period``, ... have it.
    milliseconds, low, high : float
        What each of them takes beyond the others: the median, with the lower and upper quartile.
    seen : int
        How many were measured.
    """

    stage: str
    period: int
    first: int
    milliseconds: float
    low: float
    high: float
    seen: int

    @property
    def milliseconds_per_step(self) -> float:
        """The stall shared out among all steps."""
        return self.milliseconds / self.period

    def hits(self, number: np.ndarray) -> np.ndarray:
        """Return which calls (int64 (n,)) have it, bool (n,)."""
        return (number - self.first) % self.period == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the share of a step, as JSON types."""
        return {**asdict(self), "milliseconds_per_step": self.milliseconds_per_step}


def find_stalls(
    records: StepRecords, *, level: np.ndarray | None = None, waiting: tuple[str, ...] = LOADER_STAGES
) -> Stalls | None:
    """Return the stall that costs most, where one comes back at equal distances in calls; else None.

    Parameters
    ----------
    records : StepRecords
        Calls may be missing among them.
    level : float64 (steps,) or None
        What a call ordinarily takes, milliseconds without waiting, where the records are of several conditions; None for the
        median of all.
    waiting : tuple of str
        Stages that are not looked at: a loader's stalls are its own.
    """
    newest = np.arange(len(records)) >= len(records) - _MOST_RECORDS
    records = records.take(newest)
    if len(records) < 2 * _LEAST_CALLS:
        return None
    times = records.step_milliseconds - records.column(*waiting)
    usual = np.full(len(times), np.median(times)) if level is None else level[newest]
    excess = times - usual
    is_long = excess >= _LEAST_EXCESS * np.maximum(usual, 1e-9)
    if is_long.sum() < _LEAST_CALLS or is_long.mean() > 0.5:
        return None
    period, phase = _best_class(records.number, excess, is_long)
    if not period:
        return None
    inside = records.number % period == phase
    gains = {
        stage: np.percentile(column[inside], (25, 50, 75)) - np.median(column[~inside])
        for stage in records.stages
        if stage not in waiting
        for column in [records.column(stage)]
    }
    stage = max(gains, key=lambda name: float(gains[name][1]))
    if stage in _OWN_WORK and period <= _SHORT_PERIOD:
        return None
    low, median, high = gains[stage].tolist()
    if median <= 0:  # long in sum, but in no stage of its own
        return None
    return Stalls(
        stage=stage,
        period=period,
        first=int(records.number[inside][0]),
        milliseconds=median,
        low=low,
        high=high,
        seen=int(inside.sum()),
    )


def _best_class(number: np.ndarray, excess: np.ndarray, is_long: np.ndarray) -> tuple[int, int]:
    """Return period and phase of the dearest class whose calls are all long and hold most long calls; (0, 0) for none."""
    best, worth = (0, 0), 0.0
    needed = max(_LEAST_CALLS, (1 - _MOST_ELSEWHERE) * int(is_long.sum()))
    last = min(int(number[-1] - number[0]) // (_LEAST_CALLS - 1), _MOST_PERIOD)
    for period in range(2, last + 1):
        phases, counts = np.unique(number[is_long] % period, return_counts=True)
        for phase in phases[counts >= needed].tolist():
            inside = number % period == phase
            cost = float(excess[inside].sum())
            if cost > worth and is_long[inside].all() and not inside.all():
                best, worth = (period, phase), cost
    return best


def _hits(records: StepRecords, stalls: Stalls | None) -> np.ndarray | None:
    """Return which records have the stall, bool (n,); None where some with it and some without can't be told apart."""
    if stalls is None or stalls.stage not in records.stages:
        return None
    hit = stalls.hits(records.number)
    return hit if hit.any() and not hit.all() else None


def without_stalls(records: StepRecords, stalls: Stalls | None) -> StepRecords:
    """Return the records as they would be had the stall's stage taken in its calls what it takes in others."""
    hit = _hits(records, stalls)
    if stalls is None or hit is None:
        return records
    return records.changed(stalls.stage, lambda times: np.where(hit, np.minimum(times, np.median(times[~hit])), times))


def stall_cpu_milliseconds(records: StepRecords, stalls: Stalls | None) -> float:
    """Return the CPU time of the loop's thread that the stalls take, shared out among all steps."""
    hit = _hits(records, stalls)
    if stalls is None or hit is None:
        return 0.0
    spent = records.cpu_milliseconds[:, records.stages.index(stalls.stage)]
    return float(np.maximum(spent[hit] - np.median(spent[~hit]), 0.0).sum()) / len(records)
