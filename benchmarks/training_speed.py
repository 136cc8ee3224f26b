"""Training steps of the same CLIP in coreclip and in open_clip, in turn: fp32, eager, the same batches and first weights.

The shape: images of 64 pixels in patches of 8, width 192, 6 layers; text of 32 tokens, width 192, 4 layers, 49,408 words. A step is the
towers, the loss (coreclip's knows captions that repeat), the gradient's norm and AdamW; images are decoded already. Captions are
Flickr8k's with ``--shards``, else those of drawn scenes. Needs .venv-open-clip (``make bench-open-clip``).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import OPEN_CLIP_PYTHON, Peer, arguments, ratio, versions_of, write_result

from coreclip.pipeline import Dataset, convert, draw_scenes, make_loader

SHAPE = {
    "embed_dim": 192,
    "vision": {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64},
    "text": {"context_length": 32, "vocab_size": 49_408, "width": 192, "heads": 3, "layers": 4},
}
END = 49_407
_TOKENISE = (
    "import json, sys, numpy as np, open_clip\n"
    "t = open_clip.SimpleTokenizer(context_length=32)\n"
    "np.save(sys.argv[2], t(json.load(open(sys.argv[1]))).numpy())"
)


def write_batches(folder: Path, shards: str, n: int, batch_size: int) -> float:
    """Write n batches as the peers read them; returns the mean number of tokens of a caption."""
    if shards:
        sources = sorted(map(str, Path(shards).glob("train-*.tar")))
    else:
        draw_scenes(folder / "scenes", n=n * batch_size, n_heldout=16, seed=0)
        sources = sorted(map(str, (folder / "scenes").glob("train-*.tar")))
    convert(sources, folder / "data")
    dataset = Dataset(folder / "data")
    loader = make_loader(dataset, batch_size=batch_size, image_size=64, train=True, drop_last=True, workers=2, seed=0)
    batches = [batch for batch, _ in zip(loader, range(n), strict=False)]
    texts = [dataset.captions(int(i))[int(c)] for b in batches for i, c in zip(b.index, b.caption, strict=True)]
    (folder / "texts.json").write_text(json.dumps(texts))
    subprocess.run([OPEN_CLIP_PYTHON, "-c", _TOKENISE, folder / "texts.json", folder / "tokens.npy"], check=True)
    tokens = np.load(folder / "tokens.npy").reshape(len(batches), batch_size, 32)
    images = np.stack([batch.images.contiguous().numpy() for batch in batches])
    np.savez(folder / "batches.npz", images=images, tokens=tokens)
    return float((tokens.argmax(2) + 1).mean())


def main() -> None:
    options = arguments(__doc__ or "", shards="", n=15, batch_size=256, steps=2, rounds=15, threads=2, lr=5e-4)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mean_tokens = write_batches(folder, options.shards, options.n, options.batch_size)
        common = {
            "batches": str(folder / "batches.npz"), "weights": str(folder / "weights.pt"), "lr": options.lr,
            "threads": options.threads, "steps": options.steps,
        }  # fmt: skip
        with Peer("open_clip_training", python=OPEN_CLIP_PYTHON, shape=SHAPE, **common) as theirs:
            with Peer("coreclip_training", python=sys.executable, end=END, **common) as ours:
                seconds, losses = _in_turn({"coreclip": ours, "open_clip": theirs}, options.rounds)
                peers = versions_of([theirs])
    samples = options.steps * options.batch_size
    lines = ["| | samples/s, median | lowest - highest |", "|---|---|---|"]
    for name, values in seconds.items():
        rates = sorted(samples / value for value in values)
        lines.append(f"| {name} | {statistics.median(rates):.1f} | {rates[0]:.1f} - {rates[-1]:.1f} |")
    apart = np.abs(np.subtract(losses["coreclip"], losses["open_clip"]))
    lines += [
        "",
        f"coreclip is faster by {ratio(seconds['open_clip'], seconds['coreclip'])}, median, lowest and highest of {options.rounds} rounds.",
        "",
        f"Losses from the same first weights, step 1: {losses['coreclip'][0]:.5f} and {losses['open_clip'][0]:.5f}; step "
        f"{len(apart)}: {losses['coreclip'][-1]:.4f} and {losses['open_clip'][-1]:.4f}; apart by {apart.mean():.4f} on the mean, "
        f"{apart.max():.4f} at most.",
        "",
        f"{options.threads} threads, batch {options.batch_size}, {mean_tokens:.1f} tokens in a caption on the mean.",
    ]
    write_result(
        "training_speed", "Training steps beside open_clip", "\n".join(lines), "coreclip", "torch", peers=peers
    )


def _in_turn(contestants: dict[str, Peer], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each round, the first one left out, and the losses of all."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            begin = time.perf_counter()
            losses[name] += run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds, losses


if __name__ == "__main__":
    main()
