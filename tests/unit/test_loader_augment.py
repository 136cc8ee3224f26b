"""Augmentation in the loader: off is nothing, and what is on depends on (seed, epoch, index) alone."""

import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from coreclip.config import load_config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Augment, feeds
from coreclip.pipeline.loader import make_loader
from coreclip.training.steps import training_loader
from tests.helpers import encode_jpeg, make_dataset

N = 13
ALL = Augment(flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, cutout=0.25)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("augment") / "set", N, raw_every=4, rows_per_shard=6)


def by_pair(loader):
    """Return the images of an epoch in the order of their pairs."""
    batches = list(loader)
    index = torch.cat([batch.index for batch in batches])
    return torch.cat([batch.images for batch in batches])[index.argsort()]


def test_off_changes_nothing(dataset):
    plain = by_pair(make_loader(dataset, batch_size=4, image_size=16, seed=3))
    assert (by_pair(make_loader(dataset, batch_size=4, image_size=16, seed=3, augment=Augment())) == plain).all()
    always = Augment(jitter=(0.0, 0.0, 0.0, 1e-12))  # through the other kernel
    assert (by_pair(make_loader(dataset, batch_size=4, image_size=16, seed=3, augment=always)) == plain).all()


def test_threads_batches_and_order_change_nothing(dataset):
    options = {"image_size": 16, "seed": 3, "augment": ALL}
    first = by_pair(make_loader(dataset, batch_size=4, workers=1, prefetch=0, **options))
    for others in ({"batch_size": 7, "workers": 3}, {"batch_size": 1, "order": "sequential"}, {"batch_size": 13}):
        assert (by_pair(make_loader(dataset, **others, **options)) == first).all()


def test_epochs_and_seeds_differ(dataset):
    loader = make_loader(dataset, image_size=16, seed=3, augment=ALL)
    first, second = by_pair(loader), by_pair(loader)
    other = by_pair(make_loader(dataset, image_size=16, seed=4, augment=ALL))
    assert (first != second).flatten(1).any(1).all()
    assert (first != other).flatten(1).any(1).all()


@pytest.mark.parametrize("resident", [False, True])
def test_flip_mirrors_about_the_asked_share_and_nothing_else(dataset, resident):
    options = {"image_size": 16, "seed": 1, "subset": np.arange(200) % N, "order": "sequential", "resident": resident}
    plain = by_pair(make_loader(dataset, **options))
    always = by_pair(make_loader(dataset, augment=Augment(flip=1.0), **options))
    assert (always == plain.flip(3)).all()
    some = by_pair(make_loader(dataset, augment=Augment(flip=0.25), **options))
    flipped = (some == plain.flip(3)).flatten(1).all(1)
    assert (flipped | (some == plain).flatten(1).all(1)).all()
    assert 30 <= flipped.sum() <= 70


def test_grey_and_cutout_reach_the_images(dataset):
    images = by_pair(make_loader(dataset, image_size=16, augment=Augment(grey=1.0)))
    assert (images == images[:, :1]).all()
    plain = by_pair(make_loader(dataset, image_size=16))
    images = by_pair(make_loader(dataset, image_size=16, augment=Augment(cutout=0.5, fill=(255, 0, 255))))
    hole = (images == torch.tensor([255, 0, 255], dtype=torch.uint8)[:, None, None]).all(1)
    assert (hole.flatten(1).sum(1) == 64).all()
    assert ((images == plain) | hole[:, None]).all()


def test_an_image_that_does_not_decode_stays_zero(tmp_path):
    dataset = make_dataset(tmp_path / "set", 5, images={2: b"\xff\xd8\xff" + b"garbage" * 50})
    augment = Augment(jitter=(0.4, 0.4, 0.4, 0.1), cutout=0.5, fill=(255, 255, 255))
    batch = next(iter(make_loader(dataset, image_size=16, augment=augment, order="sequential")))
    assert batch.valid.tolist() == [True, True, False, True, True]
    assert not batch.images[2].any()


def test_a_pair_that_comes_twice_is_changed_each_time_anew(dataset):
    options = {"image_size": 16, "order": "sequential", "augment": ALL}
    once = next(iter(make_loader(dataset, subset=[3, 5], **options)))
    twice = next(iter(make_loader(dataset, subset=[3, 5, 3, 3], **options)))
    assert (twice.images[:2] == once.images).all()
    assert len({image.numpy().tobytes() for image in twice.images}) == 4
    crops = next(iter(make_loader(dataset, image_size=16, subset=[3] * 6, crop_scale=(0.3, 0.9))))
    assert len({image.numpy().tobytes() for image in crops.images}) == 6
    alone = next(iter(make_loader(dataset, image_size=16, subset=[3], crop_scale=(0.3, 0.9))))
    assert any((image == alone.images[0]).all() for image in crops.images)


def test_failure_while_augmenting_reaches_the_consumer(dataset, monkeypatch):
    def broken(*_):
        raise MemoryError("no memory for the square")

    before = threading.active_count()
    monkeypatch.setattr(feeds, "augment_images", broken)
    loader = make_loader(dataset, batch_size=4, image_size=16, augment=ALL, workers=3)
    with pytest.raises(MemoryError, match="no memory for the square"):
        list(loader)
    assert threading.active_count() == before


def test_scratch_shrinks_after_an_outlier(tmp_path):
    large = encode_jpeg(np.full((2000, 3000, 3), 120, np.uint8))
    dataset = make_dataset(tmp_path / "set", 1, size=(3000, 2000), images={0: large})
    unshrunk, shrunk = (make_loader(dataset, train=False, image_size=size, workers=1) for size in (700, 112))
    next(iter(unshrunk))
    decoder = unshrunk._decoders.take()
    assert decoder.scratch.size > 3000 * 2000 * 3
    decoder.reserve(1000)
    assert decoder.scratch.size == 1000
    next(iter(shrunk))
    assert shrunk._decoders.take().scratch.size < 3000 * 2000  # the inverse DCT shrinks by 4


_SECOND_PROCESS = """
import sys
from numba.core import event
from coreclip.pipeline import Augment, Dataset, make_loader
augment = Augment(flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, cutout=0.25)
with event.install_recorder("numba:compile") as compiled:
    dataset = Dataset(sys.argv[1])
    for options in ({}, {"augment": augment}, {"train": False}, {"resident": True, "augment": Augment(flip=0.5)}):
        list(make_loader(dataset, image_size=16, batch_size=5, **options))
print(len(compiled.buffer))
"""


def test_second_process_compiles_nothing(dataset):
    list(make_loader(dataset, image_size=16, augment=ALL))
    list(make_loader(dataset, image_size=16, train=False))  # compiled by now
    done = subprocess.run(
        [sys.executable, "-c", _SECOND_PROCESS, str(dataset.path)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "0"


def test_training_takes_the_configurations_changes(dataset):
    settings = ["data.flip=0.5", "data.jitter=[0.4, 0.4, 0.4, 0.1]", "data.grey=0.2", "data.cutout=0.25"]
    config = load_config(overrides=[*settings, "data.image_size=16", "data.order=quasi_random"])
    loader = training_loader(dataset, config, None, dataset.tokenizer())
    assert (by_pair(loader) == by_pair(make_loader(dataset, image_size=16, augment=ALL))).all()
    assert loader.state_dict()["order"] == "quasi_random of 64 blocks"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "augment.flip = 1.5 is not allowed: it must be a probability, 0 to 1"),
        ({"flip": True}, "augment.flip = True"),
        ({"grey": math.nan}, "augment.grey = nan"),
        ({"jitter": (0.1, 0.1, 0.1)}, r"augment.jitter = \(0.1, 0.1, 0.1\) .* four numbers"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "the hue's is 0.5 at most"),
        ({"jitter": "much"}, "augment.jitter = 'much'"),
        ({"cutout": -0.1}, "augment.cutout = -0.1 is not allowed: it must be a fraction"),
        ({"fill": (0, 0, 256)}, r'augment.fill = \(0, 0, 256\) is not allowed: it must be "mean" or three of 0 to 255'),
        ({"fill": "median"}, "augment.fill = 'median'"),
    ],
)
def test_wrong_changes_are_refused(options, message):
    with pytest.raises(CoreclipError, match=message):
        Augment(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": {"flip": 0.5}}, r"is not an Augment; pass e.g. Augment\(flip=0.5\)"),
        ({"augment": Augment(flip=0.5), "train": False}, "augment is for train=True only"),
        ({"augment": Augment(grey=0.5), "resident": "device"}, r'resident="device" knows no jitter, grey'),
        ({"crop": "centre"}, "crop = 'centre' is not allowed"),
        ({"crop": "shift"}, 'crop="shift" needs train=True and resident="device"'),
        ({"resident": "gpu"}, "resident = 'gpu' is not allowed"),
        ({"resident": "device", "device": "tpu9"}, "device = 'tpu9' can't be used: .*; use e.g. cpu or cuda"),
        (
            {"order": "shuffled"},
            "order = 'shuffled' is not allowed: it must be one of random, quasi_random, sequential",
        ),
        ({"window": 0}, "window = 0"),
        ({"world_size": 0}, "world_size = 0"),
        ({"rank": 2, "world_size": 2}, "rank = 2 is not allowed: it must be an integer from 0 to 1"),
        ({"operations": "flip"}, "operations = 'flip' is not allowed: it must be a list of FFCV operations"),
        ({"operations": [3]}, "operation 3 is none of FFCV's"),
        (
            {"drop_last": True, "batch_size": 5, "world_size": 3},
            "drop_last=True leaves no batch of 5 on 3 ranks of 13 pairs",
        ),
        ({"drop_last": True, "batch_size": 5, "world_size": 3, "train": False}, "leaves no batch of 5 on 3 ranks"),
    ],
)
def test_wrong_arguments_are_refused(dataset, options, message):
    with pytest.raises(CoreclipError, match=message):
        make_loader(dataset, **options)
