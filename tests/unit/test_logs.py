"""The numbers of a run in metrics.jsonl and in TensorBoard: the same, and none doubled by a run that goes on."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from coreclip.config import ReselectConfig
from coreclip.errors import CoreclipError
from coreclip.training import train
from coreclip.training.logs import MetricsLog
from coreclip.training.panel import make_display
from tests.helpers import make_dataset
from tests.unit.test_train import CONFIG, Stop, StopAfter, lines

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12)


@pytest.fixture
def every_line(monkeypatch):
    """A line for each step."""
    monkeypatch.setattr("coreclip.training.trainer._METRICS_SECONDS", 0.0)


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(run, group, name):
    found = [(line["step"], line[group][name] if group else line.get(name)) for line in lines(run) if not group or group in line]  # fmt: skip
    return [(step, np.float32(value)) for step, value in found if value is not None]


def test_tensorboard_has_the_lines_of_the_metrics(data, tmp_path, every_line):
    held_out = make_dataset(tmp_path / "held-out", 7, captions_per_pair=(1,))
    config = replace(CONFIG, reselect=ReselectConfig(every=1, fraction=0.5, method="k-center"))
    train(data, tmp_path / "run", config=config, samples=30, tensorboard=True, validation=held_out)
    found = scalars(tmp_path / "run")
    for name in ("loss", "floor", "lr", "logit_scale", "samples_per_second", "wait_share", "seconds"):
        assert found[f"train/{name}"] == expected(tmp_path / "run", "", name)
    for name in ("mean_recall", "text_to_image_recall_at_1", "seconds"):
        assert found[f"evaluation/{name}"] == expected(tmp_path / "run", "evaluation", name)
    assert found["reselection/k"] == expected(tmp_path / "run", "reselection", "k")
    assert "train/step" not in found


@pytest.mark.parametrize("rare", [False, True])
def test_a_run_that_goes_on_doubles_no_step(data, tmp_path, every_line, rare):
    """With rare checkpoints the steps that TensorBoard has seen already are done again."""
    config = replace(CONFIG, train=replace(CONFIG.train, checkpoint_seconds=1e6 if rare else 1e-6))
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=config, samples=40, tensorboard=True, watch=StopAfter(4))
    train(data, tmp_path / "run", config=config, samples=40, tensorboard=True)
    steps = [step for step, _ in scalars(tmp_path / "run")["train/loss"]]
    assert steps == [line["step"] for line in lines(tmp_path / "run")] == list(range(1, len(steps) + 1))


def test_tensorboard_that_joins_later_is_told_what_was(data, tmp_path, every_line):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=CONFIG, samples=40, watch=StopAfter(4))
    assert not (tmp_path / "run" / "tensorboard").exists()
    train(data, tmp_path / "run", config=CONFIG, samples=40, tensorboard=True)
    assert scalars(tmp_path / "run")["train/loss"] == expected(tmp_path / "run", "", "loss")


def test_a_missing_tensorboard_is_named_before_the_first_step(data, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        CoreclipError, match=r"--tensorboard needs the package .* pip install 'coreclip\[tensorboard\]'"
    ):
        train(data, tmp_path / "run", config=CONFIG, samples=10, tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_it_is_not_imported(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    display = make_display(total=10, usable_seconds=np.inf, done=0, seconds=0.0, panel=None)
    with MetricsLog(tmp_path, 0, display) as log:
        log.write({"step": 1, "loss": 2.0})
        log.flush()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert "torch.utils.tensorboard" not in sys.modules
