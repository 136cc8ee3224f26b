"""The study of accuracy by part and method, on images that a line of pixels tells apart."""

import gzip
import importlib.util
import io
import json
import struct
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "selection_curves.py"
SMALL = ["--steps", "30", "--batch", "16", "--seeds", "2", "--random-seeds", "3", "--fractions", "0.1", "0.5"]


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    spec = importlib.util.spec_from_file_location("selection_curves", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["selection_curves"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def bright_rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images, uint8 (n, 28, 28), whose class is the place of a bright line."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    images = rng.integers(0, 60, (n, 28, 28)).astype(np.uint8)
    images[np.arange(n), 2 + 2 * labels] = 255
    return images, labels


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "fashion-mnist"
    folder.mkdir()
    for split, n in (("train", 300), ("t10k", 100)):
        images, labels = bright_rows(n, seed=n)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder.parent


@pytest.fixture(scope="module")
def finished(curves: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("curves")
    curves.main([str(out), "--data", str(data), "--sets", "fashion-mnist", *SMALL])
    return out


def cells_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]


def test_every_cell_is_trained_once_and_shown(curves: ModuleType, finished: Path) -> None:
    rows = cells_of(finished)
    keys = {(row["method"], row["fraction"], row["seed"]) for row in rows}
    assert len(rows) == len(keys) == 8 * 2 * 2 + 2 * 3
    assert {row["steps"] for row in rows} == {30}
    table = (finished / "selection-curves.md").read_text(encoding="utf-8")
    for method in curves.METHODS:
        chosen = [100 * row["accuracy"] for row in rows if row["method"] == method and row["fraction"] == 0.5]
        shown = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
        assert f"{np.mean(chosen):.1f} ± {np.std(chosen, ddof=1):.1f} ({len(chosen)})" in shown
    with Image.open(finished / "selection-curves.png") as picture:
        assert min(picture.size) > 400


def test_parts_have_the_size_asked_for_and_the_network_learns_from_half(finished: Path) -> None:
    rows = cells_of(finished)
    for row in rows:
        due = round(300 * row["fraction"])
        assert row["k"] == due if row["method"] != "gradmatch" else 0 < row["k"] <= due
    halves = [row["accuracy"] for row in rows if row["method"] == "random" and row["fraction"] == 0.5]
    assert min(halves) > 0.3  # chance is 0.1


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_cells(
    curves: ModuleType, data: Path, finished: Path, tmp_path: Path
) -> None:
    lines = (finished / "cells.jsonl").read_text().splitlines(keepends=True)
    torn = "".join(lines[:-2]) + lines[-2][:40]
    (tmp_path / "cells.jsonl").write_text(torn)
    curves.main([str(tmp_path), "--data", str(data), "--sets", "fashion-mnist", *SMALL])
    timed = ("selection_seconds", "training_seconds")
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in timed} for row in cells_of(out)] for out in (tmp_path, finished)
    )
    assert ours == theirs


def test_plan_names_the_cells_that_are_left_and_trains_none(
    curves: ModuleType, data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (finished / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:5]))
    curves.main([str(tmp_path), "--data", str(data), "--sets", "fashion-mnist", *SMALL, "--plan"])
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("to do") for line in printed) == 38 - 5
    assert printed[-1].startswith("38 cells, 5 done; about ")
    assert len(cells_of(tmp_path)) == 5


def test_every_batch_is_full_and_a_pass_shows_each_image_once(curves: ModuleType) -> None:
    made = curves.batches(np.ones(7), 16, seed=3)
    first = np.concatenate([next(made) for _ in range(7)])
    assert len(first) == 7 * 16
    assert (np.sort(first.reshape(16, 7), axis=1) == np.arange(7)).all()


def test_an_image_is_drawn_as_often_as_its_weight_says(curves: ModuleType) -> None:
    weights = np.array([3.0, 0.5, 0.0, 0.25, 1.25])
    made = curves.batches(weights, 5, seed=3)
    passes = np.array([np.bincount(next(made), minlength=5) for _ in range(400)])
    assert (np.abs(passes - weights) < 1).all()
    assert passes.mean(axis=0) == pytest.approx(weights, abs=0.08)


def test_an_image_of_weight_0_teaches_nothing(curves: ModuleType, data: Path) -> None:
    images = curves.READERS["fashion-mnist"](data / "fashion-mnist")
    rows, weights = np.arange(20), np.repeat([2.0, 0.0], 10)
    labels = images.train_labels.clone()
    labels[10:20] = (labels[10:20] + 1) % 10
    relabelled = curves.Images(images.train, labels, images.test, images.test_labels)
    model, other, taught = (
        [parameter.detach() for parameter in curves.train(of, (rows, given), 3, 8, seed=0).parameters()]
        for of, given in ((images, weights), (relabelled, weights), (relabelled, np.ones(20)))
    )
    assert all(np.array_equal(a, b) for a, b in zip(model, other, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(model, taught, strict=True))


def test_class_folders_of_a_tar_become_labels_in_order_of_name(curves: ModuleType, tmp_path: Path) -> None:
    shades = {"cat": 10, "dog": 200}
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for name in ("dog", "cat"):
                content = io.BytesIO()
                Image.new("RGB", (32, 32), (shades[name], 0, 255)).save(content, "PNG")
                member = tarfile.TarInfo(f"{split}/{name}/0.png")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))
    images = curves.read_cifar10(tmp_path)
    assert images.train_labels.tolist() == [0, 1]
    assert (images.train[0, 0] < 0).all()
    assert (images.train[1, 0] > 0).all()


def test_fractions_out_of_range_are_refused(
    curves: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        curves.main([str(tmp_path), "--data", str(tmp_path), "--fractions", "1.5"])
    assert "above 0 and at most 1" in capsys.readouterr().err
