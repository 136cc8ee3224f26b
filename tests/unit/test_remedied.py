"""Remedies tried for real on a small data set: what is faster is kept, what can't be run is said."""

from dataclasses import replace

import pytest
import torch

from coreclip.config import config_to_toml, load_config
from coreclip.errors import CoreclipError
from coreclip.profiled import Case, profile_case, total_steps_of
from coreclip.profiling import render_html, render_text
from coreclip.remedied import MARK, Trial, improved_toml, measure_cases, measured_remedies, try_remedies
from tests.helpers import make_dataset


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    data = make_dataset(tmp_path_factory.mktemp("remedied") / "data", 48)
    config = load_config(
        overrides=[
            "data.batch_size=4", "data.image_size=16", "train.precision=fp32", "train.compile=off", "model.embed_dim=16",
        ],
        preset="cnn-1m",
    )  # fmt: skip
    return Case(dataset=data, config=config, device="cpu")


def test_profile_has_all_that_a_report_shows(case, tmp_path):
    result = profile_case(case, steps=8, repeats=2, cold=True, trace=tmp_path / "trace.json")
    assert {"read", "entropy_decode", "inverse_dct", "resize_and_colour", "tokens"} <= set(result["loader_stages"])
    assert list(result["conditions"])[:5] == ["real", "replay", "compute", "loader", "cold"]
    assert {"wait", "transfer", "forward", "backward", "optimiser"} <= set(result["stages"])
    assert result["roofline"]["flops"] > 0
    assert 0 <= result["gauges"]["batches ready"]["mean"] <= 2
    assert len(result["timeline"]) >= 2
    assert '"name": "forward"' in (tmp_path / "trace.json").read_text()
    assert "entropy decode" in render_text(result)
    page = render_html(result)
    for words in ("What the loader does", "What the machine could do", "Under what conditions"):
        assert words in page


def test_a_case_against_itself_is_no_improvement(case):
    same = measure_cases(case, replace(case), blocks=5, steps=4)
    assert same.low < 1.05
    assert same.high > 0.95


def test_remedies_are_tried_one_at_a_time_and_the_configuration_can_be_read_back(case, tmp_path, monkeypatch):
    listed = [
        ("loader-threads", {"data.workers": 1}),
        ("resident-data", {"data.resident": True}),
        ("fp32", {"train.precision": "fp32"}),
    ]
    monkeypatch.setattr("coreclip.remedied._listed_changes", lambda: iter(listed))
    threads = torch.get_num_threads()
    improvement = try_remedies(case, steps=8, minutes=5)
    assert improvement.complete
    changes = [trial.change for trial in improvement.trials]
    assert {"train.precision": "fp32"} not in changes  # it is so already
    measured = [trial for trial in improvement.trials if trial.measured_speedup is not None]
    assert len(measured) >= 2
    for trial in improvement.trials:
        assert (trial.measured_speedup is None) == bool(trial.note)
        assert not trial.kept or trial.measured_low > 1
    toml = improved_toml(improvement, config_to_toml(improvement.case.config), "coreclip train x RUN")
    (tmp_path / "improved.toml").write_text(toml)
    assert toml.startswith(MARK)
    assert load_config(tmp_path / "improved.toml") == improvement.case.config
    assert torch.get_num_threads() == threads


def test_images_that_are_stored_otherwise_are_measured_on_a_copy_and_said(case, monkeypatch):
    change = {"images.raw": True, "images.max_side": 24}
    monkeypatch.setattr("coreclip.remedied._changes", lambda *_: [("raw-images", change, None)])
    improvement = try_remedies(case, steps=8, minutes=5)
    (trial,) = improvement.trials
    assert trial.measured_low <= trial.measured_speedup <= trial.measured_high
    assert trial.note == "needs another data set: coreclip convert DATASET OUT --raw --max-side 24 --tokenizer DATASET"
    assert not trial.kept
    assert improvement.case == case


def test_measurements_are_put_beside_their_predictions():
    trial = Trial(
        name="bf16", change={"train.precision": "bf16"}, predicted_speedup=1.2, low=1.0, high=1.4, measured_speedup=1.1,
        measured_low=1.05, measured_high=1.15, kept=True,
    )  # fmt: skip
    remedies = [{"name": "bf16", "change": {"train.precision": "bf16"}}, {"name": "prefetch", "change": {}}]
    filled = measured_remedies(remedies, [trial])
    assert filled[0]["measured_speedup"] == 1.1
    assert "measured_speedup" not in filled[1]
    later = replace(trial, on_top_of={"data.resident": True})  # not of what the predictions are of
    assert "measured_speedup" not in measured_remedies(remedies, [later])[0]


def test_length_of_a_run(case):
    assert total_steps_of(case) is None
    assert total_steps_of(case, samples=400) == 100
    assert total_steps_of(case, epochs=2) == 24
    steps = total_steps_of(case, minutes=1)
    assert steps(100.0) == 600
    with pytest.raises(CoreclipError, match="--minutes and --samples are two budgets"):
        total_steps_of(case, minutes=1, samples=3)
    with pytest.raises(CoreclipError, match="--epochs -1 is not allowed"):
        total_steps_of(case, epochs=-1)


def test_no_time_is_refused(case):
    with pytest.raises(CoreclipError, match="minutes = 0 is not allowed"):
        try_remedies(case, steps=8, minutes=0)
