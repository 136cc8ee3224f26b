"""Ctrl-C while a run is under way."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts(*, second: bool) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the loop looks at between two steps; a ``second`` one interrupts at once.

    ``torchrun`` passes a terminal's Ctrl-C on to processes that have had it already: they do without the second one.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        event.set()
        if second:
            signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
