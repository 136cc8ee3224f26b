"""A second opinion on what is critical: a stage is delayed by a little more and a little less, and the step is looked at.

A delay d in a stage that the step waits for makes the step d longer: the slope dT/dd is 1. One that is hidden behind
something else makes it no longer: 0. It needs no model of queues and threads, and works through both. After causal
profiling (Curtsinger and Berger, "Coz", SOSP 2015), which slows everything else down instead. Left out: delays in stages
that nobody watches.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.conditions import interval, resample
from coreclip.profiling.recorder import StageRecorder
from coreclip.progress import Progress

STEP = "step"
_LEVELS = (0.0, 0.15, 0.3)  # of a step: large enough to be seen beside the noise
_CRITICAL, _SLACK = 0.7, 0.3
_LEAST_ENTERED = 0.5  # a step: in a stage that is entered less often a delay would be paid in few steps


@dataclass(frozen=True, kw_only=True)
class Criticality:
    """What a delay in a stage does to the step.

    Attributes
    ----------
    stage : str
    slope, low, high : float
        dT/dd with a 95 % interval.
    entered : float
        How often the stage is entered a step, in all threads.
    """

    stage: str
    slope: float
    low: float
    high: float
    entered: float

    @property
    def opinion(self) -> str:
        """``"critical"``, ``"slack"``, or ``"partly"`` where it is neither clearly."""
        if self.low >= _CRITICAL:
            return "critical"
        return "slack" if self.high <= _SLACK else "partly"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the opinion as JSON types."""
        return {**asdict(self), "opinion": self.opinion}


def probe_delays(
    step: Callable[[Any], object],
    loader: Iterable[Any],
    *,
    recorder: StageRecorder,
    stages: Sequence[str] = (),
    steps: int = 12,
    warmup: int = 4,
    repeats: int = 5,
    seed: int = 0,
) -> list[Criticality]:
    """Delay stages one after the other and fit what a step gains in length.

    Parameters
    ----------
    step : callable
        Does a whole training step with a batch.
    loader : iterable
        Yields batches anew at each ``iter()``.
    recorder : StageRecorder
        The one whose stages ``step`` and the loader's threads open.
    stages : sequence of str
        To be delayed; empty for the step as a whole and the stages that the loader's threads open.
    steps, warmup, repeats : int
        Measured steps of each delay, those before that fill the queues, and rounds of all delays.
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of Criticality
        In the order of ``stages``; those that are entered in fewer than half of the steps are left out.

    Raises
    ------
    CoreclipError
        For fewer than 2 steps or repeats, and where the loader ends before the steps are done and can't be started again.
    """
    if steps < 2 or repeats < 2 or warmup < 0:
        raise CoreclipError(
            f"steps = {steps}, repeats = {repeats}, warmup = {warmup} is not allowed: a slope needs 2 steps and 2 repeats at least, and "
            "warmup is 0 or more"
        )
    bench = _Probe(step, loader, recorder)
    base, entered = bench.run(warmup, steps)
    side_by_side = bench.threads
    chosen = list(stages) or [STEP, *sorted(name for name in recorder.elsewhere)]
    chosen = [name for name in chosen if entered.get(name, 0.0) >= _LEAST_ENTERED]
    times = {name: np.zeros((repeats, len(_LEVELS))) for name in chosen}
    with Progress(repeats * len(chosen) * len(_LEVELS) * steps, "probing", unit="steps") as progress:
        for turn in range(repeats):
            for name in chosen:
                for level, share in enumerate(_LEVELS):
                    # A batch's stage may be entered many times: each has its part of the delay. Threads wait it out side by side.
                    part = min(side_by_side.get(name, 1) / max(entered[name], 1.0), 1.0)
                    recorder.delays = {name: share * base / 1e3 * part}
                    try:
                        times[name][turn, level], _ = bench.run(warmup, steps)
                    finally:
                        recorder.delays = {}
                    progress.advance(steps)
    delays = np.array(_LEVELS) * base
    return [_fit(name, delays, times[name], entered[name], seed) for name in chosen]


def _fit(name: str, delays: np.ndarray, times: np.ndarray, entered: float, seed: int) -> Criticality:
    """Fit the slope in each round (Theil and Sen's: the median over pairs of delays), and resample the rounds."""
    first, second = np.triu_indices(len(delays), 1)
    slopes = np.median((times[:, second] - times[:, first]) / (delays[second] - delays[first]), axis=1)
    low, high = interval(resample({name: slopes}, seed=seed)[name])
    return Criticality(stage=name, slope=float(np.median(slopes)), low=low, high=high, entered=entered)


class _Probe:
    """Runs the loop for some steps."""

    def __init__(self, step: Callable[[Any], object], loader: Iterable[Any], recorder: StageRecorder) -> None:
        self._step, self._loader, self._recorder = step, loader, recorder
        self.threads: dict[str, int] = {}  # that live, and were in each stage

    def run(self, warmup: int, steps: int) -> tuple[float, dict[str, float]]:
        """Return the median milliseconds of a step, and how often each stage was entered in one."""
        with self._counted_entries() as entries:
            return self._run(warmup, steps, entries)

    @contextlib.contextmanager
    def _counted_entries(self) -> Iterator[collections.Counter[str]]:
        """Count inside how often the loop's thread enters each stage."""
        entries, thread, nothing = collections.Counter[str](), threading.get_ident(), contextlib.nullcontext()

        def count(name: str) -> contextlib.AbstractContextManager[object]:
            if threading.get_ident() == thread:
                entries[name] += 1
            return nothing

        outer, self._recorder.around = self._recorder.around, count
        try:
            yield entries
        finally:
            self._recorder.around = outer

    def _run(self, warmup: int, steps: int, entries: collections.Counter[str]) -> tuple[float, dict[str, float]]:
        recorder, done, empty = self._recorder, 0, 0
        begin, self.threads = recorder.n_steps, {}
        before = {name: stage.calls for name, stage in recorder.elsewhere.items()}
        while done < warmup + steps:
            at_start = done
            batches = recorder.loop(self._loader)
            for batch in batches:
                with recorder.stage(STEP):
                    self._step(batch)
                done += 1
                self._note_threads()  # those of an epoch that has ended live no more
                if done >= warmup + steps + 1:  # a step ends when the next batch is asked for
                    break
            batches.close()
            empty = empty + 1 if done == at_start else 0
            if empty > 1:
                raise CoreclipError("the loader yields no batch; it must yield some each time it is iterated")
        records = recorder.finish()
        records = records.take(records.number >= begin + warmup)
        entered = {name: count / done for name, count in entries.items()}
        for name, stage in recorder.elsewhere.items():
            entered[name] = (stage.calls - before.get(name, 0)) / done
        return float(np.median(records.step_milliseconds)), entered

    def _note_threads(self) -> None:
        for name in self._recorder.elsewhere:
            self.threads[name] = max(self._recorder.threads_in(name), self.threads.get(name, 1))
