"""open_clip's model, loss and AdamW on given batches: a few steps each round, or (with minutes) a whole training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from serving import serve


def make_model(shape: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """Return open_clip's CLIP of an embedding width and the settings of its two towers."""
    torch.manual_seed(seed)
    return open_clip.model.CLIP(
        embed_dim=shape["embed_dim"], vision_cfg=shape["vision"], text_cfg=shape["text"], output_dict=False
    )


def make_optimiser(model: torch.nn.Module, lr: float) -> torch.optim.AdamW:
    """Return AdamW with the groups of open_clip's own training: no decay of gains, biases and the temperature."""
    free = [p for name, p in model.named_parameters() if _is_free(name, p)]
    decayed = [p for name, p in model.named_parameters() if not _is_free(name, p)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)


def _is_free(name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def prepare(
    batches: str, weights: str, shape: dict[str, Any], lr: float, threads: int, steps: int
) -> Callable[[], Any]:
    torch.set_num_threads(threads)
    stored = np.load(batches)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1) * 255
    images, tokens = torch.from_numpy(stored["images"]), torch.from_numpy(stored["tokens"])
    model = make_model(shape)
    torch.save(model.state_dict(), Path(weights))
    model.train()
    optimiser, loss_of = make_optimiser(model, lr), open_clip.ClipLoss()
    place = 0

    def run() -> list[float]:
        nonlocal place
        losses = []
        for _ in range(steps):
            pixels, texts = images[place % len(images)].float().sub_(mean).div_(std), tokens[place % len(images)]
            place += 1
            optimiser.zero_grad()
            loss = loss_of(*model(pixels, texts)[:3])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=2.0)
            optimiser.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            losses.append(loss.item())
        return losses

    return run


if __name__ == "__main__":
    serve(prepare, "open_clip_torch", "torch")
