"""Images that stay on a device: the same pictures as the decoder's, without its work."""

import numpy as np
import pytest
import torch

from coreclip.pipeline import Augment, feeds
from coreclip.pipeline.loader import make_loader
from tests.helpers import make_dataset

N = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    images = {5: b"\xff\xd8\xff" + b"garbage" * 50}
    return make_dataset(tmp_path_factory.mktemp("resident") / "set", N, images=images, size=(48, 40))


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("augment", [None, Augment(flip=0.5)])
@pytest.mark.parametrize("train", [True, False])
def test_the_device_shows_what_the_decoder_shows(dataset, train, augment):
    options = {"train": train, "batch_size": 5, "image_size": 24, "crop_scale": (0.4, 0.9), "seed": 2}
    options["augment"] = augment if train else None
    here = list(make_loader(dataset, resident=True, **options))
    there = list(make_loader(dataset, resident="device", device="cpu", **options))
    for name in ("index", "tokens", "weight", "valid", "caption"):
        assert (joined(here, name) == joined(there, name)).all()
    assert there[0].images.dtype == torch.uint8
    assert there[0].images.is_contiguous(memory_format=torch.channels_last)
    difference = (joined(here, "images").int() - joined(there, "images").int()).abs()
    assert difference.max() <= (1 if train else 0)  # sums are rounded in another order
    assert not joined(there, "images")[~joined(there, "valid")].any()
    assert (~joined(there, "valid")).sum() == 1


def test_shifts_move_whole_pixels_reflect_and_flip(dataset):
    loader = make_loader(
        dataset, resident="device", crop="shift", image_size=16, subset=[3] * 300, augment=Augment(flip=0.5), seed=9
    )
    images = joined(list(loader), "images")
    plain = next(iter(make_loader(dataset, train=False, image_size=16, subset=[3]))).images[0].numpy()
    padded = np.pad(plain, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    moves = [padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    allowed = {move.tobytes() for move in moves} | {move[:, :, ::-1].tobytes() for move in moves}
    seen = {np.ascontiguousarray(image).tobytes() for image in images.numpy()}
    assert seen <= allowed
    assert len(seen) >= 45
    again = make_loader(dataset, resident="device", crop="shift", image_size=16, batch_size=7, subset=[3] * 300,
                        augment=Augment(flip=0.5), seed=9)  # fmt: skip
    assert (joined(list(again), "images") == images).all()


def test_later_epochs_decode_nothing(dataset, monkeypatch):
    loader = make_loader(dataset, resident="device", image_size=16, batch_size=5)
    first = list(loader)
    monkeypatch.setattr(feeds, "decode_images", None)
    second = list(loader)
    assert sorted(joined(first, "index").tolist()) == sorted(joined(second, "index").tolist()) == list(range(N))
    first[0].images.zero_()
    assert joined(second, "images")[joined(second, "valid")].flatten(1).any(1).all()


def test_another_subset_is_decoded_anew(dataset):
    loader = make_loader(dataset, resident="device", image_size=16, train=False, subset=[1, 2])
    list(loader)
    loader.set_subset([7, 7, 2])
    expected = make_loader(dataset, image_size=16, train=False, subset=[7, 7, 2])
    assert (joined(list(loader), "images") == joined(list(expected), "images")).all()


def test_ranks_fill_up_their_last_batch(dataset):
    batches = [
        list(
            make_loader(dataset, resident="device", image_size=16, batch_size=4, subset=[0, 1, 2], rank=r, world_size=2)
        )
        for r in (0, 1)
    ]
    lengths = [[len(batch) for batch in own] for own in batches]
    assert lengths == [[2], [2]]
    assert sorted(joined(batches[0] + batches[1], "index").tolist()) == [-1, 0, 1, 2]
    padding = batches[0][0] if -1 in batches[0][0].index else batches[1][0]
    assert not padding.images[padding.index == -1].any()
