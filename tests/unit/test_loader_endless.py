"""Batches of pass after pass: those that an ``iter()`` for each would deliver, in the same states, with a queue that never runs dry."""

import gc
import json
import threading
from itertools import islice

import numpy as np
import pytest
import torch

from coreclip.pipeline import make_loader
from coreclip.pipeline.loader import Loader
from tests.helpers import make_dataset

N = 22
LOADERS = {
    "random": {},
    "no prefetch": {"prefetch": 0},
    "far ahead": {"prefetch": 11},
    "last batch dropped": {"drop_last": True},
    "quasi-random": {"order": "quasi_random", "window": 1},
    "drawn by weight": {"draws": True, "subset": "weighted"},
    "the second of two ranks": {"rank": 1, "world_size": 2, "batch_size": 4},
    "in memory": {"resident": True},
    "evaluation": {"train": False},
}


class Weighted:
    indices = np.array([3, 1, 9, 20, 4])
    weights = np.array([1.0, 3.0, 0.5, 0.25, 2.0])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("loader") / "set", N, raw_every=4, captions_per_pair=(3, 1, 2))


def loader_of(dataset, options) -> Loader:
    options = {"batch_size": 8, "image_size": 16, "seed": 2} | options
    return make_loader(dataset, **options | ({"subset": Weighted} if "subset" in options else {}))


def by_passes(loader):
    while True:
        yield from loader


def noted(loader, batches, n):
    """The next batches, with the loader's state after each."""
    return [(vars(batch), json.dumps(loader.state_dict())) for batch in islice(batches, n)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for (batch, state), (other, other_state) in zip(found, expected, strict=True):
        assert state == other_state
        for name, values in other.items():
            assert torch.equal(batch[name], values), name


@pytest.mark.parametrize("name", LOADERS)
def test_it_is_one_pass_after_another(dataset, name):
    loaders = [loader_of(dataset, LOADERS[name]) for _ in range(2)]
    n = 3 * len(loaders[0]) + 1
    assert_same(noted(loaders[0], loaders[0].endless(), n), noted(loaders[1], by_passes(loaders[1]), n))


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_it_goes_on_from_any_state(dataset, stop):
    whole, first, second = (loader_of(dataset, {}) for _ in range(3))
    expected = noted(whole, whole.endless(), 8)
    taken = noted(first, first.endless(), stop)
    second.load_state_dict(json.loads(taken[-1][1]))
    assert_same(taken + noted(second, second.endless(), 8 - stop), expected)


def test_the_next_pass_is_decoded_before_the_last_batches_of_this_one_are_asked_for(dataset, monkeypatch):
    begun = []
    start = Loader._start

    def noting(self, pool, images, epoch, part):
        begun.append((epoch.number, part.start))
        return start(self, pool, images, epoch, part)

    monkeypatch.setattr(Loader, "_start", noting)
    loader = loader_of(dataset, {"prefetch": 2})
    batches = loader.endless()
    list(islice(batches, 2))
    assert begun == [(0, 0), (0, 8), (0, 16), (1, 0)]
    assert (loader.epoch, loader.state_dict()["position"]) == (0, 16)


def test_images_of_another_size_come_at_once_also_across_a_border(dataset):
    loader, small = loader_of(dataset, {}), loader_of(dataset, {"image_size": 8})
    batches = loader.endless()
    list(islice(batches, 2))
    loader.set_image_size(8)
    expected = list(islice(small.endless(), 6))[2:]
    for batch, other in zip(islice(batches, 4), expected, strict=True):
        assert torch.equal(batch.images, other.images)


def test_other_pairs_come_with_the_next_iteration(dataset):
    loader = loader_of(dataset, {})
    batches = loader.endless()
    next(batches)
    loader.set_subset([1, 2, 3])
    old = torch.cat([batch.index for batch in islice(batches, 5)])
    assert old.max() > 3  # what was begun goes on among the pairs of before
    assert (loader.epoch, len(loader)) == (1, 1)
    assert [sorted(batch.index.tolist()) for batch in islice(loader.endless(), 2)] == [[1, 2, 3]] * 2


def test_an_iteration_after_it_starts_the_pass_that_is_due(dataset):
    loader = loader_of(dataset, {})
    list(islice(loader.endless(), 3))  # a whole pass: the next one has not begun for those who look
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)
    next(iter(loader))
    assert loader.epoch == 1
    list(islice(loader.endless(), 1))
    assert (loader.epoch, loader.state_dict()["position"]) == (2, 8)


def test_a_loader_without_batches_ends_at_once(dataset):
    loader = loader_of(dataset, {"train": False, "subset": "weighted", "rank": 0, "world_size": 6})
    assert list(loader.endless()) == list(loader) == []


def test_no_thread_survives_it(dataset):
    before = threading.active_count()
    batches = loader_of(dataset, {"workers": 3}).endless()
    list(islice(batches, 4))
    del batches
    gc.collect()
    assert threading.active_count() == before
