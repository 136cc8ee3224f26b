"""The training step as a callable, and what becomes of images that do not decode."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import embed, evaluate, make_step, steps, train
from coreclip.training.loss import contrastive_loss, equal_pairs
from coreclip.training.model import build_model
from coreclip.training.steps import decide_precision, make_optimiser, to_device, update
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
    assert stages.names == ["transfer", "forward", "metrics", "backward", "metrics", "optimiser"] * 2
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
    captions = rows.tokens.tolist()
    assert [[a == b for b in rows.caption_number] for a in rows.caption_number] == [
        [a == b for b in captions] for a in captions
    ]
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


def test_a_batch_without_two_pairs_that_count_is_passed_over(tmp_path):
    data = make_dataset(tmp_path / "data", 6, images=dict.fromkeys((1, 2), b"no"))
    small = replace(CONFIG, data=replace(CONFIG.data, batch_size=2))
    report = train(data, tmp_path / "run", config=small, samples=8)
    assert report.samples_seen == 8
    seen = np.isfinite(np.load(tmp_path / "run" / "signals" / "loss.npy")).any(axis=0)
    assert not seen[[1, 2]].any()


def test_a_pass_without_any_batch_to_train_on_is_refused(tmp_path):
    data = make_dataset(tmp_path / "data", 3, images={1: b"no", 2: b"no"})
    small = replace(CONFIG, data=replace(CONFIG.data, batch_size=3))
    for run in (lambda: train(data, tmp_path / "run", config=small, epochs=1), lambda: make_step(data, small)):
        with pytest.raises(
            CoreclipError, match="no batch has two pairs with an image that decodes and a weight above 0"
        ):
            run()


def test_a_refused_command_leaves_the_folder_for_the_right_one(tmp_path):
    data = make_dataset(tmp_path / "data", 12)
    with pytest.raises(CoreclipError):
        train(data, tmp_path / "run", config=CONFIG, subset=[0, 99], samples=6)
    assert train(data, tmp_path / "run", config=CONFIG, subset=[0, 5, 7], samples=6).samples_seen == 6


def test_a_run_without_a_checkpoint_may_be_asked_for_something_else(tmp_path):
    class Stop(Stages):
        def step(self, n_items):
            raise ArithmeticError

    data = make_dataset(tmp_path / "data", 12)
    with pytest.raises(ArithmeticError):
        train(data, tmp_path / "run", config=CONFIG, samples=24, watch=Stop())
    assert train(data, tmp_path / "run", config=CONFIG, samples=12).samples_seen == 12


def test_weights_that_are_not_finite_are_refused(tmp_path):
    data = make_dataset(tmp_path / "data", 12)
    train(data, tmp_path / "run", config=CONFIG, samples=12)
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    tensors["logit_scale"] = np.full_like(tensors["logit_scale"], np.nan)
    save_file(tensors, tmp_path / "run" / "model.safetensors")
    with pytest.raises(CoreclipError, match="holds weights that are not finite"):
        evaluate(tmp_path / "run", data)


def test_features_of_another_data_set_and_foreign_files_are_kept(tmp_path):
    data, other = make_dataset(tmp_path / "data", 12), make_dataset(tmp_path / "other", 9)
    train(data, tmp_path / "run", config=CONFIG, samples=12)
    embed(data, tmp_path / "features", model=tmp_path / "run")
    with pytest.raises(CoreclipError, match=r"holds features of the data set \w+, not of \w+"):
        embed(other, tmp_path / "features", model=tmp_path / "run")
    embed(data, tmp_path / "features", model=tmp_path / "run")
    (tmp_path / "features" / "notes.txt").write_text("mine")
    with pytest.raises(CoreclipError, match="something else than features"):
        embed(data, tmp_path / "features", model=tmp_path / "run")
    assert (tmp_path / "features" / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------------ the update


@pytest.mark.parametrize(("length", "moved"), [(8.0, 0.5), (0.3, 0.3)])
def test_a_gradient_longer_than_the_bound_is_shortened_to_it(length, moved):
    model = build_model(CONFIG, vocab_size=20, seed=0)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    gradient = torch.randn(len(before), generator=torch.Generator().manual_seed(0))
    at = 0
    for p in model.parameters():
        p.grad = gradient[at : at + p.numel()].view_as(p) * (length / gradient.norm())
        at += p.numel()
    norm = update(model, torch.optim.SGD(model.parameters(), lr=9.0), clip_norm=0.5, rate=0.1)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert norm.item() == pytest.approx(length, rel=1e-4)
    assert (after - before).norm().item() == pytest.approx(0.1 * moved, rel=1e-3)


def test_updates_are_fused_and_convolutions_have_their_channels_last():
    model = build_model(CONFIG, vocab_size=20, seed=0)
    assert all(group["fused"] for group in make_optimiser(model, CONFIG).param_groups)
    filters = [p for p in model.image.parameters() if p.ndim == 4 and p.shape[2:] != (1, 1) and p.shape[1] > 1]
    assert filters
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


class Timed:
    """An objective that takes some seconds of a clock of its own."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def perf_counter(self):
        return self.now

    def forward(self, model, rows, *, bf16):
        self.now += self.seconds["bf16" if bf16 else "fp32"]
        return None, lambda: setattr(model.logit_scale, "grad", torch.zeros(()))


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "bf16"), (0.9, "bf16"), (0.95, "fp32"), (2.0, "fp32")])
def test_bf16_is_taken_where_it_is_a_tenth_faster(monkeypatch, bf16, chosen):
    objective = Timed({"fp32": 1.0, "bf16": bf16})
    monkeypatch.setattr(steps, "time", objective)
    found = decide_precision(build_model(CONFIG, vocab_size=20, seed=0), None, "auto", objective)
    assert found["precision"] == chosen
    assert found["precision_seconds_per_step"] == pytest.approx({"fp32": 1.0, "bf16": bf16})
