"""Stalls that come back: every so many steps one that takes much longer, as where a checkpoint is written.

Steps that a busy machine delays are long too, but not at equal distances. So a stall is a class of calls, number = r mod P,
all of which are long while the others are not. Left out: stalls that time, not the step's number, brings about.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from coreclip.profiling.recorder import StepRecords

_LEAST_CALLS = 3  # of a class
_LEAST_EXCESS = 0.5  # of a median step, each
_CLEAR = 2.0  # times the excess that all but few of the other calls stay below
_ORDINARY = 95  # per cent of the other calls


@dataclass(frozen=True, kw_only=True)
class Stalls:
    """A stall that comes back.

    Attributes
    ----------
    stage : str
        The stage that takes longer in them.
    period, first : int
        Calls ``first``, ``first + period``, ... have it.
    milliseconds : float
        What each of them takes beyond the others.
    seen : int
        How many were measured.
    """

    stage: str
    period: int
    first: int
    milliseconds: float
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


def find_stalls(records: StepRecords, *, waiting: tuple[str, ...] = ("wait",)) -> Stalls | None:
    """Return the stall that costs most, where one comes back at equal distances in calls; else None.

    Parameters
    ----------
    records : StepRecords
        Calls may be missing among them.
    waiting : tuple of str
        Stages that are not looked at: a loader's stalls are its own.
    """
    if len(records) < 2 * _LEAST_CALLS:
        return None
    times = records.step_milliseconds - records.column(*waiting)
    excess = times - np.median(times)
    least = _LEAST_EXCESS * max(float(np.median(times)), 1e-9)
    number = records.number
    best, worth = None, 0.0
    for period in range(2, int(number[-1] - number[0]) // (_LEAST_CALLS - 1) + 1):
        # Only classes of calls that are long can be the one.
        for phase in np.unique(number[excess >= least] % period):
            inside = number % period == phase
            if inside.sum() < _LEAST_CALLS or inside.all():
                continue
            smallest = float(excess[inside].min())
            ordinary = float(np.percentile(excess[~inside], _ORDINARY))
            cost = float(excess[inside].mean()) / period
            if smallest >= max(least, _CLEAR * ordinary) and cost > worth:
                best, worth = (period, inside), cost
    if best is None:
        return None
    period, inside = best
    gains = {
        stage: float(np.median(column[inside]) - np.median(column[~inside]))
        for stage in records.stages
        if stage not in waiting
        for column in [records.column(stage)]
    }
    stage = max(gains, key=gains.__getitem__)
    return Stalls(
        stage=stage,
        period=period,
        first=int(number[inside][0]),
        milliseconds=gains[stage],
        seen=int(inside.sum()),
    )


def without_stalls(records: StepRecords, stalls: Stalls | None) -> StepRecords:
    """Return the records as they would be had the stall's stage taken in its calls what it takes in others."""
    if stalls is None or stalls.stage not in records.stages:
        return records
    hit, column = stalls.hits(records.number), records.stages.index(stalls.stage)
    if not hit.any() or hit.all():
        return records
    tables = {"milliseconds": records.milliseconds.copy()}
    if records.device_milliseconds is not None:
        tables["device_milliseconds"] = records.device_milliseconds.copy()
    for table in tables.values():
        usual = np.median(table[~hit, column])
        table[hit, column] = np.minimum(table[hit, column], usual)
    return replace(records, **tables)
