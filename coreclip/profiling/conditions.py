"""Differential runs: one step function and one loader under conditions that differ in one thing each.

After DS-Analyzer (Mohan et al. 2021), with blocks of the conditions interleaved so that a machine's drift hits all of them,
each block's warm-up (queues filling) thrown away, and intervals from resampling whole rounds:

- ``compute``: the step on one batch that lies ready, the loader stopped;
- ``replay``: the same on kept batches in turn, through the transfer where there is one;
- ``real``: the loop as it is, the system's page cache warm;
- ``cold``: the same after the data's pages were given up, where the caller knows how;
- ``loader``: batches fetched and dropped;
- trials: ``compute`` with something changed, e.g. fewer threads.

``replay`` less ``compute`` is what other batches cost, ``real`` less ``replay`` what preparing them does, ``cold`` less
``real`` what fetching them from the disk would. Any fix of the loader is capped at T_real / T_compute, with the stalls that
come back in both.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.elsewhere import ThreadStage, difference
from coreclip.profiling.lockprobe import LockProbe
from coreclip.profiling.recorder import LOADER_STAGES, StageRecorder, StepRecords, count_items
from coreclip.profiling.stalls import Stalls, find_stalls, stall_cpu_milliseconds, without_stalls
from coreclip.profiling.system import SystemUse, SystemWindow, combine
from coreclip.progress import Progress

REAL, COMPUTE, LOADER, REPLAY, COLD = "real", "compute", "loader", "replay", "cold"
_DRAWS = 1000
_KEPT_BATCHES = 8
_SHORT_INTERVAL = 5e-5  # seconds


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a step took under one condition.

    Attributes
    ----------
    name : str
        ``"real"``, ``"compute"``, ``"loader"``, ``"replay"``, ``"cold"``, or a trial's.
    blocks : float64 (repeats,)
        Mean milliseconds of a step in each block, without stalls that come back. Means, because a queue's stalls are rare
        and long.
    calls : float64 (repeats,) or None
        The mean number of the step function's calls in each block; None where it is not called, or that is not known.
    stages : {str: float64 (repeats,)}
        Mean milliseconds of a step in each stage of the loop, in each block.
    cpu_milliseconds : float or None
        CPU time of the process and its children for a step, all threads.
    threads : {str: ThreadStage}
        What other threads than the loop's spent in each watched stage, for a step.
    lock_milliseconds : float or None
        How long a thread that is ready waits for Python's lock, see :mod:`coreclip.profiling.lockprobe`.
    use : SystemUse or None
        Of the system, over the measured steps.
    """

    name: str
    blocks: np.ndarray
    calls: np.ndarray | None = None
    stages: Mapping[str, np.ndarray] = field(default_factory=dict)
    cpu_milliseconds: float | None = None
    threads: Mapping[str, ThreadStage] = field(default_factory=dict)
    lock_milliseconds: float | None = None
    use: SystemUse | None = None

    @property
    def milliseconds(self) -> float:
        """Median over the blocks."""
        return float(np.median(self.blocks))

    def to_dict(self) -> dict[str, Any]:
        """Return median, its 95 % bootstrap interval, CPU time and blocks, as JSON types."""
        low, high = interval(resample({self.name: self.blocks})[self.name])
        return {
            "milliseconds_per_step": self.milliseconds,
            "low": low,
            "high": high,
            "cpu_milliseconds_per_step": self.cpu_milliseconds,
            "blocks": len(self.blocks),
            "block_milliseconds": self.blocks.tolist(),
            "lock_milliseconds": self.lock_milliseconds,
            "threads": {
                name: {
                    "milliseconds_per_step": stage.milliseconds,
                    "cpu_milliseconds_per_step": stage.cpu_milliseconds,
                }
                for name, stage in self.threads.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class ConditionRun:
    """Result of :func:`run_conditions`.

    Attributes
    ----------
    conditions : dict
        ``{"real", "compute", "replay", "loader": Condition}``, and ``"cold"`` and the trials that were asked for.
    records : StepRecords
        The measured steps of the real condition, block after block, equally many in each.
    calls : StepRecords
        The measured steps of all conditions that call the step function as it is, numbered by its calls.
    stalls : Stalls or None
        Found in ``calls``; the conditions' blocks are without them.
    """

    conditions: dict[str, Condition]
    records: StepRecords
    calls: StepRecords
    stalls: Stalls | None

    @property
    def step_milliseconds(self) -> float:
        """Of a mean step of the real condition, stalls included."""
        return self.conditions[REAL].milliseconds + (0.0 if self.stalls is None else self.stalls.milliseconds_per_step)

    @property
    def system(self) -> SystemUse:
        """Use of the system over the measured parts of the real condition."""
        use = self.conditions[REAL].use
        assert use is not None
        return use


def resample(blocks: Mapping[str, np.ndarray], *, draws: int = _DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw medians over blocks, with replacement, the same rounds for every name (they ran side by side).

    Parameters
    ----------
    blocks : {name: float64 (repeats,)}
        All of one length.

    Returns
    -------
    {name: float64 (draws,)}
    """
    repeats = len(next(iter(blocks.values())))
    rounds = np.random.default_rng(seed).integers(0, repeats, size=(draws, repeats))
    return {name: np.median(values[rounds], axis=1) for name, values in blocks.items()}


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def run_conditions(
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
    trials: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
    cores: float | None = None,
) -> ConditionRun:
    """Time a step function and its loader under all conditions.

    Parameters
    ----------
    step : callable
        Does all of a training step with a batch, or with what ``transfer`` makes of it. It may open stages of ``recorder``,
        and must not call its ``step``.
    loader : iterable
        Gives a new iterator at each ``iter()``; each has more than ``warmup`` batches.
    transfer : callable or None
        Brings a batch to where the step wants it; stage ``"transfer"``. None where the step does that itself.
    steps : int
        Measured steps per condition, rounded up to a multiple of ``repeats``.
    warmup : int
        Steps thrown away after each start of the loader: at least 3 times its queue's depth.
    repeats : int
        Rounds of all conditions.
    recorder : StageRecorder or None
        The one whose stages ``step``, and the loader's threads, open.
    resident_batch : batch or None
        For the compute condition; None for the loader's first.
    forget : callable or None
        Makes the system give up what it keeps of the data's files in memory; asks for the cold condition.
    trials : {name: callable} or None
        Each returns a context manager around a block of the compute condition.
    cores : float or None
        That may be used; None to ask the system.

    Raises
    ------
    CoreclipError
        For a loader that yields nothing, or too few batches, or can't be started again; for a step that calls
        ``recorder.step``; for arguments out of range, and a trial with a condition's name.
    """
    trials = {} if trials is None else dict(trials)
    _check_arguments(step, loader, transfer, trials, steps, warmup, repeats)
    bench = _Bench(
        step, loader, transfer, forget, trials, warmup, StageRecorder() if recorder is None else recorder, cores
    )
    names = [REAL, REPLAY, COMPUTE, LOADER, *([COLD] if forget is not None else ()), *trials]
    per_block = -(-steps // repeats)
    with (
        Progress(repeats * len(names) * per_block, "profiling", unit="steps") as progress,
        contextlib.closing(bench),
    ):
        bench.keep_batches(resident_batch)
        for _ in range(repeats):
            for name in names:
                bench.run_block(name, per_block)
                progress.advance(per_block)
    return bench.result(names)


def first_batches(loader: Iterable[Any], n: int) -> list[Any]:
    """Return the first ``n`` batches, or as many as an epoch has, and stop the loader's threads, where its iterator knows how."""
    batches = iter(loader)
    first = list(islice(batches, n))
    _close(batches)
    return first


def _close(iterator: object) -> None:
    close = getattr(iterator, "close", None)
    if callable(close):
        close()


def _no_batch() -> CoreclipError:
    return CoreclipError("the loader yields no batch; it must yield some each time it is iterated; check its data")


class _Feed:
    """A loader that is started again whenever it ends, after a call of ``on_end``."""

    def __init__(self, loader: Iterable[Any], warmup: int, on_end: Callable[[], None]) -> None:
        self._loader, self._warmup, self._on_end = loader, warmup, on_end
        self._iterator: Iterator[Any] | None = None
        self.taken = 0  # batches since the last start

    def first(self, n: int) -> list[Any]:
        """Return the first ``n`` batches, or as many as an epoch has, and stop the loader."""
        batches = first_batches(self._loader, n)
        if not batches:
            raise _no_batch()
        return batches

    def next(self) -> Any:
        for _ in range(2):
            if self._iterator is None:
                self._iterator, self.taken = iter(self._loader), 0
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._refuse_short_epoch()
                self._on_end()
                self._iterator = None
            else:
                self.taken += 1
                return batch
        raise _no_batch()

    def close(self) -> None:
        """Stop the loader's threads, where its iterator knows how."""
        iterator, self._iterator, self.taken = self._iterator, None, 0
        _close(iterator)

    def _refuse_short_epoch(self) -> None:
        if 0 < self.taken <= self._warmup:
            raise CoreclipError(
                f"the loader yields only {self.taken} batches, too few: the first {self._warmup} are warm-up; "
                "use smaller batches, more data or a smaller warmup"
            )


@dataclass(frozen=True)
class _Window:
    """What was seen in a part of a condition's measured steps."""

    use: SystemUse
    threads: dict[str, ThreadStage]
    lock_milliseconds: float | None


class _Bench:
    """Runs blocks and keeps which recorded step belongs to which."""

    def __init__(
        self,
        step: Callable[[Any], object],
        loader: Iterable[Any],
        transfer: Callable[[Any], Any] | None,
        forget: Callable[[], object] | None,
        trials: Mapping[str, Callable[[], AbstractContextManager[object]]],
        warmup: int,
        recorder: StageRecorder,
        cores: float | None,
    ) -> None:
        self._step, self._transfer, self._forget, self._trials = step, transfer, forget, trials
        self._warmup, self._recorder, self._cores = warmup, recorder, cores
        self.feed = _Feed(loader, warmup, self._close_window)
        self._kept: list[Any] = []
        self._resident: Any = None
        self._start = recorder.n_steps
        # Of each recorded step: the condition (empty in the warm-up), the block, the call of the step function.
        self._labels: list[tuple[str, int, int]] = []
        self._calls = self._block = 0
        self._open: tuple[SystemWindow, dict[str, ThreadStage], LockProbe] | None = None
        self._windows: dict[str, list[_Window]] = {}
        self._condition = REAL

    def close(self) -> None:
        """Stop what runs beside the steps, also where one of them has failed."""
        if self._open is not None:
            self._open[2].stop()
        self.feed.close()

    def keep_batches(self, resident: Any) -> None:
        """Take the batches that are computed on while the loader stands."""
        self._kept = self.feed.first(_KEPT_BATCHES)
        resident = self._kept[0] if resident is None else resident
        self._resident = resident if self._transfer is None else self._transfer(resident)
        self._n_resident = count_items(resident)

    def run_block(self, name: str, steps: int) -> None:
        """Run the warm-up and then ``steps`` measured steps under a condition."""
        self._condition, self._block = name, self._block + 1
        if name == COLD and self._forget is not None:
            self._forget()
        with self._trials[name]() if name in self._trials else contextlib.nullcontext():
            if name in (REAL, COLD, LOADER):
                self._run_fed(name, steps)
            else:
                self._run_unfed(name, steps)
        self._close_window()
        self.feed.close()

    def _run_fed(self, name: str, steps: int) -> None:
        done = 0
        while done < steps:
            # The loader may end within a block; what follows is warm-up again.
            if self._open is None and self.feed.taken >= self._warmup:
                self._open_window()
            with self._recorder.stage("wait"):
                batch = self.feed.next()
            measured = self.feed.taken > self._warmup
            if name != LOADER:
                self._call_step(batch)
            self._end_step(count_items(batch), name if measured else "")
            done += measured

    def _run_unfed(self, name: str, steps: int) -> None:
        for taken in range(self._warmup + steps):
            if taken == self._warmup:
                self._open_window()
            n_items = self._n_resident
            if name == REPLAY:
                batch = self._kept[taken % len(self._kept)]
                n_items = count_items(batch)
                self._call_step(batch)
            else:
                self._call_step(self._resident, is_transferred=True)
            self._end_step(n_items, name if taken >= self._warmup else "")

    def result(self, names: list[str]) -> ConditionRun:
        """Sort the recorded steps by condition."""
        records = self._recorder.finish()
        records = records.take(records.number >= self._start)
        labels = [self._labels[number - self._start] for number in records.number]
        of = np.array([name for name, _, _ in labels])
        block = np.array([block for _, block, _ in labels])
        numbered = replace(records, number=np.array([call for _, _, call in labels], dtype=np.int64))
        as_it_is = np.isin(of, (REAL, REPLAY, COMPUTE))
        calls = numbered.take(as_it_is)
        busy = calls.step_milliseconds - calls.column(*LOADER_STAGES)
        levels = {name: np.median(busy[of[as_it_is] == name]) for name in (REAL, REPLAY, COMPUTE)}
        stalls = find_stalls(calls, level=np.array([levels[name] for name in of[as_it_is]]))
        conditions = {}
        for name in names:
            steps, blocks, stall_cpu = numbered.take(of == name), block[of == name], 0.0
            if name != LOADER:
                stall_cpu = stall_cpu_milliseconds(steps, stalls)
                steps = without_stalls(steps, stalls)
            times, windows = steps.step_milliseconds, self._windows[name]
            use = combine([window.use for window in windows])
            conditions[name] = Condition(
                name=name,
                blocks=_block_means(times, blocks),
                calls=None if name == LOADER else _block_means(steps.number, blocks),
                stages={stage: _block_means(steps.column(stage), blocks) for stage in steps.stages},
                cpu_milliseconds=(use.cpu_seconds + use.child_cpu_seconds) * 1e3 / len(steps) - stall_cpu,
                threads=_per_step([window.threads for window in windows], len(steps)),
                lock_milliseconds=_mean([window.lock_milliseconds for window in windows]),
                use=use,
            )
        return ConditionRun(conditions=conditions, records=numbered.take(of == REAL), calls=calls, stalls=stalls)

    def _call_step(self, batch: Any, *, is_transferred: bool = False) -> None:
        before = self._recorder.n_steps
        if self._transfer is not None and not is_transferred:
            with self._recorder.stage("transfer"):
                batch = self._transfer(batch)
        with self._recorder.stage("step"):
            self._step(batch)
        self._calls += 1
        if self._recorder.n_steps != before:
            raise CoreclipError(
                "the step function calls recorder.step; profiling ends the steps itself; leave that out"
            )

    def _end_step(self, n_items: int, label: str) -> None:
        self._recorder.step(n_items)
        self._labels.append((label, self._block, self._calls - 1))

    def _open_window(self) -> None:
        # While the system is read a loader fills its queue. One that computes in Python would have the time to fill all of
        # it: each read waits for Python's lock, which is handed over after this interval.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SHORT_INTERVAL)
        try:
            elsewhere, window = self._recorder.elsewhere, SystemWindow(self._cores).start()
            self._open = window, elsewhere, LockProbe().start()  # reading the system holds the lock
        finally:
            sys.setswitchinterval(interval)
        self._end_step(0, "")  # so that reading the system is in no measured step

    def _close_window(self) -> None:
        if self._open is not None:
            window, elsewhere, probe = self._open
            late = probe.stop()
            seen = _Window(window.stop(), difference(self._recorder.elsewhere, elsewhere), late)
            self._windows.setdefault(self._condition, []).append(seen)
            self._open = None


def _block_means(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return np.array([values[blocks == number].mean() for number in np.unique(blocks)])


def _per_step(parts: list[dict[str, ThreadStage]], steps: int) -> dict[str, ThreadStage]:
    sums: dict[str, ThreadStage] = {}
    for part in parts:
        for name, stage in part.items():
            sums[name] = stage.plus(sums.get(name))
    return {name: stage.per(steps) for name, stage in sums.items()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _check_arguments(
    step: object, loader: object, transfer: object, trials: Mapping[str, object], steps: int, warmup: int, repeats: int
) -> None:
    if not callable(step):
        raise CoreclipError(f"step is a {type(step).__name__}, not callable: it must do a training step with a batch")
    if transfer is not None and not callable(transfer):
        raise CoreclipError(
            f"transfer is a {type(transfer).__name__}, not callable: it must bring a batch to the step; or leave it out"
        )
    if not hasattr(loader, "__iter__"):
        raise CoreclipError(f"loader is a {type(loader).__name__}, not iterable: it must yield batches")
    if hasattr(loader, "__next__"):
        raise CoreclipError(
            "the loader is an iterator, which can't be started again: profiling iterates it several times; "
            "pass the iterable it came from"
        )
    taken = [name for name in trials if name in (REAL, COMPUTE, LOADER, REPLAY, COLD, "")]
    if taken:
        raise CoreclipError(f"a trial named {taken[0]!r} is not allowed: a condition has that name; name it otherwise")
    for name, value, least in (("steps", steps, 4), ("warmup", warmup, 1), ("repeats", repeats, 2)):
        if value < least:
            raise CoreclipError(f"{name} = {value} is not allowed: at least {least}; raise it")
    if steps < repeats:
        raise CoreclipError(
            f"steps = {steps} is fewer than repeats = {repeats}: each repeat measures a step; raise steps"
        )
