"""Accuracy of a small network trained on a part of Fashion-MNIST and of CIFAR-10, for nine ways to choose the part.

    python examples/selection_curves.py curves --data ../shared/data --plan
    python examples/selection_curves.py curves --data ../shared/data --figure docs/images/selection-curves.png

Expected: about 290 trainings of 10 to 20 s each on one core, together 1 to 2 hours; each finished one is a line of
``curves/cells.jsonl``, and a run that was stopped goes on from there. It ends with ``curves/selection-curves.md`` and the
figure; docs/selection-curves.md shows what came out. DATA holds ``fashion-mnist/*.gz`` (the original IDX files) and
``cifar10/train.tar, test.tar`` (SPLIT/CLASS/NAME.jpg).

Every training takes the same number of steps with batches of the same size, whatever the part. A proxy, the same network trained
once on everything for as many steps with another seed, gives the methods what they choose by: the outputs of its last but one layer, minus their
mean (facility-location, k-center, semdedup), the gradients of its last layer (craig, gradmatch) and its errors ||p - y|| (ccs). So
these methods have paid for one more training than random and stratified have, and have seen all labels.

craig and gradmatch come with weights, which multiply an image's loss. craig-drawn has craig's images and weights too, but an image
is drawn as often as its weight says, and its loss counts once: the same gradient in the mean, in steps of even size.
"""

import argparse
import contextlib
import functools
import gzip
import io
import itertools
import json
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation, uniform
from coreclip.selection import (
    FactoredGradients,
    Features,
    ccs,
    craig_of_gradients,
    facility_location,
    gradmatch_of_gradients,
    k_center,
    random_subset,
    semdedup,
    stratified,
)

FRACTIONS = (0.01, 0.05, 0.1, 0.3, 0.5)
PROXY_SEED = 1000  # added to the seed: the proxy is not the network that is then trained
LEARNING_RATE = (
    0.03  # the highest, a fifth of the way; of 0.1, 0.03 and 0.01 the best for random parts and for everything
)
Choice = tuple[np.ndarray, np.ndarray]  # indices int64 (k,), weights float64 (k,) of mean 1


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels float32 (n, c, h, w), standardised, and labels int64 (n,), of training and test."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to choose by, and the proxy's test accuracy."""

    labels: np.ndarray
    seed: int
    embeddings: Features
    gradients: FactoredGradients
    el2n: np.ndarray
    accuracy: float


@dataclass(frozen=True)
class Cell:
    """One training."""

    data: str
    method: str
    fraction: float
    seed: int
    steps: int
    batch: int


# Reading


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file."""
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_fashion_mnist(folder: Path) -> Images:
    parts = []
    for split in ("train", "t10k"):
        parts.append(read_idx(folder / f"{split}-images-idx3-ubyte.gz")[:, None])
        parts.append(read_idx(folder / f"{split}-labels-idx1-ubyte.gz"))
    return standardised(*parts)


def read_cifar10(folder: Path) -> Images:
    parts = []
    for split in ("train", "test"):
        images, names = [], []
        with tarfile.open(folder / f"{split}.tar") as tar:
            members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
            for member in members:
                file = tar.extractfile(member)
                assert file is not None
                images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")).transpose(2, 0, 1))
                names.append(Path(member.name).parent.name)
        parts += [np.stack(images), np.unique(names, return_inverse=True)[1]]
    return standardised(*parts)


def standardised(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> Images:
    """Return the images with the mean 0 and the deviation 1 of each channel in the training part."""
    mean, deviation = (
        torch.tensor([part.item() for part in values]).view(1, -1, 1, 1)
        for values in (train.mean(axis=(0, 2, 3)) / 255, train.std(axis=(0, 2, 3)) / 255)
    )
    pixels = [(torch.from_numpy(part.astype(np.float32)) / 255 - mean) / deviation for part in (train, test)]
    labels = [torch.from_numpy(part.astype(np.int64)) for part in (train_labels, test_labels)]
    return Images(pixels[0], labels[0], pixels[1], labels[1])


READERS: dict[str, Callable[[Path], Images]] = {"fashion-mnist": read_fashion_mnist, "cifar10": read_cifar10}


# Training


def network(channels: int, side: int, seed: int) -> nn.Sequential:
    """Return three convolutions and two linear layers, 93,482 parameters at 28 x 28 x 1 and 122,730 at 32 x 32 x 3."""
    flat = 64 * (-(-side // 4) // 2) ** 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width_in, width_out, stride in ((channels, 32, 2), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(flat, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def batches(weights: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield positions without end: shuffled passes, one after the other, cut into batches of the same size.

    A pass of n positions holds the position i as often as weights[i], of mean 1, says: rounded down or up, at random, so that it is
    right in the mean. Where all weights are 1 it holds each once.
    """
    left, ends = np.empty(0, np.int64), np.cumsum(weights) / weights.sum() * len(weights)
    for epoch in itertools.count():
        marks = np.arange(len(weights)) + uniform(seed, epoch, np.zeros(1, np.int64), stream=2)
        drawn = np.minimum(np.searchsorted(ends, marks, side="right"), len(weights) - 1)
        left = np.concatenate([left, drawn[permutation(len(weights), seed, epoch=epoch)]])
        while len(left) >= size:
            yield left[:size]
            left = left[size:]


def mirrored(images: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Return the batch with half of it mirrored, at random."""
    half = torch.from_numpy(uniform(seed, step, np.arange(len(images)), stream=1) < 0.5)
    return torch.where(half[:, None, None, None], images.flip(3), images)


def train(images: Images, choice: Choice, steps: int, batch: int, seed: int, drawn: bool = False) -> nn.Sequential:
    """Train on the chosen images for so many steps, whatever their number; a weight multiplies an image's loss or its draws."""
    even_weights = np.ones(len(choice[0]))
    draws, factors = (choice[1], even_weights) if drawn else (even_weights, choice[1])
    indices, weights = torch.from_numpy(choice[0].copy()), torch.from_numpy(factors).float()
    model = network(*images.train.shape[1:3], seed=seed).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, steps // 5), (steps - step) / (steps - steps // 5))
    )
    for step, positions in enumerate(itertools.islice(batches(draws, batch, seed), steps)):
        rows = indices[positions]
        pixels = images.train[rows]
        if pixels.shape[1] == 3:  # photographs look as natural in a mirror; the clothes and shoes all face the same way
            pixels = mirrored(pixels, seed, step)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        losses = nn.functional.cross_entropy(model(pixels), images.train_labels[rows], reduction="none")
        optimizer.zero_grad()
        (losses * weights[positions]).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def outputs(model: nn.Sequential, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of the last but one layer, float32 (n, 64), and the class probabilities, float32 (n, 10)."""
    hidden = torch.cat([model[:-1](block) for block in pixels.split(1000)])
    return hidden.numpy(), model[-1](hidden).softmax(dim=1).numpy()


def accuracy(model: nn.Sequential, images: Images) -> float:
    return float((outputs(model, images.test)[1].argmax(axis=1) == images.test_labels.numpy()).mean())


def proxy_material(images: Images, steps: int, batch: int, seed: int) -> Material:
    n = len(images.train)
    model = train(images, (np.arange(n), np.ones(n)), steps, batch, PROXY_SEED + seed)
    hidden, probabilities = outputs(model, images.train)
    labels = images.train_labels.numpy()
    residuals = probabilities - np.eye(10, dtype=np.float32)[labels]
    return Material(
        labels=labels,
        seed=seed,
        embeddings=Features.from_arrays(hidden - hidden.mean(axis=0)),
        gradients=FactoredGradients(residuals, hidden),
        el2n=np.linalg.norm(residuals, axis=1)[None],
        accuracy=accuracy(model, images),
    )


# Choosing


def even(indices: np.ndarray) -> Choice:
    return indices, np.ones(len(indices))


def choose_craig(material: Material, k: int) -> Choice:
    found = craig_of_gradients(material.gradients, k, material.labels)
    return found.indices, found.gamma * (k / len(material.labels))


def choose_gradmatch(material: Material, k: int) -> Choice:
    found = gradmatch_of_gradients(material.gradients, k, material.labels)
    return found.indices, found.weights / found.weights.mean()


def choose_ccs(material: Material, k: int) -> Choice:
    """Leave out more of the hardest as k falls: 0 at a half to 0.3 at a tenth, as in the paper; below that 0.5, our guess."""
    fraction = k / len(material.labels)
    beta = next((beta for least, beta in ((0.5, 0.0), (0.3, 0.1), (0.1, 0.3)) if fraction >= least - 1e-3), 0.5)
    return even(ccs(k, signals={"el2n": material.el2n}, beta=beta, seed=material.seed).indices)


METHODS: dict[str, Callable[[Material, int], Choice]] = {
    "random": lambda material, k: even(random_subset(len(material.labels), k, material.seed).indices),
    "stratified": lambda material, k: even(
        stratified(len(material.labels), k, labels=material.labels, seed=material.seed).indices
    ),
    "facility-location": lambda material, k: even(facility_location(material.embeddings, k).indices),
    "k-center": lambda material, k: even(k_center(material.embeddings, k).indices),
    "craig": choose_craig,
    "craig-drawn": choose_craig,
    "gradmatch": choose_gradmatch,
    "semdedup": lambda material, k: even(semdedup(material.embeddings, k, seed=material.seed).indices),
    "ccs": choose_ccs,
}
DRAWN = ("craig-drawn",)  # their weights say how often an image is drawn
NESTED = ("facility-location", "k-center", "semdedup")  # a smaller choice is the beginning of a larger one


# Cells


def all_cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells, the first seed's first; random has more seeds than the others."""
    return [
        Cell(data, method, fraction, seed, options.steps, options.batch)
        for seed in range(max(options.seeds, options.random_seeds))
        for data in options.sets
        for method in options.methods
        for fraction in options.fractions
        if seed < (options.random_seeds if method == "random" else options.seeds)
    ]


def read_cells(path: Path) -> dict[Cell, dict[str, Any]]:
    """Return the finished cells; the line of one that was being written when the run was stopped is dropped from the file."""
    done, whole = {}, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            done[Cell(*(row[name] for name in Cell.__dataclass_fields__))] = row
            whole.append(line)
    if path.exists():
        path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return done


class Study:
    """Holds what cells share: one data set, one proxy, and the largest choice of each nested method."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.images = functools.lru_cache(1)(lambda data: READERS[data](options.data / data))
        self.material = functools.lru_cache(1)(self._material)
        self.nested = functools.lru_cache(len(NESTED))(self._nested)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Choose, train and test."""
        images, material = self.images(cell.data), self.material(cell.data, cell.seed)
        k = max(1, round(cell.fraction * len(images.train)))
        start = time.perf_counter()
        if cell.method in NESTED:
            choice = even(self.nested(cell.data, cell.method, cell.seed)[:k])
        else:
            choice = METHODS[cell.method](material, k)
        chosen = time.perf_counter()
        model = train(images, choice, cell.steps, cell.batch, cell.seed, drawn=cell.method in DRAWN)
        return {
            **vars(cell),
            "n": len(images.train),
            "k": len(choice[0]),
            "classes": len(np.unique(material.labels[choice[0]])),
            "accuracy": accuracy(model, images),
            "proxy_accuracy": material.accuracy,
            "selection_seconds": round(chosen - start, 2),
            "training_seconds": round(time.perf_counter() - chosen, 2),
        }

    def _material(self, data: str, seed: int) -> Material:
        return proxy_material(self.images(data), self.options.steps, self.options.batch, seed)

    def _nested(self, data: str, method: str, seed: int) -> np.ndarray:
        material = self.material(data, seed)
        return METHODS[method](material, max(1, round(max(self.options.fractions) * len(material.labels))))[0]


def print_plan(cells: list[Cell], done: dict[Cell, dict[str, Any]]) -> None:
    """Print each cell and the minutes that the trainings to come will take, by a few steps that are timed here."""
    for cell in cells:
        print(cell.data, cell.method, cell.fraction, f"seed {cell.seed}", "done" if cell in done else "to do")
    seconds = 0.0
    for data, shape in (("fashion-mnist", (1, 28)), ("cifar10", (3, 32))):
        left = [cell for cell in cells if cell.data == data and cell not in done]
        if left:
            seconds += sum(cell.steps for cell in left) * seconds_per_step(*shape, batch=left[0].batch)
    print(
        f"{len(cells)} cells, {len(done.keys() & set(cells))} done; about {seconds / 60:.0f} minutes of training are left"
    )


def seconds_per_step(channels: int, side: int, batch: int, steps: int = 12) -> float:
    pixels, labels = torch.zeros(batch, channels, side, side), torch.zeros(batch, dtype=torch.int64)
    images = Images(pixels, labels, pixels, labels)
    times = []
    for n_steps in (2, steps):  # the first one's making and warming up is taken off
        start = time.perf_counter()
        train(images, even(np.arange(batch)), n_steps, batch, 0)
        times.append(time.perf_counter() - start)
    return max(times[1] - times[0], 1e-4) / (steps - 2)


# Results


def collected(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[float, dict[int, float]]]]:
    """Return percent by data set, method, fraction and seed."""
    found: dict[str, dict[str, dict[float, dict[int, float]]]] = {}
    for row in rows:
        by_fraction = found.setdefault(row["data"], {}).setdefault(row["method"], {})
        by_fraction.setdefault(row["fraction"], {})[row["seed"]] = 100 * row["accuracy"]
    return found


def spread(values: list[float]) -> float:
    """Return the standard deviation between seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def tables(rows: list[dict[str, Any]]) -> str:
    """Return, for each data set, the accuracies and their differences to random's with the same seed."""
    lines: list[str] = []
    for data, methods in collected(rows).items():
        here = [row for row in rows if row["data"] == data]
        fractions = sorted({row["fraction"] for row in here})
        proxies = {row["seed"]: 100 * row["proxy_accuracy"] for row in here}
        proxy = list(proxies.values())
        head = [
            "| | " + " | ".join(f"{fraction:.0%}" for fraction in fractions) + " |",
            "|---|" + "---|" * len(fractions),
        ]
        lines += [f"## {data}", "", f"Test accuracy, %: mean ± standard deviation between seeds (number of seeds). Everything, as many steps: {show(proxy)}.", "", *head]  # fmt: skip
        for method, cells in methods.items():
            texts = [show(list(cells.get(fraction, {}).values())) for fraction in fractions]
            lines.append(f"| {method} | " + " | ".join(texts) + " |")
        lines += ["", "The same minus random's with the same seed, in points:", "", *head]
        for method, cells in methods.items():
            if method == "random" or "random" not in methods:
                continue
            texts = []
            for fraction in fractions:
                ours, random = cells.get(fraction, {}), methods["random"].get(fraction, {})
                texts.append(show([ours[seed] - random[seed] for seed in ours.keys() & random.keys()], sign="+"))
            lines.append(f"| {method} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def show(values: list[float], sign: str = "") -> str:
    if not values:
        return "-"
    deviation = f" ± {spread(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation} ({len(values)})"


# Okabe & Ito's colours, told apart by people who see red and green alike; random is the black one.
LOOKS = {
    "random": ("#000000", "o"), "stratified": ("#999999", "s"), "facility-location": ("#D55E00", "^"),
    "k-center": ("#0072B2", "v"), "craig": ("#009E73", "D"), "craig-drawn": ("#F0E442", "d"), "gradmatch": ("#CC79A7", "P"),
    "semdedup": ("#56B4E9", "X"), "ccs": ("#E69F00", "*"),
}  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy above, and what is gained over random below, a column for each data set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    found = collected(rows)
    figure, axes = plt.subplots(2, len(found), figsize=(6.2 * len(found), 8.4), squeeze=False, sharex="col")
    for (data, methods), top, bottom in zip(found.items(), axes[0], axes[1], strict=True):
        for number, method in enumerate(sorted(methods, key=lambda name: name == "random")):
            cells, baseline = methods[method], methods.get("random", {})
            nudge = 1 + 0.025 * (number - len(methods) / 2)  # error bars beside each other
            if method == "random":
                look = {"color": LOOKS[method][0], "marker": LOOKS[method][1], "linewidth": 3.0, "zorder": 5}
            else:
                look = {"color": LOOKS[method][0], "marker": LOOKS[method][1], "linewidth": 1.3}
            for axis, minus in ((top, None), (bottom, baseline)):
                points = []
                for fraction, by_seed in sorted(cells.items()):
                    if minus is None:
                        values = list(by_seed.values())
                    elif method == "random":  # random's own spread, around its mean
                        values = [value - statistics.mean(by_seed.values()) for value in by_seed.values()]
                    else:
                        other = minus.get(fraction, {})
                        values = [by_seed[seed] - other[seed] for seed in by_seed.keys() & other.keys()]
                    if values:
                        points.append((100 * fraction * nudge, statistics.mean(values), spread(values)))
                if points:
                    x, y, error = zip(*points, strict=True)
                    axis.errorbar(x, y, yerr=error, label=method, capsize=2.5, markersize=6, **look)
        top.set_title(data)
        bottom.set_xlabel("part of the training images, %")
        bottom.set_xscale("log")
        ticks = sorted({100 * row["fraction"] for row in rows if row["data"] == data})
        bottom.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        bottom.minorticks_off()
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    axes[1][0].set_ylabel("minus random's, points (same seed)")
    axes[0][-1].legend(fontsize=9, loc="lower right")
    steps, batch = rows[0]["steps"], rows[0]["batch"]
    figure.suptitle(f"{steps} steps of {batch} images for every point; bars: standard deviation between seeds")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the cells and the results")
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist/ and cifar10/")
    parser.add_argument("--sets", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--fractions", nargs="+", type=float, default=list(FRACTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random-seeds", type=int, default=5, help="of random, the baseline (default: 5)")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--figure", type=Path, help="default: OUT/selection-curves.png")
    parser.add_argument("--plan", action="store_true", help="print what would be run and how long it takes, and stop")
    options = parser.parse_args(arguments)
    if not all(0 < fraction <= 1 for fraction in options.fractions):
        parser.error("--fractions must be above 0 and at most 1")
    if min(options.seeds, options.random_seeds, options.steps, options.batch, options.threads) < 1:
        parser.error("--seeds, --random-seeds, --steps, --batch and --threads must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cells.jsonl"
    cells, done = all_cells(options), read_cells(path)
    if options.plan:
        print_plan(cells, done)
        return
    study = Study(options)
    for number, cell in enumerate(cells, 1):
        if cell in done:
            continue
        done[cell] = study.run(cell)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[cell]) + "\n")
        print(f"{number}/{len(cells)}", json.dumps(done[cell]), file=sys.stderr, flush=True)
    rows = [done[cell] for cell in cells]
    text = tables(rows)
    (options.out / "selection-curves.md").write_text(text, encoding="utf-8")
    draw(rows, options.figure or options.out / "selection-curves.png")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (CoreclipError, OSError) as error:
        raise SystemExit(f"selection_curves: {error}") from None
