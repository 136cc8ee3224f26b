"""Training on a GPU from a data set of 224-pixel JPEGs, loader included, against open_clip; selection of a million pairs there.

Ours is ``coreclip train`` in bf16 with compiled blocks. open_clip's model, loss and AdamW run the same shape and batch in bf16 autocast
under torch.compile, on a batch that lies on the GPU already, so without any loader. Captions have 4 to 30 words, 11 on the average, as
those of Flickr8k have. FLOP/s are of matrix products and attention alone, three times the forward pass: "done" are those that were
computed, "whole" those of the published model on 77 tokens of text.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fresh import main_or_part, peak_rss, run_fresh
from peers.points import clustered_points
from photographs import draw_folder
from side_by_side import write_result

# fmt: off
WORDS = (
    "a", "the", "two", "man", "woman", "dog", "child", "boy", "girl", "people", "group", "red", "blue", "white", "black", "brown",
    "young", "little", "old", "large", "small", "running", "jumping", "sitting", "standing", "playing", "walking", "riding", "holding",
    "looking", "in", "on", "with", "of", "and", "through", "near", "over", "by", "water", "grass", "beach", "snow", "street", "park",
    "field", "ball", "bike", "shirt", "hat", "rock", "tree", "boat", "car", "wall", "crowd", "camera", "face", "hand", "ground",
)
# fmt: on
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense, FLOP/s


def main() -> None:
    options = _options()
    failures: list[str] = []
    attempt = _Attempts(60 * options.minutes, failures)
    with tempfile.TemporaryDirectory() as scratch:
        data = attempt("data", scratch, options.n, options.device, options.vocabulary)
        parts: dict[str, dict[str, Any]] = {}
        for preset, batch_size in options.models if data is not None else ():
            parts[f"ours {preset}"] = attempt("ours", scratch, preset, batch_size, options.device, options.steps)
        for preset, batch_size in () if options.no_peers else options.models:
            parts[f"open_clip {preset}"] = attempt("peer", preset, batch_size, options.device, options.steps // 2)
        selected = None
        if options.pairs:
            selected = attempt("select", options.pairs, 512, options.pairs // 10, options.device)
    body = _report(options, data, parts, selected, failures)
    body += f"\n\nThe whole command took {attempt.seconds():.0f} s."
    write_result("gpu", "Training and selection on a GPU", body, "coreclip", "torch", "numpy")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="what does not fit is left out (default: %(default)s)"
    )
    parser.add_argument("--n", type=int, default=12_288, help="photographs")
    parser.add_argument("--steps", type=int, default=120, help="of ours; the peer takes half as many")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="to select from; 0 leaves selection out")
    parser.add_argument("--vocabulary", default="clip", help="what convert --tokenizer takes, or own")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--models", type=_models, default="ViT-B-32:1024,ViT-B-16:512", help="PRESET:BATCH,... (default: %(default)s)"
    )
    return parser.parse_args()


def _models(text: str) -> list[tuple[str, int]]:
    return [(name, int(size)) for name, _, size in (item.partition(":") for item in text.split(","))]


class _Attempts:
    """Runs parts within a time limit. One that fails is reported: the others' time on the GPU shall not be lost."""

    def __init__(self, limit: float, failures: list[str]) -> None:
        self._limit, self._failures, self._begin = limit, failures, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def __call__(self, part: str, *arguments: object) -> Any:
        begin = self.seconds()
        try:
            result = run_fresh(part, *arguments, seconds=max(1.0, self._limit - begin))
        except SystemExit as error:
            self._failures.append(f"{part} {' '.join(map(str, arguments))}: {error}")
            return None
        print(f"[{self.seconds() - begin:6.1f} s] {part}: {json.dumps(result)}", flush=True)
        return result


# ----------------------------------------------------------------------------------------------------------------------- parts


def data(scratch: str, n: str, device: str, vocabulary: str) -> dict[str, Any]:
    """Draw photographs with captions and convert them; take the loader's own rate."""
    import os

    from coreclip.pipeline import Dataset, convert, make_loader

    folder, cores = Path(scratch), len(os.sched_getaffinity(0))
    begin = time.perf_counter()
    draw_folder(folder / "photos", int(n), 224, 224)
    rng = np.random.default_rng(1)
    lengths = np.clip(np.rint(rng.normal(11, 4, int(n))), 4, 30).astype(int)
    rows = [f"{number:06d}.jpg,{' '.join(rng.choice(WORDS, length))}\n" for number, length in enumerate(lengths)]
    (folder / "photos" / "captions.csv").write_text("image,caption\n" + "".join(rows))
    drawn = time.perf_counter() - begin
    captions = folder / "photos" / "captions.csv"
    tokenizer = None if vocabulary == "own" else vocabulary
    report = convert([folder / "photos"], folder / "data", captions=captions, workers=cores, tokenizer=tokenizer)
    dataset = Dataset(folder / "data")
    loader = make_loader(dataset, batch_size=512, image_size=224, train=True, workers=cores, seed=0)
    for _ in loader:
        pass  # compiles, and brings the files into memory
    begin = time.perf_counter()
    delivered = sum(len(batch) for batch in loader)
    rate = delivered / (time.perf_counter() - begin)
    sizes = sum(path.stat().st_size for path in (folder / "photos").glob("*.jpg"))
    return {
        "pairs": dataset.n, "kb": sizes / dataset.n / 1e3, "drawing": drawn, "converting": report.seconds,
        "loader": rate, "cores": cores,
    }  # fmt: skip


def ours(scratch: str, preset: str, batch_size: str, device: str, steps: str) -> dict[str, Any]:
    """Train a preset and read its rates off metrics.jsonl, from where compiling is over."""
    import os

    import torch

    from coreclip.config import load_config
    from coreclip.pipeline import Dataset
    from coreclip.training import train

    dataset, run = Dataset(Path(scratch) / "data"), Path(scratch) / f"run-{preset}"
    overrides = [
        f"data.batch_size={batch_size}", f"data.workers={max(1, len(os.sched_getaffinity(0)) - 2)}", "train.precision=bf16",
        f"train.compile={'on' if device != 'cpu' else 'off'}", "train.checkpoints=0", "train.checkpoint_seconds=1e6",
    ]  # fmt: skip
    config = load_config(None, overrides, preset=preset)
    report = train(dataset, run, config=config, samples=int(steps) * int(batch_size), device=device)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steady = [line for line in lines if line["step"] >= int(steps) // 3] or lines[-1:]
    rates = sorted(line["samples_per_second"] for line in steady)
    tokens = dataset.tokenizer().encode(
        [captions[0] for captions in map(dataset.captions, range(2000 if dataset.n > 2000 else dataset.n))], 77
    )
    lengths = (tokens == dataset.tokenizer().end).argmax(1) + 1
    done, whole = _flops(config, lengths)
    spent = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return {
        "rate": statistics.median(rates), "low": rates[0], "high": rates[-1], "lines": len(rates), "loss": report.loss,
        "done": done, "whole": whole, "gib": spent, "tokens": float(lengths.mean()), "seconds": report.seconds,
    }  # fmt: skip


def peer(preset: str, batch_size: str, device: str, steps: str) -> dict[str, Any]:
    """Time open_clip's step on one batch that stays on the device."""
    import math

    import open_clip
    import torch
    from torch import nn

    torch.manual_seed(0)
    size = int(batch_size)
    model = open_clip.create_model(f"{preset}-quickgelu" if device != "cpu" else preset, device=device)
    rows = 224 if not hasattr(model.visual, "image_size") else model.visual.image_size[0]
    images = torch.randn(size, 3, rows, rows, device=device)
    rng = np.random.default_rng(1)
    lengths = np.clip(np.rint(rng.normal(11, 4, size)), 4, 30).astype(int)
    texts = [" ".join(rng.choice(WORDS, length)) for length in lengths]
    tokens = open_clip.get_tokenizer(preset)(texts).to(device)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    loss_of = open_clip.ClipLoss()
    compiled = torch.compile(model) if device != "cpu" else model
    compiled.train()
    kind = torch.device(device).type

    def step() -> None:
        with torch.autocast(kind, torch.bfloat16):
            loss = loss_of(*compiled(images, tokens)[:3])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    begin = time.perf_counter()
    for _ in range(5):
        step()
    _wait(device)
    warm = time.perf_counter() - begin
    rates = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(max(1, int(steps) // 3)):
            step()
        _wait(device)
        rates.append(size * max(1, int(steps) // 3) / (time.perf_counter() - begin))
    spent = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    version = open_clip.__version__
    return {
        "rate": statistics.median(rates), "low": min(rates), "high": max(rates), "warm": warm, "gib": spent,
        "version": version,
    }  # fmt: skip


def select(n: str, d: str, k: str, device: str) -> dict[str, Any]:
    """Facility location from float16 embeddings to picks, its graph built on the device."""
    from coreclip.selection import Features, facility_location

    facility_location(clustered_points(3000, int(d), 999), 30, neighbors=64, device=device)  # compiles
    features = Features.from_arrays(clustered_points(int(n), int(d), 0).astype(np.float16))
    begin = time.perf_counter()
    subset = facility_location(features, int(k), device=device)
    return {
        "seconds": time.perf_counter() - begin, "peak": peak_rss(), "ratio": subset.objective / subset.upper_bound,
        "neighbors": subset.parameters["neighbors"],
    }  # fmt: skip


def peak(device: str) -> dict[str, Any]:
    """What a large bf16 product reaches here, FLOP/s, and the device's name."""
    import torch

    if torch.device(device).type != "cuda":
        return {"name": "cpu", "measured": float("nan")}
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(8):
        _wait(device)
        begin = time.perf_counter()
        for _ in range(5):
            a @ b
        _wait(device)
        seconds.append((time.perf_counter() - begin) / 5)
    return {"name": torch.cuda.get_device_name(), "measured": 2 * side**3 / statistics.median(seconds)}


def _wait(device: str) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


# --------------------------------------------------------------------------------------------------------------------- figures


def _flops(config: Any, lengths: np.ndarray) -> tuple[float, float]:
    """FLOP of a training step for each sample: as computed here, and of the whole model on its whole context."""
    model = config.model
    patches = (config.data.image_size // model.patch_size) ** 2
    image, text = (model.image_width, model.image_depth), (model.text_width, model.text_depth)
    ends = 2 * model.embed_dim * (model.image_width + model.text_width)
    embedding = 2 * patches * 3 * model.patch_size**2 * model.image_width
    done = _tower(*image, np.array([patches + 1]), reads_one=True) + _tower(*text, lengths, reads_one=True)
    whole = _tower(*image, np.array([patches + 1]), reads_one=False) + _tower(
        *text, np.array([model.context]), reads_one=False
    )
    # The first layer's input needs no gradient.
    return tuple(3 * (blocks + ends) + 2 * embedding for blocks in (done, whole))  # type: ignore[return-value]


def _tower(width: int, depth: int, lengths: np.ndarray, *, reads_one: bool) -> float:
    """FLOP of a forward pass through the blocks of a Transformer, the mean over rows of these lengths."""
    tokens, squares = lengths.mean(), (lengths.astype(float) ** 2).mean()
    block = 24 * width**2 * tokens + 4 * width * squares
    last = 4 * width**2 * tokens + 20 * width**2 + 4 * width * tokens if reads_one else block
    return float((depth - 1) * block + last)


def _report(
    options: argparse.Namespace,
    data: dict[str, Any] | None,
    parts: dict[str, dict[str, Any]],
    selected: dict[str, Any] | None,
    failures: list[str],
) -> str:
    best = run_fresh("peak", options.device)
    nominal = next((value for name, value in BF16_PEAK.items() if name in best["name"]), float("nan"))
    lines = [
        f"{best['name']}: {nominal / 1e12:,.0f} TFLOP/s of dense bf16 by its data sheet, "
        f"{best['measured'] / 1e12:,.0f} measured on a product of 8192 x 8192 matrices.",
        "",
        "| model, batch | samples/s, median | lowest - highest | GPU GiB | TFLOP/s done | of the data sheet | whole model's TFLOP/s | of the data sheet | against open_clip |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for preset, batch_size in options.models:
        mine, theirs = parts.get(f"ours {preset}"), parts.get(f"open_clip {preset}")
        for name, part in (("coreclip", mine), ("open_clip", theirs)):
            if part is None:
                continue
            count = mine or part
            rates = [part["rate"] * count.get(key, float("nan")) for key in ("done", "whole")]
            faster = f"{mine['rate'] / theirs['rate']:.2f}x" if mine and theirs and name == "coreclip" else ""
            done, whole = rates if name == "coreclip" else (rates[1], rates[1])
            lines.append(
                f"| {name} {preset}, {batch_size} | {part['rate']:,.0f} | {part['low']:,.0f} - {part['high']:,.0f} | {part['gib']:.1f} "
                f"| {done / 1e12:,.0f} | {done / nominal:.1%} | {whole / 1e12:,.0f} | {whole / nominal:.1%} | {faster} |"
            )
    if data is not None:
        lines += [
            "",
            f"{data['pairs']:,} drawn photographs of 224 x 224 pixels, {data['kb']:.0f} KB on average; drawn in {data['drawing']:.0f} s, "
            f"converted in {data['converting']:.0f} s. The loader alone: {data['loader']:,.0f} samples/s on {data['cores']} cores.",
        ]
    if selected is not None:
        lines += [
            "",
            f"Facility location of {options.pairs:,} pairs of 512 dimensions, {options.pairs // 10:,} picks, {selected['neighbors']} "
            f"neighbours, all pairs compared on the device: {selected['seconds']:.1f} s, {selected['peak'] / 2**20:,.0f} MiB of memory, "
            f"objective / bound {selected['ratio']:.4f}.",
        ]
    lines += ["", *(f"Failed: {failure}" for failure in failures)] if failures else []
    return "\n".join(lines)


if __name__ == "__main__":
    main_or_part(main, data, ours, peer, select, peak)
