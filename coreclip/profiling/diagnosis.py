"""From measurements to a verdict: what holds the run up, with the figures that say so, and what each remedy would bring.

:func:`diagnose` measures a step function and its loader; :func:`diagnose_records` judges measurements that are there, e.g.
a recorder that watched a training run, and is a pure function of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.conditions import COMPUTE, LOADER, REAL, Condition, first_batches, run_conditions
from coreclip.profiling.elsewhere import ThreadStage
from coreclip.profiling.findings import (
    VERDICTS,
    Finding,
    cold_line,
    find,
    stalls_left_out,
    verdict,
    with_interval,
)
from coreclip.profiling.growth import Growth, find_growth
from coreclip.profiling.readbacks import ReadBack, find_read_backs
from coreclip.profiling.recorder import LOADER_STAGES, StageRecorder, StepRecords
from coreclip.profiling.remedies import Remedy, propose
from coreclip.profiling.situation import Situation, assess
from coreclip.profiling.stalls import Stalls, find_stalls, without_stalls
from coreclip.profiling.system import SystemUse, available_cores
from coreclip.profiling.threadpools import thread_trial

_LEAST_STEPS = 4
_READ_BACK_STEPS = 5
_SHOWN_STEPS = 6
_NOTED_WAIT = 0.01
_SETTING_ATTRIBUTES = ("workers", "image_size", "batch_size", "resident")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A verdict with its evidence.

    Attributes
    ----------
    verdict : str
        One of :data:`VERDICTS`.
    cause : str
        What the verdict is about, e.g. a stage; empty where that is not known.
    findings : list of Finding
        All that was found to take time, the largest loss first.
    evidence : list of str
        Sentences with the figures.
    stages : dict
        ``{stage: {"milliseconds_per_step", "share", "p50", "p95", "max", "cpu_milliseconds_per_step"}}``.
    remedies : list of Remedy
        Largest predicted speed-up first.
    steps_per_second, samples_per_second : float
        Of the run as it is.
    conditions : dict
        ``{"real", "compute", "replay", "loader": Condition}`` and those that were asked for; only ``"real"`` where no
        differential runs were made.
    loader_cap : float or None
        T_real / T_compute, stalls that come back in both: what no fix of the loader can exceed; None without differential runs.
    growth : Growth or None
    stalls : Stalls or None
    read_backs : list of ReadBack
    system : SystemUse or None
    gauges : dict
        ``{gauge: {"mean", "p5", "p50", "p95"}}`` of the levels noted in the real loop's steps.
    timeline : list
        The newest steps of the real loop, each a list of (stage, begin, end), milliseconds.
    steps : dict
        ``{"number": [...], "milliseconds": [...], "wait": [...]}`` of the real loop's measured steps.
    """

    verdict: str
    cause: str
    findings: list[Finding]
    evidence: list[str]
    stages: dict[str, dict[str, float]]
    remedies: list[Remedy]
    steps_per_second: float
    samples_per_second: float
    conditions: dict[str, Condition]
    loader_cap: float | None
    growth: Growth | None
    stalls: Stalls | None
    read_backs: list[ReadBack]
    system: SystemUse | None
    gauges: dict[str, dict[str, float]] = field(default_factory=dict)
    timeline: list[list[tuple[str, float, float]]] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "verdict": self.verdict,
            "cause": self.cause,
            "summary": VERDICTS[self.verdict],
            "findings": [finding.to_dict() for finding in self.findings],
            "evidence": self.evidence,
            "stages": self.stages,
            "remedies": [remedy.to_dict() for remedy in self.remedies],
            "steps_per_second": self.steps_per_second,
            "samples_per_second": self.samples_per_second,
            "conditions": {name: condition.to_dict() for name, condition in self.conditions.items()},
            "loader_cap": self.loader_cap,
            "growth": None if self.growth is None else self.growth.to_dict(),
            "stalls": None if self.stalls is None else self.stalls.to_dict(),
            "read_backs": [read.to_dict() for read in self.read_backs],
            "system": None if self.system is None else self.system.to_dict(),
            "gauges": self.gauges,
            "timeline": [[list(piece) for piece in step] for step in self.timeline],
            "steps": self.steps,
        }


def diagnose(
    step: Callable[[Any], object],
    loader: Iterable[Any],
    *,
    transfer: Callable[[Any], Any] | None = None,
    steps: int = 60,
    warmup: int = 8,
    repeats: int = 5,
    recorder: StageRecorder | None = None,
    resident_batch: Any = None,
    forget: Callable[[], object] | None = None,
    cores: float | None = None,
    setting: Mapping[str, Any] | None = None,
    total_steps: int | Callable[[float], int] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measure a training step and its loader, and say what holds them up.

    About ``4 * (steps + repeats * warmup)`` steps' worth of work: the real loop, the step on kept batches and on one
    resident batch, and the loader alone, in turn; then a few steps whose reads of tensors are watched.

    Parameters
    ----------
    step : callable
        Does a whole training step with a batch, or with what ``transfer`` makes of it; it may open stages of ``recorder``.
    loader : iterable
        Yields batches anew at each ``iter()``; more than ``warmup`` of them.
    transfer : callable or None
        Brings a batch to where the step wants it, where the step does not do that itself.
    steps, warmup, repeats : int
        See :func:`coreclip.profiling.run_conditions`.
    recorder : StageRecorder or None
        The one whose stages the step, and the loader's threads, open.
    resident_batch : batch or None
        What the step computes on when the loader is stopped; None for the loader's first batch.
    forget : callable or None
        Makes the system give up what it keeps of the data's files in memory: then the loop is also measured cold.
    cores : float or None
        That may be used; None to ask the system.
    setting : mapping or None
        What remedies depend on: ``workers``, ``image_size``, ``precision``, ``resident``, ``device``; the loader's
        attributes of these names are used where it is silent.
    total_steps : int, callable or None
        Length of the whole run, for the projection of growing costs; or a function of a step's milliseconds that gives it.
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
    recorder = StageRecorder() if recorder is None else recorder
    run = run_conditions(
        step,
        loader,
        transfer=transfer,
        steps=steps,
        warmup=warmup,
        repeats=repeats,
        recorder=recorder,
        resident_batch=resident_batch,
        forget=forget,
        trials=thread_trial(cores),
        cores=cores,
    )
    known = {name: getattr(loader, name) for name in _SETTING_ATTRIBUTES if hasattr(loader, name)}
    read_backs, timeline = _look_closely(step, loader, transfer, recorder)
    return diagnose_records(
        run.records,
        conditions=run.conditions,
        calls=run.calls,
        stalls=run.stalls,
        read_backs=read_backs,
        timeline=timeline,
        system=run.system,
        cores=cores,
        setting={**known, **(setting or {})},
        total_steps=total_steps(run.step_milliseconds) if callable(total_steps) else total_steps,
        seed=seed,
    )


def diagnose_records(
    records: StepRecords,
    *,
    conditions: Mapping[str, Condition] | None = None,
    calls: StepRecords | None = None,
    stalls: Stalls | None = None,
    read_backs: Sequence[ReadBack] = (),
    threads: Mapping[str, ThreadStage] | None = None,
    timeline: Sequence[list[tuple[str, float, float]]] = (),
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
    stalls : Stalls or None
        What the conditions' blocks are without; without conditions they are sought in ``records``.
    read_backs : sequence of ReadBack
        See :func:`coreclip.profiling.readbacks.find_read_backs`.
    threads : {str: ThreadStage} or None
        What other threads spent in the loader's stages, for a step; with conditions theirs are taken.
    timeline : sequence
        Steps to show, of :attr:`StageRecorder.timeline`.
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
    if conditions is None:
        stalls = find_stalls(records)
    growth = find_growth(records if calls is None else calls, total_steps=total_steps)
    situation = assess(
        records,
        conditions=conditions or {},
        growth=growth,
        stalls=stalls,
        use=system,
        cores=cores,
        setting=setting or {},
        total_steps=total_steps,
        read_backs=read_backs,
        threads=threads or {},
        seed=seed,
    )
    findings = find(situation)
    name, cause = verdict(situation, findings)
    step = float(np.median(situation.step))
    smooth = without_stalls(records, stalls).step_milliseconds
    blocks = np.array([part.mean() for part in np.array_split(smooth, min(len(records), 8))])
    return Diagnosis(
        verdict=name,
        cause=cause,
        findings=findings,
        evidence=_evidence(records, situation, findings),
        stages=records.summary(),
        remedies=propose(situation),
        steps_per_second=1e3 / max(step, 1e-9),
        samples_per_second=float(records.items.mean()) * 1e3 / max(step, 1e-9),
        conditions=dict(conditions) if conditions else {REAL: Condition(name=REAL, blocks=blocks)},
        loader_cap=float(np.median(_loader_cap(situation))) if conditions else None,
        growth=growth,
        stalls=stalls,
        read_backs=list(read_backs),
        system=system,
        gauges={gauge: _levels(levels) for gauge, levels in records.gauges.items()},
        timeline=list(timeline),
        steps={
            "number": records.number.tolist(),
            "milliseconds": records.step_milliseconds.tolist(),
            "wait": records.column(*LOADER_STAGES).tolist(),
        },
    )


def _look_closely(
    step: Callable[[Any], object],
    loader: Iterable[Any],
    transfer: Callable[[Any], Any] | None,
    recorder: StageRecorder,
) -> tuple[list[ReadBack], list[list[tuple[str, float, float]]]]:
    """Run a few more steps of the real loop for the time line, and a few on kept batches for the lines that read tensors back."""

    def run(batches: Iterable[Any], steps: int) -> int:
        done = 0
        iterator = recorder.loop(batches)
        for batch in iterator:
            if transfer is not None:
                with recorder.stage("transfer"):
                    batch = transfer(batch)
            with recorder.stage("step"):
                step(batch)
            done += 1
            if done == steps:
                break
        iterator.close()
        return done

    run(loader, _SHOWN_STEPS + 2)  # the first ones fill the queue and end in the step that is cut off
    timeline = recorder.timeline[-_SHOWN_STEPS:]
    kept = first_batches(loader, _READ_BACK_STEPS)  # a loader at work would slow what is clocked
    return find_read_backs(lambda: run(kept, _READ_BACK_STEPS), recorder=recorder), timeline


def _levels(levels: np.ndarray) -> dict[str, float]:
    known = levels[~np.isnan(levels)]
    if not len(known):
        return {}
    p5, p50, p95 = np.percentile(known, (5, 50, 95)).tolist()
    return {"mean": float(known.mean()), "p5": p5, "p50": p50, "p95": p95}


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


def _loader_cap(s: Situation) -> np.ndarray:
    """Return the speed-up (draws,) that no fix of the loader can exceed."""
    return s.step / (s.draws["compute"] + s.stalled)


def _evidence(records: StepRecords, s: Situation, findings: Sequence[Finding]) -> list[str]:
    stalled = f", {s.stalled:.1f} of them in stalls that come back" if s.stalled else ""
    lines = [f"a step takes {with_interval(s.step)} ms{stalled}"]
    if s.conditions:
        cap = np.maximum(_loader_cap(s), 1.0)  # less is noise
        lines += [
            f"with the loader stopped and one resident batch it takes {with_interval(s.draws['compute'])} ms{stalls_left_out(s)}, "
            f"so no fix of the loader can bring more than {with_interval(cap, 2)} x",
            f"the loader alone makes a batch in {with_interval(s.draws['loader'])} ms",
        ]
        cold = cold_line(s)
        if cold is not None:
            lines.append(cold)
        if s.cpu_floor:
            lines.append(f"step and loader need {s.cpu_floor:.1f} ms of {s.cores:g} cores")
    lines += [finding.evidence for finding in findings]
    waits = records.column(*LOADER_STAGES)
    if s.share("wait") >= _NOTED_WAIT:
        p50, p95 = np.percentile(waits, (50, 95)).tolist()
        lines.append(
            f"a batch is waited for {p50:.1f} ms in half of the steps, {p95:.1f} ms in one of 20, {waits.max():.1f} ms at most"
        )
    for gauge, levels in records.gauges.items():
        figures = _levels(levels)
        if figures:
            lines.append(
                f"{gauge}: {figures['mean']:.1f} on average, {figures['p5']:g} to {figures['p95']:g} in 9 of 10 steps"
            )
    return lines + _system_lines(s.use)


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
