"""How fast a model's towers run: eager and compiled torch beside each of its exports, on this machine.

The machine may be shared: contestants take turns, round by round, and each is judged by its median. In its turn a contestant
runs several times and the first does not count: a runtime's idle threads may spin for a while after it has returned, and the next
one would pay for that. Left out: GPUs.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.training.clip_model import ClipModel
from coreclip.training.device import torch_threads
from coreclip.training.export_formats import FORMATS
from coreclip.training.export_inputs import dataset_inputs, drawn_inputs
from coreclip.training.export_job import TOWERS, Runner
from coreclip.training.export_parity import reference_features
from coreclip.training.exported_model import open_export, read_description
from coreclip.training.exporting import export
from coreclip.training.torch_export import as_numpy
from coreclip.training.towers_for_export import make_tower

EAGER, COMPILED = "torch eager", "torch.compile"
EXPORTED = tuple(
    (name, precision)
    for name in ("torch-export", "torchscript", "onnx", "openvino")
    for precision in FORMATS[name].precisions
    if not (name.startswith("torch") and precision == "fp16")  # a CPU computes halves in torch to no gain
)
RUNTIMES = (EAGER, COMPILED, *(f"{name} {precision}" for name, precision in EXPORTED))
_CALLS = 5  # of one turn; the first does not count


@dataclass(frozen=True)
class Timing:
    """One tower on one runtime at one batch size.

    Attributes
    ----------
    runtime : str
        One of :data:`RUNTIMES`.
    tower : {"image_tower", "text_tower"}
    batch_size : int
    milliseconds, low, high : float
        Of a call: the median, least and largest of the rounds' medians.
    per_second : float
        Rows, at the median.
    """

    runtime: str
    tower: str
    batch_size: int
    milliseconds: float
    low: float
    high: float
    per_second: float


def compare_runtimes(
    run: str | Path,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    batch_sizes: Sequence[int] = (1, 64),
    rounds: int = 9,
    threads: int | None = None,
    dataset: Dataset | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time a run's towers on several runtimes.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    runtimes : sequence of str
        Of :data:`RUNTIMES`; each export is made, and checked, in a temporary folder first.
    batch_sizes : sequence of int
        The first one is latency, large ones are throughput.
    rounds : int
        Turns of each contestant that count; one more warms up.
    threads : int, optional
        Of every runtime; None for torch's own number.
    dataset : Dataset, optional
        Whose images and captions are run; drawn ones without it.
    seed : int

    Returns
    -------
    dict
        ``threads``, ``rounds``, ``inputs``; ``timings``: list of :class:`Timing` as dicts; ``left_out``: {runtime: why}, where a
        package or a compiler is missing, or the export was refused.

    Raises
    ------
    CoreclipError
        For a run that can't be loaded, an unknown runtime, or numbers out of range.
    """
    _check(runtimes, batch_sizes, rounds)
    clip = ClipModel.load(run)
    n = max(batch_sizes)
    inputs = (
        drawn_inputs(clip, max(n, 3), seed=seed) if dataset is None else dataset_inputs(clip, dataset, n, seed=seed)
    )
    left_out: dict[str, str] = {}
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory() as temporary, torch_threads(threads) as used:
        runners: dict[str, Runner] = {}
        for name in runtimes:
            try:
                runners[name] = _runner(name, run, clip, Path(temporary), used, dataset)
            except CoreclipError as error:
                left_out[name] = str(error)
        for tower in TOWERS:
            rows = inputs.of(tower)
            for size in batch_sizes:
                batch = np.resize(rows, (size, *rows.shape[1:]))  # repeats them where they are fewer
                calls = _warm({name: runner[tower] for name, runner in runners.items()}, batch, left_out)
                timings += _time(calls, batch, tower, rounds)
    return {
        "threads": used,
        "rounds": rounds,
        "inputs": inputs.source,
        "timings": [asdict(timing) for timing in timings],
        "left_out": left_out,
    }


def _check(runtimes: Sequence[str], batch_sizes: Sequence[int], rounds: int) -> None:
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown:
        raise CoreclipError(f"runtime {unknown[0]!r} is unknown; it must be one of {', '.join(RUNTIMES)}")
    if not batch_sizes or min(batch_sizes) < 1 or rounds < 1:
        raise CoreclipError(
            f"batch_sizes = {list(batch_sizes)}, rounds = {rounds} are not allowed: at least one size, each 1 or more, and one round"
        )


def _runner(
    name: str, run: str | Path, clip: ClipModel, temporary: Path, threads: int, dataset: Dataset | None
) -> Runner:
    if name == EAGER:
        return {tower: partial(reference_features, clip, tower) for tower in TOWERS}
    if name == COMPILED:
        # Each tower by itself: a compiled function's cache is its own.
        return {tower: as_numpy(torch.compile(make_tower(tower, clip.network), dynamic=False)) for tower in TOWERS}
    format_, _, precision = name.partition(" ")
    folder = temporary / name.replace(" ", "-")
    # Retrieval is not measured here, so the data set is not handed on; int8 is as fast whatever it was calibrated with.
    export(run, folder, format=format_, precision=precision)
    return open_export(folder, read_description(folder), threads=threads)


Call = Callable[[np.ndarray], np.ndarray]


def _warm(calls: dict[str, Call], batch: np.ndarray, left_out: dict[str, str]) -> dict[str, Call]:
    """Run each once, and leave out what fails: torch.compile needs a compiler that may not be there."""
    warm = {}
    for name, call in calls.items():
        try:
            call(batch)
        except Exception as error:
            if name != COMPILED:
                raise
            left_out[name] = (
                f"it fails here: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"
            )
        else:
            warm[name] = call
    return warm


def _time(calls: dict[str, Call], batch: np.ndarray, tower: str, rounds: int) -> list[Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            turn = _turn(call, batch)
            if number:
                seconds[name].append(turn)
    return [
        Timing(
            runtime=name,
            tower=tower,
            batch_size=len(batch),
            milliseconds=1000 * statistics.median(values),
            low=1000 * min(values),
            high=1000 * max(values),
            per_second=len(batch) / statistics.median(values),
        )
        for name, values in seconds.items()
    ]


def _turn(call: Call, batch: np.ndarray) -> float:
    values = []
    for number in range(_CALLS):
        begin = time.perf_counter()
        call(batch)
        if number:
            values.append(time.perf_counter() - begin)
    return statistics.median(values)


def runtimes_table(report: dict[str, Any]) -> str:
    """Return the timings of :func:`compare_runtimes` as a Markdown table: per tower and size, median (least - largest) and rows a second."""
    timings = report["timings"]
    columns = list(dict.fromkeys((timing["tower"], timing["batch_size"]) for timing in timings))
    heads = [f"{tower.partition('_')[0]}, batch {size}: ms" for tower, size in columns]
    lines = [
        "| runtime | " + " | ".join(f"{head} | rows/s" for head in heads) + " |",
        "|---" * (1 + 2 * len(columns)) + "|",
    ]
    cells = {(t["runtime"], t["tower"], t["batch_size"]): t for t in timings}
    for runtime in dict.fromkeys(timing["runtime"] for timing in timings):
        row = [runtime]
        for column in columns:
            timing = cells.get((runtime, *column))
            row += ["-", "-"] if timing is None else [
                f"{timing['milliseconds']:.3g} ({timing['low']:.3g} - {timing['high']:.3g})", f"{timing['per_second']:,.4g}"
            ]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    lines.append(f"\n{report['threads']} threads each, {report['rounds']} rounds in turn, {report['inputs']} inputs.")
    lines += [f"Left out: {name}: {why}" for name, why in report["left_out"].items()]
    return "\n".join(lines)
