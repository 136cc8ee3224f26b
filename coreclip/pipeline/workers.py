"""Worker processes that call functions in order, keep what these leave in their modules, and end with their parent.

In place of ``concurrent.futures.ProcessPoolExecutor``, whose workers import the caller's ``__main__`` again (a script without a
guard then fails), outlive a parent that is killed, and don't say which signal ended them. A worker here is a fresh
interpreter that reads pickled calls from its standard input, which closes when the parent ends, however that happens.
"""

import contextlib
import errno
import importlib.abc
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from coreclip.errors import CoreclipError

_SECONDS_TO_END = 10.0
_REUSED_BYTES = 32 << 20  # glibc's upper limit for the first of the two thresholds


class WorkerPool:
    """A fixed number of worker processes; a context manager.

    Leaving the context by an exception kills the workers.

    Parameters
    ----------
    workers : int

    Attributes
    ----------
    pids : list of int
        Process ids of the workers.
    """

    def __init__(self, workers: int) -> None:
        self._processes = [_start_worker() for _ in range(workers)]
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="coreclip-worker") for _ in range(workers)]
        self._next = 0
        self.pids = [process.pid for process in self._processes]

    def submit(self, function: Callable[..., Any], *arguments: Any, worker: int | None = None) -> "Future[Any]":
        """Call a module-level ``function`` in a worker: the one of this number, by default each in turn.

        One worker's calls run in the order in which they were submitted.

        The future raises :class:`~coreclip.errors.CoreclipError` if the worker dies or has no memory left, the function's
        own ``OSError`` or ``CoreclipError``, and ``RuntimeError`` with the worker's traceback if it raises anything else.
        """
        if worker is None:
            worker, self._next = self._next, (self._next + 1) % len(self._processes)
        return self._threads[worker].submit(_call, self._processes[worker], function, arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        for process in self._processes:
            _end_worker(process)


def _call(process: "subprocess.Popen[bytes]", function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((function, arguments), process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        raised, value = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        raise CoreclipError(_describe_death(process)) from None
    if raised == "MemoryError":
        raise CoreclipError("a worker process has no memory left; use fewer workers or a smaller max_pixels")
    if raised == "CoreclipError":
        raise CoreclipError(value)
    if raised == "OSError":
        raise OSError(*value)
    if raised:
        raise RuntimeError(f"a worker process failed:\n{value}")
    return value


def serve() -> None:
    """Answer calls from standard input on standard output until the input ends: the main function of a worker."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.meta_path.insert(0, _WithoutPandas())
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    while True:
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            sys.stdout.flush()
            os._exit(0)  # nothing is left to be done, and an interpreter that tidies up takes a tenth of a second
        try:
            answer: tuple[str, Any] = ("", function(*arguments))
        except CoreclipError as error:
            answer = ("CoreclipError", str(error))
        except OSError as error:
            answer = ("OSError", (error.errno or errno.EIO, error.strerror or str(error), error.filename))
        except Exception as error:  # goes to the parent, which raises it
            answer = (type(error).__name__, traceback.format_exc())
        try:
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:
            return


class _WithoutPandas(importlib.abc.MetaPathFinder):
    """Hides pandas, which pyarrow would import for its first array: a third of a second, of which a worker has no use."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("a worker does without pandas", name=name)


def _start_worker() -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment["TOKENIZERS_PARALLELISM"] = "false"  # the workers themselves are what runs side by side
    # Freed images go to the next ones; glibc would give each back to the system, which clears its pages anew.
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(_REUSED_BYTES), "MALLOC_TRIM_THRESHOLD_": str(_REUSED_BYTES)}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from coreclip.pipeline.workers import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,  # so that a terminal's Ctrl-C reaches the parent alone
    )


def _end_worker(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _describe_death(process: "subprocess.Popen[bytes]") -> str:
    try:
        code = process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        return "a worker process sent an answer that can't be read; run the command again"
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL), perhaps for want of memory; use fewer workers"
    elif code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"ended with exit code {code}"
    return f"a worker process {how}; run the same command again to go on where it stopped"
