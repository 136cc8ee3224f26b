"""A metric that is computed over all that it has seen, found, projected, and replaced: scikit-learn's F1 by torchmetrics'.

`python examples/growing_metric.py`: about a minute on two cores. The profiler says which stage grows and what it will cost by
the end of a run of 2,000 steps; then both ways run side by side for 300 steps from the first one on.
"""

import time

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from coreclip.profiling import StageRecorder, diagnose, measure_remedy, render_text

CLASSES, BATCH, STEPS, SHOWN = 20, 256, 2000, 300


class Training:
    """A small classifier, and its F1 after every step."""

    def __init__(self, recorder: StageRecorder, *, running: bool) -> None:
        torch.manual_seed(0)
        self.recorder, self.running = recorder, running
        self.model = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, CLASSES))
        self.optimiser = torch.optim.AdamW(self.model.parameters())
        self.metric = MulticlassF1Score(num_classes=CLASSES)
        self.predicted: list[np.ndarray] = []
        self.true: list[np.ndarray] = []

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Train on a batch and look at the F1 so far."""
        inputs, labels = batch
        with self.recorder.stage("forward"):
            logits = self.model(inputs)
            loss = nn.functional.cross_entropy(logits, labels)
        with self.recorder.stage("backward"):
            self.optimiser.zero_grad()
            loss.backward()
        with self.recorder.stage("optimiser"):
            self.optimiser.step()
        with self.recorder.stage("metrics"):
            self.look(logits.detach().argmax(1), labels)

    def look(self, predicted: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the F1 over all that was seen."""
        if self.running:
            self.metric.update(predicted, labels)
            return float(self.metric.compute())
        self.predicted.append(predicted.numpy())
        self.true.append(labels.numpy())
        return float(
            f1_score(np.concatenate(self.true), np.concatenate(self.predicted), average="macro", zero_division=0)
        )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return an epoch of random data."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(BATCH, 128, generator=generator), torch.randint(0, CLASSES, (BATCH,), generator=generator))
        for _ in range(40)
    ]


def run(*, running: bool) -> float:
    """Train for the first steps of a run and return the seconds that they took."""
    training, data = Training(StageRecorder(), running=running), batches()
    begin = time.perf_counter()
    for number in range(SHOWN):
        training.step(data[number % len(data)])
    return time.perf_counter() - begin


def main() -> None:
    recorder = StageRecorder()
    training = Training(recorder, running=False)
    diagnosis = diagnose(training.step, batches(), recorder=recorder, total_steps=STEPS)
    print(render_text(diagnosis.to_dict()))
    measured = measure_remedy(lambda: run(running=False), lambda: run(running=True), repeats=3, warmup=0)
    print(
        f"the first {SHOWN} steps: {measured.baseline_milliseconds / SHOWN:.1f} ms each with scikit-learn over all that was seen, "
        f"{measured.candidate_milliseconds / SHOWN:.1f} with torchmetrics' running sums, {measured.speedup:.1f} times as fast "
        f"({measured.low:.1f} to {measured.high:.1f})"
    )


if __name__ == "__main__":
    main()
