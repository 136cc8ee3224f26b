"""Images of another size within an epoch: what is delivered depends neither on what was decoded ahead nor on where one goes on."""

import numpy as np
import pytest
import torch

from coreclip.errors import CoreclipError
from coreclip.pipeline import Augment
from coreclip.pipeline.loader import make_loader
from tests.helpers import make_dataset

N = 23
NAMES = ("images", "tokens", "index", "weight", "valid", "caption")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("loader") / "set", N, raw_every=4, captions_per_pair=(3, 1, 2))


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in NAMES)


def grown(dataset, sizes, start=None, **options):
    """Batches of an epoch, each at its size; ``start`` is a state to go on from and its number of batches."""
    loader = make_loader(dataset, batch_size=4, image_size=max(sizes), seed=3, crop_scale=(0.3, 0.9), **options)
    first = 0
    if start is not None:
        loader.load_state_dict(start[0])
        first = start[1]
    batches, states = [], []
    loader.set_image_size(sizes[first])
    for number, batch in enumerate(loader, start=first + 1):
        batches.append(batch)
        states.append(loader.state_dict())
        if number < len(sizes):
            loader.set_image_size(sizes[number])
    return batches, states


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_each_batch_is_that_of_a_loader_of_its_size(dataset, prefetch, resident):
    sizes = [16, 16, 24, 24, 40, 16]
    options = {"augment": Augment(flip=0.5, cutout=0.3), "resident": resident}
    batches, _ = grown(dataset, sizes, prefetch=prefetch, workers=2, **options)
    assert [batch.images.shape[-1] for batch in batches] == sizes
    order = make_loader(dataset, batch_size=4, image_size=40, seed=3, crop_scale=(0.3, 0.9), augment=options["augment"])
    assert [batch.index.tolist() for batch in batches] == [batch.index.tolist() for batch in order]
    for size in set(sizes):
        if resident:  # the copy has the size that the loader was made with
            whole, _ = grown(dataset, [size] * 5 + [40], prefetch=0, **options)
            whole = whole[:5]
        else:
            whole, _ = grown(dataset, [size] * 6, prefetch=0, **options)
        for number, batch in enumerate(whole):
            if sizes[number] == size:
                assert same(batch, batches[number])


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_going_on_delivers_the_same(dataset, stop):
    sizes = [16, 16, 24, 24, 40, 16]
    whole, states = grown(dataset, sizes, prefetch=2)
    rest, _ = grown(dataset, sizes, (states[stop - 1], stop), prefetch=5)
    assert len(rest) == 6 - stop
    assert all(map(same, rest, whole[stop:]))


def test_evaluation_at_another_size(dataset):
    loader = make_loader(dataset, train=False, batch_size=8, image_size=32)
    loader.set_image_size(16)
    assert all(map(same, loader, make_loader(dataset, train=False, batch_size=8, image_size=16)))


def test_images_on_a_device_are_resized_too(dataset):
    loader = make_loader(dataset, batch_size=8, image_size=32, resident="device")
    shapes = []
    for batch in loader:
        shapes.append(batch.images.shape[-1])
        loader.set_image_size(24)
    assert shapes == [32, 24, 24]


def test_sizes_that_can_not_be_are_refused(dataset):
    loader = make_loader(dataset, image_size=32, resident=True)
    with pytest.raises(CoreclipError, match="image_size = 33 is not allowed: it must be an integer from 8 to 32"):
        loader.set_image_size(33)
    with pytest.raises(CoreclipError, match="image_size = 4 is not allowed"):
        loader.set_image_size(4)
    for options in ({"crop": "shift"}, {"train": False}):
        loader = make_loader(dataset, image_size=32, resident="device", **options)
        loader.set_image_size(32)
        with pytest.raises(CoreclipError, match=r"image_size = 16 after 32 is not possible .* make another loader"):
            loader.set_image_size(16)


# ------------------------------------------------------------------------------------------------------------- drawn by weight


class Weighted:
    indices = np.array([3, 8, 1, 20, 5, 11])
    weights = np.array([0.0, 1.0, 2.0, 3.0, 6.0, 0.5])


def test_drawn_pairs_weigh_one_and_have_crops_of_their_own(dataset):
    loader = make_loader(dataset, subset=Weighted, draws=True, batch_size=4, image_size=16, crop_scale=(0.2, 0.6))
    assert len(loader) == 2
    counts = np.zeros(N, int)
    for _ in range(50):
        batches = list(loader)
        index = torch.cat([batch.index for batch in batches]).numpy()
        assert len(index) == 6
        assert torch.cat([batch.weight for batch in batches]).tolist() == [1.0] * 6
        counts += np.bincount(index, minlength=N)
    assert counts[3] == 0
    assert counts[Weighted.indices] == pytest.approx(300 * Weighted.weights / 12.5, abs=12)
    images = torch.cat([batch.images for batch in batches])
    heavy = images[torch.cat([batch.index for batch in batches]) == 5]
    assert len(heavy) in (2, 3)
    assert not torch.equal(heavy[0], heavy[1])


def test_equal_weights_are_the_plain_shuffle(dataset):
    class Equal:
        indices, weights = np.arange(3, 17), np.full(14, 0.7)

    plain = make_loader(dataset, subset=np.arange(3, 17), batch_size=4, image_size=16, seed=2)
    drawn = make_loader(dataset, subset=Equal, draws=True, batch_size=4, image_size=16, seed=2)
    for _ in range(2):
        assert all(map(same, plain, drawn))


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_going_on_within_a_drawn_epoch(dataset, order):
    options = {"subset": Weighted, "draws": True, "batch_size": 2, "image_size": 16, "order": order}
    first = make_loader(dataset, **options)
    list(first)
    whole = []
    for number, batch in enumerate(first):
        whole.append(batch)
        if number == 0:
            state = first.state_dict()
    second = make_loader(dataset, **options)
    second.load_state_dict(state)
    rest = list(second)
    assert len(rest) == 2
    assert all(map(same, rest, whole[1:]))
    with pytest.raises(CoreclipError, match=f"has order '{order}.*, drawn by weight', this loader"):
        make_loader(dataset, **(options | {"draws": False})).load_state_dict(state)


def test_drawing_decodes_resident_images_once(dataset, monkeypatch):
    loader = make_loader(dataset, subset=Weighted, draws=True, resident=True, batch_size=4, image_size=16)
    list(loader)
    calls = []
    monkeypatch.setattr("coreclip.pipeline.loader.resident_images", lambda *_: calls.append(1))
    list(loader)
    list(loader)
    loader.set_subset(np.array([20, 5]))  # of those that are there
    list(loader)
    assert calls == []


def test_draws_that_can_not_be_are_refused(dataset):
    class Nothing:
        indices, weights = np.arange(3), np.zeros(3)

    with pytest.raises(CoreclipError, match="draws=True is for train=True only"):
        make_loader(dataset, subset=Weighted, draws=True, train=False)
    with pytest.raises(CoreclipError, match="weights are all 0: none of its pairs can be drawn"):
        make_loader(dataset, subset=Nothing, draws=True)
    with pytest.raises(CoreclipError, match="draws = 1 is not allowed: it must be True or False"):
        make_loader(dataset, subset=Weighted, draws=1)
