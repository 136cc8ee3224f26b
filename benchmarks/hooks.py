"""What watching a run costs: the same training steps with and without each of the loop's hooks, in turn, on the same batches.

The hooks: each pair's signals, the average of the weights, the log (a line a second to metrics.jsonl and TensorBoard, the panel twice a
second), the question whether an evaluation is due; and all of them. What a hook adds is the median, over the rounds, of its steps'
time over that of the plain steps; beside it stands what each takes by itself, which a busy machine blurs less. Batches are decoded beforehand, so that a step is transfer, forward, backward and update.
"""

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from side_by_side import arguments, measure, table, write_result
from signals import recording_seconds, scenes

from coreclip.config import load_config
from coreclip.pipeline import Batch
from coreclip.training import build_model, make_step
from coreclip.training.ema import WeightAverage
from coreclip.training.logs import MetricsLog
from coreclip.training.panel import Panel
from coreclip.training.schedule import parts_passed

_PAIRS = 1 << 20  # of the budget that the panel shows


class Hooks:
    """What the loop does after a step, with figures that are made up."""

    def __init__(self, log: MetricsLog, batch_size: int) -> None:
        self._log, self._batch_size = log, batch_size
        self._step, self._parts, self._logged = 0, 0, -math.inf

    def after_step(self) -> None:
        """Count a step: show it, write a line where a second has passed, look whether an evaluation is due."""
        self._step += 1
        if parts_passed(self._step * self._batch_size / _PAIRS, 0.1) > self._parts:
            self._parts += 1
        self._log.display.advance(self._batch_size, 3.0 + math.sin(self._step))
        if time.monotonic() - self._logged >= 1.0:
            self.log_second(draws=0)

    def log_second(self, draws: int = 2) -> None:
        """Write a line, and draw the panel as often as it is drawn in a second."""
        for _ in range(draws):
            self._log.display.say("")
        self._log.write(
            {
                "step": self._step, "samples_seen": self._step * self._batch_size, "seconds": 1.0, "loss": 3.0, "floor": 0.1,
                "lr": 1e-3, "logit_scale": 2.7, "samples_per_second": 1000.0, "wait_share": 0.01, "broken": 0,
            }
        )  # fmt: skip
        self._logged = time.monotonic()


def alone(call: Callable[[], object], calls: int = 50) -> float:
    """Return the median seconds of a call."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    options = arguments(__doc__ or "", n=4000, steps=4, rounds=25, batch_size=256, image_size=64, device="cpu")
    # One precision for all: a choice by measurement could differ.
    overrides = [
        "train.precision=fp32",
        f"data.batch_size={options.batch_size}",
        f"data.image_size={options.image_size}",
    ]
    plain = load_config(None, [*overrides, "train.signals=false"])
    variants = {
        "plain": (plain, False),
        "signals": (replace(plain, train=replace(plain.train, signals=True)), False),
        "average of the weights": (replace(plain, train=replace(plain.train, ema=0.05)), False),
        "log": (plain, True),
        "all": (replace(plain, train=replace(plain.train, signals=True, ema=0.05)), True),
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = scenes(folder, options.n)
        steps = {name: make_step(data, config, device=options.device) for name, (config, _) in variants.items()}
        batches = [batch for batch, _ in zip(steps["plain"].loader, range(options.steps), strict=False)]
        console = Console(file=stack.enter_context(open(folder / "terminal", "w")), force_terminal=True, width=120)
        panel = Panel(total=_PAIRS, usable_seconds=math.inf, done=0, seconds=0.0, console=console)
        log = stack.enter_context(MetricsLog(folder, 0, panel, tensorboard=True))
        hooks = Hooks(log, options.batch_size)

        def run(step: Callable[[Batch], None], is_logged: bool) -> int:
            for batch in batches:
                step(batch)
                if is_logged:
                    hooks.after_step()
            if options.device != "cpu":
                torch.cuda.synchronize()
            return len(batches)

        contestants = {
            name: lambda step=steps[name].step, is_logged=is_logged: run(step, is_logged)
            for name, (_, is_logged) in variants.items()
        }
        average = WeightAverage(build_model(plain, vocab_size=data.tokenizer().vocab_size, seed=0), 0.05)
        update, second = alone(lambda: average.update(1000)), alone(hooks.log_second)
        record = statistics.median(recording_seconds(batches[0], plain, data.n, 50))
        seconds = measure(contestants, rounds=options.rounds, warmup=2, expected=len(batches))
    lines = []
    for name in variants:
        shares = sorted(100 * (a / b - 1) for a, b in zip(seconds[name], seconds["plain"], strict=True))
        low, middle, high = statistics.quantiles(shares, n=4)
        lines.append(
            f"| {name} | {middle:+.2f} % | {low:+.2f} to {high:+.2f} | {shares[0]:+.2f} to {shares[-1]:+.2f} |"
        )
    step = statistics.median(seconds["plain"]) / len(batches)
    items = sum(len(batch.index) for batch in batches)
    body = table(seconds, items=items, unit="pairs", ours="plain") + (
        "\n\n| hook | adds to a step, median | middle half of the rounds | lowest to highest |\n|---|---|---|---|\n"
        + "\n".join(lines[1:])
        + f"\n\nBy themselves, on the CPU: signals {1e3 * record:.2f} ms a step ({100 * record / step:.2f} %), the average {1e3 * update:.2f} ms "
        f"({100 * update / step:.2f} %), the log {1e3 * second:.2f} ms a second ({100 * second:.2f} %).\n\nThe aim is below 3 % for all together. A plain step takes {1e3 * step:.0f} ms; {options.rounds} rounds of {len(batches)} steps. "
        f"Batches of {options.batch_size}, {options.image_size} px, {options.device}, {torch.get_num_threads()} threads."
    )
    write_result("hooks", "What watching a run costs", body, "coreclip", "torch", "rich", "tensorboard")


if __name__ == "__main__":
    main()
