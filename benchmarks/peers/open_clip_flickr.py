"""open_clip's recipe for some minutes on images that lie in memory, then retrieval on others: one line of JSON.

The recipe is that of open_clip's own training: ClipLoss, AdamW with its groups, gradient norm 1, linear warm-up, cosine to zero over the
minutes, random crops of 90 to 100 % of the area. Crops are cut from decoded images by a batched resize, so that no time goes into
decoding. Recall is CLIP_benchmark's: several captions for an image, a hit is the query's own image or one of its own captions.
"""

import json
import math
import sys
import time
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip_training import make_model, make_optimiser

_WARMUP = 0.03  # of the minutes; open_clip's 10,000 steps would be longer than the whole training


def crops(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return float (b, 3, size, size): a square-ish crop of 90 to 100 % of each uint8 image, resized bilinearly."""
    b = len(images)
    area = 0.9 + 0.1 * torch.rand(b, generator=generator)
    aspect = torch.exp((torch.rand(b, generator=generator) * 2 - 1) * math.log(4 / 3))
    w, h = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = (
        (torch.rand(b, generator=generator) * 2 - 1) * (1 - w),
        (torch.rand(b, generator=generator) * 2 - 1) * (1 - h),
    )
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2], theta[:, 1, 2] = w, h, x, y
    grid = F.affine_grid(theta, [b, 3, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False, padding_mode="reflection")


def recalls(model: torch.nn.Module, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    """Return R@1, 5 and 10 both ways of float images (n, 3, side, side) and token rows (n, captions, context)."""
    model.eval()
    with torch.inference_mode():
        image = torch.cat([F.normalize(model.encode_image(part), dim=1) for part in pixels.split(256)])
        text = torch.cat([F.normalize(model.encode_text(part), dim=1) for part in tokens.flatten(0, 1).split(256)])
    owner = torch.arange(len(pixels)).repeat_interleave(tokens.shape[1])
    scores = text @ image.T
    rank = (scores > scores.gather(1, owner.unsqueeze(1))).sum(1)
    to_text = scores.T
    best = to_text.masked_fill(owner != torch.arange(len(pixels)).unsqueeze(1), -torch.inf).amax(1, keepdim=True)
    text_rank = (to_text > best).sum(1)
    found = {}
    for k in (1, 5, 10):
        found[f"text_to_image_recall_at_{k}"] = (rank < k).float().mean().item()
        found[f"image_to_text_recall_at_{k}"] = (text_rank < k).float().mean().item()
    return found


def main(options: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(options["threads"])
    stored = np.load(options["images"])
    tokens = torch.from_numpy(np.load(options["tokens"])["train"])  # (n, captions, context)
    dev_tokens = torch.from_numpy(np.load(options["tokens"])["dev"])
    images, dev = torch.from_numpy(stored["train"]), torch.from_numpy(stored["dev"])
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1) * 255
    size, batch_size, points = options["image_size"], options["batch_size"], options["points"]
    model = make_model(options["shape"], options["seed"])
    optimiser, loss_of = make_optimiser(model, options["lr"]), open_clip.ClipLoss()
    generator = torch.Generator().manual_seed(options["seed"])
    order, seen, kept = torch.zeros(0, dtype=torch.int64), 0, []
    begin, seconds = time.monotonic(), 60 * options["minutes"]
    model.train()
    while (used := (time.monotonic() - begin) / seconds) < 1:
        if used * points >= len(kept) + 0.5:  # copied in milliseconds, measured after the end
            kept.append((used, {name: value.clone() for name, value in model.state_dict().items()}))
        if len(order) < batch_size:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[:batch_size], order[batch_size:]
        rate = options["lr"] * min(1.0, max(used / _WARMUP, 1e-3)) * 0.5 * (1 + math.cos(math.pi * used))
        for group in optimiser.param_groups:
            group["lr"] = rate
        which = torch.randint(tokens.shape[1], (len(rows),), generator=generator)
        pixels = crops(images[rows], size, generator).sub_(mean).div_(std)
        optimiser.zero_grad()
        loss = loss_of(*model(pixels, tokens[rows, which])[:3])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        seen += len(rows)
    result = {
        "samples": seen,
        "seconds": time.monotonic() - begin,
        "loss": loss.item(),
        "version": open_clip.__version__,
    }
    shown = F.interpolate(dev.float(), (size, size), mode="bicubic", antialias=True).clamp(0, 255).sub_(mean).div_(std)
    result |= recalls(model, shown, dev_tokens)
    curve = [(1.0, result["text_to_image_recall_at_10"])]
    for used, state in reversed(kept):
        model.load_state_dict(state)
        curve.insert(0, (used, recalls(model, shown, dev_tokens)["text_to_image_recall_at_10"]))
    return result | {"curve": curve}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
