"""Retrieval while training: the same figures as evaluate's, off the step, noted, and of no influence on the weights."""

import json
from dataclasses import replace

import pytest
import torch

from coreclip.errors import CoreclipError
from coreclip.training import evaluate, train
from coreclip.training.model import build_model
from coreclip.training.validation import Validator
from tests.helpers import make_dataset
from tests.unit.test_train import CONFIG, Stop, StopAfter, lines, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Pairs to train on, and others with captions that some of them share."""
    folder = tmp_path_factory.mktemp("data")
    return make_dataset(folder / "set", 12), make_dataset(
        folder / "held-out", 9, captions_per_pair=(2, 1), copies={5: 2}
    )


@pytest.mark.parametrize("ema", [0.0, 0.2])
def test_the_last_figures_are_those_of_evaluate(sets, tmp_path, ema):
    data, held_out = sets
    config = replace(CONFIG, train=replace(CONFIG.train, lr=5e-3, ema=ema))
    report = train(data, tmp_path / "run", config=config, samples=120, validation=held_out)
    notes = [line for line in lines(tmp_path / "run") if "evaluation" in line]
    last = notes[-1]["evaluation"]
    expected = evaluate(tmp_path / "run", held_out)
    for way in ("text_to_image", "image_to_text"):
        for k in (1, 5, 10):
            assert last[f"{way}_recall_at_{k}"] == pytest.approx(expected[f"{way}_recall_at_{k}"])
    assert last["mean_recall"] == pytest.approx(sum(last[name] for name in last if "_at_" in name) / 6)
    assert report.evaluations == len(notes) == 11  # one before the first step
    assert report.evaluation_seconds == pytest.approx(sum(line["evaluation"]["seconds"] for line in notes))
    recalls = [line["evaluation"]["mean_recall"] for line in notes]
    assert report.best_step == notes[recalls.index(max(recalls))]["step"]
    assert last["best_step"] == report.best_step


def test_evaluations_come_at_even_parts_of_the_budget(sets, tmp_path):
    data, held_out = sets
    config = replace(CONFIG, train=replace(CONFIG.train, evaluate_every=0.25))
    train(data, tmp_path / "run", config=config, samples=40, validation=held_out)  # batches of 5, 5 and 2
    notes = [(line["step"], line["samples_seen"]) for line in lines(tmp_path / "run") if "evaluation" in line]
    assert notes == [(0, 0), (2, 10), (5, 22), (8, 34), (10, 40)]


def test_evaluations_change_no_weight_and_a_stop_changes_none_of_them(sets, tmp_path):
    data, held_out = sets
    train(data, tmp_path / "plain", config=CONFIG, samples=40)
    train(data, tmp_path / "whole", config=CONFIG, samples=40, validation=held_out)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=CONFIG, samples=40, validation=held_out, watch=StopAfter(5))
    train(data, tmp_path / "parts", config=CONFIG, samples=40, validation=held_out)
    found = [weights(tmp_path / run) for run in ("plain", "whole", "parts")]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])

    def notes(run):
        return [
            (line["step"], {name: value for name, value in line["evaluation"].items() if name != "seconds"})
            for line in lines(tmp_path / run) if "evaluation" in line
        ]  # fmt: skip

    assert notes("whole") == notes("parts")
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["report"]["evaluations"] == len(notes("whole"))


def test_a_time_budget_keeps_back_what_the_last_evaluation_takes(sets, tmp_path):
    data, held_out = sets
    config = replace(CONFIG, train=replace(CONFIG.train, checkpoint_seconds=60.0, evaluate_every=0.5))
    train(data, tmp_path / "warm", config=config, samples=8, validation=held_out)
    report = train(data, tmp_path / "run", config=config, minutes=0.05, validation=held_out)
    assert report.seconds <= 3.2
    notes = [line["step"] for line in lines(tmp_path / "run") if "evaluation" in line]
    assert notes[0] == 0
    assert notes[-1] == report.steps


def test_measuring_leaves_the_model_in_training_and_as_it_was(sets):
    _, held_out = sets
    tokenizer = held_out.tokenizer()
    model = build_model(CONFIG, vocab_size=tokenizer.vocab_size, seed=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    validator = Validator(held_out, CONFIG, tokenizer, torch.device("cpu"))
    first, second = validator.measure(model), validator.measure(model)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_pairs_that_are_trained_on_are_no_validation(sets, tmp_path):
    data, _ = sets
    with pytest.raises(CoreclipError, match="is the data set that is trained on; it must hold pairs that are held out"):
        train(data, tmp_path / "run", config=CONFIG, samples=10, validation=data)
    assert not (tmp_path / "run").exists()


def test_an_image_that_does_not_decode_is_named(sets, tmp_path):
    data, _ = sets
    broken = make_dataset(tmp_path / "broken", 5, images={4: b"\xff\xd8\xff" + b"garbage" * 50})
    with pytest.raises(CoreclipError, match=r"the images of the pairs \[4\] of .* can't be decoded"):
        train(data, tmp_path / "run", config=CONFIG, samples=10, validation=broken)
