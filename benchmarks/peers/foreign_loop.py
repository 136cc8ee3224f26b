"""A loop that somebody else wrote, watched by the very lines that docs/profiling.md has for it; prints a JSON line.

Options: which loop, how long its loader sleeps for each batch (seconds), steps. The names that the documentation's lines use are
made here: a plain loop's loader, model and optimiser, Hugging Face's trainer, open_clip's data, model, loss and arguments.
"""

import argparse
import contextlib
import importlib.metadata
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from coreclip import profiling

_ROOT = Path(__file__).parents[2]
_BATCH = 16


class SlowRows(Dataset[Any]):
    """Rows of which each takes its part of a batch's sleep."""

    def __init__(self, rows: int, seconds: float, row: Any) -> None:
        self._rows, self._seconds, self._row = rows, seconds / _BATCH, row

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Any:
        time.sleep(self._seconds)
        return self._row(index)


def documented(words: str) -> str:
    """Return the block of code in docs/profiling.md that has these words."""
    text = (_ROOT / "docs" / "profiling.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if words in code)
    return str(block)


def small_net() -> nn.Module:
    """Return a network whose step takes some milliseconds."""
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def plain(seconds: float, steps: int) -> dict[str, Any]:
    """Return the names that the lines for a plain loop use."""
    loader = DataLoader(SlowRows(steps * _BATCH, seconds, lambda i: (torch.rand(3, 48, 48), i % 10)), _BATCH)
    model = small_net()
    return {"loader": loader, "model": model, "optimiser": torch.optim.AdamW(model.parameters()), "nn": nn}


def trainer(seconds: float, steps: int) -> dict[str, Any]:
    """Return a Trainer of Hugging Face's."""
    from transformers import Trainer, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(pixel_values)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = SlowRows(steps * _BATCH, seconds, lambda i: {"pixel_values": torch.rand(3, 48, 48), "labels": i % 10})
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=True, num_train_epochs=1, per_device_train_batch_size=_BATCH,
        report_to=[], save_strategy="no", logging_steps=10, disable_tqdm=True,
    )  # fmt: skip
    return {"trainer": Trainer(model=Classifier(), args=arguments, train_dataset=rows)}


def open_clip(seconds: float, steps: int) -> dict[str, Any]:
    """Return what open_clip's loop over an epoch is given."""
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP
    from open_clip_train.data import DataInfo

    model = CLIP(
        embed_dim=32, output_dict=True,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        text_cfg={"context_length": 16, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2},
    )  # fmt: skip
    loader = DataLoader(SlowRows(steps * _BATCH, seconds, lambda i: (torch.rand(3, 32, 32), torch.arange(16))), _BATCH)
    loader.num_batches, loader.num_samples = steps, steps * _BATCH  # type: ignore[attr-defined]
    args = argparse.Namespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, grad_clip_norm=None,
        horovod=False, rank=0, world_size=1, local_rank=0, log_local=False, log_every_n_steps=10, batch_size=_BATCH, wandb=False,
    )  # fmt: skip
    return {
        "data": {"train": DataInfo(loader)}, "model": model, "loss": ClipLoss(), "epoch": 0,
        "optimizer": torch.optim.AdamW(model.parameters()), "scaler": None, "scheduler": None, "args": args,
    }  # fmt: skip


LOOPS = {
    "a plain loop": (plain, "for images, labels in watch", ()),
    "Trainer": (trainer, "trainer.train()", ("transformers", "accelerate")),
    "open_clip": (open_clip, "train_one_epoch", ("open_clip_torch",)),
}


def main() -> None:
    options = json.loads(sys.argv[1])
    make, words, packages = LOOPS[options["loop"]]
    torch.manual_seed(0)
    names = make(options["seconds"], options["steps"])
    lines = documented(words)
    judged: list[profiling.Diagnosis] = []
    watched = profiling.watched

    def watched_and_kept() -> profiling.Diagnosis:
        judged.append(watched())
        return judged[0]

    profiling.watched = watched_and_kept
    lent = {name: getattr(profiling, name) for name in ("watch", "watched", "render_text")}
    with contextlib.redirect_stdout(sys.stderr):
        exec(lines, {**names, **lent})
    (diagnosis,) = judged
    print(
        json.dumps(
            {
                "verdict": diagnosis.verdict,
                "cause": diagnosis.cause,
                "steps_per_second": diagnosis.steps_per_second,
                "stages": {name: stage["milliseconds_per_step"] for name, stage in diagnosis.stages.items()},
                "lines": len([line for line in lines.splitlines() if line.strip() and not line.startswith("import")]),
                "versions": {package: importlib.metadata.version(package) for package in ("torch", *packages)},
            }
        )
    )


if __name__ == "__main__":
    main()
