"""Several ranks: they agree, they cover, each pair comes once; and blocks are read together in quasi-random order."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from coreclip.errors import CoreclipError
from coreclip.pipeline import loader as loader_module
from coreclip.pipeline.augment import Augment
from coreclip.pipeline.loader import make_loader
from tests.helpers import make_dataset

N = 23


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("ranks") / "set", N, size=(16, 16), raw_every=1, rows_per_shard=8)


def ranks(dataset, world_size, **options):
    return [make_loader(dataset, image_size=8, rank=r, world_size=world_size, **options) for r in range(world_size)]


def test_ranks_cut_the_batches_of_one_process(dataset):
    whole = list(make_loader(dataset, image_size=8, batch_size=8))
    parts = [list(loader) for loader in ranks(dataset, 2, batch_size=4)]
    for both, left, right in zip(whole, *parts, strict=True):
        index, images = (torch.cat([getattr(batch, name) for batch in (left, right)]) for name in ("index", "images"))
        real = index >= 0
        assert (index[real] == both.index).all()
        assert (images[real] == both.images).all()


def test_padding_counts_for_nothing(dataset):
    last = [list(loader)[-1] for loader in ranks(dataset, 4, batch_size=5)]  # three pairs for four ranks
    assert [len(batch) for batch in last] == [1, 1, 1, 1]
    index = [int(batch.index) for batch in last]
    assert index.count(-1) == 1
    batch = last[index.index(-1)]
    assert not batch.valid.any()
    assert not batch.weight.any()
    assert not batch.images.any()
    assert not batch.tokens.any()


def test_evaluation_ranks_have_runs_of_their_own(dataset):
    parts = [[batch.index.tolist() for batch in loader] for loader in ranks(dataset, 3, train=False, batch_size=3)]
    assert parts == [
        [[0, 1, 2], [3, 4, 5], [6]], [[7, 8, 9], [10, 11, 12], [13, 14]], [[15, 16, 17], [18, 19, 20], [21, 22]],
    ]  # fmt: skip


def test_evaluation_ranks_resume_their_own_run(dataset):
    first = ranks(dataset, 2, train=False, batch_size=4)
    for loader in first:
        next(iter(loader))
    rest = ranks(dataset, 2, train=False, batch_size=3)
    for loader, left in zip(rest, first, strict=True):
        loader.load_state_dict(left.state_dict())
    assert [i for batch in rest[1] for i in batch.index.tolist()] == list(range(15, 23))
    with pytest.raises(CoreclipError, match=r"has share \[0, 2\], this loader \[1, 2\]; make the loader as before"):
        rest[1].load_state_dict(first[0].state_dict())


def test_more_evaluation_ranks_than_pairs(dataset):
    loaders = ranks(dataset, 3, train=False, subset=[4, 2])
    assert [[batch.index.tolist() for batch in loader] for loader in loaders] == [[], [[4]], [[2]]]
    assert [len(loader) for loader in loaders] == [0, 1, 1]


def test_states_of_training_ranks_are_equal(dataset):
    loaders = ranks(dataset, 3, batch_size=2)
    for loader in loaders:
        next(iter(loader))
    assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1
    assert loaders[0].state_dict()["position"] == 6


def test_leaving_early_leaves_no_thread_on_any_rank(dataset):
    before = threading.active_count()
    for loader in ranks(dataset, 3, batch_size=2, order="quasi_random", augment=Augment(jitter=(0.4, 0.4, 0.4, 0.1))):
        for _ in loader:
            break
    gc.collect()
    assert threading.active_count() == before


def test_a_state_of_another_order_is_refused(dataset):
    state = make_loader(dataset, order="quasi_random", window=2).state_dict()
    with pytest.raises(CoreclipError, match="has order 'quasi_random of 2 blocks', this loader 'random'"):
        make_loader(dataset).load_state_dict(state)


def test_quasi_random_order_takes_duplicates_and_weights(dataset):
    subset = [5, 5, 2, 22, 5, 0]
    for epoch in (0, 1):
        loader = make_loader(dataset, order="quasi_random", window=1, subset=subset, batch_size=4, image_size=8)
        loader.set_epoch(epoch)
        assert sorted(i for batch in loader for i in batch.index.tolist()) == sorted(subset)


def test_windows_are_asked_for_once_and_before_they_are_decoded(dataset, monkeypatch):
    asked = []

    class Recorder:
        """Stands for the thread that reads ahead, which asks whenever the disk has room."""

        def __init__(self, _, batches):
            self.batches = iter(batches)

        def advance(self):
            asked.append(next(self.batches).tolist())

        def close(self):
            assert next(self.batches, None) is None

    monkeypatch.setattr(loader_module, "ReadAhead", Recorder)
    loader = make_loader(dataset, order="quasi_random", window=1, batch_size=3, image_size=8, prefetch=0)
    for batch in loader:
        assert set(batch.index.tolist()) <= {i for part in asked for i in part}
    blocks = [list(range(8)), list(range(8, 16)), list(range(16, 23))]  # a block a shard
    assert sorted(i for part in asked for i in part) == list(range(23))
    for part in asked:
        assert sorted(part) == [i for block in blocks if block[0] in part for i in block], "whole windows"
    assert [len(part) > 8 for part in asked if part] == [True, False], "two at first, then the one after the batch's"
    asked.clear()
    half = make_loader(dataset, order="quasi_random", window=1, batch_size=2, image_size=8, rank=1, world_size=2)
    seen = [i for batch in half for i in batch.index.tolist() if i >= 0]
    assert sum(map(bool, asked)) == 2
    in_time = {i for part in asked for i in part} & set(seen)
    assert len(in_time) >= len(seen) - 2  # of the last batch, which is divided otherwise, some are read on demand
    assert sum(map(len, asked)) <= N // 2 + 2


_RANK = """
import sys
import torch.distributed as dist
from coreclip.pipeline import Dataset, make_loader
rank, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
loader = make_loader(Dataset(path), batch_size=4, image_size=8, rank=rank, world_size=2, seed=3)
for epoch in range(2):
    visited = []
    for batch in loader:
        both = [batch.index.clone() for _ in range(2)]
        dist.all_gather(both, batch.index)  # hangs or fails where the ranks' batches differ in number or length
        visited += [i for index in both for i in index.tolist() if i >= 0]
    assert sorted(visited) == list(range(loader.n_samples)), visited
    states = [None, None]
    dist.all_gather_object(states, loader.state_dict())
    assert states[0] == states[1]
print("covered")
dist.destroy_process_group()
"""


def test_two_processes_agree_and_cover(dataset):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(port), str(dataset.path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        done = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.strip() for out, _ in done] == ["covered", "covered"], done
    assert np.all([process.returncode == 0 for process in processes])
