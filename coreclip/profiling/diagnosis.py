"""From measurements to a verdict: what holds the run up, with the figures that say so, and what each remedy would bring.

:func:`diagnose` measures a step function and its loader; :func:`diagnose_records` judges measurements that are there, e.g.
a recorder that watched a training run, and is a pure function of them. A verdict names the largest loss above 10 % of a
step; growth comes first, because by the end of a run it is the largest. Left out: causal probes, rooflines, GPU counters.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.conditions import COMPUTE, LOADER, REAL, Condition, interval, resample, run_conditions
from coreclip.profiling.growth import Growth, find_growth
from coreclip.profiling.recorder import OTHER, StageRecorder, StepRecords
from coreclip.profiling.remedies import Remedy, Situation, propose
from coreclip.profiling.system import SystemUse, available_cores

VERDICTS: dict[str, str] = {
    "data-bound": "the step waits for batches",
    "contention": "the loader's threads take the cores from the step",
    "transfer-bound": "copying batches to the device holds the step up",
    "compute-bound": "the model's own computing takes the step; the loader keeps up",
    "metric-or-logging": "metrics or logging hold the step up",
    "growing-cost": "a stage costs more with every call",
    "balanced": "nothing alone holds the step up",
}
_LOSS = 0.10  # of a step: a loss this large gets the verdict
_SURE_LOSS = 0.03  # which the lower end of contention's interval must reach
_SATURATED = 0.85  # of the cores busy
_SLACK = 0.85  # a loader alone that takes this much of a compute step has no slack left
_LEAST_STEPS = 4
_MOST_BLOCKS = 8
_SETTING_ATTRIBUTES = ("workers", "image_size", "batch_size", "resident")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A verdict with its evidence.

    Attributes
    ----------
    verdict : str
        One of :data:`VERDICTS`.
    evidence : list of str
        Sentences with the figures.
    stages : dict
        ``{stage: {"milliseconds_per_step", "share", "p50", "p95", "max", "cpu_milliseconds_per_step"}}``.
    remedies : list of Remedy
        Largest predicted speed-up first.
    steps_per_second, samples_per_second : float
        Of the run as it is.
    conditions : dict
        ``{"real", "compute", "loader": Condition}``; only ``"real"`` where no differential runs were made.
    loader_cap : float or None
        T_real / T_compute: what no fix of the loader can exceed; None without differential runs.
    growth : Growth or None
    system : SystemUse or None
    """

    verdict: str
    evidence: list[str]
    stages: dict[str, dict[str, float]]
    remedies: list[Remedy]
    steps_per_second: float
    samples_per_second: float
    conditions: dict[str, Condition]
    loader_cap: float | None
    growth: Growth | None
    system: SystemUse | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "verdict": self.verdict,
            "summary": VERDICTS[self.verdict],
            "evidence": self.evidence,
            "stages": self.stages,
            "remedies": [remedy.to_dict() for remedy in self.remedies],
            "steps_per_second": self.steps_per_second,
            "samples_per_second": self.samples_per_second,
            "conditions": {name: condition.to_dict() for name, condition in self.conditions.items()},
            "loader_cap": self.loader_cap,
            "growth": None if self.growth is None else self.growth.to_dict(),
            "system": None if self.system is None else self.system.to_dict(),
        }


def diagnose(
    step: Callable[[Any], object],
    loader: Iterable[Any],
    *,
    steps: int = 60,
    warmup: int = 8,
    repeats: int = 5,
    recorder: StageRecorder | None = None,
    resident_batch: Any = None,
    cores: float | None = None,
    setting: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measure a training step and its loader, and say what holds them up.

    About ``3 * (steps + repeats * warmup)`` steps' worth of work: the real loop, the step on one resident batch, and the
    loader alone, in turn.

    Parameters
    ----------
    step : callable
        Does a whole training step with a batch; it may open stages of ``recorder``.
    loader : iterable
        Yields batches anew at each ``iter()``; more than ``warmup`` of them.
    steps, warmup, repeats : int
        See :func:`coreclip.profiling.run_conditions`.
    recorder : StageRecorder or None
    resident_batch : batch or None
        What the step computes on when the loader is stopped; None for the loader's first batch.
    cores : float or None
        That may be used; None to ask the system.
    setting : mapping or None
        What remedies depend on: ``workers``, ``image_size``, ``precision``, ``resident``, ``device``; the loader's
        attributes of these names are used where it is silent.
    total_steps : int or None
        Length of the whole run, for the projection of growing costs.
    seed : int
        Of the bootstrap.

    Raises
    ------
    CoreclipError
        See :func:`coreclip.profiling.run_conditions`.

    Examples
    --------
    >>> batches = [list(range(8))] * 20
    >>> diagnosis = diagnose(sum, batches, steps=8, warmup=1, repeats=2)
    >>> diagnosis.verdict in VERDICTS
    True
    """
    cores = available_cores() if cores is None else cores
    run = run_conditions(
        step,
        loader,
        steps=steps,
        warmup=warmup,
        repeats=repeats,
        recorder=recorder,
        resident_batch=resident_batch,
        cores=cores,
    )
    known = {name: getattr(loader, name) for name in _SETTING_ATTRIBUTES if hasattr(loader, name)}
    return diagnose_records(
        run.records,
        conditions=run.conditions,
        calls=run.calls,
        system=run.system,
        cores=cores,
        setting={**known, **(setting or {})},
        total_steps=total_steps,
        seed=seed,
    )


def diagnose_records(
    records: StepRecords,
    *,
    conditions: Mapping[str, Condition] | None = None,
    calls: StepRecords | None = None,
    system: SystemUse | None = None,
    cores: float | None = None,
    setting: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Judge measurements; a pure function of them where ``cores`` is given.

    Parameters
    ----------
    records : StepRecords
        Measured steps of the real loop, warm-up left out (``records.skip(8)``).
    conditions : {name: Condition} or None
        Differential runs, with equally many blocks each; ``records`` then holds the real condition's blocks in order.
    calls : StepRecords or None
        All measured calls of the step, where they are more than ``records``: growth is sought in them.
    system : SystemUse or None
        Over ``records``.
    cores, setting, total_steps, seed
        See :func:`diagnose`.

    Raises
    ------
    CoreclipError
        For fewer than 4 steps, and for differential runs that lack a condition or differ in their blocks.
    """
    _check_measurements(records, conditions)
    if cores is None:
        cores = available_cores() if system is None else system.cores
    blocks = _blocks(records, conditions)
    draws = _derive(resample(blocks, seed=seed))
    growth = find_growth(records if calls is None else calls, total_steps=total_steps)
    situation = Situation(
        draws=draws,
        cores=cores,
        cpu_floor=_cpu_floor(conditions, cores),
        loader_cores=_loader_cores(conditions),
        setting=setting or {},
        growth=growth,
        total_steps=total_steps,
    )
    real = float(np.median(blocks["real"]))
    measured = dict(conditions) if conditions else {REAL: Condition(name=REAL, blocks=blocks["real"])}
    return Diagnosis(
        verdict=_verdict(situation, system, known_compute=conditions is not None),
        evidence=_evidence(records, situation, conditions, system),
        stages=records.summary(),
        remedies=propose(situation),
        steps_per_second=1e3 / max(real, 1e-9),
        samples_per_second=float(records.items.mean()) * 1e3 / max(real, 1e-9),
        conditions=measured,
        loader_cap=float(np.median(draws["real"] / draws["compute"])) if conditions else None,
        growth=growth,
        system=system,
    )


def _check_measurements(records: StepRecords, conditions: Mapping[str, Condition] | None) -> None:
    if len(records) < _LEAST_STEPS:
        raise CoreclipError(
            f"{len(records)} measured steps are too few for a verdict: at least {_LEAST_STEPS}; run more steps or skip fewer"
        )
    if conditions is None:
        return
    missing = [name for name in (REAL, COMPUTE, LOADER) if name not in conditions]
    if missing:
        raise CoreclipError(
            f"the differential runs lack {', '.join(missing)}; a verdict compares real, compute and loader"
        )
    counts = {name: len(conditions[name].blocks) for name in (REAL, COMPUTE, LOADER)}
    if len(set(counts.values())) > 1:
        raise CoreclipError(
            f"the differential runs differ in their blocks ({counts}); run each condition in every round"
        )


def _blocks(records: StepRecords, conditions: Mapping[str, Condition] | None) -> dict[str, np.ndarray]:
    """Return mean milliseconds per step of each cost in each block."""
    n = len(conditions[REAL].blocks) if conditions else min(len(records), _MOST_BLOCKS)
    costs = {
        "wait": records.column("wait"),
        "transfer": records.column("transfer"),
        "side": records.column("metrics", "logging"),
        "matmul": records.column("forward", "backward", "step"),
        "real": records.step_milliseconds,
    }
    blocks = {name: np.array([part.mean() for part in np.array_split(times, n)]) for name, times in costs.items()}
    if conditions:
        blocks |= {name: conditions[name].blocks for name in (REAL, COMPUTE, LOADER)}
    return blocks


def _derive(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add what the loader's threads slow the step by; without differential runs none of it is known."""
    busy = draws["real"] - draws["wait"]
    compute = np.maximum(draws.get("compute", busy), 1e-6)
    return {**draws, "compute": compute, "slowed": np.maximum(busy - compute, 0.0)}


def _cpu_floor(conditions: Mapping[str, Condition] | None, cores: float) -> float:
    """Return the least milliseconds in which the cores can do a step and load its batch."""
    if not conditions:
        return 0.0
    return sum(conditions[name].cpu_milliseconds or 0.0 for name in (COMPUTE, LOADER)) / cores


def _loader_cores(conditions: Mapping[str, Condition] | None) -> float | None:
    loader = conditions[LOADER] if conditions else None
    if loader is None or loader.cpu_milliseconds is None:
        return None
    return loader.cpu_milliseconds / max(loader.milliseconds, 1e-9)


def _starved(system: SystemUse | None) -> float:
    """Return the part of the time in which the loop's thread had no core because of the process's own threads or limit.

    Waiting for a core is blamed on the process's other threads and on other processes by the CPU time each of them took.
    """
    if system is None:
        return 0.0
    own = max(0.0, system.busy_cores - system.caller_cpu_seconds / max(system.seconds, 1e-9))
    blame = own / max(own + (system.other_cores or 0.0), 1e-9)
    return max(system.caller_run_queue_seconds * blame, system.throttled_seconds or 0.0) / max(system.seconds, 1e-9)


def _verdict(s: Situation, system: SystemUse | None, *, known_compute: bool) -> str:
    if s.growth is not None:
        return "growing-cost"
    sure = interval(s.draws["slowed"] / np.maximum(s.draws["real"], 1e-9))[0] >= _SURE_LOSS
    contention = s.share("slowed") * sure if known_compute else _starved(system)
    losses = {
        "data-bound": s.share("wait"),
        "contention": contention,
        "transfer-bound": s.share("transfer"),
        "metric-or-logging": s.share("side"),
    }
    worst = max(losses, key=losses.__getitem__)
    if losses[worst] >= _LOSS:
        saturated = _starved(system) >= _LOSS or (system is not None and system.saturation >= _SATURATED)
        loader_could = s.share("loader") < 0.9 * s.share("compute") if "loader" in s.draws else False
        starved_loader = worst == "data-bound" and saturated and loader_could
        return "contention" if starved_loader else worst
    no_slack = s.share("loader") >= _SLACK * s.share("compute") if "loader" in s.draws else False
    return "balanced" if no_slack or sum(losses.values()) >= _LOSS else "compute-bound"


def _evidence(
    records: StepRecords, s: Situation, conditions: Mapping[str, Condition] | None, system: SystemUse | None
) -> list[str]:
    lines = [f"a step takes {_with_interval(s.draws['real'])} ms"]
    if conditions:
        cap = s.draws["real"] / s.draws["compute"]
        lines += [
            f"with the loader stopped and one resident batch it takes {_with_interval(s.draws['compute'])} ms, "
            f"so no fix of the loader can bring more than {_with_interval(cap, 2)} x",
            f"the loader alone makes a batch in {_with_interval(s.draws['loader'])} ms",
        ]
        if s.share("slowed") >= _SURE_LOSS:
            lines.append(f"the step itself is {_with_interval(s.draws['slowed'])} ms slower while the loader runs")
        if s.cpu_floor:
            lines.append(f"step and loader need {s.cpu_floor:.1f} ms of {s.cores:g} cores")
    for cost, stage, text in (
        ("wait", ("wait",), "waiting for a batch"),
        ("transfer", ("transfer",), "copying to the device"),
        ("side", ("metrics", "logging"), "metrics and logging"),
    ):
        if s.share(cost) >= 0.01:
            p95 = float(np.percentile(records.column(*stage), 95))
            lines.append(
                f"{text}: {_with_interval(s.draws[cost])} ms a step, {s.share(cost):.0%} of it (p95 {p95:.1f} ms)"
            )
    if s.growth is not None:
        lines.append(_growth_line(s.growth, s.total_steps))
    return lines + _system_lines(system)


def _with_interval(draws: np.ndarray, digits: int = 1) -> str:
    low, high = interval(draws)
    return f"{np.median(draws):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _growth_line(growth: Growth, total_steps: int | None) -> str:
    stage = "time outside any stage" if growth.stage == OTHER else f"stage {growth.stage!r}"
    line = (
        f"{stage} grows by {growth.milliseconds_per_call:.3g} ms with every call ({growth.low:.3g} to {growth.high:.3g}), "
        f"from {growth.at(growth.first_call):.1f} to {growth.at(growth.last_call):.1f} ms in the calls measured"
    )
    if total_steps:
        line += f"; at the run's end, after {total_steps:,} steps, it would take {growth.at(total_steps):.1f} ms"
    return line


def _system_lines(system: SystemUse | None) -> list[str]:
    if system is None:
        return []
    waiting = system.caller_run_queue_seconds / max(system.seconds, 1e-9)
    lines = [
        f"{system.busy_cores:.2f} of {system.cores:g} cores busy ({system.saturation:.0%}) with {system.n_threads} threads; "
        f"the loop's thread was ready without a core {waiting:.1%} of the time"
    ]
    if system.throttled_seconds:
        lines.append(
            f"the CPU limit throttled the process for {system.throttled_seconds:.2f} of {system.seconds:.1f} s"
        )
    if system.other_cores is not None and system.other_cores >= 0.25:
        lines.append(
            f"other processes kept {system.other_cores:.2f} cores busy: times are of a shared machine; measure on a quiet one"
        )
    return lines
