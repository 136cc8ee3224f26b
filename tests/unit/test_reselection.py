"""Pairs that a run chooses anew: which they are, what is counted, what is refused. Going on after a stop is in test_loop_options."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coreclip.config import ReselectConfig
from coreclip.errors import CoreclipError
from coreclip.selection import Subset
from coreclip.training import train
from coreclip.training.model import build_model
from coreclip.training.reselection import make_reselector
from tests.helpers import make_dataset
from tests.unit.test_loop_options import PLAIN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 20)


def test_a_pass_trains_on_the_choice_alone(data, tmp_path):
    config = replace(PLAIN, reselect=ReselectConfig(every=2, fraction=0.5, method="random"))
    report = train(data, tmp_path / "run", config=config, samples=20 + 4 * 10)
    assert report.reselections == 2  # after passes 1 and 3, none after the last step
    seen = np.isfinite(np.load(tmp_path / "run" / "signals" / "loss.npy"))
    assert seen.sum(axis=1).tolist() == [20, 10, 10, 10, 10]
    for row, passes in enumerate([1, 1, 3, 3], start=1):
        chosen = Subset.load(tmp_path / "run" / "subsets" / f"{passes:08d}.parquet")
        assert np.flatnonzero(seen[row]).tolist() == sorted(chosen.indices.tolist())


def test_an_epoch_of_the_budget_is_one_of_all_pairs(data, tmp_path):
    config = replace(PLAIN, reselect=ReselectConfig(every=1, fraction=0.25, method="random"))
    assert train(data, tmp_path / "run", config=config, epochs=2).samples_seen == 40


def test_the_choice_is_within_the_subset_that_was_given(data, tmp_path):
    class Given:
        indices = np.array([2, 3, 5, 7, 11, 13, 17, 19])
        weights = np.array([1.0, 2.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])

    config = replace(PLAIN, reselect=ReselectConfig(every=1, fraction=1.0, method="random", after=0))
    train(data, tmp_path / "run", config=config, subset=Given, samples=10)
    chosen = Subset.load(tmp_path / "run" / "subsets" / "00000000.parquet")
    assert dict(zip(chosen.indices.tolist(), chosen.weights.tolist(), strict=True)) == {
        2: 1, 3: 2, 5: 1, 7: 1, 13: 1, 17: 1, 19: 1,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["el2n", "hard(signal=margin)", "semdedup(keep=0.9) | craig", "k-center"])
def test_signals_and_features_of_the_run_choose(data, tmp_path, method):
    config = replace(PLAIN, reselect=ReselectConfig(every=1, fraction=0.5, method=method))
    train(data, tmp_path / "run", config=config, samples=35)
    chosen = Subset.load(tmp_path / "run" / "subsets" / "00000001.parquet")
    assert chosen.k == 10
    if method == "el2n":
        first = np.load(tmp_path / "run" / "signals" / "el2n.npy")[0]
        assert set(chosen.indices.tolist()) == set(np.argsort(-first, kind="stable")[:10].tolist())


def test_choosing_leaves_the_model_alone_and_is_a_function_of_it(data, tmp_path):
    config = replace(PLAIN, reselect=ReselectConfig(every=1, fraction=0.5, pool=15))
    tokenizer, cpu = data.tokenizer(), torch.device("cpu")
    reselector = make_reselector(tmp_path, data, config, tokenizer, None, cpu)
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    chosen = [reselector.choose(model, passes, size) for passes, size in ((1, 16), (2, 16), (1, 16), (1, 8))]
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    first, second, again, small = chosen
    assert np.array_equal(first.indices, again.indices)
    assert np.array_equal(first.weights, again.weights)
    assert set(first.indices) != set(second.indices)
    assert not np.array_equal(first.gains, small.gains)


def test_images_that_do_not_decode_are_not_chosen(tmp_path):
    broken = make_dataset(tmp_path / "set", 12, images={4: b"\xff\xd8\xff" + b"garbage" * 50})
    config = replace(PLAIN, reselect=ReselectConfig(every=1, fraction=1.0, method="k-center"))
    train(broken, tmp_path / "run", config=config, samples=16)
    chosen = Subset.load(tmp_path / "run" / "subsets" / "00000001.parquet")
    assert sorted(chosen.indices.tolist()) == [i for i in range(12) if i != 4]


def test_too_few_images_to_choose_among_are_refused(tmp_path):
    garbage = b"\xff\xd8\xff" + b"garbage" * 50
    broken = make_dataset(tmp_path / "set", 4, images=dict.fromkeys(range(1, 4), garbage))
    config = replace(PLAIN, reselect=ReselectConfig(every=1, method="k-center", after=0))
    with pytest.raises(CoreclipError, match="1 of the pairs to select among have an image that decodes"):
        train(broken, tmp_path / "run", config=config, samples=16)


@pytest.mark.parametrize(
    "subset",
    [
        np.array([3, 3, 3]),
        Subset(indices=np.arange(4), weights=np.zeros(4), gains=np.zeros(4), method="by hand", n=20),
    ],
)
def test_a_subset_of_fewer_than_two_pairs_has_nothing_to_choose(data, tmp_path, subset):
    config = replace(PLAIN, reselect=ReselectConfig(every=1, method="k-center"))
    with pytest.raises(CoreclipError, match=r"[01] different pairs with a weight above 0 to choose among"):
        train(data, tmp_path / "run", config=config, samples=16, subset=subset)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("nonsense", "unknown method 'nonsense'"),
        ("hard(signal=vog)", "reads vog, which are made from a finished run's weights; choose by another"),
        ("el2n", "reads the run's signals, and train.signals is off; set train.signals=true"),
    ],
)
def test_methods_that_a_run_can_not_use_are_refused(data, tmp_path, method, message):
    config = replace(PLAIN, train=replace(PLAIN.train, signals=False), reselect=ReselectConfig(every=1, method=method))
    with pytest.raises(CoreclipError, match=message):
        train(data, tmp_path / "run", config=config, samples=16)
    assert not (tmp_path / "run").exists()
