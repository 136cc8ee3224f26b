"""What recording each pair's signals costs: the same training steps with and without it, in turn, on the same batches.

The share of a step is the median, over the rounds, of the difference of the two; beside it stands what the recording alone takes.
Batches are decoded beforehand, so that a step is transfer, forward, backward, update and (or not) the signals.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from side_by_side import arguments, measure, table, write_result

from coreclip.config import Config, load_config
from coreclip.pipeline import Batch, Dataset, convert, draw_scenes
from coreclip.training import MeasuredStep, make_step
from coreclip.training.loss import ContrastiveLoss, contrastive_loss, equal_pairs
from coreclip.training.signals import SignalRecorder


def scenes(folder: Path, n: int) -> Dataset:
    """Draw and convert ``n`` pairs."""
    draw_scenes(folder / "scenes", n=n, n_heldout=16, seed=0)
    convert([str(path) for path in sorted((folder / "scenes").glob("train-*.tar"))], folder / "data")
    return Dataset(folder / "data")


def recording_seconds(batch: Batch, config: Config, n: int, calls: int) -> list[float]:
    """Return the seconds of recording alone, for a loss of as many pairs as the batch has."""
    images, texts = torch.nn.functional.normalize(torch.randn(2, len(batch.index), config.model.embed_dim), dim=2)
    same, recorder, seconds = equal_pairs(batch.tokens), SignalRecorder(Path("signals"), n), []
    for _ in range(calls):
        result: ContrastiveLoss = contrastive_loss(images, texts, torch.tensor(2.0), same=same)
        start = time.perf_counter()
        recorder.record(batch.index.numpy(), result.signals())
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    options = arguments(__doc__ or "", n=4000, steps=4, rounds=15, batch_size=256, image_size=64, device="cpu")
    config = load_config(None, [f"data.batch_size={options.batch_size}", f"data.image_size={options.image_size}"])
    # One precision for both: a choice by measurement could differ.
    config = replace(config, train=replace(config.train, precision="fp32"))
    with tempfile.TemporaryDirectory() as temporary:
        data = scenes(Path(temporary), options.n)
        steps: dict[str, MeasuredStep] = {
            name: make_step(data, replace(config, train=replace(config.train, signals=recorded)), device=options.device)
            for name, recorded in (("without signals", False), ("with all signals", True))
        }
        batches = [batch for batch, _ in zip(steps["without signals"].loader, range(options.steps), strict=False)]

    def run(step: MeasuredStep) -> int:
        for batch in batches:
            step.step(batch)
        if options.device != "cpu":
            torch.cuda.synchronize()
        return len(batches)

    contestants = {name: lambda step=step: run(step) for name, step in steps.items()}
    seconds = measure(contestants, rounds=options.rounds, expected=len(batches))
    without, recorded = seconds["without signals"], seconds["with all signals"]
    shares = sorted(100 * (b / a - 1) for a, b in zip(without, recorded, strict=True))
    alone = statistics.median(recording_seconds(batches[0], config, data.n, 50))
    step = statistics.median(without) / len(batches)
    items = sum(len(batch.index) for batch in batches)
    body = table(seconds, items=items, unit="pairs", ours="without signals") + (
        f"\n\nRecording adds {statistics.median(shares):+.2f} % to a step ({shares[0]:+.2f} - {shares[-1]:+.2f}); alone it takes "
        f"{1e3 * alone:.2f} ms on the CPU, {100 * alone / step:.2f} % of a step of {1e3 * step:.0f} ms. The aim is below 3 %. "
        f"Batches of {options.batch_size}, {options.image_size} px, {options.device}, {torch.get_num_threads()} threads."
    )
    write_result(f"signals_{options.batch_size}_{options.image_size}", "Recording signals", body, "coreclip", "torch")


if __name__ == "__main__":
    main()
