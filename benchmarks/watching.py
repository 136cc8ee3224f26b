"""What a profiler that watches a real training run costs it: the same run watched and not watched, in turn.

All take their batches from loaders of their own, as `train` does. Watched are the loop's stages, the loader's stages in its
threads, the queue's level; then also the system (clocks of all threads, waiting for cores, page faults), and how long
Python's lock is waited for, as `coreclip profile` does. The plain run against itself says what the machine's noise is.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from side_by_side import arguments, measure, table, write_result
from signals import scenes

from coreclip.config import load_config
from coreclip.pipeline import Batch, Dataset
from coreclip.profiling import StageRecorder, SystemWindow
from coreclip.profiling.lockprobe import LockProbe
from coreclip.training import MeasuredStep, make_step


def forever(batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from batches()


class Run:
    """A training run that goes on by some steps at each call."""

    def __init__(
        self, data: Dataset, overrides: list[str], device: str, *, watched: bool, system: bool = False
    ) -> None:
        recorder = StageRecorder() if watched else None
        self._step: MeasuredStep = make_step(
            data, load_config(None, overrides), device=device, watch=recorder, watch_loader=watched
        )
        loader = self._step.loader
        self._batches = forever(lambda: iter(loader) if recorder is None else recorder.loop(loader))
        self._system = system

    def __call__(self, steps: int) -> int:
        """Train ``steps`` steps; returns how many."""
        window, probe = (SystemWindow().start(), LockProbe().start()) if self._system else (None, None)
        for _ in range(steps):
            self._step.step(next(self._batches))
        if torch.cuda.is_available() and self._step.device.type == "cuda":
            torch.cuda.synchronize()
        if window is not None and probe is not None:
            probe.stop()
            window.stop()
        return steps


def main() -> None:
    options = arguments(
        __doc__ or "", dataset="", n=4000, steps=12, rounds=40, batch_size=0, image_size=0, device="cpu"
    )
    # One precision for all: a choice by measurement could differ.
    overrides = ["train.precision=fp32"]
    overrides += [f"data.batch_size={options.batch_size}"] if options.batch_size else []
    overrides += [f"data.image_size={options.image_size}"] if options.image_size else []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = Dataset(options.dataset) if options.dataset else scenes(folder, options.n)
        runs = {
            "plain": Run(data, overrides, options.device, watched=False),
            "plain once more": Run(data, overrides, options.device, watched=False),
            "stages watched": Run(data, overrides, options.device, watched=True),
            "stages and system watched": Run(data, overrides, options.device, watched=True, system=True),
        }
        contestants = {name: (lambda run=run: run(options.steps)) for name, run in runs.items()}
        seconds = measure(contestants, rounds=options.rounds, warmup=2, expected=options.steps)
    lines = []
    for name in list(runs)[1:]:
        shares = sorted(100 * (a / b - 1) for a, b in zip(seconds[name], seconds["plain"], strict=True))
        low, middle, high = statistics.quantiles(shares, n=4)
        medians = statistics.median(seconds[name]) / statistics.median(seconds["plain"])
        lines.append(f"| {name} | {middle:+.2f} % | {100 * (medians - 1):+.2f} % | {low:+.2f} to {high:+.2f} |")
    step = statistics.median(seconds["plain"]) / options.steps
    size = load_config(None, overrides).data.batch_size
    body = table(seconds, items=options.steps * size, unit="pairs", ours="plain") + (
        "\n\n| | adds to a step, median of the rounds | by the medians | middle half of the rounds |\n|---|---|---|---|\n"
        + "\n".join(lines)
        + f"\n\nThe aim is below 1.5 %. A plain step takes {1e3 * step:.0f} ms; {options.rounds} rounds of {options.steps} steps. "
        f"Batches of {size}, {options.device}, {torch.get_num_threads()} threads."
    )
    write_result("watching", "What watching a training run costs", body, "coreclip", "torch")


if __name__ == "__main__":
    main()
