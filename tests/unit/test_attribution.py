"""Signals and influence from the weights that a run has kept: what is stored, what is refused, what the command shows."""

import json
import shutil

import numpy as np
import pytest
import torch

from coreclip.cli import run_command
from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.selection import METHODS, Method, Subset, checkpoint_signals_of, load_signals
from coreclip.selection.registry import Tier
from coreclip.selection.scores import ranked
from coreclip.selection.signals import signal_of
from coreclip.training import attribution, checkpoint_signals, explain, influence, train
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=6, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, checkpoints=3),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has come to tell its pairs apart; pair 9 is a copy of pair 2."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_dataset(folder / "set", 14, copies={9: 2})
    train(data, folder / "run", config=CONFIG, epochs=40)
    return data, folder / "run"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("other") / "set", 8, captions_per_pair=(1,), size=(40, 40))


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


# --------------------------------------------------------------------------------------------------------------------- signals


def test_signals_are_kept_beside_those_of_training_and_read_again(trained, run, monkeypatch):
    data, _ = trained
    made = checkpoint_signals(run, data)
    assert {name: values.shape for name, values in made.items()} == {"grand": (3, 14), "tracin": (14,), "vog": (14,)}
    loaded = load_signals(run, data.fingerprint)
    assert {"loss", "correct", "grand", "tracin", "vog"} <= set(loaded)
    monkeypatch.setattr(attribution, "_open_models", None)  # nothing is computed now
    again = checkpoint_signals(run, data)
    for name in made:
        assert np.array_equal(made[name], loaded[name])
        assert np.array_equal(made[name], again[name])
    assert not list(run.rglob("*.tmp"))


def test_signals_of_another_data_set_are_made_anew_and_not_mixed_up(trained, other, run):
    data, _ = trained
    checkpoint_signals(run, data, ["vog", "grand"])
    theirs = checkpoint_signals(run, other, ["vog"])
    assert theirs["vog"].shape == (8,)
    assert set(load_signals(run, other.fingerprint)) == {"vog"}  # what training noted is of the run's own pairs
    kept = load_signals(run, data.fingerprint)
    assert "vog" not in kept
    assert kept["grand"].shape == (3, 14)
    assert checkpoint_signals(run, data, ["vog"])["vog"].shape == (14,)
    with pytest.raises(CoreclipError, match=r"the signals of .* are of the data set \w{12}, this is \w{12}"):
        load_signals(run, other.fingerprint)


def test_another_bank_is_another_signal(trained, run):
    data, _ = trained
    one, two = (checkpoint_signals(run, data, ["tracin"], bank=4, seed=seed)["tracin"] for seed in (0, 1))
    assert not np.array_equal(one, two)
    assert np.array_equal(checkpoint_signals(run, data, ["tracin"], bank=4, seed=0)["tracin"], one)


def test_a_damaged_cache_is_made_again(trained, run):
    data, _ = trained
    made = checkpoint_signals(run, data, ["grand"])["grand"]
    (run / "signals" / "grand.npy").write_bytes(b"half a fi")
    assert np.array_equal(checkpoint_signals(run, data, ["grand"])["grand"], made)


def test_the_batch_size_does_not_matter(trained, tmp_path):
    data, run = trained
    for name, size in (("a", 3), ("b", 100)):
        shutil.copytree(run, tmp_path / name)
        made = checkpoint_signals(tmp_path / name, data, batch_size=size)
        if name == "a":
            first = made
    for name, values in made.items():
        np.testing.assert_allclose(values, first[name], rtol=1e-3, atol=1e-3 if name == "vog" else 0)


def test_copies_have_equal_signals(trained, run):
    data, _ = trained
    made = checkpoint_signals(run, data)
    np.testing.assert_allclose(made["grand"][:, 2], made["grand"][:, 9], rtol=1e-4)
    np.testing.assert_allclose(made["vog"][2], made["vog"][9], rtol=1e-4)


def test_tracin_is_the_norms_times_the_rates(trained, run):
    from coreclip.training.store import kept_weights

    made = checkpoint_signals(run, trained[0], ["grand", "tracin"])
    rates = np.array([one.learning_rate for one in kept_weights(run)])
    np.testing.assert_allclose(made["tracin"], rates @ made["grand"].astype(float) ** 2, rtol=1e-5)


def test_one_class_without_spread_gets_zero():
    values = np.array([1.0, 3.0, 7.0, 7.0, 7.0, 2.0])
    scores = attribution._z_scores(values, np.array([0, 0, 1, 1, 1, 5]))
    assert scores.tolist() == [-1, 1, 0, 0, 0, 0]


def test_what_is_not_there_is_refused(trained, run, tmp_path):
    data, _ = trained
    with pytest.raises(CoreclipError, match="unknown signal 'loss'; from checkpoints there are grand, tracin, vog"):
        checkpoint_signals(run, data, ["loss"])
    with pytest.raises(CoreclipError, match="bank = 0 is not allowed"):
        checkpoint_signals(run, data, ["grand"], bank=0)
    for path in sorted((run / "checkpoints").iterdir())[1:]:
        path.unlink()
    with pytest.raises(CoreclipError, match=r"vog needs 2 checkpoints, .* has 1"):
        checkpoint_signals(run, data, ["vog"])
    next((run / "checkpoints").iterdir()).unlink()
    with pytest.raises(CoreclipError, match=r"has no checkpoints/\*.safetensors, which are needed here; train with"):
        checkpoint_signals(run, data, ["grand"])
    with pytest.raises(CoreclipError, match="no run at"):
        checkpoint_signals(tmp_path / "nothing", data)


def test_kept_weights_that_are_not_finite_are_refused(trained, run):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = sorted((run / "checkpoints").iterdir())[0]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["logit_scale"] = torch.tensor(float("nan"))
    save_file(tensors, path, metadata)
    with pytest.raises(CoreclipError, match="holds weights that are not finite"):
        checkpoint_signals(run, trained[0], ["grand"])


# ------------------------------------------------------------------------------------------------------------------- influence


def test_self_influence_is_the_diagonal_and_influence_is_symmetric(trained, run):
    data, _ = trained
    values = influence(run, data, np.arange(14))
    assert values.shape == (14, 14)
    np.testing.assert_allclose(np.diag(values), checkpoint_signals(run, data, ["tracin"])["tracin"], rtol=1e-4)
    np.testing.assert_allclose(values, values.T, rtol=1e-6, atol=1e-12)
    assert np.linalg.eigvalsh(values).min() > -1e-6 * values.max()  # a sum of inner products


def test_a_copy_of_the_target_is_among_the_most_helpful(trained):
    data, run = trained
    values = influence(run, data, [2])[0]
    np.testing.assert_allclose(values[9], values[2], rtol=1e-4)  # as a step on the target itself
    shown = explain(run, data, [2], top=3)
    assert 9 in [pair["index"] for pair in shown["helped"]]
    assert shown["trained_on_this_data"]


def test_explain_lists_the_best_and_the_worst_by_the_mean_over_the_targets(trained):
    data, run = trained
    mean = influence(run, data, [3, 5]).mean(axis=0)
    shown = explain(run, data, [3, 5], top=14)
    assert shown["index"] == [3, 5]
    rest = [i for i in range(14) if i not in (3, 5)]
    helped, hurt = ([pair["index"] for pair in shown[name]] for name in ("helped", "hurt"))
    assert helped == sorted((i for i in rest if mean[i] > 0), key=lambda i: -mean[i])
    assert hurt == sorted((i for i in rest if mean[i] < 0), key=lambda i: mean[i])
    assert sorted(helped + hurt) == rest
    first = shown["helped"][0]
    assert first["influence"] == pytest.approx(mean[helped[0]])
    assert (first["key"], first["caption"]) == (data.keys[helped[0]], data.captions(helped[0])[0])
    assert len(explain(run, data, [3], top=2)["hurt"]) <= 2


def test_targets_of_another_data_set(trained, other):
    data, run = trained
    values = influence(run, other, [7, 0], train=data)
    assert values.shape == (2, 14)
    shown = explain(run, other, [7], train=data, top=14)
    assert len(shown["helped"]) + len(shown["hurt"]) == 14
    assert shown["trained_on_this_data"]
    assert not explain(run, other, [7])["trained_on_this_data"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([14], "index 14 is out of range: .* has the indices 0 to 13"),
        ([-1], "index -1 is out of range"),
        ([], "one index or more"),
        ([0.5], "one index or more"),
    ],
)
def test_targets_that_are_not_there_are_refused(trained, targets, message):
    with pytest.raises(CoreclipError, match=message):
        influence(trained[1], trained[0], targets)


def test_an_empty_list_is_not_asked_for(trained):
    with pytest.raises(CoreclipError, match="top = 0 is not allowed"):
        explain(trained[1], trained[0], [1], top=0)


# --------------------------------------------------------------------------------------------------------------- command line


def test_the_command_prints_a_table_or_one_object(trained, other, capsys):
    data, run = trained
    assert run_command(["explain", str(run), str(data.path), "--index", "2", "--top", "2", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("helped pair 2\n  index ")
    assert "\nhurt pair 2\n" in out
    assert "trained on another" not in err
    arguments = ["explain", run, other.path, "--index", 1, "--index", 4, "--train", data.path, "--device", "cpu", "--json"]  # fmt: skip
    assert run_command(list(map(str, arguments))) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["index"] == [1, 4]
    assert set(shown["helped"][0]) == {"index", "key", "influence", "caption"}
    assert run_command(["explain", str(run), str(other.path), "--index", "1", "--device", "cpu"]) == 0
    assert "was trained on another data set than" in capsys.readouterr().err


def test_an_expression_names_the_signals_that_it_needs():
    assert checkpoint_signals_of("random(keep=0.5) | grand") == {"grand"}
    assert checkpoint_signals_of("hard(signal=vog) & tracin(k=4)") == {"vog", "tracin"}
    assert checkpoint_signals_of("el2n | facility-location(optimizer=lazy) | grand-mean") == set()


def test_select_computes_what_a_method_reads_from_the_checkpoints(trained, run, tmp_path, monkeypatch, capsys):
    data, _ = trained

    def by_variance(signals, k):
        return ranked(signal_of(signals, "vog", "vog"), k, method="vog", start=0.0)

    monkeypatch.setitem(METHODS, "vog", Method(by_variance, "by variance of gradients", Tier.REFERENCE))
    out = tmp_path / "s.parquet"
    arguments = ["select", data.path, out, "--method", "vog", "--k", 3, "--signals", run]
    assert run_command(list(map(str, arguments))) == 0
    scores = np.load(run / "signals" / "vog.npy")
    assert Subset.load(out).indices.tolist() == np.argsort(-scores, kind="stable")[:3].tolist()
    capsys.readouterr()
    shutil.rmtree(run / "checkpoints")
    (run / "signals" / "vog.json").unlink()
    assert run_command(list(map(str, arguments))) == 2
    assert "has no checkpoints/*.safetensors" in capsys.readouterr().err
