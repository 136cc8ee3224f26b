"""Differential runs: the same step with the real loader, with one resident batch, and the loader alone.

After DS-Analyzer (Mohan et al. 2021), with blocks of the three conditions interleaved so that a machine's drift hits all of
them, each block's warm-up (queues filling) thrown away, and intervals from resampling whole rounds. Any fix of the loader
is capped at T_real / T_compute. Left out: the cold-cache run, replay through the transfer, and delay probes.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.recorder import StageRecorder, StepRecords
from coreclip.profiling.system import SystemUse, SystemWindow, combine
from coreclip.progress import Progress

REAL, COMPUTE, LOADER = "real", "compute", "loader"
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a step took under one condition.

    Attributes
    ----------
    name : str
        ``"real"`` (the loader feeds the step), ``"compute"`` (the step on one resident batch, the loader stopped) or
        ``"loader"`` (batches fetched and dropped).
    blocks : float64 (repeats,)
        Mean milliseconds of a step in each block. Means, because a queue's stalls are rare and long.
    cpu_milliseconds : float or None
        CPU time of the process and its children for a step, all threads.
    """

    name: str
    blocks: np.ndarray
    cpu_milliseconds: float | None = None

    @property
    def milliseconds(self) -> float:
        """Median over the blocks."""
        return float(np.median(self.blocks))

    def to_dict(self) -> dict[str, Any]:
        """Return median, its 95 % bootstrap interval, CPU time and number of blocks, as JSON types."""
        low, high = interval(resample({self.name: self.blocks})[self.name])
        return {
            "milliseconds_per_step": self.milliseconds,
            "low": low,
            "high": high,
            "cpu_milliseconds_per_step": self.cpu_milliseconds,
            "blocks": len(self.blocks),
        }


@dataclass(frozen=True, kw_only=True)
class ConditionRun:
    """Result of :func:`run_conditions`.

    Attributes
    ----------
    conditions : dict
        ``{"real", "compute", "loader": Condition}``.
    records : StepRecords
        The measured steps of the real condition, block after block, equally many in each.
    calls : StepRecords
        The measured steps of the real and the compute condition, numbered by the step function's calls.
    system : SystemUse
        Over the measured parts of the real condition.
    """

    conditions: dict[str, Condition]
    records: StepRecords
    calls: StepRecords
    system: SystemUse


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
    steps: int = 60,
    warmup: int = 8,
    repeats: int = 5,
    recorder: StageRecorder | None = None,
    resident_batch: Any = None,
    cores: float | None = None,
) -> ConditionRun:
    """Time a step function and its loader under the three conditions.

    Parameters
    ----------
    step : callable
        Does all of a training step with a batch. It may open stages of ``recorder``, and must not call its ``step``.
    loader : iterable
        Gives a new iterator at each ``iter()``; each has more than ``warmup`` batches.
    steps : int
        Measured steps per condition, rounded up to a multiple of ``repeats``.
    warmup : int
        Steps thrown away after each start of the loader: at least 3 times its queue's depth.
    repeats : int
        Rounds of (real, compute, loader).
    recorder : StageRecorder or None
        The one whose stages ``step`` opens.
    resident_batch : batch or None
        For the compute condition; None for the loader's first.
    cores : float or None
        That may be used; None to ask the system.

    Raises
    ------
    CoreclipError
        For a loader that yields nothing, or too few batches, or can't be started again; for a step that calls
        ``recorder.step``; for arguments out of range.
    """
    _check_arguments(step, loader, steps, warmup, repeats)
    bench = _Bench(step, loader, warmup, StageRecorder() if recorder is None else recorder, cores)
    per_block = -(-steps // repeats)
    with Progress(repeats * 3 * per_block, "profiling", unit="steps") as progress, contextlib.closing(bench.feed):
        if resident_batch is None:
            resident_batch = bench.feed.first()
        for _ in range(repeats):
            for name in (REAL, COMPUTE, LOADER):
                bench.run_block(name, per_block, resident_batch)
                progress.advance(per_block)
    return bench.result()


def count_items(batch: Any) -> int:
    """Return the samples in a batch: the length of it, or of its ``images``, or of its first part; 1 where it has none."""
    if hasattr(batch, "images"):
        return count_items(batch.images)
    if isinstance(batch, Mapping):
        return count_items(next(iter(batch.values()))) if batch else 0
    if isinstance(batch, (tuple, list)) and batch and hasattr(batch[0], "shape"):
        return count_items(batch[0])
    try:
        return len(batch)
    except TypeError:  # a number, a 0-d array, an object without a length
        return 1


class _Feed:
    """A loader that is started again whenever it ends, after a call of ``on_end``."""

    def __init__(self, loader: Iterable[Any], warmup: int, on_end: Callable[[], None]) -> None:
        self._loader, self._warmup, self._on_end = loader, warmup, on_end
        self._iterator: Iterator[Any] | None = None
        self.taken = 0  # batches since the last start

    def first(self) -> Any:
        """Return the first batch and stop the loader."""
        batch = self.next()
        self.close()
        return batch

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
        raise CoreclipError("the loader yields no batch; it must yield some each time it is iterated; check its data")

    def close(self) -> None:
        """Stop the loader's threads, where its iterator knows how."""
        iterator, self._iterator, self.taken = self._iterator, None, 0
        close = getattr(iterator, "close", None)
        if callable(close):
            close()

    def _refuse_short_epoch(self) -> None:
        if 0 < self.taken <= self._warmup:
            raise CoreclipError(
                f"the loader yields only {self.taken} batches, too few: the first {self._warmup} are warm-up; "
                "use smaller batches, more data or a smaller warmup"
            )


class _Bench:
    """Runs blocks and keeps which recorded step belongs to which."""

    def __init__(
        self,
        step: Callable[[Any], object],
        loader: Iterable[Any],
        warmup: int,
        recorder: StageRecorder,
        cores: float | None,
    ) -> None:
        self._step, self._warmup, self._recorder, self._cores = step, warmup, recorder, cores
        self.feed = _Feed(loader, warmup, self._close_window)
        self._start = recorder.n_steps
        self._labels: list[
            tuple[str, int, int]
        ] = []  # of each recorded step: condition, block, call of the step function
        self._calls = self._block = 0
        self._window: SystemWindow | None = None
        self._uses: dict[str, list[SystemUse]] = {REAL: [], COMPUTE: [], LOADER: []}
        self._condition = REAL

    def run_block(self, name: str, steps: int, resident: Any) -> None:
        """Run the warm-up and then ``steps`` measured steps under a condition."""
        self._condition, self._block = name, self._block + 1
        done = taken = 0
        while done < steps:
            if self._window is None and (taken if name == COMPUTE else self.feed.taken) >= self._warmup:
                self._open_window()
            batch = resident
            if name != COMPUTE:
                with self._recorder.stage("wait"):
                    batch = self.feed.next()
                taken = self.feed.taken - 1
            if name != LOADER:
                self._call_step(batch)
            measured = taken >= self._warmup
            self._end_step(count_items(batch), name if measured else "")
            done, taken = done + measured, taken + 1
        self._close_window()
        self.feed.close()

    def result(self) -> ConditionRun:
        """Sort the recorded steps by condition."""
        records = self._recorder.finish()
        records = records.take(records.number >= self._start)
        labels = [self._labels[number - self._start] for number in records.number]
        names = np.array([name for name, _, _ in labels])
        blocks = np.array([block for _, block, _ in labels])
        calls = replace(records, number=np.array([call for _, _, call in labels], dtype=np.int64))
        conditions = {}
        for name, uses in self._uses.items():
            steps, of = records.take(names == name).step_milliseconds, blocks[names == name]
            use = combine(uses)
            conditions[name] = Condition(
                name=name,
                blocks=np.array([steps[of == block].mean() for block in np.unique(of)]),
                cpu_milliseconds=(use.cpu_seconds + use.child_cpu_seconds) * 1e3 / len(steps),
            )
        return ConditionRun(
            conditions=conditions,
            records=calls.take(names == REAL),
            calls=calls.take((names == REAL) | (names == COMPUTE)),
            system=combine(self._uses[REAL]),
        )

    def _call_step(self, batch: Any) -> None:
        before = self._recorder.n_steps
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
        self._window = SystemWindow(self._cores).start()
        self._end_step(0, "")  # so that reading the system is in no measured step

    def _close_window(self) -> None:
        if self._window is not None:
            self._uses[self._condition].append(self._window.stop())
            self._window = None


def _check_arguments(step: object, loader: object, steps: int, warmup: int, repeats: int) -> None:
    if not callable(step):
        raise CoreclipError(f"step is a {type(step).__name__}, not callable: it must do a training step with a batch")
    if not hasattr(loader, "__iter__"):
        raise CoreclipError(f"loader is a {type(loader).__name__}, not iterable: it must yield batches")
    if hasattr(loader, "__next__"):
        raise CoreclipError(
            "the loader is an iterator, which can't be started again: profiling iterates it several times; "
            "pass the iterable it came from"
        )
    for name, value, least in (("steps", steps, 4), ("warmup", warmup, 1), ("repeats", repeats, 2)):
        if value < least:
            raise CoreclipError(f"{name} = {value} is not allowed: at least {least}; raise it")
    if steps < repeats:
        raise CoreclipError(
            f"steps = {steps} is fewer than repeats = {repeats}: each repeat measures a step; raise steps"
        )
