"""What holds a run up: each detector turns the measured costs into one finding, and the largest one is the verdict.

A finding says what it takes of a step and how fast a step would be without it. A loss gets the verdict when it is 10 % of
a step and its interval stays above 3 %; growth that has no known end comes first, because by the end of a run it is the
largest. Left out: two losses that are one, e.g. a metric that is slow because it also reads the disk.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coreclip.profiling.conditions import COLD, LOADER, REAL, REPLAY, interval
from coreclip.profiling.recorder import LOADER_STAGES, OTHER
from coreclip.profiling.situation import Situation
from coreclip.profiling.threadpools import THREAD_LIMIT

VERDICTS: dict[str, str] = {
    "data-bound": "the step waits for batches",
    "contention": "the loader's threads take the cores, or Python's lock, from the step",
    "transfer-bound": "copying batches to the device holds the step up",
    "compute-bound": "the model's own computing takes the step; the loader keeps up",
    "metric-or-logging": "metrics or logging hold the step up",
    "growing-cost": "a stage costs more with every call",
    "periodic-stall": "every so many steps one takes much longer",
    "synchronisation": "reading tensors back into Python holds the step up",
    "memory-pressure": "the kernel's work on memory pages holds the step up",
    "oversubscription": "more computing threads than cores get in each other's way",
    "unwatched": "most of the step is in no watched stage",
    "balanced": "nothing alone holds the step up",
}
LEAST_SHARE = 0.10  # of a step: a loss this large gets the verdict
_LEAST_GROWN_SHARE = 0.05  # of a mean step of the run: its growth is certain, however small
_SURE_SHARE = 0.03  # which the lower end of its interval must reach
_NOTED_SHARE = 0.01  # smaller ones are not worth a line
_SATURATED = 0.85  # of the cores busy
_SLACK = 0.85  # a loader alone that takes this much of a compute step has no slack left
_IDLE_CORES = 0.3  # a loader that uses less waits for something else than a core
_LOCK_MILLISECONDS = 0.5  # a thread that is ready gets Python's lock sooner where nobody holds it for long
_KNOWN_WORK = 0.5  # of the loader's time must lie in watched stages, or they are not what it does
_LEAST_READ = 1 << 16  # bytes a batch: less is a page that comes by
_MOST_SHARE = 0.95  # of a step that reading tensors back can be: the rest is what they are computed by
_LEAST_UNWATCHED = 0.5
_HIDDEN_SHARE = 0.1  # of a cost, to be said
_FAULTS = 1000  # fresh pages a step in the loop's thread, 4 MB: fewer cost no milliseconds
_BARE_STAGES = (*LOADER_STAGES, OTHER)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that makes a step longer.

    Attributes
    ----------
    verdict : str
        One of :data:`VERDICTS`.
    cause : str
        What it is about: a stage, ``"cores"``, ``"interpreter lock"``, ``file:line``; empty where that is not known.
    milliseconds, low, high : float
        Of a step, with a 95 % interval.
    share : float
        Of a step, 0 to 1.
    cause_milliseconds : float
        What the cause itself takes for a batch where that can be clocked, e.g. a loader's stage that is partly hidden
        behind the step; else as ``milliseconds``.
    speedup, speedup_low, speedup_high : float
        Step time now over step time without the cause.
    evidence : str
        A sentence with the figures.
    """

    verdict: str
    cause: str
    milliseconds: float
    low: float
    high: float
    share: float
    cause_milliseconds: float
    speedup: float
    speedup_low: float
    speedup_high: float
    evidence: str

    @property
    def is_sure(self) -> bool:
        """Whether it is large enough for a verdict, beyond the noise."""
        return self.share >= LEAST_SHARE and self.low >= self.milliseconds / max(self.share, 1e-9) * _SURE_SHARE

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def find(situation: Situation) -> list[Finding]:
    """Return what holds the run up, the largest loss first; growth without a known end before all."""
    found = [finding for detect in _DETECTORS if (finding := detect(situation)) is not None]
    unbounded = situation.growth is not None and not situation.total_steps
    return sorted(found, key=lambda f: (not (unbounded and f.verdict == "growing-cost"), -f.milliseconds))


def verdict(situation: Situation, findings: list[Finding]) -> tuple[str, str]:
    """Return the verdict and its cause."""
    for finding in findings:
        is_growing = finding.verdict == "growing-cost" and (
            not situation.total_steps or finding.share >= _LEAST_GROWN_SHARE
        )
        if finding.is_sure or is_growing:
            return finding.verdict, finding.cause
    no_slack = (
        situation.share("loader") >= _SLACK * situation.share("compute") if "loader" in situation.draws else False
    )
    if no_slack or sum(finding.share for finding in findings) >= LEAST_SHARE:
        return "balanced", ""
    own = {stage: spent for stage, spent in situation.stages.items() if stage not in _BARE_STAGES}
    return "compute-bound", max(own, key=own.__getitem__) if own else ""


def with_interval(draws: np.ndarray, digits: int = 1) -> str:
    """Return a median with its 95 % interval, to read."""
    low, high = interval(draws)
    return f"{np.median(draws):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def starved_share(situation: Situation) -> float:
    """Return the part of the time in which the loop's thread had no core because of the process's own threads or limit.

    Waiting for a core is blamed on the process's other threads and on other processes by the CPU time each of them took.
    """
    use = situation.use
    if use is None:
        return 0.0
    own = max(0.0, use.busy_cores - use.caller_cpu_seconds / max(use.seconds, 1e-9))
    blame = own / max(own + (use.other_cores or 0.0), 1e-9)
    return max(use.caller_run_queue_seconds * blame, use.throttled_seconds or 0.0) / max(use.seconds, 1e-9)


def _make(
    s: Situation,
    verdict: str,
    loss: np.ndarray,
    cause: str,
    evidence: str,
    *,
    after: np.ndarray | None = None,
    cause_milliseconds: float | None = None,
) -> Finding | None:
    """Return a finding of a loss in milliseconds per step (draws), None where it is nothing; ``after``: a step without it."""
    share = float(np.median(loss) / max(np.median(s.step), 1e-9))
    if share < _NOTED_SHARE:
        return None
    gain = s.step / np.maximum(s.step - loss if after is None else after + s.stalled, 1e-6)
    (low, high), (slow, fast) = interval(loss), interval(gain)
    milliseconds = float(np.median(loss))
    return Finding(
        verdict=verdict,
        cause=cause,
        milliseconds=milliseconds,
        low=low,
        high=high,
        share=share,
        cause_milliseconds=milliseconds if cause_milliseconds is None else cause_milliseconds,
        speedup=float(np.median(gain)),
        speedup_low=slow,
        speedup_high=fast,
        evidence=evidence,
    )


def _make_of_step(s: Situation, verdict: str, cost: np.ndarray, cause: str, evidence: str) -> Finding | None:
    """Return a finding of what the step itself pays: it costs the run as much of it as does not hide behind the loader."""
    after = s.without(cost)
    loss = np.maximum(s.draws["real"] - after, 0.0)
    whole = float(np.median(cost))
    hidden = whole - float(np.median(loss))
    if s.overlaps and hidden > _HIDDEN_SHARE * whole:
        evidence += f"; {hidden:.1f} ms of it are hidden behind the loader, which takes as long"
    return _make(s, verdict, loss, cause, evidence, after=after, cause_milliseconds=whole)


def _waiting(s: Situation) -> Finding | None:
    if _waits_by_contention(s):
        return None
    wait = s.draws["wait"]
    line = f"waiting for a batch: {with_interval(wait)} ms a step, {s.share('wait'):.0%} of it"
    if slows_by_waiting(s):
        wait = wait + s.draws["slowed"]
        line += f"; a step that has waited takes {with_interval(s.draws['slowed'])} ms longer than one that has not"
    stages = _loader_stages(s)
    if not stages:
        return _make(s, "data-bound", wait, _idle_or_computing(s), line + _how_the_loader_spends(s))
    cause = max(stages, key=stages.__getitem__)
    spent = stages[cause]
    part = spent / max(sum(stages.values()), 1e-9)
    inline = s.stages.get(cause, 0.0)  # the loop's thread does it itself
    if inline >= 0.5 * spent or "loader" not in s.draws:
        after = s.draws["real"] - wait * np.minimum(spent / np.maximum(s.draws["wait"], 1e-9), 1.0)
    else:  # hidden behind the step as far as there is room for it
        after = np.maximum(s.draws["real"] - wait, s.draws["loader"] * (1 - part))
    return _make(
        s, "data-bound", wait, cause, f"{line}; {cause} is {part:.0%} of a loader's work, {spent:.1f} ms a batch",
        after=after, cause_milliseconds=spent,
    )  # fmt: skip


def _waits_by_contention(s: Situation) -> bool:
    """Whether the loop waits for a loader that alone would be quick enough, while the cores are full or Python's lock is held."""
    if not s.overlaps:
        return False
    keeps_up = s.share("loader") < _SLACK * s.share("compute")
    return keeps_up and (_is_saturated(s) or _lock_milliseconds(s) is not None)


def slows_by_waiting(s: Situation) -> bool:
    """Return whether the loop waits while cores are free: caches and clocks are cold after it, and nobody takes anything from the step."""
    return (
        "loader" in s.draws
        and s.use is not None
        and s.share("wait") >= max(LEAST_SHARE, s.share("slowed"))
        and not _is_saturated(s)
        and _lock_milliseconds(s) is None
    )


def _is_saturated(s: Situation) -> bool:
    return starved_share(s) >= LEAST_SHARE or (s.use is not None and s.use.saturation >= _SATURATED)


def _loader_stages(s: Situation) -> dict[str, float]:
    """Return the milliseconds that each watched stage of the loader takes for a batch, in whatever thread."""
    names = [name for name in LOADER_STAGES if name != "wait"]
    spent = {name: s.stages.get(name, 0.0) + s.threads.get(name, 0.0) for name in names}
    known = sum(spent.values())
    if known < _KNOWN_WORK * float(np.median(s.draws.get("loader", s.draws["wait"]))):
        return {}
    return {name: milliseconds for name, milliseconds in spent.items() if milliseconds > 0}


def _idle_or_computing(s: Situation) -> str:
    if s.loader_cores is None:
        return ""
    if s.loader_cores >= _IDLE_CORES:
        return "computing"
    use = s.conditions[LOADER].use if LOADER in s.conditions else None
    batches = 1.0 if use is None else max(use.seconds * 1e3 / s.conditions[LOADER].milliseconds, 1.0)
    return "read" if use is not None and (use.read_bytes or 0) >= _LEAST_READ * batches else "idle"


def _how_the_loader_spends(s: Situation) -> str:
    if s.loader_cores is None:
        return ""
    if s.loader_cores >= _IDLE_CORES:
        return f"; the loader alone keeps {s.loader_cores:.1f} cores busy"
    return f"; the loader alone keeps only {s.loader_cores:.2f} cores busy: it sleeps, or waits for a disk or a network"


def _contention(s: Situation) -> Finding | None:
    if slows_by_waiting(s):
        return None
    if not s.conditions:
        loss = starved_share(s) * s.step
        return _make(
            s,
            "contention",
            loss,
            "cores",
            f"the loop's thread was ready without a core {starved_share(s):.0%} of the time",
        )
    loss = s.draws["slowed"]
    line = f"the step itself is {with_interval(loss)} ms slower while the loader runs"
    waits = _waits_by_contention(s)
    if waits:
        loss = loss + s.draws["wait"]
        line += f", and waits {with_interval(s.draws['wait'])} ms for a loader that alone is quicker than the step"
    if not waits and interval(loss / np.maximum(s.step, 1e-9))[0] < _SURE_SHARE:
        return None
    late = _lock_milliseconds(s)
    if late is not None:
        line += f"; a thread that is ready waits {late:.1f} ms for Python's lock"
        return _make(s, "contention", loss, "interpreter lock", line)
    return _make(s, "contention", loss, "cores", line)


def _lock_milliseconds(s: Situation) -> float | None:
    """Return how much longer Python's lock is waited for while the loader runs, where that is what slows the step."""
    real, replay = s.conditions.get(REAL), s.conditions.get(REPLAY)
    if real is None or replay is None or real.lock_milliseconds is None:
        return None
    late = real.lock_milliseconds - (replay.lock_milliseconds or 0.0)
    return late if late >= _LOCK_MILLISECONDS else None


def _transfer(s: Situation) -> Finding | None:
    line = f"copying to the device: {with_interval(s.draws['transfer'])} ms a step, {s.share('transfer'):.0%} of it"
    return _make_of_step(s, "transfer-bound", s.draws["transfer"], "transfer", line)


def _side_work(s: Situation) -> Finding | None:
    read = _read_back_milliseconds(s, ("metrics", "logging")) if _counts_read_backs(s) else 0.0
    loss = np.maximum(s.draws["side"] - read, 0.0)
    cause = max(("metrics", "logging"), key=lambda stage: s.stages.get(stage, 0.0))
    line = f"metrics and logging: {with_interval(loss)} ms a step, {np.median(loss / s.step):.0%} of it"
    return _make_of_step(s, "metric-or-logging", loss, cause, line)


def _growing(s: Situation) -> Finding | None:
    growth = s.growth
    if growth is None:
        return None
    stage = "time outside any stage" if growth.stage == OTHER else f"stage {growth.stage!r}"
    line = (
        f"{stage} grows by {growth.milliseconds_per_call:.3g} ms with every call ({growth.low:.3g} to {growth.high:.3g}), "
        f"from {growth.at(growth.first_call):.1f} to {growth.at(growth.last_call):.1f} ms in the calls measured"
    )
    if s.total_steps:
        line += f"; at the run's end, after {s.total_steps:,} steps, it would take {growth.at(s.total_steps):.1f} ms"
    # What the mean step of the run will have grown by: as fitted, and at the ends of the fit's interval.
    slopes = (growth.milliseconds_per_call, growth.low, growth.high)
    means = [tuple(mean + s.stalled for mean in s.grown(slope)) for slope in slopes]
    lost, low, high = (float(np.median(growing - without)) for growing, without in means)
    gain, slow, fast = (float(np.median(growing / without)) for growing, without in means)
    return Finding(
        verdict="growing-cost",
        cause=growth.stage,
        milliseconds=lost,
        low=low,
        high=high,
        share=lost / max(float(np.median(means[0][0])), 1e-9),
        cause_milliseconds=growth.milliseconds_per_call,
        speedup=gain,
        speedup_low=slow,
        speedup_high=fast,
        evidence=line,
    )


def _stalls(s: Situation) -> Finding | None:
    stalls = s.stalls
    if stalls is None:
        return None
    where = "a step" if stalls.stage in (OTHER, "step") else f"stage {stalls.stage!r}"
    gain = s.step / s.without(0.0)
    slow, fast = interval(gain)
    return Finding(
        verdict="periodic-stall",
        cause=stalls.stage,
        milliseconds=s.stalled,
        low=stalls.low / stalls.period,
        high=stalls.high / stalls.period,
        share=s.stalled / float(np.median(s.step)),
        cause_milliseconds=stalls.milliseconds,
        speedup=float(np.median(gain)),
        speedup_low=slow,
        speedup_high=fast,
        evidence=f"{where} takes {stalls.milliseconds:.1f} ms longer in every {stalls.period}th step ({stalls.seen} seen): "
        f"{s.stalled:.1f} ms a step",
    )


def _counts_read_backs(s: Situation) -> bool:
    """Whether reading tensors back is a loss by itself: on a GPU what a read waits for is the device's work."""
    return not str(s.setting.get("device", "cpu")).startswith("cuda")


def _read_back_milliseconds(s: Situation, stages: tuple[str, ...] | None = None) -> float:
    return sum(read.milliseconds for read in s.read_backs if stages is None or read.stage in stages)


def synchronisation(s: Situation) -> Finding | None:
    """Detect tensors that are read back."""
    if not s.read_backs or not _counts_read_backs(s):
        return None
    total = _read_back_milliseconds(s)
    dearest = s.read_backs[0]
    line = (
        f"tensors are read back {sum(read.calls for read in s.read_backs):,.0f} times a step, {total:.1f} ms; most by "
        f".{dearest.method}() at {dearest.where}: {dearest.calls:,.0f} times, {dearest.milliseconds:.1f} ms"
    )
    loss = np.minimum(total, _MOST_SHARE * s.draws["real"])
    return _make_of_step(s, "synchronisation", loss, dearest.where, line)


def _oversubscription(s: Situation) -> Finding | None:
    limited = s.draws.get(THREAD_LIMIT)
    if limited is None:
        return None
    loss = np.maximum(s.draws["compute"] - limited, 0.0)
    if interval(loss / np.maximum(s.step, 1e-9))[0] < _SURE_SHARE:
        return None
    line = (
        f"with no more computing threads than the {s.cores:g} cores a step on a resident batch takes {with_interval(limited)} ms "
        f"instead of {with_interval(s.draws['compute'])}"
    )
    return _make_of_step(s, "oversubscription", loss, "threads", line)


def memory_pressure(s: Situation) -> Finding | None:
    """Detect too little memory, or fresh pages in every step."""
    use = s.use
    if use is None or REAL not in s.conditions:
        return None
    steps = max(use.seconds * 1e3 / max(float(np.median(s.step)), 1e-9), 1.0)
    faults = use.caller_minor_faults / steps
    stalled = (use.memory_stall_seconds or 0.0) * 1e3 / steps
    kernel = use.caller_system_seconds * 1e3 / steps if faults >= _FAULTS else 0.0
    loss = np.full_like(s.draws["real"], max(stalled, kernel))
    if stalled >= kernel:
        line = f"processes wait for memory {stalled:.1f} ms a step: the machine has too little"
        return _make_of_step(s, "memory-pressure", loss, "too little memory", line)
    line = f"the kernel gives the loop's thread {faults:,.0f} fresh pages a step, and spends {kernel:.1f} ms on it"
    return _make_of_step(s, "memory-pressure", loss, "fresh pages", line)


def _unwatched(s: Situation) -> Finding | None:
    """Time outside any stage, where the loop's own stages are watched at all."""
    if s.conditions or all(stage in _BARE_STAGES for stage in s.stages):
        return None
    share = s.stages.get(OTHER, 0.0) / max(sum(s.stages.values()), 1e-9)  # of a step without stalls
    spent = share * s.draws["real"] + (s.stalled if s.stalls is not None and s.stalls.stage == OTHER else 0.0)
    if np.median(spent / s.step) < _LEAST_UNWATCHED:
        return None
    line = f"outside any watched stage: {np.median(spent):.1f} ms a step; watch what is there"
    return _make(s, "unwatched", spent, OTHER, line)


def cold_line(s: Situation) -> str | None:
    """Return what fetching the data from the disk costs, where it was measured."""
    if COLD not in s.draws:
        return None
    return f"with the data's files out of memory a step takes {with_interval(s.draws[COLD])} ms{stalls_left_out(s)}"


def stalls_left_out(s: Situation) -> str:
    """Return what is to be said of a figure that stalls which come back are not in; empty where there are none."""
    return ", stalls left out" if s.stalled else ""


_DETECTORS: tuple[Callable[[Situation], Finding | None], ...] = (
    _growing, _waiting, _contention, _transfer, _side_work, _stalls, synchronisation, _oversubscription, memory_pressure, _unwatched,
)  # fmt: skip
