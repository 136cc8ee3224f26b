"""Steps that grow dearer with every call: milliseconds = a + b * call, by Theil and Sen's robust line.

A metric recomputed over all it has seen costs a little more each step, and quadratically much over a run. The interval
of b is Sen's (1968), from the variance of Kendall's tau. Left out: growth of other shapes, which still shows as b > 0.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.recorder import StepRecords
from coreclip.spread import spread_evenly

_MOST_POINTS = 300  # the line looks at all pairs of points
_LEAST_POINTS = 12
_LEAST_GROWTH = 0.2  # of a step over the measured window; less can be a machine that warms up
_LEAST_PROJECTED = 0.25  # of a step at the run's end, where that is known
_VISIBLE_GROWTH = 0.05


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A stage whose time rises with the number of calls.

    Attributes
    ----------
    stage : str
    milliseconds : float
        Fitted time of call 0 (a).
    milliseconds_per_call : float
        What each call adds (b), with the 95 % interval ``low`` to ``high``.
    first_call, last_call : int
        Measured range.
    """

    stage: str
    milliseconds: float
    milliseconds_per_call: float
    low: float
    high: float
    first_call: int
    last_call: int

    @property
    def grown(self) -> float:
        """Milliseconds that a step gained from the first to the last measured call."""
        return self.milliseconds_per_call * (self.last_call - self.first_call)

    def at(self, call: int) -> float:
        """Return the fitted milliseconds of a call, also of one to come."""
        return self.milliseconds + self.milliseconds_per_call * call

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def fit_growth(number: np.ndarray, milliseconds: np.ndarray, stage: str = "step") -> Growth:
    """Fit ``milliseconds = a + b * number`` robustly.

    Parameters
    ----------
    number : int64 (n,), increasing
        Which call each time belongs to.
    milliseconds : float64 (n,)
    stage : str
        What was timed.

    Raises
    ------
    CoreclipError
        For fewer than 2 calls.

    Notes
    -----
    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968).
    """
    if len(number) < 2 or len(number) != len(milliseconds):
        raise CoreclipError(
            f"a growth needs at least 2 calls with a time each, not {len(number)} and {len(milliseconds)}; measure more steps"
        )
    chosen = spread_evenly(len(number), _MOST_POINTS)
    x, y = number[chosen].astype(np.float64), milliseconds[chosen].astype(np.float64)
    early, late = np.triu_indices(len(x), 1)
    slopes = np.sort((y[late] - y[early]) / (x[late] - x[early]))
    slope = float(np.median(slopes))
    n = len(x)
    half_width = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    below = max(0, math.floor(len(slopes) / 2 - half_width))
    above = min(len(slopes) - 1, math.ceil(len(slopes) / 2 + half_width))
    return Growth(
        stage=stage,
        milliseconds=float(np.median(y - slope * x)),
        milliseconds_per_call=slope,
        low=float(slopes[below]),
        high=float(slopes[above]),
        first_call=int(number[0]),
        last_call=int(number[-1]),
    )


def at_one_call(records: StepRecords, growth: Growth | None, call: float) -> StepRecords:
    """Return the records as they would be had the stage that grows taken in all of them what it takes at ``call``."""
    if growth is None or growth.stage not in records.stages:
        return records
    beyond = growth.milliseconds_per_call * (records.number - call)
    return records.changed(growth.stage, lambda times: np.maximum(times - beyond, 0.0))


def find_growth(records: StepRecords, *, total_steps: int | None = None) -> Growth | None:
    """Return the stage that grows most, where its growth is certain and matters; else None.

    Certain: the interval of b is above 0, and each third of the window is slower than the one before. It matters when
    it adds 20 % to a step within the window, or 25 % by the end of a run of ``total_steps``.
    """
    if len(records) < _LEAST_POINTS:
        return None
    step = max(float(np.median(records.step_milliseconds)), 1e-9)
    found = None
    for stage in records.stages:
        times = records.column(stage)
        thirds = [float(np.median(part)) for part in np.array_split(times, 3)]
        if not thirds[0] < thirds[1] < thirds[2]:
            continue
        growth = fit_growth(records.number, times, stage)
        soon = growth.grown >= _LEAST_GROWTH * step
        later = growth.grown >= _VISIBLE_GROWTH * step and growth.low * (total_steps or 0) >= _LEAST_PROJECTED * step
        if growth.low > 0 and (soon or later) and (found is None or growth.grown > found.grown):
            found = growth
    return found
