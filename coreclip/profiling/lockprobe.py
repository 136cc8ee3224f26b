"""How long a thread that is ready waits for Python's lock: a thread that sleeps, and looks how late it comes back.

A thread that only computes in Python gives the lock up when it is asked to, after the switch interval (5 ms); each call
into compiled code that had let it go then waits as long to go on. A sleeper meets the same wait. What it waited for a core
is taken off, by the kernel's clock. Left out: who held the lock.
"""

import threading
import time
from pathlib import Path

_PERIOD_SECONDS = 0.01


class LockProbe:
    """Measure between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coreclip-lock-probe", daemon=True)
        self._late_seconds, self._times = 0.0, 0

    def start(self) -> "LockProbe":
        """Begin to sleep and to look."""
        self._thread.start()
        return self

    def stop(self) -> float | None:
        """End, and return the mean milliseconds a time that the lock was waited for; None where that can't be told."""
        self._end.set()
        self._thread.join()
        return self._late_seconds * 1e3 / self._times if self._times else None

    def _run(self) -> None:
        clock = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        queued = _run_queue_seconds(clock)
        if queued is None:
            return  # waiting for a core could not be told from waiting for the lock
        while not self._end.is_set():
            due = time.perf_counter() + _PERIOD_SECONDS
            time.sleep(_PERIOD_SECONDS)
            self._late_seconds += max(0.0, time.perf_counter() - due)
            self._times += 1
        self._late_seconds = max(0.0, self._late_seconds - ((_run_queue_seconds(clock) or queued) - queued))


def _run_queue_seconds(clock: Path) -> float | None:
    try:
        return int(clock.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None
