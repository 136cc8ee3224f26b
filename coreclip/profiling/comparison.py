"""Two profiles of the same thing, before a change and after it: whether it has become slower, beyond the noise.

Each profile holds the time of every measured block. The two were not measured in turn, so that a machine that has become
slower meanwhile looks like a slower program: measure both on one machine, and again where the answer matters.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.conditions import REAL, interval, resample

_STAGE_CHANGE = 0.02  # of a step: smaller ones are not worth a line


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A step now against a step before.

    Attributes
    ----------
    before_milliseconds, after_milliseconds : float
        A sample's share of a step, so that other batch sizes compare.
    change, low, high : float
        After over before less 1, with a 95 % interval: 0.05 is 5 % slower.
    fail_on : float
        The change that is too much.
    is_slower : bool
        Whether the change is at least ``fail_on``, and certainly above 0.
    stages : {str: float}
        Milliseconds that each stage of a step has changed by, the largest first.
    """

    before_milliseconds: float
    after_milliseconds: float
    change: float
    low: float
    high: float
    fail_on: float
    is_slower: bool
    stages: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def compare_profiles(
    before: Mapping[str, Any], after: Mapping[str, Any], *, fail_on: float = 0.05, seed: int = 0
) -> Comparison:
    """Compare two profiles, as :meth:`coreclip.profiling.Diagnosis.to_dict` gives them.

    Parameters
    ----------
    before, after : mapping
    fail_on : float
        From which change on it is too slow, e.g. 0.05.
    seed : int
        Of the bootstrap.

    Raises
    ------
    CoreclipError
        For something that is no profile, and a ``fail_on`` that is not above 0.
    """
    if not 0 < fail_on < 100:
        raise CoreclipError(f"fail_on = {fail_on} is not allowed: a change above 0, e.g. 0.05 for 5 % slower")
    old, new = _per_sample(before, "first"), _per_sample(after, "second")
    # Two seeds: the blocks of one do not belong to those of the other.
    draws = resample({"new": new}, seed=seed)["new"] / resample({"old": old}, seed=seed + 1)["old"] - 1
    low, high = interval(draws)
    change = float(np.median(new) / np.median(old) - 1)
    return Comparison(
        before_milliseconds=float(np.median(old)),
        after_milliseconds=float(np.median(new)),
        change=change,
        low=min(low, change),
        high=max(high, change),
        fail_on=fail_on,
        is_slower=change >= fail_on and low > 0,
        stages=_stage_changes(before, after),
    )


def comparison_text(comparison: Comparison) -> str:
    """Return the comparison for people."""
    word = "slower" if comparison.change > 0 else "faster"
    lines = [
        f"{abs(comparison.change):.1%} {word} ({comparison.low:+.1%} to {comparison.high:+.1%}): "
        f"{comparison.before_milliseconds:.3f} ms a sample before, {comparison.after_milliseconds:.3f} after",
        *(f"- {stage}: {milliseconds:+.2f} ms a step" for stage, milliseconds in comparison.stages.items()),
    ]
    limit = f"the limit is {comparison.fail_on:.1%} slower"
    return "\n".join([*lines, f"too slow: {limit}" if comparison.is_slower else f"good: {limit}"])


def _per_sample(profile: Mapping[str, Any], which: str) -> np.ndarray:
    try:
        blocks = np.array(profile["conditions"][REAL]["block_milliseconds"], np.float64)
        blocks += float((profile.get("stalls") or {}).get("milliseconds_per_step", 0.0))  # the blocks are without them
        items = float(profile["samples_per_second"]) / float(profile["steps_per_second"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise CoreclipError(
            f"the {which} file is no profile with measured blocks; write both with coreclip profile DATASET --json"
        ) from None
    if blocks.ndim != 1 or len(blocks) < 2 or not np.isfinite(blocks).all() or not (blocks > 0).all() or items <= 0:
        raise CoreclipError(
            f"the {which} file's blocks can't be compared: two times above 0 are needed; measure with more --steps"
        )
    return blocks / items


def _stage_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    old, new = (
        {name: float(stage["milliseconds_per_step"]) for name, stage in profile.get("stages", {}).items()}
        for profile in (before, after)
    )
    changes = {name: new.get(name, 0.0) - old.get(name, 0.0) for name in {**old, **new}}
    least = _STAGE_CHANGE * max(sum(old.values()), 1e-9)
    return dict(sorted(((n, c) for n, c in changes.items() if abs(c) >= least), key=lambda item: -abs(item[1])))
