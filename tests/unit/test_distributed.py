"""Two processes have the gradient of one: duplicates, weights, temperature, any objective, in pieces too."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coreclip.config import DistillConfig, JestConfig, ReselectConfig
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.training import embed, processes, train
from coreclip.training.distributed import ONE, Ranks, check_processes, cut
from coreclip.training.model import build_model
from coreclip.training.objectives import make_objective
from coreclip.training.steps import Rows, pairs_per_pass, to_device, training_loader
from tests.helpers import CLASSES, make_dataset
from tests.unit.test_large_batch import CNN, VIT, DoubleClip, double_model, make_rows, with_settings

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {
    "softmax": with_settings(VIT, word_dropout=0.4),
    "softmax in pieces": with_settings(VIT, micro_batch=4),
    "sigmoid": with_settings(VIT, objective="sigmoid"),
    "classification": with_settings(VIT, objective="classification"),
    "classification in pieces, taught": with_settings(VIT, objective="classification", micro_batch=4),
    "taught": VIT,
}


def configuration(name, teacher):
    return replace(CASES[name], distill=DistillConfig(features=str(teacher))) if "taught" in name else CASES[name]


def part_of(rows, own):
    names = ("images", "tokens", "lengths", "weight", "labels", "index")
    return replace(rows, **{name: getattr(rows, name)[own] for name in names})


def step(data, config, rows, ranks):
    """One forward and backward pass: what became of it, and the gradient of every parameter."""
    model = double_model(DoubleClip, config, data.tokenizer().vocab_size)
    result, backward = make_objective(data, config, data.tokenizer(), ranks).forward(model, rows, bf16=False, step=2)
    backward()
    index, names, signals = ranks.signals(rows.index, result)
    numbers = {f"signal {name}": values.double() for name, values in zip(names, signals.read(), strict=True)}
    numbers |= {"loss": result.loss.detach(), "floor": result.floor, "index": torch.from_numpy(index).double()}
    return {name: p.grad for name, p in model.named_parameters()} | numbers


def run_rank(path, teacher, out):
    """What each of two processes does: 7 of ten rows and 3."""
    torch.set_num_threads(1)
    data = Dataset(path)
    found = {}
    with processes("cpu") as ranks:
        rows = part_of(make_rows(data), slice(0, 7) if ranks.is_first else slice(7, 10))
        for name in CASES:
            found[name] = step(data, configuration(name, teacher), rows, ranks)
        model = build_model(CNN, vocab_size=data.tokenizer().vocab_size, seed=0).train()
        _, backward = make_objective(data, CNN, data.tokenizer(), ranks).forward(model, rows, bf16=False)
        backward()
        ranks.reseed(1, 5)
        found["statistics"] = {name: b for name, b in model.named_buffers() if "running" in name}
        found["draw"] = torch.rand(3)
        found["table"] = torch.from_numpy(ranks.table([ranks.rank, 2.5]))
        found["decisions"] = [ranks.once(lambda: f"made by {ranks.rank}"), ranks.first(ranks.rank)]
        found["began"] = list(
            ranks.begin_step(100.0 + ranks.rank, 90.0 + ranks.rank, torch.tensor([3, -1 if ranks.rank else 4]))
        )
        found["ended"] = list(ranks.end_step(200.0 + ranks.rank, ranks.rank == 1))
        found["fewest"] = list(ranks.least_and_broken(5 - ranks.rank, ranks.rank))
        torch.save(found, f"{out}.{ranks.rank}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12, labels=CLASSES)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train(data, folder / "run", config=VIT, samples=10)
    embed(data, folder / "features", model=folder / "run")
    return folder / "features"


@pytest.fixture(scope="module")
def ranks(data, teacher, tmp_path_factory):
    """What both processes found."""
    out = tmp_path_factory.mktemp("ranks") / "found"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = "import sys; from tests.unit.test_distributed import run_rank; run_rank(*sys.argv[1:])"
    started = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [sys.executable, "-c", script, str(data.path), str(teacher), str(out)]
        started.append(subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2]))
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradient_of_one(data, teacher, ranks, name):
    expected = step(data, configuration(name, teacher), make_rows(data), ONE)
    for found in ranks:
        assert set(found[name]) == set(expected)
        assert {"logit_scale", "signal el2n", "loss", "floor", "index"} <= set(expected)
        for key, values in expected.items():
            torch.testing.assert_close(found[name][key], values, atol=1e-10, rtol=1e-10, equal_nan=True, msg=key)
    gradients = [found[name]["image_projection.weight"] for found in ranks]
    assert torch.equal(*gradients)  # bit for bit, or the two would drift apart


def test_each_process_normalises_by_its_own_rows_and_the_statistics_are_averaged(data, ranks):
    rows, means = make_rows(data), []
    for own in (slice(0, 7), slice(7, 10)):
        model = build_model(CNN, vocab_size=data.tokenizer().vocab_size, seed=0).train()
        make_objective(data, CNN, data.tokenizer()).forward(model, part_of(rows, own), bf16=False)
        means.append({name: b for name, b in model.named_buffers() if "running" in name})
    for name, first in means[0].items():
        for found in ranks:
            torch.testing.assert_close(found["statistics"][name], (first + means[1][name]) / 2)


def test_the_first_process_decides_and_all_know(ranks):
    for found in ranks:
        assert found["table"].tolist() == [[0, 2.5], [1, 2.5]]
        assert found["decisions"] == ["made by 0", 0]
        assert found["began"] == [100.0, 90.0, [2, 1]]
        assert found["ended"] == [200.0, True]
        assert found["fewest"] == [4, 1]
    assert not torch.equal(ranks[0]["draw"], ranks[1]["draw"])


def test_one_process_exchanges_nothing(monkeypatch):
    with processes("cpu") as ranks:
        assert ranks is ONE
    tensor = torch.ones(3)
    assert ONE.gather(tensor, [3]) is tensor
    assert ONE.sum(tensor) is tensor
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another launcher
    with processes("cpu") as ranks:
        assert ranks is ONE


def test_random_numbers_follow_from_seed_step_and_process():
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for ranks, seed, step in [(ONE, 0, 3), (ONE, 0, 3), (ONE, 0, 4), (ONE, 1, 3), (Ranks(1, 2), 0, 3)]:
            torch.rand(len(drawn))  # whatever was drawn before
            ranks.reseed(seed, step)
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 4


def test_a_cut_batch_keeps_its_first_pairs_but_two_at_each_process():
    assert cut([4, 4, 3], 11, 2) == [4, 4, 3]
    assert cut([4, 4, 3], 10, 2) == [4, 4, 2]
    assert cut([4, 4, 3], 7, 2) == [3, 2, 2]
    assert cut([4, 4], 6, 2) == [4, 2]
    assert cut([9], 2, 2) == [2]


def test_parts_of_a_batch_lose_broken_rows_and_those_that_only_fill_up(tmp_path):
    data = make_dataset(tmp_path / "data", 13, images={2: b"no picture"})
    parts = []
    for rank in range(2):
        loader = training_loader(
            data, replace(VIT, data=replace(VIT.data, batch_size=26)), None, data.tokenizer(), Ranks(rank, 2)
        )
        [batch] = loader
        assert len(batch.index) == 7
        parts.append(to_device(batch, None, torch.device("cpu"), 13))
    assert sorted(index for rows in parts for index in rows.index.tolist()) == [i for i in range(13) if i != 2]
    assert sorted(index for rows in parts for index in rows.broken) == [2]
    assert isinstance(parts[0], Rows)


def test_a_last_batch_without_two_pairs_for_each_is_left_out(data):
    assert [pairs_per_pass(n, 8, 3) for n in (8, 13, 14, 16, 5)] == [8, 8, 14, 16, 5]
    assert [pairs_per_pass(n, 5) for n in (11, 12, 1, 5)] == [10, 12, 1, 5]
    loader = training_loader(
        data, replace(VIT, data=replace(VIT.data, batch_size=10)), None, data.tokenizer(), Ranks(1, 2)
    )
    assert [len(batch.index) for batch in loader] == [5]


def test_what_several_processes_can_not_do_is_refused(data, tmp_path):
    two = Ranks(0, 2)
    with pytest.raises(
        CoreclipError, match=r"data.batch_size = 9 is not allowed with 2 processes: each has an equal part"
    ):
        training_loader(data, replace(VIT, data=replace(VIT.data, batch_size=9)), None, data.tokenizer(), two)
    with pytest.raises(CoreclipError, match=r"3 pairs to train on; a contrast needs 2 on each of 2 processes at least"):
        training_loader(data, VIT, np.arange(3), data.tokenizer(), two)
    for config, message in (
        (
            replace(VIT, jest=JestConfig(keep=0.5, reference="proxy")),
            r"jest.keep = 0.5 is not allowed with 2 processes: rows are",
        ),
        (
            replace(VIT, reselect=ReselectConfig(every=2)),
            "reselect.every = 2 is not allowed with 2 processes: pairs are",
        ),
        (
            replace(CNN, data=replace(CNN.data, sizes=(8, 16))),
            r"data.sizes = \(8, 16\) is not allowed with 2 .*train in one",
        ),
    ):
        with pytest.raises(CoreclipError, match=message):
            check_processes(two, config)
        check_processes(ONE, config)
    check_processes(two, VIT)
