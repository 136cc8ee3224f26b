"""What a run shows while it trains: a panel on a terminal, a line every half minute elsewhere.

The panel is drawn by the thread that trains, at most twice a second, so that nothing runs beside a step; it is gone at the end, and
after an interrupt. Left out: keys to press.
"""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from coreclip.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_EVERY_SECONDS = 0.5
_COLUMNS = 48
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-=+*%#"


class Display(Protocol):
    """What the loop tells whoever shows the run."""

    def __enter__(self) -> "Display": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, n: int, loss: float) -> None:
        """Count a step of ``n`` pairs."""

    def note(self, line: dict[str, Any]) -> None:
        """Take in a line of ``metrics.jsonl``."""

    def say(self, what: str) -> None:
        """Tell what is under way that takes longer than a step; empty for training."""


def make_display(
    *,
    total: int | None,
    usable_seconds: float,
    done: int,
    seconds: float,
    panel: bool | None,
    quiet: bool = False,
) -> Display:
    """Return the panel, where stderr is a terminal and it is not switched off, else plain lines or a bar.

    Parameters
    ----------
    total : int or None
        Pairs in the budget; None where time is.
    usable_seconds : float
        Of the budget; infinite where pairs are.
    done : int
        Pairs that are trained on already.
    seconds : float
        That the run has taken so far.
    panel : bool or None
        None for the panel on a terminal; True asks for no more than that.
    quiet : bool
        Nothing is shown: another process does.
    """
    if not quiet and panel is not False and sys.stderr.isatty():
        return Panel(total=total, usable_seconds=usable_seconds, done=done, seconds=seconds)
    return _Lines(total, done, quiet=quiet)


class _Lines:
    """:class:`Progress` as a display."""

    def __init__(self, total: int | None, done: int, *, quiet: bool) -> None:
        self._progress = Progress(total, "training", done=done, quiet=quiet)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def advance(self, n: int, loss: float) -> None:
        self._progress.advance(n, note=f"loss {loss:.3f}")

    def note(self, line: dict[str, Any]) -> None:
        return None

    def say(self, what: str) -> None:
        return None


class Sparkline:
    """A run's numbers as one line of bars, whatever their count: when the columns are used up, neighbours are averaged.

    Parameters
    ----------
    columns : int
        At most; even.
    """

    def __init__(self, columns: int = _COLUMNS) -> None:
        self._columns, self._per_column = columns, 1
        self._means: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """Append a finite number."""
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._per_column:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == self._columns:
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._per_column *= 2

    def text(self, bars: str = _BARS) -> str:
        """Return a character for each column, the lowest and the highest at the ends of ``bars``."""
        if not self._means:
            return ""
        low, high = min(self._means), max(self._means)
        scale = (len(bars) - 1) / (high - low) if high > low else 0.0
        return "".join(bars[round((value - low) * scale)] for value in self._means)


class Panel:
    """The panel; see :func:`make_display` for its parameters.

    Parameters
    ----------
    console : rich Console, optional
        None for one on stderr.
    """

    def __init__(
        self,
        *,
        total: int | None,
        usable_seconds: float,
        done: int,
        seconds: float,
        console: "Console | None" = None,
    ) -> None:
        self._total, self._usable, self._done, self._first = total, usable_seconds, done, done
        self._begin = time.monotonic()
        self._zero = self._begin - seconds
        self._drawn = -_EVERY_SECONDS
        self._losses, self._what = Sparkline(), ""
        self._line: dict[str, Any] = {}
        self._groups: dict[str, dict[str, Any]] = {}
        self._console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True) if self._console is None else self._console
        self._bars = _ASCII_BARS if console.options.ascii_only else _BARS
        # stdout is the command's own: its result goes there, past the panel.
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self, n: int, loss: float) -> None:
        """See :class:`Display`."""
        self._done += n
        self._losses.add(loss)
        if time.monotonic() - self._drawn >= _EVERY_SECONDS:
            self._draw()

    def note(self, line: dict[str, Any]) -> None:
        """See :class:`Display`."""
        for group in ("evaluation", "reselection"):
            if group in line:
                self._groups[group] = line[group] | {"step": line["step"]}
                return
        self._line = line

    def say(self, what: str) -> None:
        """See :class:`Display`."""
        self._what = what
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._live is not None:
            self._live.update(self._content(), refresh=True)

    def _content(self) -> "RenderableType":
        from rich import box
        from rich.panel import Panel as Frame
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold")
        rows.add_column(no_wrap=True)
        rows.add_row("budget", ProgressBar(total=1.0, completed=self._used(), width=_COLUMNS))
        for name, text in self._texts().items():
            rows.add_row(name, text)
        return Frame(rows, title=f"training{' - ' + self._what if self._what else ''}", box=box.ROUNDED, expand=False)

    def _used(self) -> float:
        spent = time.monotonic() - self._zero
        return min(spent / self._usable if self._total is None else self._done / self._total, 1.0)

    def _texts(self) -> dict[str, str]:
        """Return the rows below the bar: only those that there is something to say of."""
        line, now = self._line, time.monotonic()
        of = "" if self._total is None else f" of {self._total:,}"
        texts = {"": f"{self._done:,}{of} pairs, {_clock(now - self._zero)} so far, {_clock(self._left(now))} left"}
        if line:
            texts["loss"] = f"{line['loss']:.3f}  (floor {line['floor']:.3f})  {self._losses.text(self._bars)}"
            texts["step"] = f"{line['step']:,}  lr {line['lr']:.2e}  logit scale {line['logit_scale']:.2f}"
            texts["speed"] = f"{line['samples_per_second']:,.0f} pairs/s, {line['wait_share']:.0%} waiting for data"
            if "image_size" in line:
                texts["speed"] += f", {line['image_size']} px"
        if "scored" in line:
            texts["jest"] = f"{line['samples_seen']:,} of {line['scored']:,} pairs trained on"
        if chosen := self._groups.get("reselection"):
            texts["chosen"] = (
                f"{chosen['k']:,} of {chosen['pool']:,} pairs after {chosen['passes']} passes, {chosen['seconds']:.1f} s"
            )
        if found := self._groups.get("evaluation"):
            recalls = [
                f"{100 * found[f'{way}_recall_at_{k}']:.1f}"
                for way in ("text_to_image", "image_to_text")
                for k in (1, 10)
            ]
            texts["held out"] = (
                f"text to image R@1 {recalls[0]} R@10 {recalls[1]}, image to text R@1 {recalls[2]} R@10 {recalls[3]} %  "
                f"(step {found['step']:,}, {found['seconds']:.1f} s; best: step {found['best_step']:,})"
            )
        if line.get("broken"):
            texts["broken"] = f"{line['broken']:,} images did not decode"
        return texts

    def _left(self, now: float) -> float | None:
        if self._total is None:
            return max(self._usable - (now - self._zero), 0.0)
        rate = (self._done - self._first) / max(now - self._begin, 1e-9)
        return (self._total - self._done) / rate if rate > 0 else None


def _clock(seconds: float | None) -> str:
    """Return e.g. ``1:02:03`` or ``2:03``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
