"""Stages of the threads that are not the loop's: a loader's reading and decoding, added up without a lock in their way.

Each thread has clocks of its own, cut at every start and end of a stage, each piece charged to the innermost open one.
Left out: other processes, whose clocks are their own.
"""

import threading
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns


@dataclass(frozen=True)
class ThreadStage:
    """What all threads but the loop's have spent in a stage: milliseconds of wall time, of CPU time, and how often."""

    milliseconds: float
    cpu_milliseconds: float
    calls: int

    def per(self, steps: int) -> "ThreadStage":
        """Return a step's part; calls stay those of all."""
        return ThreadStage(self.milliseconds / max(steps, 1), self.cpu_milliseconds / max(steps, 1), self.calls)

    def minus(self, before: "ThreadStage | None") -> "ThreadStage":
        """Return what came after ``before``."""
        if before is None:
            return self
        return ThreadStage(
            self.milliseconds - before.milliseconds,
            self.cpu_milliseconds - before.cpu_milliseconds,
            self.calls - before.calls,
        )

    def plus(self, other: "ThreadStage | None") -> "ThreadStage":
        """Return the sum."""
        if other is None:
            return self
        return ThreadStage(
            self.milliseconds + other.milliseconds,
            self.cpu_milliseconds + other.cpu_milliseconds,
            self.calls + other.calls,
        )


class Elsewhere:
    """The stages of any number of threads."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._clocks: list[_Clock] = []
        self._lock = threading.Lock()

    def enter(self, name: str) -> None:
        """Open a stage in the calling thread."""
        clock: _Clock | None = getattr(self._own, "clock", None)
        if clock is None:
            clock = self._own.clock = _Clock()
            with self._lock:
                self._clocks.append(clock)
        clock.enter(name)

    def leave(self) -> None:
        """Close the stage that the calling thread opened last."""
        self._own.clock.leave()

    def threads_in(self, name: str) -> int:
        """Return how many of the threads that live have been in a stage."""
        with self._lock:
            clocks = list(self._clocks)
        return sum(name in clock.spent and clock.thread.is_alive() for clock in clocks)

    def totals(self) -> dict[str, ThreadStage]:
        """Return all that was spent so far; what a stage that is still open has spent comes when it ends."""
        with self._lock:
            clocks = list(self._clocks)
        sums: dict[str, ThreadStage] = {}
        for clock in clocks:
            for name, (wall, cpu, calls) in list(
                clock.spent.items()
            ):  # a list is made in one go, whatever the thread adds
                sums[name] = ThreadStage(wall / 1e6, cpu / 1e6, calls).plus(sums.get(name))
        return sums


def difference(after: dict[str, ThreadStage], before: dict[str, ThreadStage]) -> dict[str, ThreadStage]:
    """Return what was spent between two totals, the stages that nothing was spent in left out."""
    spent = {name: stage.minus(before.get(name)) for name, stage in after.items()}
    return {name: stage for name, stage in spent.items() if stage.calls or stage.milliseconds > 0}


class _Clock:
    """A thread's stages."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.spent: dict[str, tuple[int, int, int]] = {}  # wall and CPU nanoseconds, calls
        self._open: list[str] = []
        self._since = self._cpu_since = 0

    def enter(self, name: str) -> None:
        self._cut(0)
        self._open.append(name)

    def leave(self) -> None:
        self._cut(1)
        self._open.pop()

    def _cut(self, ended: int) -> None:
        now, cpu = perf_counter_ns(), thread_time_ns()
        if self._open:
            name = self._open[-1]
            wall, used, calls = self.spent.get(name, (0, 0, 0))
            self.spent[name] = wall + now - self._since, used + cpu - self._cpu_since, calls + ended
        self._since, self._cpu_since = now, cpu
