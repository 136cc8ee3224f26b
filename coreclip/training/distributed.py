"""Several processes on one run, started by ``torchrun``: who they are, what they exchange, and how they end together.

Every process has a part of each batch's rows. Features are gathered, each process computes the loss of its rows against all columns,
and gradients of features are summed back to the process whose they are (``local_loss`` and ``gather_with_grad`` of open_clip); what is
reduced over parameters is one flat buffer, once, after the last backward pass. ``DistributedDataParallel`` is left out: its hooks fire in
each of GradCache's backward passes and take the mean, not the sum, of a loss that is a sum over rows, and what it would hide by
overlapping is short for compact models. One process pays for none of this. Left out: sharded parameters, synchronised batch
normalisation (each process normalises by its own rows; the running statistics are averaged after each step).
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.randomness import hash64
from coreclip.training import streams
from coreclip.training.device import Fetched, resolve_device

if TYPE_CHECKING:
    from coreclip.training.loss import ContrastiveLoss

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)  # that one process may take longer than the others, e.g. to evaluate
_INTERRUPTED = 130


class Ranks:
    """This process among those of a run; made by :func:`processes`.

    Attributes
    ----------
    rank, size : int
    device : torch.device or None
        This process's; None for a single process, which has the device that it was told.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run, its messages and its progress."""
        return self.rank == 0

    # Decisions: every process must come to the same.

    def once(self, make: Callable[[], T]) -> T:
        """Return what the first process makes, on all; the others make nothing."""
        return self.first(make() if self.is_first else None)  # type: ignore[return-value]

    def first(self, value: T) -> T:
        """Return the first process's value, on all."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _exchange():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def table(self, values: Sequence[float]) -> np.ndarray:
        """Return the values of all processes, float64 (size, len(values)); also a barrier."""
        if self.size == 1:
            return np.array([values], dtype=np.float64)
        import torch.distributed as dist

        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        with _exchange():
            dist.all_gather(rows, own)
        return torch.stack(rows).cpu().numpy()

    def begin_step(self, seconds: float, ready: float, index: Tensor) -> tuple[float, float, list[int]]:
        """Return the first process's clock, when it was ready for the batch, and how many pairs each process was delivered.

        Rows that only fill a batch up do not count.
        """
        if self.size == 1:
            return seconds, ready, [len(index)]
        table = self.table([seconds, ready, int((index >= 0).sum())])
        return float(table[0, 0]), float(table[0, 1]), table[:, 2].astype(int).tolist()

    def end_step(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """Return the first process's clock, and whether any was told to stop."""
        if self.size == 1:
            return seconds, stop
        table = self.table([seconds, stop])
        return float(table[0, 0]), bool(table[:, 1].any())

    def least_and_broken(self, n_rows: int, n_broken: int) -> tuple[int, int]:
        """Return the fewest rows that a process has, and the sum of the broken images."""
        if self.size == 1:
            return n_rows, n_broken
        table = self.table([n_rows, n_broken])
        return int(table[:, 0].min()), int(table[:, 1].sum())

    # Rows: each process has some of a batch's, one part behind the other.

    def counts(self, n: int) -> list[int]:
        """Return how many rows each process has."""
        return self.table([n])[:, 0].astype(int).tolist()

    def own(self, counts: list[int]) -> slice:
        """Return where this process's rows are among all."""
        before = sum(counts[: self.rank])
        return slice(before, before + counts[self.rank])

    def gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all processes (sum(counts), ...), without a gradient."""
        if self.size == 1:
            return rows
        import torch.distributed as dist

        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with _exchange():
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes of a tensor, which is overwritten."""
        if self.size > 1:
            import torch.distributed as dist

            with _exchange():
                dist.all_reduce(values)
        return values

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up the processes' gradients, and average what batch normalisation keeps of its batches."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        running = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
        tensors = [*gradients, *running]
        flat = self.sum(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
        for buffer in running:
            buffer /= self.size

    def signals(self, index: np.ndarray, result: "ContrastiveLoss") -> tuple[np.ndarray, list[str], Fetched]:
        """Return the indices and signals of all processes' rows: int64 (m,), the signals' names, float32 (names, m)."""
        found = result.signals()
        rows = torch.stack([values.to(result.loss.dtype) for values in found.values()])
        if self.size > 1:
            counts = self.counts(len(index))
            index, rows = self.indices(index, counts), self.gather(rows.T.contiguous(), counts).T
        return index, list(found), Fetched(rows)

    def indices(self, index: np.ndarray, counts: list[int] | None = None) -> np.ndarray:
        """Return the indices of all processes' rows, int64 (m,)."""
        if self.size == 1:
            return index
        counts = self.counts(len(index)) if counts is None else counts
        return self.gather(torch.from_numpy(index).to(self.device), counts).cpu().numpy()

    def reseed(self, seed: int, step: int) -> None:
        """Give torch's generators a state of (seed, step, process): none has to be stored, and no trial or evaluation shifts it."""
        torch.manual_seed(int(hash64(seed, step, np.array([self.rank]), streams.TOWERS)[0]))


ONE = Ranks()


def cut(counts: list[int], wanted: int, least: int) -> list[int]:
    """Return how many of its rows each process keeps so that the first ``wanted`` of all are left, but ``least`` at each."""
    kept, excess = list(counts), sum(counts) - wanted
    for rank in reversed(range(len(kept))):
        dropped = max(0, min(excess, kept[rank] - least))
        kept[rank] -= dropped
        excess -= dropped
    return kept


@contextlib.contextmanager
def processes(device: str) -> Iterator[Ranks]:
    """Join the other processes that ``torchrun`` has started, if it has.

    When one process fails, all end: the first one to do so tells why, in one line, the others keep silent.

    Parameters
    ----------
    device : {"cpu", "cuda", "cuda:N", "auto"}
        With CUDA each process has the device of its local rank and NCCL carries what they exchange, else gloo.

    Yields
    ------
    Ranks

    Raises
    ------
    CoreclipError
        For a device that is not there, or a process that has ended without a word.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ONE
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    store = dist.PrefixStore(f"coreclip-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    try:
        target = _own_device(device)
        dist.init_process_group(
            "nccl" if target.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT
        )
        yield Ranks(rank, size, target)
        dist.destroy_process_group()
    except BaseException as error:
        if _is_first_to_fail(store):
            raise
        # Another process has told why; what is seen here is that it is gone, or the same once more.
        raise SystemExit(_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 2) from None


def _own_device(name: str) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda":
        device = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    return device


def _is_first_to_fail(store: Any) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store's own process is gone
        return False


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Turn what a backend says when a process is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        cause = str(error).splitlines()[0].rpartition("] ")[2][:100]  # behind the place in gloo's own source
        raise CoreclipError(
            f"another process of the run has ended ({cause}); a run needs all of them; look at its own "
            "messages, then run the same command again: it goes on"
        ) from None


def check_processes(ranks: Ranks, config: Config) -> None:
    """Refuse a configuration that several processes can't train together."""
    if ranks.size == 1:
        return
    reasons = {
        f"jest.keep = {config.jest.keep}": config.jest.keep < 1
        and "rows are chosen among a whole batch, which no process has",
        f"reselect.every = {config.reselect.every}": config.reselect.every and "pairs are chosen by one process",
        f"data.sizes = {config.data.sizes}": config.data.sizes
        and "each process would choose the size by its own clock",
    }
    for name, reason in reasons.items():
        if reason:
            raise CoreclipError(
                f"{name} is not allowed with {ranks.size} processes: {reason}; leave it out, or train in one process"
            )
