"""The numbers of a run on their way: to ``metrics.jsonl``, and the same to the terminal and to TensorBoard's scalars.

A run that goes on continues both: lines of steps that are done again are gone from the one (see ``store.drop_later``), and TensorBoard
is told to forget them (``purge_step``).
"""

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from coreclip.errors import CoreclipError
from coreclip.training.panel import Display

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_GROUPS = ("evaluation", "reselection")


class MetricsLog:
    """Writes the lines of a run; a context manager.

    Parameters
    ----------
    run : path
    step : int
        After which the run goes on; 0 at its beginning.
    display : Display
        Is shown every line.
    quiet : bool
        Nothing is written: another process does.
    tensorboard : bool
        Whether scalars are written to ``RUN/tensorboard``. Where that is not there yet, it begins with the lines that are.
    """

    def __init__(
        self, run: Path, step: int, display: Display, *, tensorboard: bool = False, quiet: bool = False
    ) -> None:
        self.display = display
        self._path, self._folder, self._step = run / "metrics.jsonl", run / "tensorboard", step
        if quiet:
            self._path = Path(os.devnull)
        self._writer_class = summary_writer() if tensorboard and not quiet else None

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(open(self._path, "a+", encoding="utf-8"))
        self._stack.enter_context(self.display)
        self._writer: SummaryWriter | None = None
        if self._writer_class is not None:
            is_first = not self._folder.exists()
            self._writer = self._writer_class(str(self._folder), purge_step=self._step + 1)
            self._stack.callback(self._writer.close)
            self._file.seek(0)
            for line in self._file if is_first else ():
                self._write_scalars(json.loads(line))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, line: dict[str, Any]) -> None:
        """Write one line: ``step``, and numbers by name, or in a group: ``evaluation``, ``reselection``."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.display.note(line)
        self._write_scalars(line)

    def flush(self) -> None:
        """Hand everything to the system; called before a checkpoint, whose steps are not done again."""
        if self._writer is not None:
            self._writer.flush()

    def _write_scalars(self, line: dict[str, Any]) -> None:
        if self._writer is None:
            return
        group = next((name for name in _GROUPS if name in line), "train")
        for name, value in line.get(group, line).items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{group}/{name}", value, line["step"])


def summary_writer() -> "type[SummaryWriter]":
    """Return TensorBoard's writer.

    Raises
    ------
    CoreclipError
        Where it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CoreclipError(
            "--tensorboard needs the package tensorboard, which is not installed; run pip install 'coreclip[tensorboard]'"
        ) from None
    return SummaryWriter
