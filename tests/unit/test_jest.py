"""Training on rows that are selected from larger batches: what is counted, that going on is the same, what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from coreclip.config import Config, DataConfig, JestConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.training import embed, make_step, train
from coreclip.training.jest import make_selector
from coreclip.training.model import Clip, build_model
from coreclip.training.objectives import make_objective
from coreclip.training.steps import decide_speed, labels_of, to_device, training_loader
from tests.helpers import make_dataset
from tests.unit.test_train import Stop, StopAfter, lines, weights

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = Config(
    data=DataConfig(image_size=16, batch_size=4, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, checkpoint_seconds=1e-6),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A data set, a run on it and its features."""
    folder = tmp_path_factory.mktemp("reference")
    data = make_dataset(folder / "set", 20)
    train(data, folder / "run", config=replace(PLAIN, train=TrainConfig(precision="fp32", lr=5e-3)), epochs=20)
    embed(data, folder / "features", model=folder / "run")
    return data, folder / "run", folder / "features"


def with_jest(source, keep=0.5, **changes):
    return replace(PLAIN, jest=JestConfig(keep=keep, reference=str(source), **changes))


@pytest.mark.parametrize("source", [1, 2])
def test_samples_are_those_that_were_trained_on(reference, tmp_path, source):
    data = reference[0]
    report = train(data, tmp_path / "run", config=with_jest(reference[source]), samples=26)
    # Batches of 8, 8 and 4 pairs, of which 4, 4 and 2 are trained on; the last one of the budget is 2 of 4.
    assert (report.steps, report.samples_seen, report.scored) == (8, 26, 56)
    last = lines(tmp_path / "run")[-1]
    assert (last["samples_seen"], last["scored"]) == (26, 56)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["asked"]["jest_reference"]) == 64
    loss = np.load(tmp_path / "run" / "signals" / "loss.npy")
    assert np.isfinite(loss).sum(axis=1).tolist() == [10, 10, 6]  # signals are of the pairs that were trained on


def test_an_epoch_trains_on_as_many_pairs_as_without(reference, tmp_path):
    assert train(reference[0], tmp_path / "run", config=with_jest(reference[1]), epochs=1).samples_seen == 20


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(reference, tmp_path, stop_after):
    data, run, _ = reference
    config = with_jest(run)
    train(data, tmp_path / "whole", config=config, samples=26)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=26, watch=StopAfter(stop_after))
    report = train(data, tmp_path / "parts", config=config, samples=26)
    assert report.scored == 56
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)
    signals = [np.load(tmp_path / name / "signals" / "loss.npy") for name in ("whole", "parts")]
    assert np.array_equal(*signals, equal_nan=True)


def test_keeping_all_is_training_without(reference, tmp_path):
    data, run, _ = reference
    train(data, tmp_path / "plain", config=PLAIN, samples=26)
    train(data, tmp_path / "all", config=with_jest(run, keep=1.0), samples=26)
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "all")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "scored" not in lines(tmp_path / "all")[-1]


def selector_and_rows(data, config):
    tokenizer = data.tokenizer()
    selector = make_selector(data, config, tokenizer, torch.device("cpu"))
    batch = next(iter(training_loader(data, config, None, tokenizer)))
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=0).train()
    return selector, to_device(batch, labels_of(data), torch.device("cpu"), 4), model


def test_the_choice_leaves_the_model_alone_and_takes_whole_rows(reference):
    data, run, _ = reference
    selector, rows, model = selector_and_rows(data, with_jest(run))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "num_batches" not in name}
    taken = selector.choose(model, rows, 4, step=3, bf16=False)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert taken.share == 1
    at = [rows.index.tolist().index(i) for i in taken.index.tolist()]
    assert at == sorted(at)
    for name in ("images", "tokens", "weight"):
        assert torch.equal(getattr(rows, name)[at], getattr(taken, name))
    assert np.array_equal(selector.choose(model, rows, 4, step=3, bf16=False).index, taken.index)
    others = [selector.choose(model, rows, 4, step=step, bf16=False).index.tolist() for step in range(20)]
    assert len(set(map(tuple, others))) > 5
    assert selector.choose(model, rows, 8, step=3, bf16=False) is rows


@pytest.mark.parametrize("source", [1, 2])
def test_no_more_pairs_than_a_micro_batch_go_through_the_towers_at_once(reference, monkeypatch, source):
    data = reference[0]
    config = with_jest(reference[source])
    config = replace(config, train=replace(config.train, micro_batch=5))
    selector, rows, model = selector_and_rows(data, config)
    asked = []

    def counted(encode):
        return lambda self, *x: asked.append(len(x[0])) or encode(self, *x)

    for tower in ("encode_image", "encode_text"):
        monkeypatch.setattr(Clip, tower, counted(getattr(Clip, tower)))
    assert len(selector.choose(model, rows, 4, step=3, bf16=False).index) == 4
    assert set(asked) == {5, 3}


def test_what_is_faster_is_measured_on_as_many_pairs_as_a_step_is_trained_on(reference):
    class Counts:
        def forward(self, model, rows, *, bf16, step=0):
            asked.append(len(rows.index))
            return make_objective(data, config, data.tokenizer()).forward(model, rows, bf16=bf16)

    data, asked = reference[0], []
    config = replace(with_jest(reference[1]), train=TrainConfig(precision="auto", compile="off"))
    _, rows, model = selector_and_rows(data, config)
    assert len(rows.index) == 8
    decide_speed(model, rows, config, lambda seconds: 0.0, Counts())
    assert asked
    assert set(asked) == {4}


def write_features(folder, data, image, text, **info):
    folder.mkdir()
    np.save(folder / "image.npy", image.astype(np.float16))
    np.save(folder / "text.npy", text.astype(np.float16))
    info = {"format_version": 1, "n": data.n, "dim": image.shape[1], "fingerprint": data.fingerprint} | info
    (folder / "features.json").write_text(json.dumps(info))
    return folder


def test_pairs_that_the_reference_does_not_know_are_rarely_chosen(reference, tmp_path):
    """To the reference the even pairs' texts belong to other images; the learner knows nothing yet."""
    data = reference[0]
    text = np.eye(20)
    text[::2] = np.roll(text[::2], 1, axis=0)
    features = write_features(tmp_path / "features", data, np.eye(20), text, logit_scale=20.0)
    selector, rows, model = selector_and_rows(data, with_jest(features))
    torch.nn.init.zeros_(model.logit_scale)
    chosen = np.concatenate([selector.choose(model, rows, 3, step=step, bf16=False).index for step in range(50)])
    assert (chosen % 2).mean() > (rows.index % 2).mean() + 0.2


def test_how_many_are_trained_on(reference):
    data, run, _ = reference
    selector = make_selector(data, with_jest(run, keep=0.3), data.tokenizer(), torch.device("cpu"))
    assert [selector.wanted(n) for n in (13, 7, 5, 2)] == [4, 2, 2, 2]


def test_the_measured_step_selects_too(reference):
    class Stages(StopAfter):
        def step(self, n_items):
            raise AssertionError

    data, run, _ = reference
    stages = Stages()
    measured = make_step(data, with_jest(run), watch=stages)
    for batch in measured.loader:
        measured.step(batch)
    assert stages.stages == ["transfer", "select", "forward", "metrics", "backward", "metrics", "optimiser"] * 3


def test_references_that_do_not_fit_are_refused(reference, tmp_path):
    data, run, features = reference
    other = make_dataset(tmp_path / "other", 20, captions_per_pair=(1,))
    for source, dataset, message in (
        (tmp_path / "nothing", data, "no run at"),
        (run, other, "has another tokenizer than this run"),
        (features, other, r"holds features of the data set \w{12}, this is \w{12}; embed this data set"),
    ):
        with pytest.raises(CoreclipError, match=message):
            train(dataset, tmp_path / "run", config=with_jest(source), samples=8)
    bare = write_features(tmp_path / "bare", data, np.eye(20), np.eye(20))
    with pytest.raises(CoreclipError, match="lacks images, texts or logit_scale; make it with coreclip embed"):
        train(data, tmp_path / "run", config=with_jest(bare), samples=8)


def test_a_reference_that_has_changed_is_noticed(reference, tmp_path):
    data, run, _ = reference
    shutil.copytree(run, tmp_path / "proxy")
    config = with_jest(tmp_path / "proxy")
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=config, samples=26, watch=StopAfter(2))
    shutil.rmtree(tmp_path / "proxy")
    train(data, tmp_path / "proxy", config=PLAIN, samples=10)
    with pytest.raises(CoreclipError, match="holds a run with jest_reference"):
        train(Dataset(data.path), tmp_path / "run", config=config, samples=26)
