"""What a step could do on this machine: its operations counted, the machine's own rates measured, one over the other.

Williams, Waterman, Patterson, "Roofline" (CACM 2009): an operator that does few operations for each byte it moves is held
up by memory, one that does many by arithmetic. Operations are torch's own count (``torch.utils.flop_counter``), bytes the
sizes of what each operator takes and returns, as if nothing stayed in a cache; times are of torch's profiler. Left out:
operators that a compiler has fused, whose insides nobody counts.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coreclip.profiling.trace import torch_profile

_REPEATS = 5
_MATRIX = {"cpu": 1024, "cuda": 8192}
_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What the machine does at most, measured: operations and bytes in a second.

    Attributes
    ----------
    device, precision : str
    flops_per_second : float
        Of a product of two large matrices in that precision.
    bytes_per_second : float
        Read and written by a copy of memory that no cache holds.
    """

    device: str
    precision: str
    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One kind of operator in a step, its backward pass included where that has the same name.

    Attributes
    ----------
    name : str
    calls, flops, n_bytes : float
        A step; ``flops`` counts a multiplication and an addition as two.
    milliseconds : float
        A step, of the operator itself.
    """

    name: str
    calls: float
    flops: float
    n_bytes: float
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A step beside what the machine could do.

    Attributes
    ----------
    peaks : Peaks
    flops, n_bytes : float
        Of a step.
    milliseconds : float
        Of a step without watching it.
    operators : tuple of Operator
        The dearest ones.
    """

    peaks: Peaks
    flops: float
    n_bytes: float
    milliseconds: float
    operators: tuple[Operator, ...]

    @property
    def utilisation(self) -> float:
        """Operations of the step over what the machine could do meanwhile, 0..1."""
        return self.flops / max(self.milliseconds / 1e3 * self.peaks.flops_per_second, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the utilisation as JSON types."""
        return {
            **asdict(self),
            "operators": [asdict(operator) for operator in self.operators],
            "utilisation": self.utilisation,
        }


def measure_peaks(device: str = "cpu", precision: str = "fp32") -> Peaks:
    """Measure the machine's arithmetic by a product of matrices, its memory by a copy; about a second.

    Parameters
    ----------
    device : str
        As torch names it.
    precision : {"fp32", "bf16"}
    """
    import torch

    kind = torch.device(device).type
    n, dtype = _MATRIX[kind], torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones((n, n), device=device, dtype=dtype) for _ in range(2))
    product = torch.empty((n, n), device=device, dtype=dtype)
    source = torch.ones(_COPY_BYTES[kind], device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)
    seconds = _least_seconds(lambda: torch.mm(a, b, out=product), kind)
    copying = _least_seconds(lambda: target.copy_(source), kind)
    return Peaks(
        device=device,
        precision=precision,
        flops_per_second=2 * n**3 / seconds,
        bytes_per_second=2 * _COPY_BYTES[kind] / copying,
    )


def measure_roofline(
    run: Callable[[], object], *, milliseconds: float, device: str = "cpu", precision: str = "fp32", repeats: int = 3
) -> Roofline:
    """Count and time the operators of a step.

    Parameters
    ----------
    run : callable
        Does one step on a batch that lies ready.
    milliseconds : float
        That it takes when nobody looks at its operators.
    device, precision : str
        As of :func:`measure_peaks`.
    repeats : int
        Steps that are timed.
    """
    counts = _count(run)
    times = _time(run, repeats, is_cuda=str(device).startswith("cuda"))
    operators = [
        Operator(name=name, calls=calls, flops=flops, n_bytes=n_bytes, milliseconds=times.get(name, 0.0))
        for name, (calls, flops, n_bytes) in counts.items()
    ]
    dearest = sorted(operators, key=lambda operator: (-operator.milliseconds, operator.name))[:_SHOWN]
    return Roofline(
        peaks=measure_peaks(device, precision),
        flops=sum(operator.flops for operator in operators),
        n_bytes=sum(operator.n_bytes for operator in operators),
        milliseconds=milliseconds,
        operators=tuple(dearest),
    )


def _least_seconds(work: Callable[[], object], kind: str) -> float:
    import torch

    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first one warms up
        begin = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def _count(run: Callable[[], object]) -> dict[str, tuple[int, float, float]]:
    """Return calls, operations and bytes of each operator in one step, the backward pass included."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    counts: dict[str, tuple[int, float, float]] = {}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            packet = function._overloadpacket
            name = str(packet).replace(".", "::", 1)
            count = flop_registry.get(packet)
            flops = 0 if count is None else count(*args, **(kwargs or {}), out_val=result)
            moved = _n_bytes(args) + _n_bytes(kwargs) + _n_bytes(result)
            calls, before, moved_before = counts.get(name, (0, 0.0, 0.0))
            counts[name] = calls + 1, before + float(flops), moved_before + moved
            return result

    with Counting():
        run()
    return counts


def _n_bytes(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(map(_n_bytes, value))
    return sum(map(_n_bytes, value.values())) if isinstance(value, Mapping) else 0


def _time(run: Callable[[], object], repeats: int, *, is_cuda: bool) -> dict[str, float]:
    """Return milliseconds of each operator, what it calls included, a step: the median over steps."""
    found: list[dict[str, float]] = []
    for _ in range(repeats):
        with torch_profile(cuda=is_cuda) as watched:
            run()
        averages = watched.key_averages()
        found.append(
            {event.key: (event.device_time_total if is_cuda else event.cpu_time_total) / 1e3 for event in averages}
        )
    names = {name for times in found for name in times}
    return {name: float(np.median([times.get(name, 0.0) for times in found])) for name in names}
