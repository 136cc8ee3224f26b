"""One run by two processes that torchrun starts: the same run, gone on with, and ended by whichever of them fails."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coreclip.config import load_config
from coreclip.pipeline import Dataset
from coreclip.training import train
from tests.helpers import make_dataset

SETTINGS = [
    "data.image_size=16", "data.batch_size=8", "data.workers=1", "model.image_tower=vit", "model.image_width=8",
    "model.text_width=16", "model.text_depth=1", "model.heads=2", "model.embed_dim=8", "model.context=16", "train.precision=fp32",
]  # fmt: skip
SAMPLES = 36

# What the command does, but that something happens to the second process in its third step.
SCRIPT = """
import math, os, signal, sys
from contextlib import nullcontext
from pathlib import Path
import torch
from coreclip.cli import run_command
import coreclip.training.trainer as trainer

class Second:
    def __init__(self):
        self.steps = 0
        if os.environ["RANK"] == "0":
            FIRST.write_text(str(os.getpid()))
    def stage(self, name): return nullcontext()
    def iterate(self, name, iterable): return iter(iterable)
    def step(self, n_items):
        self.steps += 1
        if self.steps == 2 and os.environ["RANK"] == "1":
            happen()

def happen():
    if kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    elif kind == "nan":
        def spoil(module, inputs, output):
            return output * math.nan if isinstance(module, torch.nn.LayerNorm) else None
        torch.nn.modules.module.register_module_forward_hook(spoil)
    else:
        os.kill(int(FIRST.read_text()), signal.SIGTERM)  # as torchrun does once it sees the end, often before the other process
        os._exit(9)

FIRST = Path(__file__).with_name("first")
kind = sys.argv.pop(1)
trainer.NoWatch = Second
sys.exit(run_command(sys.argv[1:]))
"""


def torchrun(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *map(str, arguments),
    ]
    root = str(Path(__file__).parents[2])  # a script's own folder is not the repository's
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert (done.returncode == 0) == (code == 0), f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def options(data: Dataset, run: Path) -> list[object]:
    changes = [part for change in SETTINGS for part in ("--set", change)]
    return ["train", data.path, run, "--samples", SAMPLES, "--device", "cpu", "--json", *changes]


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What coreclip wrote to stderr, without the words of torchrun itself."""
    return [line for line in done.stderr.splitlines() if line.startswith("coreclip: ")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 22, copies={3: 1, 7: 1})


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "second.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def whole(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, torchrun("-m", "coreclip", *options(data, run))


def test_two_processes_make_the_run_of_one(data, whole, tmp_path):
    run, done = whole
    report = json.loads(done.stdout)  # one object, of one process
    alone = train(data, tmp_path / "alone", config=load_config(None, SETTINGS), samples=SAMPLES, threads=1)
    assert (report["steps"], report["samples_seen"]) == (alone.steps, alone.samples_seen) == (5, SAMPLES)
    assert report["loss"] == pytest.approx(alone.loss, rel=1e-4)
    for name in ("loss", "entropy", "correct"):
        a, b = (np.load(folder / "signals" / f"{name}.npy") for folder in (run, tmp_path / "alone"))
        assert a.shape == b.shape == (2, 22)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert len((run / "metrics.jsonl").read_text().splitlines()) >= 2


def test_an_interrupt_of_one_process_stops_both_and_the_run_goes_on_bit_for_bit(data, whole, script, tmp_path):
    stopped = torchrun(script, "interrupt", *options(data, tmp_path / "run"), code=1)
    [message] = [line for line in said(stopped) if "cannot fall below" not in line]
    assert "interrupted; nothing is half-written" in message
    place = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["place"]
    assert 2 <= place["step"] < 5
    torchrun("-m", "coreclip", *options(data, tmp_path / "run"))
    for name in ("model.safetensors", "signals/loss.npy"):
        assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"the loss is nan at step 2 (batch with the indices "),
        ("exit", "another process of the run has ended ("),
    ],
)
def test_a_process_that_fails_ends_all_with_one_line(data, script, tmp_path, kind, message):
    done = torchrun(script, kind, *options(data, tmp_path / "run"), code=1)
    [line] = [line for line in said(done) if "cannot fall below" not in line]
    assert message in line
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert math.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
