"""Ctrl-C or SIGTERM while a run is under way."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of a terminal; of schedulers, of `timeout` and of `torchrun`


@contextlib.contextmanager
def interrupts(*, second: bool) -> Iterator[threading.Event]:
    """Turn the first such signal into an event that the loop looks at between two steps; a ``second`` one acts at once.

    ``torchrun`` passes a terminal's Ctrl-C on to processes that have had it already, and sends SIGTERM to those that are left when
    one has ended, which have yet to say so: they do without the second one.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        event.set()
        if second:
            restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield event
    finally:
        restore()
