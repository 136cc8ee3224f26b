"""Where a step reads tensors back into Python: ``.item()``, ``.tolist()``, ``.cpu()``, ``float(tensor)`` and the like, by line.

On a CPU a loop that reads a tensor element by element takes as long as the reading. For a few steps those methods are
replaced by ones that look at the clock and at who called. Reads that follow each other closely are one reading: what is
between them, an indexing say, is the cost of the one that follows. Left out: tensors of a GPU, where a read waits for work
that has to be done anyway, and reads within torch's own compiled code.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import wraps
from types import FrameType
from typing import Any

from coreclip.profiling.recorder import StageRecorder

_METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")
_CLOSE_SECONDS = 5e-5  # between two reads of one loop
_CALIBRATION = 2000
_Line = tuple[str, int, str, str]  # file, line, method, stage


@dataclass(frozen=True, kw_only=True)
class ReadBack:
    """A line that reads tensors back.

    Attributes
    ----------
    where : str
        ``file:line``.
    method : str
        What it calls.
    stage : str
        The loop's stage that it lies in.
    calls : float
        A step.
    milliseconds : float
        A step, with what lies between reads that follow each other closely.
    """

    where: str
    method: str
    stage: str
    calls: float
    milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def find_read_backs(run: Callable[[], int], *, recorder: StageRecorder) -> list[ReadBack]:
    """Run some steps and return the lines that read tensors back, the dearest first; none where torch is not imported.

    Parameters
    ----------
    run : callable
        Does some steps and returns how many.
    recorder : StageRecorder
        Whose stages they open.
    """
    if "torch" not in sys.modules:
        return []
    spent: dict[_Line, _Spent] = {}
    with _watched_reads(spent, recorder) as cost:
        steps = max(run(), 1)
    found = [
        ReadBack(
            where=f"{file}:{line}",
            method=method,
            stage=stage,
            calls=one.calls / steps,
            milliseconds=max(0.0, one.seconds - one.calls * cost) * 1e3 / steps,
        )
        for (file, line, method, stage), one in spent.items()
    ]
    return sorted(found, key=lambda read: (-read.milliseconds, read.where))


class _Spent:
    """What a line has spent so far."""

    __slots__ = ("calls", "seconds")

    def __init__(self) -> None:
        self.calls, self.seconds = 0, 0.0


@contextlib.contextmanager
def _watched_reads(spent: dict[_Line, _Spent], recorder: StageRecorder) -> Iterator[float]:
    """Replace the methods inside; yields the seconds that a call is longer by."""
    import torch

    kind = torch.Tensor
    originals = {name: getattr(kind, name) for name in _METHODS}
    own = {name for name in _METHODS if name in vars(kind)}
    last_end = [-1.0]
    try:
        for name, original in originals.items():
            setattr(kind, name, _timed(original, name, spent, recorder, last_end))
        cost = _cost_of_watching(torch.zeros(()), originals["item"])
        spent.clear()
        yield cost
    finally:
        for name in _METHODS:
            if name in own:
                setattr(kind, name, originals[name])
            else:
                delattr(kind, name)


def _timed(
    original: Callable[..., Any], name: str, spent: dict[_Line, _Spent], recorder: StageRecorder, last_end: list[float]
) -> Callable[..., Any]:
    thread = threading.get_ident()

    @wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = original(*args, **kwargs)
        if args[0].is_cuda or threading.get_ident() != thread:
            return result
        frame: FrameType = sys._getframe(1)
        key = (frame.f_code.co_filename, frame.f_lineno, name, recorder.running)
        line = spent.get(key)
        if line is None:
            line = spent[key] = _Spent()
        is_close = begin - last_end[0] < _CLOSE_SECONDS
        end = time.perf_counter()
        line.seconds += end - (last_end[0] if is_close else begin)
        line.calls += 1
        last_end[0] = end
        return result

    return timed


def _cost_of_watching(tensor: Any, original: Callable[..., Any]) -> float:
    """Return by how many seconds a watched read is longer than one that is not."""
    best = {"plain": float("inf"), "watched": float("inf")}
    for _ in range(3):
        for name, read in (("plain", lambda: original(tensor)), ("watched", lambda: tensor.item())):
            begin = time.perf_counter()
            for _ in range(_CALIBRATION):
                read()
            best[name] = min(best[name], (time.perf_counter() - begin) / _CALIBRATION)
    return max(0.0, best["watched"] - best["plain"])
