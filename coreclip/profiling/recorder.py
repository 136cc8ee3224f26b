"""Times of a loop's stages, step by step, at a few microseconds a stage.

The time line of the loop is cut at every start and end of a stage, and each piece is charged to the innermost open stage
(what belongs to none is ``"other"``). So nested and repeated stages need no special case, and the stages of a step add up
to the step. On CUDA the same cuts are made by events in the stream: the pieces then tell where the device's time went,
the device's idling in ``"wait"`` included, and are read only once they have happened, without blocking. Stages of other
threads, a loader's say, are added up beside the steps.
"""

import functools
import sys
import time
import types
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from threading import get_ident
from time import perf_counter_ns, thread_time_ns
from typing import Any, ParamSpec, TypeVar

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.elsewhere import Elsewhere, ThreadStage

OTHER = "other"
LOADER_STAGES = ("wait", "read", "decode", "augment", "tokens", "collate")
"""Stages in which the loop's thread waits for a batch, or makes it itself."""
_STEP_END = -1
_SHOWN_CUTS = 4096  # of the time line, for a picture of the newest steps

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class StepRecords:
    """Stage times of consecutive steps.

    Attributes
    ----------
    stages : tuple of str, length s
        In order of first use; ``"other"``, what no stage covers, comes last.
    milliseconds : float64 (steps, s)
        Wall time. The rows add up to the steps' durations.
    cpu_milliseconds : float64 (steps, s)
        CPU time of the calling thread.
    device_milliseconds : float64 (steps, s) or None
        The CUDA stream's time line; NaN in the rows of steps that the device had not finished. None without CUDA.
    items : int64 (steps,)
        Samples in each step.
    number : int64 (steps,)
        Which call each step was, counted from 0 over the whole run.
    gauges : {str: float64 (steps,)}
        Levels that were noted in each step, e.g. the batches that stood ready; NaN where none was.
    """

    stages: tuple[str, ...]
    milliseconds: np.ndarray
    cpu_milliseconds: np.ndarray
    device_milliseconds: np.ndarray | None
    items: np.ndarray
    number: np.ndarray
    gauges: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.number)

    @property
    def timeline(self) -> np.ndarray:
        """float64 (steps, s): the device's time line where it is complete, else the host's."""
        device = self.device_milliseconds
        return self.milliseconds if device is None or np.isnan(device).any() else device

    @property
    def step_milliseconds(self) -> np.ndarray:
        """float64 (steps,): duration of each step."""
        return self.timeline.sum(axis=1)

    def column(self, *names: str) -> np.ndarray:
        """Return float64 (steps,): milliseconds of the named stages together; 0 for a stage that never ran."""
        chosen = [i for i, stage in enumerate(self.stages) if stage in names]
        return self.timeline[:, chosen].sum(axis=1)

    def take(self, which: np.ndarray) -> "StepRecords":
        """Return the records of the steps that ``which`` (a boolean mask or positions) picks."""
        device = None if self.device_milliseconds is None else self.device_milliseconds[which]
        return replace(
            self,
            milliseconds=self.milliseconds[which],
            cpu_milliseconds=self.cpu_milliseconds[which],
            device_milliseconds=device,
            items=self.items[which],
            number=self.number[which],
            gauges={name: levels[which] for name, levels in self.gauges.items()},
        )

    def changed(self, stage: str, change: Callable[[np.ndarray], np.ndarray]) -> "StepRecords":
        """Return the records with a stage's milliseconds (float64 (steps,)) as ``change`` makes them, on both time lines."""
        column, device = self.stages.index(stage), self.device_milliseconds
        host, device = self.milliseconds.copy(), None if device is None else device.copy()
        for table in (host, device):
            if table is not None:
                table[:, column] = change(table[:, column])
        return replace(self, milliseconds=host, device_milliseconds=device)

    def skip(self, warmup: int) -> "StepRecords":
        """Return the records without the first ``warmup`` steps."""
        return self.take(np.arange(len(self)) >= warmup)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return ``{stage: {milliseconds_per_step, share, p50, p95, max, cpu_milliseconds_per_step}}``.

        ``share`` is the stage's part of all time (0..1); percentiles are over steps, in milliseconds.

        Raises
        ------
        CoreclipError
            When there is no step.
        """
        if not len(self):
            raise CoreclipError("no step was recorded; call recorder.step(n_items) at the end of each step")
        line = self.timeline
        means, total = line.mean(axis=0), max(float(line.sum(axis=1).mean()), 1e-9)
        p50, p95 = np.percentile(line, (50, 95), axis=0)
        return {
            stage: {
                "milliseconds_per_step": float(means[i]),
                "share": float(means[i] / total),
                "p50": float(p50[i]),
                "p95": float(p95[i]),
                "max": float(line[:, i].max()),
                "cpu_milliseconds_per_step": float(self.cpu_milliseconds[:, i].mean()),
            }
            for i, stage in enumerate(self.stages)
        }


class StageRecorder:
    """Record how long each stage of each step takes.

    Parameters
    ----------
    cuda : bool or None
        Whether the CUDA stream's time line is recorded too; None for: where torch is imported and has a device.
    keep_steps : int
        At least this many of the newest steps are kept (at most twice as many).

    Attributes
    ----------
    delays : {str: float}
        Seconds by which the end of a stage is put off each time, in whatever thread: what a causal probe turns up and down.
    around : callable or None
        Given a stage's name returns a context that the stage is opened in too, e.g. another profiler's annotation.

    Notes
    -----
    The loop's thread is the one that makes the recorder; what other threads spend in stages is in :attr:`elsewhere`. The
    clock starts at the first stage.

    Examples
    --------
    >>> recorder = StageRecorder()
    >>> for batch in recorder.iterate("wait", [1, 2, 3]):
    ...     with recorder.stage("forward"):
    ...         _ = batch * 2
    ...     recorder.step(n_items=1)
    >>> recorder.records.stages
    ('wait', 'forward', 'other')
    """

    def __init__(self, *, cuda: bool | None = None, keep_steps: int = 1 << 16) -> None:
        if keep_steps < 1:
            raise CoreclipError(f"keep_steps = {keep_steps} is not allowed: at least 1 step is kept; leave it out")
        self.delays: dict[str, float] = {}
        self.around: Callable[[str], AbstractContextManager[object]] | None = None
        self._keep = keep_steps
        self._slots, self._names = {OTHER: 0}, [OTHER]
        self._stage_of: dict[str, _Stage] = {}
        self._wall, self._cpu = [0], [0]
        self._rows_wall, self._rows_cpu, self._items = [array("q")], [array("q")], array("q")
        self._levels: dict[str, float] = {}  # of the step under way
        self._rows_levels: dict[str, array[float]] = {}
        self._dropped = 0  # steps that were recorded once and are no longer kept
        self._thread = get_ident()
        self._elsewhere = Elsewhere()
        self._running, self._stack = 0, list[int]()
        self._since = self._cpu_since = 0
        self._cuts: deque[tuple[int, int]] = deque(maxlen=_SHOWN_CUTS)  # since when each slot ran
        self._device = _DeviceLine() if _want_cuda(cuda) else None

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Return a context manager that charges its block to ``name``."""
        stage = self._stage_of.get(name)
        if stage is None:
            stage = self._new_stage(name)
        return stage if self.around is None else _within(self.around(name), stage)

    def iterate(self, name: str, iterable: Iterable[T]) -> Generator[T]:
        """Yield from ``iterable``, charging what each item takes to come (and the start) to ``name``."""
        with self.stage(name):
            iterator = iter(iterable)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def loop(self, loader: Iterable[T]) -> Generator[T]:
        """Yield a training loop's batches: each is waited for in stage ``"wait"``, and ends a step when it has been worked on.

        The samples of a step are those of its batch, see :func:`count_items`.
        """
        for batch in self.iterate("wait", loader):
            yield batch
            self.step(count_items(batch))

    def watch(self, name: str, target: Any) -> Any:
        """Return ``target`` with its calls, or else its iterations, charged to ``name``.

        Parameters
        ----------
        target : callable or iterable
            What is both counts as callable. A watched iterable has the attributes of its original.

        Raises
        ------
        CoreclipError
            When it is neither.
        """
        if isinstance(target, types.MethodType):  # stays one: torch's schedulers look at optimiser.step.__func__
            return types.MethodType(self._watch_function(name, target.__func__), target.__self__)
        if callable(target):
            watched = self._watch_function(name, target)
            return watched if _is_function(target) else WatchedCallable(target, watched)
        if hasattr(target, "__iter__"):
            return WatchedIterable(target, lambda iterable: self.iterate(name, iterable))
        raise CoreclipError(
            f"a {type(target).__name__} can't be watched as {name!r}: it must be callable or iterable; wrap it in a function"
        )

    def gauge(self, name: str, level: float) -> None:
        """Note a level for the step under way, e.g. how many batches stand ready; the last one counts."""
        self._levels[name] = level

    def step(self, n_items: int = 1) -> None:
        """End the step: all time since the last one belongs to it.

        Parameters
        ----------
        n_items : int
            Samples that the step worked on.

        Raises
        ------
        CoreclipError
            In another thread than the loop's.
        """
        if get_ident() != self._thread:
            raise CoreclipError(
                "a StageRecorder's steps were ended from two threads: a loop is recorded in the thread that made its recorder; make "
                "one for each loop"
            )
        self._switch(self._running)
        self._cuts.append((self._since, _STEP_END))
        self._cuts.append((self._since, self._running))
        for rows, times in ((self._rows_wall, self._wall), (self._rows_cpu, self._cpu)):
            for slot, nanoseconds in enumerate(times):
                rows[slot].append(nanoseconds)
                times[slot] = 0
        for name in self._levels.keys() - self._rows_levels.keys():
            self._rows_levels[name] = array("d", [np.nan] * len(self._items))
        for name, levels in self._rows_levels.items():
            levels.append(self._levels.pop(name, np.nan))
        self._items.append(n_items)
        if self._device is not None:
            self._device.step()
        if len(self._items) >= 2 * self._keep:
            self._drop(len(self._items) - self._keep)

    @property
    def n_steps(self) -> int:
        """Steps recorded so far, those that are no longer kept included."""
        return self._dropped + len(self._items)

    @property
    def running(self) -> str:
        """The stage that the loop's thread is in."""
        return self._names[self._running]

    @property
    def elsewhere(self) -> dict[str, ThreadStage]:
        """What other threads than the loop's have spent in each stage so far."""
        return self._elsewhere.totals()

    def threads_in(self, name: str) -> int:
        """Return how many other threads than the loop's have been in a stage."""
        return self._elsewhere.threads_in(name)

    @property
    def timeline(self) -> list[list[tuple[str, float, float]]]:
        """The newest steps, each a list of (stage, begin, end), milliseconds since the step's begin; the host's clock."""
        steps: list[list[tuple[str, float, float]]] = []
        pieces: list[tuple[str, float, float]] | None = None  # of a step whose begin is known
        origin = 0
        for (since, slot), (until, _) in pairwise(self._cuts):
            if slot == _STEP_END:
                if pieces:
                    steps.append(pieces)
                pieces, origin = [], since
            elif pieces is not None and until > since:
                pieces.append((self._names[slot], (since - origin) / 1e6, (until - origin) / 1e6))
        return steps

    @property
    def records(self) -> StepRecords:
        """What is recorded so far; does not wait for the device (see :meth:`finish`)."""
        slots = [*range(1, len(self._wall)), 0]
        steps = len(self._items)
        return StepRecords(
            stages=tuple(self._names[slot] for slot in slots),
            milliseconds=np.stack([np.array(self._rows_wall[slot], dtype=np.int64) for slot in slots], axis=1) / 1e6,
            cpu_milliseconds=np.stack([np.array(self._rows_cpu[slot], dtype=np.int64) for slot in slots], axis=1) / 1e6,
            device_milliseconds=None if self._device is None else self._device.rows(steps, slots),
            items=np.array(self._items, dtype=np.int64),
            number=np.arange(steps, dtype=np.int64) + self._dropped,
            gauges={name: np.array(levels) for name, levels in self._rows_levels.items()},
        )

    def finish(self) -> StepRecords:
        """Wait for the device, where there is one, and return the records."""
        if self._device is not None:
            self._device.synchronise()
        return self.records

    def _new_stage(self, name: str) -> "_Stage":
        if not isinstance(name, str) or not name:
            raise CoreclipError(f"stage name {name!r} is not allowed: a non-empty text; e.g. 'forward'")
        return self._stage_of.setdefault(name, _Stage(self, name))

    def _slot(self, name: str) -> int:
        """Return where the loop's thread keeps a stage; only it asks, so that another's stages make no column."""
        slot = self._slots.setdefault(name, len(self._slots))
        if slot == len(self._wall):
            self._names.append(name)
            for times, rows in ((self._wall, self._rows_wall), (self._cpu, self._rows_cpu)):
                times.append(0)
                rows.append(array("q", bytes(8 * len(self._items))))
        return slot

    def _switch(self, slot: int) -> None:
        """Charge the time since the last switch to the running stage and let ``slot`` run."""
        now, cpu = perf_counter_ns(), thread_time_ns()
        if self._since:
            self._wall[self._running] += now - self._since
            self._cpu[self._running] += cpu - self._cpu_since
        self._since, self._cpu_since, self._running = now, cpu, slot
        self._cuts.append((now, slot))
        if self._device is not None:
            self._device.cut(slot)

    def _drop(self, n: int) -> None:
        for rows in (*self._rows_wall, *self._rows_cpu, self._items):
            del rows[:n]
        for levels in self._rows_levels.values():
            del levels[:n]
        self._dropped += n
        if self._device is not None:
            self._device.drop(n)

    def _watch_function(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        # A model's own attributes stay its own; a function's go along, as those do that torch marks optimisers by.
        own = ("__dict__",) if isinstance(function, types.FunctionType) else ()

        @functools.wraps(function, updated=own)
        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.stage(name):
                return function(*args, **kwargs)

        return watched


class _Stage:
    """A recorder's stage; may be entered again while it is open, and from any thread."""

    __slots__ = ("_name", "_recorder", "_slot")

    def __init__(self, recorder: StageRecorder, name: str) -> None:
        self._recorder, self._name, self._slot = recorder, name, 0

    def __enter__(self) -> None:
        recorder = self._recorder
        if get_ident() != recorder._thread:
            recorder._elsewhere.enter(self._name)
            return
        if not self._slot:
            self._slot = recorder._slot(self._name)
        outer = recorder._running
        recorder._switch(self._slot)
        recorder._stack.append(outer)

    def __exit__(self, *error: object) -> None:
        recorder = self._recorder
        if recorder.delays and (seconds := recorder.delays.get(self._name)):
            time.sleep(seconds)
        if get_ident() != recorder._thread:
            recorder._elsewhere.leave()
            return
        recorder._switch(recorder._stack.pop())


@contextmanager
def _within(outer: AbstractContextManager[object], stage: _Stage) -> Iterator[None]:
    with outer, stage:
        yield


class WatchedCallable:
    """An object whose calls are ``call``'s, e.g. a model; everything else is the original's."""

    def __init__(self, original: Any, call: Callable[..., Any]) -> None:
        self._original, self._call = original, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._original, name)


def _is_function(target: object) -> bool:
    return isinstance(target, (types.FunctionType, types.BuiltinFunctionType, functools.partial, type))


class WatchedIterable:
    """An iterable whose iterations are those of ``iterate(iterable)``; everything else is the original's."""

    def __init__(self, iterable: Iterable[Any], iterate: Callable[[Iterable[Any]], Iterator[Any]]) -> None:
        self._iterable, self._iterate = iterable, iterate

    def __iter__(self) -> Iterator[Any]:
        return self._iterate(self._iterable)

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # TypeError, as of the original, where it has none

    def __bool__(self) -> bool:
        return bool(self._iterable)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copies and pickles ask for before there is an original
            raise AttributeError(name)
        return getattr(self._iterable, name)


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


class _DeviceLine:
    """The CUDA stream's time line, cut by events where the host's is cut."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self._free: list[Any] = []
        self._cuts: list[tuple[int, Any]] = []  # of the open step: from the event on, the slot runs
        self._pending: deque[list[tuple[int, Any]]] = deque()
        self._done: deque[dict[int, float]] = deque()

    def cut(self, slot: int) -> None:
        event = self._free.pop() if self._free else self._cuda.Event(enable_timing=True)
        event.record()
        self._cuts.append((slot, event))

    def step(self) -> None:
        self._pending.append(self._cuts)
        self._cuts = self._cuts[-1:]  # the last event ends this step and begins the next
        self._poll()

    def rows(self, steps: int, slots: list[int]) -> np.ndarray:
        self._poll()
        table = np.full((steps, len(slots)), np.nan)
        for row, times in zip(table, self._done, strict=False):
            row[:] = [times.get(slot, 0.0) for slot in slots]
        return table

    def drop(self, n: int) -> None:
        self.synchronise()  # once in keep_steps steps, so that rows and steps stay aligned
        for _ in range(n):
            self._done.popleft()

    def synchronise(self) -> None:
        self._cuda.synchronize()
        self._poll()

    def _poll(self) -> None:
        while self._pending and all(event.query() for _, event in self._pending[0]):
            cuts = self._pending.popleft()
            times: dict[int, float] = {}
            for (slot, begin), (_, end) in pairwise(cuts):
                times[slot] = times.get(slot, 0.0) + begin.elapsed_time(end)
            self._done.append(times)
            self._free += [event for _, event in cuts[:-1]]


def _want_cuda(cuda: bool | None) -> bool:
    if cuda is False or (cuda is None and "torch" not in sys.modules):
        return False
    import torch

    available = torch.cuda.is_available()
    if cuda and not available:
        raise CoreclipError("cuda=True, but torch finds no CUDA device; leave cuda out to record the host alone")
    return available
