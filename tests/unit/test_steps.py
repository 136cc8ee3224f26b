"""The training step as a callable, and what becomes of images that do not decode."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import make_step, train
from coreclip.training.loss import contrastive_loss, equal_pairs
from coreclip.training.steps import to_device
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=6, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=3e-3),
)


class Stages:
    """A watch that notes the stages."""

    def __init__(self):
        self.names = []

    @contextmanager
    def stage(self, name):
        self.names.append(name)
        yield

    def iterate(self, name, iterable):
        return iter(iterable)

    def step(self, n_items):
        raise AssertionError("whoever measures ends the steps")


def test_a_step_goes_through_the_stages_of_training_and_writes_nothing(tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "data", 12)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stages = Stages()
    measured = make_step(data, CONFIG, watch=stages)
    for batch in measured.loader:
        measured.step(batch)
    assert stages.names == ["transfer", "forward", "backward", "optimiser", "metrics"] * 2
    assert (measured.precision, measured.device.type) == ("fp32", "cpu")
    assert list((tmp_path / "here").iterdir()) == []


def test_bad_arguments_are_refused(tmp_path):
    data = make_dataset(tmp_path / "data", 12)
    with pytest.raises(CoreclipError, match=r"threads = 0 is not allowed"):
        make_step(data, CONFIG, threads=0)
    with pytest.raises(CoreclipError, match=r"1 pairs to train on; a contrast needs 2"):
        make_step(data, CONFIG, subset=[3])
    with pytest.raises(CoreclipError, match="tpu"):
        make_step(data, CONFIG, device="tpu")


def test_an_image_that_does_not_decode_takes_no_part(tmp_path):
    data = make_dataset(tmp_path / "data", 6, images={2: b"not a picture"})
    batch = next(iter(make_step(data, CONFIG).loader))
    rows = to_device(batch, None, torch.device("cpu"), 6)
    assert rows.broken == [2]
    assert sorted(rows.index.tolist()) == [0, 1, 3, 4, 5]
    assert rows.share == pytest.approx(5 / 6)
    features = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    result = contrastive_loss(features, features, torch.tensor(1.0), same=equal_pairs(rows.tokens), weight=rows.weight)
    assert torch.isfinite(result.loss)


def test_training_reports_and_counts_the_images_that_do_not_decode(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", 12, images={2: b"not a picture", 7: b"nor this"})
    train(data, tmp_path / "run", config=CONFIG, epochs=2)
    message = capsys.readouterr().err
    assert message.count("do not decode and are left out") == 1
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["broken"] == 4


def test_a_batch_without_two_pairs_that_count_is_refused(tmp_path):
    data = make_dataset(tmp_path / "data", 3, images={1: b"no", 2: b"no"})
    small = replace(CONFIG, data=replace(CONFIG.data, batch_size=3))
    with pytest.raises(CoreclipError, match=r"a batch has 1 pairs with an image that decodes.*needs 2"):
        train(data, tmp_path / "run", config=small, epochs=1)
