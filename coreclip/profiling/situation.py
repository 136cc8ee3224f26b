"""What was measured, as costs of a step with their noise: what verdicts and predictions are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coreclip.profiling.conditions import COMPUTE, LOADER, REAL, REPLAY, Condition, resample
from coreclip.profiling.elsewhere import ThreadStage
from coreclip.profiling.growth import Growth, at_one_call
from coreclip.profiling.readbacks import ReadBack
from coreclip.profiling.recorder import LOADER_STAGES, StepRecords
from coreclip.profiling.stalls import Stalls, without_stalls
from coreclip.profiling.system import SystemUse

_MOST_BLOCKS = 8
_LEAST_LEFT = 0.05  # of a step, though a fit over blocks that grow may say that nothing is
_CALLS_LOOKED_AT = 65  # of a run, for its mean step
_HIDDEN_PART = 0.3  # of the shorter of loading and computing: what overlaps hides more
_SIDE = ("metrics", "logging")
_PARTS = {"transfer": ("transfer",), "side": _SIDE, "matmul": ("forward", "backward", "step")}


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What verdicts and predictions are made from.

    Attributes
    ----------
    draws : {name: float64 (draws,)}
        Bootstrap draws of milliseconds per step without stalls that come back: ``real`` = ``wait`` + ``slowed`` (by the loader's threads) + ``replay``,
        or ``compute`` where the step was not replayed;
        ``transfer``, ``side`` (metrics and logging) and ``matmul`` (forward and backward) are parts of compute, undisturbed by
        the loader where that was measured; the other conditions and the trials by their names, where they were measured.
    cpu_floor : float
        Milliseconds per step that the cores need for step and loader together; 0 where unknown.
    cores : float
    loader_cores : float or None
        Cores that the loader keeps busy when it runs alone.
    setting : mapping
        What is known of the run: ``workers``, ``image_size``, ``precision``, ``resident``, ``device``, ``batch_size``, ``compile``;
        how images are ``stored`` ("jpg", "raw"), ``stored_side`` (the shorter one), ``stored_aspect``.
    growth : Growth or None
    call : float
        The call of the step function that ``draws`` are of, where a stage grows.
    stalls : Stalls or None
    total_steps : int or None
        Length of the whole run.
    conditions : {name: Condition}
        Empty where no differential runs were made.
    use : SystemUse or None
        Of the real loop.
    read_backs : sequence of ReadBack
    stages : {name: float}
        Milliseconds per step of the loop's stages.
    threads : {name: float}
        Milliseconds per step that other threads spent in the loader's stages, undisturbed where that was measured.
    """

    draws: Mapping[str, np.ndarray]
    cores: float
    cpu_floor: float = 0.0
    loader_cores: float | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)
    growth: Growth | None = None
    call: float = 0.0
    stalls: Stalls | None = None
    total_steps: int | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    use: SystemUse | None = None
    read_backs: Sequence[ReadBack] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    threads: Mapping[str, float] = field(default_factory=dict)

    def share(self, name: str) -> float:
        """Return the part of a mean step (0..1) that a cost takes; 0 where it was not measured."""
        if name not in self.draws:
            return 0.0
        return float(np.median(self.draws[name]) / max(np.median(self.step), 1e-9))

    @property
    def stalled(self) -> float:
        """Milliseconds of stalls that come back, shared out among all steps."""
        return 0.0 if self.stalls is None else self.stalls.milliseconds_per_step

    @property
    def step(self) -> np.ndarray:
        """float64 (draws,): the mean step, stalls included."""
        return self.draws["real"] + self.stalled

    @property
    def overlaps(self) -> bool:
        """Whether batches are made beside the step; else the loop's thread waits for all that making one takes."""
        if "loader" not in self.draws:
            return False
        loader, compute, wait = (float(np.median(self.draws[name])) for name in ("loader", "compute", "wait"))
        return wait < loader - _HIDDEN_PART * min(loader, compute)

    @property
    def floor(self) -> np.ndarray:
        """float64 (draws,): what a step takes at least because a loader beside it takes as long for a batch; 0 for none."""
        return self.draws["loader"] if self.overlaps else np.zeros_like(self.draws["real"])

    @property
    def own(self) -> np.ndarray:
        """float64 (draws,): a step's time without what it waits for because the loader is slower."""
        real, wait = self.draws["real"], self.draws["wait"]
        return real - np.minimum(wait, np.maximum(self.floor - (real - wait), 0.0))

    def without(self, loss: np.ndarray | float) -> np.ndarray:
        """Return a step's time without a loss of its own: what the loader takes longer then shows."""
        return np.maximum(np.maximum(self.own - loss, self.floor), 1e-3)

    def grown(self, slope: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean step of the whole run, where a stage grows by ``slope`` with each call, and one that does not grow."""
        assert self.growth is not None
        last = self.total_steps or self.growth.last_call
        # The measured steps hold the growth up to their call; call 0 held none. No growth is all of a step.
        base = np.maximum(self.own - slope * self.call, _LEAST_LEFT * self.own)
        calls = np.linspace(0, last, _CALLS_LOOKED_AT)
        growing = np.maximum(base[:, None] + slope * calls, self.floor[:, None]).mean(axis=1)
        return growing, np.maximum(np.maximum(base, self.floor), 1e-3)


def assess(
    records: StepRecords,
    *,
    conditions: Mapping[str, Condition],
    growth: Growth | None,
    stalls: Stalls | None,
    use: SystemUse | None,
    cores: float,
    setting: Mapping[str, Any],
    total_steps: int | None,
    read_backs: Sequence[ReadBack],
    threads: Mapping[str, ThreadStage],
    seed: int,
) -> Situation:
    """Turn measurements into costs; ``records`` are the real condition's blocks in order where there are conditions."""
    call = float(records.number.mean())
    smooth = at_one_call(without_stalls(records, stalls), growth, call)
    draws = resample(_blocks(smooth, _at_one_call(conditions, growth, call)), seed=seed)
    busy = draws["real"] - draws["wait"]
    compute = np.maximum(draws.get("compute", busy), 1e-6)
    draws |= {"compute": compute, "slowed": np.maximum(busy - draws.get("replay", compute), 0.0)}
    if growth is not None and growth.stage in _SIDE:
        draws["side"] = np.maximum(draws["side"] - max(growth.milliseconds_per_call * call, 0.0), 0.0)
    loader = conditions.get(LOADER)
    return Situation(
        draws=draws,
        cores=cores,
        cpu_floor=sum(conditions[name].cpu_milliseconds or 0.0 for name in (COMPUTE, LOADER)) / cores
        if conditions
        else 0.0,
        loader_cores=None
        if loader is None or loader.cpu_milliseconds is None
        else loader.cpu_milliseconds / max(loader.milliseconds, 1e-9),
        setting=setting,
        growth=growth,
        call=call,
        stalls=stalls,
        total_steps=total_steps,
        conditions=conditions,
        use=use,
        read_backs=read_backs,
        threads={name: stage.milliseconds for name, stage in (threads if loader is None else loader.threads).items()},
        stages=dict(zip(smooth.stages, smooth.timeline.mean(axis=0).tolist(), strict=True)),
    )


def _at_one_call(conditions: Mapping[str, Condition], growth: Growth | None, call: float) -> Mapping[str, Condition]:
    """Return the conditions as they would be had all been measured at ``call``, as far as the stage that grows is in them."""
    if growth is None:
        return conditions
    moved = {}
    for name, condition in conditions.items():
        stage = condition.stages.get(growth.stage)
        has_it = name == REAL or (growth.stage not in LOADER_STAGES if stage is None else bool(stage.any()))
        if condition.calls is not None and has_it:
            beyond = growth.milliseconds_per_call * (condition.calls - call)
            stages = condition.stages if stage is None else {**condition.stages, growth.stage: stage - beyond}
            condition = replace(condition, blocks=condition.blocks - beyond, stages=stages)
        moved[name] = condition
    return moved


def _blocks(records: StepRecords, conditions: Mapping[str, Condition]) -> dict[str, np.ndarray]:
    """Return mean milliseconds per step of each cost in each block."""
    n = len(conditions[REAL].blocks) if conditions else min(len(records), _MOST_BLOCKS)
    costs = {"wait": records.column(*LOADER_STAGES), "real": records.step_milliseconds}
    costs |= {name: records.column(*stages) for name, stages in _PARTS.items()}
    blocks = {name: np.array([part.mean() for part in np.array_split(times, n)]) for name, times in costs.items()}
    undisturbed = conditions[REPLAY].stages if REPLAY in conditions else {}
    if undisturbed:  # what a stage takes longer beside the loader is contention's, not its own
        none = np.zeros(n)
        blocks |= {
            name: np.sum([undisturbed.get(stage, none) for stage in stages], axis=0) for name, stages in _PARTS.items()
        }
    return blocks | {name: condition.blocks for name, condition in conditions.items()}
