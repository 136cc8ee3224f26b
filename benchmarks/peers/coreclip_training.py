"""coreclip's training steps on the batches, and from the first weights, that ``open_clip_training`` is given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving import serve

from coreclip.config import Config
from coreclip.training.distributed import ONE
from coreclip.training.model import build_model
from coreclip.training.objectives import Objective
from coreclip.training.open_clip import read_open_clip
from coreclip.training.steps import Rows, make_optimiser, update
from coreclip.training.text_towers import caption_lengths


def prepare(batches: str, weights: str, end: int, lr: float, threads: int, steps: int) -> Callable[[], Any]:
    torch.set_num_threads(threads)
    stored = np.load(batches)
    images, tokens = torch.from_numpy(stored["images"]), torch.from_numpy(stored["tokens"])
    found = read_open_clip(Path(weights))
    config: Config = replace(found.config, train=replace(found.config.train, lr=lr, weight_decay=0.2, precision="fp32"))
    vocab_size = found.state["text.embedding.weight"].shape[0]
    model = build_model(config, vocab_size=vocab_size, end=end, seed=0)
    model.load_state_dict(model.state_dict() | found.state)
    model.mean.copy_(255 * torch.tensor(found.mean).view(1, 3, 1, 1))
    model.std.copy_(255 * torch.tensor(found.std).view(1, 3, 1, 1))
    model.train()
    optimiser, objective, place = make_optimiser(model, config), Objective(config, None, None, ONE), 0

    def run() -> list[float]:
        nonlocal place
        losses = []
        for _ in range(steps):
            at = place % len(images)
            place += 1
            n = len(images[at])
            rows = Rows(
                images=images[at], tokens=tokens[at], lengths=caption_lengths(tokens[at], end), weight=torch.ones(n), labels=None,
                index=np.arange(n), share=1.0, broken=[],
            )  # fmt: skip
            result, backward = objective.forward(model, rows, bf16=False)
            losses.append(result.loss.item())
            optimiser.zero_grad(set_to_none=True)
            backward()
            update(model, optimiser, clip_norm=1.0, rate=lr)
        return losses

    return run


if __name__ == "__main__":
    serve(prepare, "torch")
