"""Stock FFCV 1.0.2 reads every shard that we write, and sees what we see."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline.beton import MIN_PAGE, ShardWriter, read_shard
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.ffcv_loader import make_ffcv_loader
from tests.helpers import encode_jpeg, make_captions, make_dataset, make_pixels

pytestmark = pytest.mark.filterwarnings("ignore:Pytorch currently doesn't support uint16")
N, SIZE = 7, (48, 32)
# numba raises from the finaliser of some of FFCV's compiled functions: loaders live until the process ends.
ALIVE: list[Any] = []


def keep(loader: Any) -> Any:
    ALIVE.append(loader)
    return loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """Two shards, one size of images, JPEG and raw, one or two captions, labels."""
    path = tmp_path_factory.mktemp("parity") / "data"
    with make_dataset(path, N, size=SIZE, raw_every=3, captions_per_pair=(2, 1), labels=["a", "b", "c"]) as made:
        yield made


def read_with_ffcv(path: Path, n: int) -> dict[str, Any]:
    """Every field of a shard as the stock loader's stock decoders give it, in order."""
    from ffcv.loader import Loader, OrderOption

    loader = keep(Loader(str(path), batch_size=n, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False))
    (batch,) = iter(loader)
    return dict(zip(loader.reader.handlers, batch, strict=True))


@pytest.mark.parametrize("number", [0, 1])
def test_the_stock_loader_reads_every_field(dataset: Dataset, number: int) -> None:
    from ffcv.fields import JSONField

    first, n = [(0, 5), (5, 2)][number]
    indices = range(first, first + n)
    fields = read_with_ffcv(dataset.shard_path(number), n)
    assert list(fields) == dataset.info["fields"]
    assert fields["index"].numpy().ravel().tolist() == list(indices)
    assert fields["label"].numpy().ravel().tolist() == [i % 3 for i in indices]
    assert np.array_equal(fields["tokens"].numpy(), dataset.stored_tokens(indices))
    assert JSONField.unpack(fields["captions"]) == [make_captions(i, 2 - i % 2) for i in indices]
    for i, image in zip(indices, fields["image"].numpy(), strict=True):
        exact = i % 3 == 0  # raw pixels; FFCV decodes a JPEG with a faster, less exact transform than Pillow
        difference = np.abs(image.astype(int) - dataset.image(i).astype(int))
        assert difference.max() <= (0 if exact else 8), i
        assert difference.mean() <= 2


def test_stock_handlers_accept_our_descriptors_with_stock_type_ids(dataset: Dataset) -> None:
    from ffcv.fields import BytesField, IntField, NDArrayField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.types import get_metadata_type

    reader = Reader(str(dataset.shard_path(0)))
    assert [type(handler) for handler in reader.handlers.values()] == [
        RGBImageField, BytesField, NDArrayField, IntField, IntField,
    ]  # fmt: skip  # of a JSON field FFCV's reader makes a BytesField
    tokens = reader.handlers["tokens"]
    assert (tokens.dtype, tokens.shape) == (np.uint16, (2, 16))
    # The same handlers, made anew, would write the arguments that we wrote.
    for handler, descriptor in zip(reader.handlers.values(), reader.field_descriptors, strict=True):
        assert handler.to_binary()[0].tobytes() == descriptor["arguments"].tobytes()
    assert reader.metadata_type == get_metadata_type(list(reader.handlers.values()))


def test_our_tables_are_ffcvs(dataset: Dataset) -> None:
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    reader = Reader(str(dataset.shard_path(0)))
    sizes = OSCacheManager(reader).ptr_to_size
    with read_shard(dataset.shard_path(0)) as shard:
        assert np.array_equal(reader.metadata["f0"]["data_ptr"], shard.image_addresses)
        assert [sizes[address] for address in shard.image_addresses] == shard.image_sizes.tolist()
        assert [sizes[address] for address in shard.caption_addresses] == shard.caption_sizes.tolist()
        assert {sizes[address] for address in shard.token_addresses} == {2 * 16 * 2}


def test_we_read_what_the_stock_writer_writes_but_for_alignment(tmp_path: Path) -> None:
    """Our reader's layout is FFCV's: it gets as far as our own rule of aligned tokens, which FFCV has not."""
    from ffcv.fields import IntField, JSONField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    rows = [(make_pixels(i), ["x" * 10], np.full((2, 4), i, np.uint16), i) for i in range(2)]
    fields = {"image": RGBImageField(), "captions": JSONField(), "tokens": NDArrayField(np.dtype("<u2"), (2, 4)), "index": IntField()}  # fmt: skip
    DatasetWriter(str(tmp_path / "a.beton"), fields, page_size=MIN_PAGE, num_workers=1).from_indexed_dataset(rows)
    with pytest.raises(CoreclipError, match="token address of row 0 is 2101775, it must be a multiple of 8"):
        read_shard(tmp_path / "a.beton")


def test_stock_ffcv_refuses_an_unfinished_shard(tmp_path: Path) -> None:
    from ffcv.reader import Reader

    path = tmp_path / "a.beton"
    writer = ShardWriter(path, captions_per_row=1, context=4, labels=False, max_rows=9)
    for i in range(4):
        writer.add(bytes(MIN_PAGE - 100), "jpg", 9, 9, ["a"], np.zeros((1, 4), np.uint16), i)
    with pytest.raises(AssertionError, match="file format mismatch"):
        Reader(str(path))
    writer.close()
    assert Reader(str(path)).num_samples == 4


def test_stock_process_cache_reads_pages_too(dataset: Dataset) -> None:
    from ffcv.loader import Loader, OrderOption

    loader = Loader(str(dataset.shard_path(0)), batch_size=5, num_workers=1, os_cache=False, order=OrderOption.SEQUENTIAL,
                    pipelines={"image": None, "captions": None, "label": None})  # fmt: skip
    ((tokens, index),) = iter(keep(loader))
    assert np.array_equal(tokens.numpy(), dataset.stored_tokens(range(5)))
    assert index.numpy().ravel().tolist() == list(range(5))


def centre(image: np.ndarray, width: int) -> np.ndarray:
    """The middle of an image, brought to 32 x 32 pixels, as float64 (3, 32, 32)."""
    left = (image.shape[1] - width) // 2
    part = Image.fromarray(image[:, left : left + width]).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(part, float).transpose(2, 0, 1)


@pytest.mark.parametrize("train", [True, False])
def test_make_ffcv_loader_keeps_the_pairs(dataset: Dataset, train: bool) -> None:
    # FFCV's seed does not reach its crops, so the scale is one of which none fits: the crop is the fallback, the centre.
    loader = make_ffcv_loader(
        dataset, 0, batch_size=2, image_size=32, train=train, crop_scale=(0.95, 1.0), workers=1, seed=3
    )
    keep(loader)
    seen = []
    for images, tokens, index in loader:
        assert images.shape == (len(index), 3, 32, 32)
        numbers = index.numpy().ravel()
        assert np.array_equal(tokens.numpy(), dataset.stored_tokens(numbers))
        for image, i in zip(images.numpy(), numbers, strict=True):
            # No crop of 95 % fits into 48 x 32 with FFCV's aspect ratios: it takes the widest one, 4 to 3.
            expected = centre(dataset.image(i), 43 if train else 32)
            assert np.abs(image - expected).mean() < 5
        seen += numbers.tolist()
    assert sorted(seen) == list(range(5))
    assert (seen == sorted(seen)) is not train


def test_make_ffcv_loader_visits_the_given_rows_of_any_shard(dataset: Dataset) -> None:
    loader = make_ffcv_loader(dataset, 1, batch_size=4, image_size=16, train=False, workers=1, rows=[1])
    ((images, _, index),) = iter(keep(loader))
    assert (images.shape, index.tolist()) == ((1, 3, 16, 16), [[6]])


def test_a_data_set_without_labels_has_a_stock_loader_too(tmp_path: Path) -> None:
    with make_dataset(tmp_path / "data", 3) as made:
        ((images, *_),) = iter(keep(make_ffcv_loader(made, batch_size=3, image_size=16, train=False, workers=1)))
        assert images.shape == (3, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shard": 2}, "shard 2 is not in .*: it must be 0 to 1"),
        ({"batch_size": 0}, "batch_size = 0 is not allowed: 1 or more"),
        ({"image_size": 0}, "image_size = 0 is not allowed"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale = \(0.5, 1.5\) is not allowed"),
        ({"workers": 0}, "workers = 0 is not allowed"),
        ({"rows": [True, False]}, "rows = .* is not allowed: a list of integers"),
        ({"rows": []}, "a list of integers, not empty"),
        ({"rows": [0, 5]}, "row 5 is not in the shard: rows must be 0 to 4"),
    ],
)
def test_arguments_that_ffcv_would_take_without_a_word_are_refused(
    dataset: Dataset, arguments: Any, message: str
) -> None:
    with pytest.raises(CoreclipError, match=message):
        make_ffcv_loader(dataset, **arguments)


def test_a_jpeg_is_stored_untouched(dataset: Dataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset.image_bytes(1) == encode_jpeg(make_pixels(1, *SIZE))
