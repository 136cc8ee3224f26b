"""How long a run lasts and how its learning rate goes: a function of the fraction of the budget that is used."""

import math
from dataclasses import dataclass

from coreclip.errors import CoreclipError

_LEAST_WARMUP_STEPS = 100
MOST_WARMUP = 0.2
_MOST = 1e12
# Wall time kept back from --minutes for the last checkpoint, the weights and the process's end.
_RESERVE_SECONDS = 0.5
_RESERVE_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of wall time, samples and epochs.

    Attributes
    ----------
    minutes : float or None
        Wall time of the whole command.
    samples : int or None
        Pairs to be seen, repeats counted.
    epochs : float or None
        Passes over the subset.
    """

    minutes: float | None = None
    samples: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise CoreclipError(
                f"a run needs exactly one of minutes, samples, epochs; {', '.join(given) or 'none'} given; pass e.g. --minutes 5"
            )
        [(name, value)] = given.items()
        if not 0 < value <= _MOST:
            raise CoreclipError(
                f"{name} = {value} is not allowed: a budget is above 0 and at most {_MOST:g}; pass e.g. --minutes 5"
            )

    def total_samples(self, per_epoch: int) -> int | None:
        """Return the pairs to be seen; None where time is the budget."""
        if self.samples is not None:
            return self.samples
        return None if self.epochs is None else max(1, round(self.epochs * per_epoch))

    def usable_seconds(self) -> float:
        """Return the seconds that may pass before the last step ends; infinite where time is not the budget."""
        if self.minutes is None:
            return math.inf
        seconds = 60 * self.minutes
        return max(seconds - max(_RESERVE_SECONDS, _RESERVE_FRACTION * seconds), 0.5 * seconds)


def parts_passed(used: float, part: float) -> int:
    """Return how many parts of the budget, each ``part`` of it, the fraction ``used`` has passed, 0 to 1 / part."""
    return math.floor(min(used, 1.0) / part + 1e-9)


def learning_rate(peak: float, warmup: float, *, step: int, fraction: float) -> float:
    """Return the learning rate of a step: a linear rise times a cosine to 0.

    Parameters
    ----------
    peak : float
    warmup : float
        Fraction of the budget over which the rate rises; at least 100 steps are taken for it, but never more than a fifth of the
        budget, so that a run of 50 steps is no warm-up alone. 0: none.
    step : int
        From 0.
    fraction : float
        Of the budget that is used at the middle of the step, 0 to 1.
    """
    rise = 1.0
    if warmup > 0:
        rise = min(1.0, max(fraction / MOST_WARMUP, min(fraction / warmup, (step + 1) / _LEAST_WARMUP_STEPS)))
    return peak * rise * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
