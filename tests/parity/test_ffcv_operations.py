"""FFCV's own image transforms in our loader."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.transforms import Cutout, NormalizeImage, RandomHorizontalFlip, ToTensor

from coreclip.errors import CoreclipError
from coreclip.pipeline.loader import make_loader
from tests.helpers import make_dataset

N = 11


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    images = {6: b"\xff\xd8\xff" + b"garbage" * 50}
    return make_dataset(tmp_path_factory.mktemp("operations") / "set", N, images=images)


def images_of(dataset, operations, **options):
    options = {"batch_size": 4, "image_size": 16, "seed": 1, **options}
    return [batch.images for batch in make_loader(dataset, operations=operations, **options)]


def test_ffcvs_transforms_change_the_batches(dataset):
    plain = torch.cat(images_of(dataset, [], train=False))
    cut = torch.cat(images_of(dataset, [RandomHorizontalFlip(1.0), Cutout(8, (1, 2, 3))], train=False))
    hole = (cut == torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]).all(1)
    decoded = torch.arange(N) != 6
    assert (hole.flatten(1).sum(1)[decoded] >= 64).all()
    assert ((cut == plain.flip(3)) | hole[:, None]).all()
    assert not cut[6].any()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_normalisation_makes_floats(dataset, kind):
    mean, std = np.array([100.0, 110.0, 120.0]), np.array([50.0, 60.0, 70.0])
    plain = images_of(dataset, [], world_size=2)[-1]
    batch = images_of(dataset, [NormalizeImage(mean, std, kind)], world_size=2)[-1]
    assert batch.dtype == (torch.float32 if kind is np.float32 else torch.float16)
    expected = (plain.double() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected[~plain.bool().flatten(1).any(1)] = 0
    torch.testing.assert_close(batch.double(), expected, rtol=1e-3, atol=1e-3)


def test_threads_change_nothing_and_batches_own_their_memory(dataset):
    operations = [RandomHorizontalFlip(0.5), Cutout(4)]
    options = {
        "batch_size": 4,
        "image_size": 16,
        "crop_scale": (1.0, 1.0),
        "order": "sequential",
        "operations": operations,
    }
    loader = make_loader(dataset, workers=1, prefetch=0, **options)
    first, other = ([batch.images for batch in loader] for _ in range(2))
    second = [batch.images for batch in make_loader(dataset, workers=3, prefetch=4, **options)]
    assert all((left == right).all() for left, right in zip(first, second, strict=True))
    assert not all((left == right).all() for left, right in zip(first, other, strict=True))
    assert len({batch.data_ptr() for batch in second}) == 3
    second[0].zero_()
    assert all((left == right).all() for left, right in zip(first[1:], second[1:], strict=True))


class Halve(Operation):
    """Wrong: drops every second row."""

    def generate_code(self):
        def halve(images, _):
            return images[::2]

        return halve

    def declare_state_and_memory(self, previous_state):
        return previous_state, None


class Several(Halve):
    """Asks for two arrays."""

    def declare_state_and_memory(self, previous_state):
        query = AllocationQuery(previous_state.shape, previous_state.dtype)
        return previous_state, (query, query)


class Python(Halve):
    """Can't be compiled."""

    def generate_code(self):
        def python(images, _):
            return images.no_such_attribute

        return python


class Slow(Halve):
    """Runs outside compiled code."""

    def declare_state_and_memory(self, previous_state):
        return replace(previous_state, jit_mode=False), None


class Stumble(Halve):
    """Fails at a batch of three."""

    def generate_code(self):
        def stumble(images, _):
            if images.shape[0] == 3:
                raise ArithmeticError("three is too few")
            return images

        return stumble


def test_failure_of_an_operation_reaches_the_consumer(dataset):
    before = threading.active_count()
    batches = iter(make_loader(dataset, operations=[Stumble()], batch_size=4, image_size=16))
    assert [len(next(batches)) for _ in range(2)] == [4, 4]
    with pytest.raises(ArithmeticError, match="three is too few"):
        next(batches)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (ToTensor(), "operation ToTensor works on torch tensors, not in compiled code"),
        (Slow(), "operation Slow works on torch tensors"),
        (Halve(), r"operation Halve makes \(1, 16, 16, 3\) of a batch of 2 images: it must return \(rows, h, w, 3\)"),
        (Several(), "operation Several asks for several arrays"),
        (Python(), "operation Python can't be compiled for images of type uint8"),
    ],
)
def test_operations_that_do_not_fit_are_refused(dataset, operation, message):
    with pytest.raises(CoreclipError, match=message):
        make_loader(dataset, operations=[operation], image_size=16)
