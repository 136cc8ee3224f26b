"""The loop's options: averaged weights, growing images, pairs chosen anew; each bit for bit after a stop at any step."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coreclip.config import Config, DataConfig, JestConfig, ModelConfig, ReselectConfig, TrainConfig, load_config
from coreclip.errors import CoreclipError
from coreclip.selection import Subset
from coreclip.training import train
from coreclip.training.ema import WeightAverage, power_of
from coreclip.training.resolution import size_at
from coreclip.training.schedule import parts_passed
from coreclip.training.store import load_checkpoint
from tests.helpers import make_dataset
from tests.unit.test_train import Stop, StopAfter, lines, weights

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = Config(
    data=DataConfig(image_size=16, batch_size=5, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, checkpoint_seconds=1e-6, checkpoints=2),
)
ALL = replace(
    PLAIN,
    data=replace(PLAIN.data, sizes=(8, 12, 16), weights="draws", flip=0.5, crop_scale=(0.4, 1.0), grey=0.2),
    model=replace(PLAIN.model, image_stride=2),
    train=replace(PLAIN.train, optimiser="muon", ema=0.1, dropout=0.3, word_dropout=0.3),
    reselect=ReselectConfig(every=1, fraction=0.6, pool=15),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 20)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run with all options at once that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return train(data, run, config=ALL, samples=90), run


class Sizes(StopAfter):
    """Notes each batch's image size."""

    def iterate(self, name, iterable):
        self.sizes = []
        for batch in iterable:
            self.sizes.append(batch.images.shape[-1])
            yield batch


def bytes_of(run):
    return (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("stop_after", "seconds"), [(4, 1e-6), (9, 1e-6), (18, 1e-6), (6, 1e6), (14, 1e6)])
def test_a_run_with_all_options_that_was_stopped_goes_on_bit_for_bit(data, whole, tmp_path, stop_after, seconds):
    config = replace(ALL, train=replace(ALL.train, checkpoint_seconds=seconds))
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=90, watch=StopAfter(stop_after))
    report = train(data, tmp_path / "parts", config=config, samples=90)
    assert bytes_of(tmp_path / "parts") == bytes_of(whole[1])
    assert (report.steps, report.reselections) == (whole[0].steps, whole[0].reselections)
    chosen = [
        [(path.name, Subset.load(path).indices.tolist()) for path in sorted((run / "subsets").iterdir())]
        for run in (tmp_path / "parts", whole[1])
    ]
    assert chosen[0] == chosen[1]
    notes = [[line["step"] for line in lines(run) if "reselection" in line] for run in (tmp_path / "parts", whole[1])]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("stop_after", [5, 12])
def test_a_run_in_bf16_that_was_stopped_goes_on_bit_for_bit(data, tmp_path, stop_after):
    config = replace(ALL, train=replace(ALL.train, precision="bf16"))
    train(data, tmp_path / "whole", config=config, samples=90)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=90, watch=StopAfter(stop_after))
    train(data, tmp_path / "parts", config=config, samples=90)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("steps", [3, 5])
def test_ctrl_c_at_the_end_of_a_pass_leaves_the_choice_to_the_next_sitting(data, whole, tmp_path, steps):
    """The first pass has four steps, the others two."""

    class Interrupt(StopAfter):
        def step(self, n_items):
            self.steps -= 1
            if self.steps == 0:
                os.kill(os.getpid(), signal.SIGINT)

    config = replace(ALL, train=replace(ALL.train, checkpoint_seconds=1e6))
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", config=config, samples=90, watch=Interrupt(steps))
    place = load_checkpoint(tmp_path / "parts")["place"]
    assert (place["step"], place["step_in_pass"]) == (steps + 1, 0)
    assert place["selected"] == place["passes"] - 1 or place["selected"] == -1
    train(data, tmp_path / "parts", config=config, samples=90)
    assert bytes_of(tmp_path / "parts") == bytes_of(whole[1])


def test_a_run_with_all_options_that_was_killed_goes_on_bit_for_bit(data, whole, tmp_path):
    script = (
        "import os, signal, sys; from tests.unit.test_loop_options import ALL, StopAfter\n"
        "from coreclip.training import train\n"
        "from coreclip.pipeline import Dataset\n"
        "class Kill(StopAfter):\n"
        "    def step(self, n_items):\n"
        "        self.steps -= 1\n"
        "        if self.steps == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(Dataset(sys.argv[1]), sys.argv[2], config=ALL, samples=90, threads=1, watch=Kill(8))\n"
    )
    command = [sys.executable, "-c", script, str(data.path), str(tmp_path / "parts")]
    done = subprocess.run(
        command, check=False, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL
    train(data, tmp_path / "parts", config=ALL, samples=90, threads=1)
    assert bytes_of(tmp_path / "parts") == bytes_of(whole[1])


def test_pairs_are_chosen_anew_and_reported(data, whole):
    report, run = whole
    chosen = {int(path.stem): Subset.load(path) for path in (run / "subsets").iterdir()}
    assert sorted(chosen) == list(range(1, report.reselections + 1))
    for passes, subset in chosen.items():
        assert (subset.k, subset.n, subset.fingerprint) == (
            9,
            20,
            data.fingerprint,
        )  # 0.6 of the 15 that were looked at
        assert (subset.parameters["passes"], subset.parameters["pool"]) == (passes, 15)
    assert len({tuple(sorted(subset.indices)) for subset in chosen.values()}) > 1
    notes = [line["reselection"] for line in lines(run) if "reselection" in line]
    assert [(note["passes"], note["k"], note["pool"]) for note in notes] == [(p, 9, 15) for p in sorted(chosen)]
    assert report.reselection_seconds == pytest.approx(sum(note["seconds"] for note in notes))
    assert 0 < report.reselection_seconds < report.seconds


def test_rows_of_batches_of_chosen_pairs_are_selected(data, tmp_path):
    """Both at once, with a reference that another run has made, and stopped on the way."""
    train(data, tmp_path / "proxy", config=PLAIN, samples=40)
    config = replace(ALL, jest=JestConfig(keep=0.5, reference=str(tmp_path / "proxy")))
    report = train(data, tmp_path / "whole", config=config, samples=60)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=60, watch=StopAfter(7))
    train(data, tmp_path / "parts", config=config, samples=60)
    assert report.samples_seen == 60
    assert report.scored > 100
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "parts")


# ------------------------------------------------------------------------------------------------------------ averaged weights


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_average_counts_each_step_by_a_power_of_its_number(width):
    gamma, model = power_of(width), torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, width)
    steps = np.arange(1, 401)
    for step in steps:
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(int(step))
    share = steps ** (gamma + 1) - (steps - 1) ** (gamma + 1)  # the integral of s^gamma over each step
    share /= share.sum()
    mean = (share * steps).sum()
    assert average.state_dict()["weight"].item() == pytest.approx(mean, rel=1e-4)
    assert np.sqrt((share * (steps - mean) ** 2).sum()) / 400 == pytest.approx(width, rel=0.05)


def test_the_model_is_the_average_and_the_checkpoint_has_both(data, tmp_path):
    class Follow(StopAfter):
        def step(self, n_items):
            seen.append({name: tensor.clone() for name, tensor in weights(tmp_path / "run").items()})

    seen = []
    config = replace(PLAIN, train=replace(PLAIN.train, ema=0.2))
    train(data, tmp_path / "run", config=config, samples=60, watch=Follow())
    train(data, tmp_path / "plain", config=PLAIN, samples=60)
    raw, plain = weights(tmp_path / "run"), weights(tmp_path / "plain")
    assert all(torch.equal(raw[name], plain[name]) for name in raw)  # the steps are those without
    gamma, mean = power_of(0.2), None
    for t, state in enumerate([*seen[:-1], raw], start=1):
        keep = (1 - 1 / t) ** (gamma + 1)
        mean = state if t == 1 else {name: keep * mean[name].double() + (1 - keep) * state[name] for name in state}
    found = load_file(tmp_path / "run" / "model.safetensors")
    for name in ("image_projection.weight", "text_projection.weight", "logit_scale", "image.norm.running_var"):
        torch.testing.assert_close(found[name].double(), mean[name].double(), rtol=1e-5, atol=1e-7)
        assert not torch.equal(found[name], raw[name])
    assert torch.equal(found["image.norm.num_batches_tracked"], raw["image.norm.num_batches_tracked"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["logit_scale"] == found["logit_scale"].item()


def test_a_block_with_the_average_leaves_the_model_as_it_was():
    model = torch.nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.1)
    with torch.no_grad():
        model.weight.fill_(3.0)
    with average.inside():
        assert model.weight.tolist() == [1, 1]
    assert model.weight.tolist() == [3, 3]


# --------------------------------------------------------------------------------------------------------------- growing images


def test_images_grow_over_the_budget(data, tmp_path):
    config = replace(PLAIN, data=replace(PLAIN.data, sizes=(8, 16, 16, 12, 16)))
    watch = Sizes()
    train(data, tmp_path / "run", config=config, samples=100, watch=watch)
    assert watch.sizes == [8] * 4 + [16] * 8 + [12] * 4 + [16] * 4
    assert lines(tmp_path / "run")[-1]["image_size"] == 16


def test_one_size_for_all_is_training_without(data, tmp_path):
    train(data, tmp_path / "plain", config=PLAIN, samples=45)
    train(data, tmp_path / "sizes", config=replace(PLAIN, data=replace(PLAIN.data, sizes=(16, 16))), samples=45)
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "sizes")


def test_a_run_whose_images_grew_is_a_start_for_another_size(data, tmp_path):
    config = replace(PLAIN, data=replace(PLAIN.data, sizes=(8, 16)))
    train(data, tmp_path / "first", config=config, samples=20)
    other = replace(PLAIN, data=replace(PLAIN.data, image_size=24))
    train(data, tmp_path / "second", config=other, samples=10, init_from=tmp_path / "first")
    assert load_config(tmp_path / "second" / "config.toml").data.image_size == 24


def test_images_that_stay_in_memory_grow_too(data, tmp_path):
    config = replace(PLAIN, data=replace(PLAIN.data, sizes=(8, 12, 16), resident=True))
    train(data, tmp_path / "whole", config=config, samples=60)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=60, watch=StopAfter(5))
    train(data, tmp_path / "parts", config=config, samples=60)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "parts")


def test_a_time_budget_grows_by_time(data, tmp_path):
    config = replace(PLAIN, data=replace(PLAIN.data, sizes=(8, 16)), train=replace(PLAIN.train, checkpoint_seconds=60))
    train(data, tmp_path / "warm", config=config, samples=10)
    watch = Sizes()
    report = train(data, tmp_path / "run", config=config, minutes=0.05, watch=watch)
    assert watch.sizes == sorted(watch.sizes)
    assert set(watch.sizes) == {8, 16}
    assert report.seconds <= 3.2


def test_size_of_a_fraction():
    assert [size_at([32, 64], used) for used in (0.0, 0.49, 0.5, 0.99, 1.0, 1.3)] == [32, 32, 64, 64, 64, 64]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sizes=[32,48]", r"data.sizes = \(32, 48\) is not allowed: the last one is data.image_size = 64"),
        ("data.sizes=[4,64]", r"8 to data.image_size = 64"),
        ("data.sizes=64", r"data.sizes = 64 must be a list of numbers$"),
        ("data.sizes=[32.5,64]", r"data.sizes = 32.5 must be of type int"),
        ("data.weights=both", "one of loss, draws"),
        ("train.ema=0.5", r"train.ema = 0.5 is not allowed: a fraction of the steps, 0 \(none\) to 0.25"),
        ("train.evaluate_every=0", "a fraction of the budget, 0.001 to 1"),
        ("reselect.every=-1", r"passes, 0 \(never\)"),
        ("reselect.fraction=0", "a share, above 0, at most 1"),
        ("reselect.pool=1", "2 pairs at least, or 0 for all"),
        ("reselect.after=-1", "reselect.after = -1 is not allowed"),
    ],
)
def test_options_that_can_not_be_are_refused(override, message):
    with pytest.raises(CoreclipError, match=message):
        load_config(None, [override])


def test_a_transformer_sees_one_size():
    with pytest.raises(CoreclipError, match=r"model.image_tower = vit has positions of one size; leave it out"):
        load_config(None, ["data.sizes=[32,64]", "model.image_tower=vit", "model.image_width=32"])
    assert load_config(None, ["data.sizes=[64,64]", "model.image_tower=vit", "model.image_width=32"]).data.sizes == (64, 64)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------------ parts


def test_parts_of_the_budget():
    assert [parts_passed(used, 0.1) for used in (0.0, 0.0999, 0.1, 0.3, 0.7, 0.95, 1.0, 1.2)] == [0, 0, 1, 3, 7, 9, 10, 10]  # fmt: skip
    assert parts_passed(1.0, 0.3) == 3
