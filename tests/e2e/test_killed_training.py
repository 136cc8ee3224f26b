"""A training run that is killed at random moments, and started again each time, ends with the bytes of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coreclip.pipeline import Dataset
from coreclip.selection import Subset
from tests.helpers import make_dataset

# All that changes what a step does, at once.
SETTINGS = [
    "data.image_size=48", "data.sizes=[32,40,48]", "data.batch_size=8", "data.workers=2", "data.weights=draws", "data.flip=0.5",
    "data.crop_scale=[0.4,1]", "data.jitter=[0.2,0.2,0.2,0.1]", "data.cutout=0.2", "model.image_width=16", "model.image_stride=2",
    "model.text_width=16", "model.text_depth=1", "model.heads=2", "model.embed_dim=8", "model.context=16", "train.precision=bf16",
    "train.optimiser=muon", "train.ema=0.1", "train.dropout=0.2", "train.word_dropout=0.2", "train.checkpoints=3",
    "train.checkpoint_seconds=0.05", "train.evaluate_every=0.3", "train.micro_batch=4", "distill.captions=true", "reselect.every=1",
    "reselect.fraction=0.8",
]  # fmt: skip
SAMPLES = 900


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("sets")
    return make_dataset(folder / "train", 60), make_dataset(folder / "held", 9, captions_per_pair=(2, 1))


def start(sets: tuple[Dataset, Dataset], run: Path) -> subprocess.Popen:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    budget = ["--validation", sets[1].path, "--samples", SAMPLES, "--threads", 1, "--device", "cpu"]
    command = [sys.executable, "-m", "coreclip", "train", sets[0].path, run, *budget, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def contents(run: Path) -> dict[str, bytes]:
    """What the run has made: weights, signals, weights on the way, its settings; not what holds times."""
    kinds = (".safetensors", ".npy", ".toml")
    files = sorted(path for path in run.rglob("*") if path.suffix in kinds)
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def chosen(run: Path) -> dict[str, list[int]]:
    return {path.name: Subset.load(path).indices.tolist() for path in (run / "subsets").iterdir()}


def evaluations(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["evaluation"]["mean_recall"]) for line in lines if "evaluation" in line]


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bytes(sets, tmp_path):
    whole = start(sets, tmp_path / "whole")
    assert whole.communicate(timeout=240)[1] is not None
    assert whole.returncode == 0
    report = json.loads((tmp_path / "whole" / "run.json").read_text())["report"]
    generator, kills = random.Random(5), 0
    while True:
        process = start(sets, tmp_path / "parts")
        checkpoint = tmp_path / "parts" / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0) == before:
            time.sleep(0.01)  # it imports, or goes on and has saved nothing yet
        if process.poll() is None and kills < 4:
            time.sleep(generator.uniform(0, 0.1) * report["seconds"])
        if process.poll() is None and kills < 4:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.communicate(timeout=240)[1] is not None
        assert process.returncode == 0
        break
    assert kills >= 2
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert found.keys() == expected.keys()
    assert {name for name in expected if found[name] != expected[name]} == set()
    assert {"model.safetensors", "signals/loss.npy"} < set(expected)
    assert len(chosen(tmp_path / "whole")) > 3
    assert chosen(tmp_path / "parts") == chosen(tmp_path / "whole")
    assert evaluations(tmp_path / "parts") == evaluations(tmp_path / "whole")
