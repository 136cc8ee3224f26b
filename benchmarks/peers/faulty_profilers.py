"""A faulty loop under another profiler; what that says is printed as JSON in the last line.

Options: the profiler, the plants and the number of steps. TraceML runs a program of its own accord and writes its summary to a
folder: `traceml run` is given this file with the same options. The path of modules has benchmarks and the project.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from faulty_loop import Loop
from torch.utils.data import DataLoader, IterableDataset

from coreclip.heap import keep_freed_memory

_SHOWN = 4
_UNRECORDED, _RECORDED = 40, 20  # steps of torch.profiler; the second are more than lie between two checkpoints


class Batches(IterableDataset[Any]):
    """A loop's batches for a DataLoader, which these profilers look for."""

    def __init__(self, loop: Loop, steps: int) -> None:
        self._loop, self._steps = loop, steps

    def __iter__(self) -> Iterator[Any]:
        done = 0
        while True:
            for batch in self._loop:
                yield batch
                done += 1
                if done == self._steps:
                    return


def main() -> None:
    options = json.loads(sys.argv[-1])
    keep_freed_memory()
    loop = Loop(options["plants"], inline=options["inline"])
    torch.set_num_threads(options["plants"].get("too-many-threads", torch.get_num_threads()))
    loader = DataLoader(Batches(loop, options["steps"]), batch_size=None)
    print(json.dumps(PROFILERS[options["profiler"]](loop, loader)))


def with_torch(loop: Loop, loader: DataLoader[Any]) -> list[str]:
    """Return the operators that take most time of their own, as torch.profiler's table has them.

    Some steps are recorded, as its documentation has it for long runs: all of them want more than 24 GB where
    elements are read one by one.
    """
    schedule = torch.profiler.schedule(wait=_UNRECORDED, warmup=2, active=_RECORDED, repeat=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule) as profile:
        for batch in loader:
            loop.step(batch)
            profile.step()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [f"{event.key} {event.self_cpu_time_total / total:.0%}" for event in events[:_SHOWN]]


def with_lightning(loop: Loop, loader: DataLoader[Any]) -> list[str]:
    """Return the actions of Lightning's simple profiler that take most time, but those that hold all others."""
    import lightning
    from lightning.pytorch.profilers import SimpleProfiler

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.model = loop.model

        def training_step(self, batch: Any, _: int) -> None:
            loop.step(batch)

        def configure_optimizers(self) -> None:
            return None

    profiler = SimpleProfiler()
    lightning.Trainer(
        max_epochs=1, profiler=profiler, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Module(), loader)  # fmt: skip
    spent = {name: sum(times) for name, times in profiler.recorded_durations.items()}
    total = spent["run_training_epoch"]
    inner = {
        name: seconds for name, seconds in spent.items() if name not in ("run_training_epoch", "run_training_batch")
    }
    return [f"{name} {inner[name] / total:.0%}" for name in sorted(inner, key=lambda name: -inner[name])[:_SHOWN]]


def with_traceml(loop: Loop, loader: DataLoader[Any]) -> list[str]:
    """Run the loop as TraceML's quickstart has it; `traceml run` writes what it says."""
    import traceml_ai as traceml

    traceml.init(mode="auto")
    for batch in loader:
        with traceml.trace_step(loop.model):
            loop.step(batch)
    return []


PROFILERS = {"torch.profiler": with_torch, "Lightning": with_lightning, "TraceML": with_traceml}

if __name__ == "__main__":
    main()
