"""Progress on stderr: a bar where it is a terminal, a line every 30 seconds where it is not."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar

_LINE_EVERY_SECONDS = 30.0


class Progress:
    """Count items of a long piece of work and show rate and time left.

    Parameters
    ----------
    total : int or None
        Items in all; None where it is unknown.
    label : str
        What is under way, e.g. ``"converting"``.
    unit : str
        What is counted, in the plural.
    done : int
        Items that were done before; they do not count in the rate.
    quiet : bool
        Count only: another process shows it.
    """

    def __init__(
        self, total: int | None, label: str, unit: str = "pairs", *, done: int = 0, quiet: bool = False
    ) -> None:
        self.total, self.label, self.unit, self.done = total, label, unit, done
        self._before = done
        self._quiet = quiet
        self._start = self._last_line = time.monotonic()
        self._bar: RichBar | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more items; ``note`` (e.g. the loss) is shown beside the rate."""
        self.done += n
        now = time.monotonic()
        rate = (self.done - self._before) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{rate:,.0f} {self.unit}/s {note}")
        elif now - self._last_line >= _LINE_EVERY_SECONDS and not self._quiet:
            self._last_line = now
            left = f", {(self.total - self.done) / max(rate, 1e-9):,.0f} s left" if self.total else ""
            of = f" of {self.total:,}" if self.total else ""
            print(
                f"{self.label}: {self.done:,}{of} {self.unit}, {rate:,.0f}/s{left} {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )
