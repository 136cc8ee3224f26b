"""What a run computes on: the device that a name stands for, copies to and from it, torch's threads and kernels, the threads that decode."""

import contextlib
import os
from collections.abc import Iterator

import torch

from coreclip.errors import CoreclipError
from coreclip.selection.threads import n_threads

_MOST_THREADS = 1024
_BESIDE_TRAINING = 2  # decoding threads where the processor trains: more would only take its cores


def resolve_device(name: str) -> torch.device:
    """Return the device that ``name`` stands for.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "cuda:0", ...}
        ``auto`` is CUDA where there is one.

    Raises
    ------
    CoreclipError
        For an unknown name, or CUDA where torch finds none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, ordinal = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (ordinal and not ordinal.isdecimal())):
        raise CoreclipError(f"device {name!r} is unknown; it must be auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(ordinal or 0) >= torch.cuda.device_count():
        raise CoreclipError(
            f"device {name!r} was asked for, but torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices "
            "here; use --device cpu, or install a CUDA build of torch"
        )
    return torch.device(name)


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``values`` on a device, not waiting for it.

    From memory that is not pinned CUDA begins a copy when all that was asked of the device before is done, and the host waits for that.
    """
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    # torch keeps pinned memory until the copies out of it are done.
    return values.pin_memory().to(device, non_blocking=True)


class Fetched:
    """Values on their way from a device: what was asked of it before the copy is waited for when they are read, what came after is not.

    Parameters
    ----------
    values : Tensor
        On any device; on the CPU they are taken as they are.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.detach()
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def read(self) -> torch.Tensor:
        """Return the values, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


def check_threads(threads: int) -> None:
    """Refuse a number of threads that torch can't have."""
    if not 1 <= threads <= _MOST_THREADS:
        raise CoreclipError(
            f"threads = {threads} is not allowed: 1 to {_MOST_THREADS}; leave it out for torch's own number"
        )


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Let torch have ``threads`` threads inside, its own number for None; yields how many. Refuses as :func:`check_threads`."""
    if threads is not None:
        check_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Where it is wanted, let torch take inside the kernels of a device that give equal bits each time, as far as it has such ones."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when a process first uses it
    # Warnings only: what pairs' signals are summed by has no such kernel, and no weight depends on it.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def decoding_threads(asked: int, device: torch.device) -> int:
    """Return ``asked``, or for 0 what a run on the device is best fed by.

    A GPU is given a batch by one thread, so that the others decode; with several processes on a machine each has its part of the cores.
    """
    if asked:
        return asked
    if device.type == "cpu":
        return _BESIDE_TRAINING
    cores = n_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores - 1, 1), 256)
