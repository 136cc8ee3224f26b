"""The twenty known defects of FFCV 1.0.2: stock FFCV has each, and none is reachable through coreclip.

One check judges both wherever both can be asked the same question. Costs are counted, never timed.
"""

import gc
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Barrier
from pathlib import Path
from typing import Any

import numba.core.event
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert, feeds, make_loader
from coreclip.pipeline.beton import MIN_PAGE, ShardWriter, read_shard
from coreclip.pipeline.dataset import ShardSet
from coreclip.pipeline.workers import WorkerPool
from tests.helpers import encode_jpeg, make_captions, make_dataset, make_pixels

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pytorch currently doesn't support uint16"),
    pytest.mark.filterwarnings("ignore:WebDataset.shardshuffle"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]
SIZE = (48, 32)
IMAGE_ONLY = {"captions": None, "tokens": None, "index": None}
INDEX_ONLY = {"captions": None, "tokens": None, "image": None}
SMALL = {"vocab_size": 300, "context": 16}
# numba raises from the finaliser of some of FFCV's compiled functions: loaders live until the process ends.
ALIVE: list[Any] = []


def stock_loader(path: Path, **options: Any) -> Any:
    """Return a stock loader of one thread, in order, whose ring has three slots."""
    from ffcv.loader import Loader, OrderOption

    defaults = {"batch_size": 1, "num_workers": 1, "order": OrderOption.SEQUENTIAL, "drop_last": False}
    loader = Loader(str(path), **(defaults | {"batches_ahead": 1} | options))
    ALIVE.append(loader)
    return loader


def stock_write(path: Path, fields: dict[str, Any], rows: Any, workers: int = 1, **options: Any) -> Path:
    """Write a file with the stock writer."""
    from ffcv.writer import DatasetWriter

    DatasetWriter(str(path), fields, page_size=MIN_PAGE, num_workers=workers).from_indexed_dataset(rows, **options)
    return path


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def encode(pixels: np.ndarray, mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def picture(index: int) -> np.ndarray:
    return make_pixels(index, *SIZE)


def wrong_images(delivered: dict[int, np.ndarray | None]) -> list[int]:
    """Return the indices whose delivered pixels, uint8 (32, 48, 3), are not their own picture; None is "I have none"."""
    return [
        index
        for index, pixels in delivered.items()
        if pixels is not None and np.abs(pixels.astype(int) - picture(index)).mean() > 3
    ]


def stock_images(path: Path) -> dict[int, np.ndarray | None]:
    batches = stock_loader(path, pipelines=IMAGE_ONLY)
    return {index: batch[0].numpy()[0].copy() for index, batch in enumerate(batches)}


def our_images(dataset: Dataset, subset: Sequence[int] | None = None) -> dict[int, np.ndarray | None]:
    """Return what our loader's centre crops of full height say, laid back into full pictures, and None where invalid."""
    delivered: dict[int, np.ndarray | None] = {}
    for batch in make_loader(dataset, subset=subset, train=False, batch_size=1, image_size=SIZE[1], prefetch=1):
        index = int(batch.index[0])
        square = batch.images[0].permute(1, 2, 0).numpy()
        whole = picture(index)
        whole[:, (SIZE[0] - SIZE[1]) // 2 : (SIZE[0] + SIZE[1]) // 2] = square
        if batch.valid[0]:
            delivered[index] = whole
        else:
            assert not square.any()
            assert batch.weight[0] == 0
            delivered[index] = None
    return delivered


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """Ten pairs of one size in one shard, nothing wrong with them."""
    with make_dataset(tmp_path_factory.mktemp("defects") / "data", 10, rows_per_shard=10, size=SIZE) as made:
        yield made


@pytest.fixture(scope="module")
def several_shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """The same ten pairs in four shards."""
    with make_dataset(tmp_path_factory.mktemp("defects") / "data", 10, rows_per_shard=3, size=SIZE) as made:
        yield made


@pytest.fixture(scope="module")
def difficult(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ten pairs, of which some are hard or bad, as ``convert`` takes them, once with one worker and once with two."""
    folder = tmp_path_factory.mktemp("difficult")
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    images = {i: encode_jpeg(picture(i)) for i in range(10)} | {
        2: b"\xff\xd8\xff" + b"garbage" * 9,
        3: encode(picture(3), "CMYK", quality=95),
        4: encode_jpeg(picture(4))[:-200],
        5: encode(np.rot90(picture(5)).copy(), quality=95, exif=exif),
        7: b"",
        8: encode_jpeg(noise, quality=100),
    }
    captions = {i: f"picture {i}" for i in range(10)} | {6: ""}
    samples = {f"{i:04d}": {"jpg": images[i], "txt": captions[i].encode()} for i in range(10)}
    source = write_tar(folder / "pairs.tar", samples)
    submitted: list[int] = []
    shared_memory: set[str] = set()
    before = shared_memory_maps()

    class WatchedPool(WorkerPool):
        """Counts the images that workers are asked to prepare, and looks at the memory that all share."""

        def submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            shared_memory.update(shared_memory_maps(self.pids) - before)
            submitted.append(inspect.signature(function).bind(*arguments).arguments.get("n_records", 0))
            return super().submit(function, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("coreclip.pipeline.convert"), "WorkerPool", WatchedPool)
        reports = [convert([source], folder / f"by-{workers}", workers=workers, **SMALL) for workers in (1, 2)]
    return {
        "images": images, "reports": reports, "folders": [folder / "by-1", folder / "by-2"],
        "submitted": sum(submitted), "shared_memory": shared_memory,
    }  # fmt: skip


def shared_memory_maps(pids: Sequence[int] = ()) -> set[str]:
    """Return the files of /dev/shm that this process and others have mapped."""
    maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in ["self", *pids]]
    return {line.split(maxsplit=5)[5] for lines in maps for line in lines if "/dev/shm/" in line}


@pytest.fixture(scope="module")
def hangs(whole: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What stock FFCV does in a process of its own, and the files that its writers leave behind."""
    folder = tmp_path_factory.mktemp("hangs")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.parity.ffcv_hangs", str(whole.shard_path(0)), str(folder)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(done.stdout) | {"folder": folder}


def test_01_a_failed_decode_delivers_another_image(tmp_path: Path) -> None:
    bad = {4: b"\xff\xd8\xff" + b"garbage" * 9, 5: encode(picture(5), "CMYK"), 7: encode_jpeg(picture(7))[:-300]}
    with make_dataset(tmp_path / "data", 9, rows_per_shard=9, size=SIZE, images=bad) as dataset:
        stock = stock_images(dataset.shard_path(0))
        ours = our_images(dataset)
    assert wrong_images(stock) == [4, 5, 7]
    # The ring has three slots: a slot that the decoder leaves alone still shows the picture of three batches before.
    assert np.array_equal(stock[4], stock[1])
    assert np.array_equal(stock[5], stock[2])
    assert wrong_images(ours) == []
    assert [index for index, pixels in ours.items() if pixels is None] == [4, 5, 7]


def without_segments(jpeg: bytes, marker: int) -> bytes:
    """Return a JPEG without its header's segments of one kind."""
    kept, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        kept += b"" if jpeg[at + 1] == marker else jpeg[at:end]
        at = end
    return kept + jpeg[at:]


def test_01_an_image_without_tables_is_decoded_with_anothers(tmp_path: Path) -> None:
    """libjpeg keeps a decompressor's tables: a decoder that serves several files lends those of one to the next."""
    lender = {i: encode_jpeg(picture(i), quality=60, optimize=True) for i in (0, 2)}
    borrowers = {
        1: without_segments(encode_jpeg(picture(1), quality=95), 0xDB),  # can't be decoded
        3: without_segments(encode_jpeg(picture(3)), 0xC4),  # to be decoded with the standard's tables
    }
    with make_dataset(tmp_path / "data", 5, rows_per_shard=5, size=SIZE, images=lender | borrowers) as dataset:
        assert 1 in wrong_images(stock_images(dataset.shard_path(0)))
        valid = {}
        for order in ([0, 1, 2, 3, 4], [4, 3, 1, 2, 0], [1], [3]):
            ours = our_images(dataset, order)
            assert wrong_images(ours) == []
            for index, pixels in ours.items():
                assert valid.setdefault(index, pixels is not None) is (pixels is not None), (index, order)
    assert not valid[1]


def test_01_conversion_stores_what_can_be_decoded_and_names_the_rest(difficult: dict[str, Any]) -> None:
    dataset = Dataset(difficult["folders"][0])
    keys = [int(key) for key in dataset.keys]
    rejects = pd.read_parquet(dataset.path / "rejects.parquet").set_index("key")["reason"]
    assert sorted([*keys, *map(int, rejects.index)]) == list(range(10))
    for key, reason in {2: "no frame header", 4: "cut short or damaged", 6: "no caption", 7: "0 bytes"}.items():
        assert reason in rejects[f"{key:04d}"]
    for index, key in enumerate(keys):
        if key != 8:
            assert np.abs(dataset.image(index).astype(int) - picture(key)).mean() < 4


def test_02_an_empty_caption_breaks_the_next_image(tmp_path: Path, difficult: dict[str, Any]) -> None:
    from ffcv.fields import BytesField, RGBImageField

    rows = [
        (np.frombuffer(text, np.uint8), picture(i)) for i, text in enumerate([b"a caption", b"", b"another", b"one"])
    ]
    path = stock_write(tmp_path / "stock.beton", {"captions": BytesField(), "image": RGBImageField()}, rows)
    batches = stock_loader(path, pipelines={"captions": None})
    assert wrong_images({i: batch[0].numpy()[0].copy() for i, batch in enumerate(batches)}) == [1]

    with ShardWriter(tmp_path / "ours.beton", captions_per_row=1, context=4, labels=False, max_rows=4) as writer:
        for i, text in enumerate(["a caption", "", "another", "one"]):
            tokens = np.zeros((1, 4), np.uint16)
            writer.add(picture(i).tobytes(), "raw", *SIZE, [text], tokens, i)
    with read_shard(tmp_path / "ours.beton") as shard:
        pixels = {i: np.frombuffer(shard.image_bytes(i), np.uint8).reshape(32, 48, 3) for i in range(4)}
        assert shard.captions(1) == [""]
        assert shard.caption_sizes.min() > 0
    assert wrong_images(pixels) == []
    assert wrong_images(stock_images(tmp_path / "ours.beton")) == []
    dataset = Dataset(difficult["folders"][0])
    rejects = pd.read_parquet(dataset.path / "rejects.parquet").set_index("key")["reason"]
    assert "0006" not in dataset.keys
    assert rejects["0006"] == "no caption"


def test_03_wrong_dimensions_decode_to_scrambled_pixels(tmp_path: Path, difficult: dict[str, Any]) -> None:
    turned = encode_jpeg(np.rot90(picture(2)).copy())  # 32 x 48 pixels, where the table says 48 x 32
    with make_dataset(tmp_path / "data", 4, rows_per_shard=4, size=SIZE, images={2: turned}) as dataset:
        assert wrong_images(stock_images(dataset.shard_path(0))) == [2]
        ours = our_images(dataset)
        assert wrong_images(ours) == []
        assert ours[2] is None
        with pytest.raises(CoreclipError, match="it has 32 x 48 pixels, not 48 x 32"):
            dataset.image(2)
    # What is to be turned is stored upright, under the dimensions of the stored file's own header.
    converted = Dataset(difficult["folders"][0])
    index = list(converted.keys).index("0005")
    with Image.open(io.BytesIO(converted.image_bytes(index))) as image:
        assert image.size == SIZE == (converted.pairs["width"][index], converted.pairs["height"][index])
        assert image.getexif().get(0x0112, 1) == 1


def test_04_bytes_come_padded_and_with_anothers_tail(tmp_path: Path) -> None:
    from ffcv.fields import BytesField

    texts = [make_captions(i, 1)[0] + " and more" * (5 if i == 0 else 0) for i in range(6)]
    rows = [(np.frombuffer(text.encode(), np.uint8),) for text in texts]
    path = stock_write(tmp_path / "stock.beton", {"captions": BytesField()}, rows)
    stock = [bytes(batch[0].numpy()[0]) for batch in stock_loader(path)]
    assert {len(text) for text in stock} == {len(texts[0])}  # all as long as the longest, and no length beside them
    assert stock[3] == (texts[3] + texts[0][len(texts[3]) :]).encode()  # the slot's text before

    with make_dataset(tmp_path / "data", 6, captions_per_pair=(3, 1)) as dataset:
        expected = [make_captions(i, 1 if i % 2 else 3) for i in range(6)]
        assert [dataset.captions(i) for i in range(6)] == expected
        tokenizer = dataset.tokenizer()
        for batch in make_loader(dataset, batch_size=1, image_size=8, prefetch=1):
            text = expected[int(batch.index[0])][int(batch.caption[0])]
            assert np.array_equal(batch.tokens.numpy(), tokenizer.encode([text], dataset.context))


def test_05_filter_returns_positions_and_forgets_custom_fields(whole: Dataset) -> None:
    chosen = np.array([4, 5, 6, 7])
    loader = stock_loader(whole.shard_path(0), indices=chosen, pipelines=INDEX_ONLY)
    kept = loader.filter("index", lambda index: index.item() >= 6)
    ALIVE.append(kept)
    assert kept.indices.tolist() == [2, 3]
    assert "custom_fields" not in kept._args

    ours = make_loader(whole, subset=chosen, train=False, image_size=8)
    index = next(iter(ours)).index
    ours.set_subset(index[index >= 6].numpy())
    assert next(iter(ours)).index.tolist() == [6, 7]


def test_06_indices_are_not_checked(whole: Dataset, hangs: dict[str, Any]) -> None:
    outside = [0, 11]
    (batch,) = stock_loader(whole.shard_path(0), indices=outside, pipelines=INDEX_ONLY, batch_size=2)
    assert len(batch[0]) == 2  # the second row is what memory holds behind the table
    mask = np.arange(10) >= 7
    loader = stock_loader(whole.shard_path(0), indices=mask, pipelines=INDEX_ONLY)
    assert len(loader) == 10
    assert loader.indices.dtype == bool
    assert hangs["duplicates raise"]

    with pytest.raises(CoreclipError, match="subset has the index 11"):
        make_loader(whole, subset=outside)
    with pytest.raises(CoreclipError, match=r"turn a mask into them with numpy.flatnonzero\(mask\)"):
        make_loader(whole, subset=mask)
    with pytest.raises(CoreclipError, match="index 11 is not in"):
        whole.image(11)
    batch = next(iter(make_loader(whole, subset=[0, 0, 1, 1, 2], train=False, image_size=8)))
    assert batch.index.tolist() == [0, 0, 1, 1, 2]


def test_07_the_seed_does_not_reach_the_crops(whole: Dataset) -> None:
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder

    def repeats(epoch: Callable[[], np.ndarray]) -> bool:
        return np.array_equal(epoch(), epoch())

    pipelines = IMAGE_ONLY | {"image": [RandomResizedCropRGBImageDecoder((16, 16), scale=(0.2, 0.9))]}
    loader = stock_loader(whole.shard_path(0), seed=3, batch_size=10, pipelines=pipelines)

    def stock_epoch() -> np.ndarray:
        loader.next_epoch = 0
        ((images,),) = loader
        return images.copy()

    def our_epoch() -> np.ndarray:
        ours = make_loader(whole, batch_size=10, image_size=16, crop_scale=(0.2, 0.9), seed=3)
        return next(iter(ours)).images.numpy()

    assert not repeats(stock_epoch)
    assert repeats(our_epoch)


def test_08_a_list_of_batches_repeats_a_few(whole: Dataset) -> None:
    stock = [int(index[0]) for (index,) in list(stock_loader(whole.shard_path(0), pipelines=INDEX_ONLY))]
    ours = [int(batch.index[0]) for batch in list(make_loader(whole, train=False, batch_size=1, image_size=8))]
    assert len(stock) == 10
    assert len(set(stock)) == 3
    assert ours == list(range(10))


def clip_preprocess(image: np.ndarray, size: int) -> np.ndarray:
    """Return CLIP's evaluation view by Pillow: shortest side to ``size``, bicubic, centre crop; float64 (size, size, 3)."""
    height, width = image.shape[:2]
    shortest = min(width, height)
    resized = Image.fromarray(image).resize(
        (size * width // shortest, size * height // shortest), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)), float)


def test_09_the_centre_crop_is_not_clips(tmp_path: Path) -> None:
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder

    coarse = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((611, 403), Image.Resampling.BICUBIC))

    with make_dataset(tmp_path / "data", 1, size=(611, 403), images={0: encode_jpeg(image)}) as dataset:
        expected = clip_preprocess(dataset.image(0), 224)

        def is_clips(view: np.ndarray) -> bool:
            difference = view.astype(float) - expected
            psnr = 10 * math.log10(255**2 / (difference**2).mean())
            return bool(np.abs(difference).mean() <= 1 and psnr >= 38)

        pipelines = IMAGE_ONLY | {"image": [CenterCropRGBImageDecoder((224, 224), ratio=1.0)]}
        ((stock,),) = stock_loader(dataset.shard_path(0), pipelines=pipelines)
        assert not is_clips(stock[0])
        ours = next(iter(make_loader(dataset, train=False, image_size=224)))
        assert is_clips(ours.images[0].permute(1, 2, 0).numpy())


def test_10_field_names_are_cut(tmp_path: Path) -> None:
    from ffcv.fields import IntField
    from ffcv.reader import Reader

    names = ["caption_in_english", "caption_in_english_too"]
    path = stock_write(tmp_path / "stock.beton", {name: IntField() for name in names}, [(1, 2), (3, 4)])
    assert list(Reader(str(path)).handlers) == ["caption_in_engli"]  # and the second one is gone

    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encode_jpeg(picture(0)))
    pd.DataFrame({"image": ["a.jpg"], "caption": ["a dog"], names[0]: [1], names[1]: [2]}).to_csv(
        folder / "captions.csv", index=False
    )
    convert([folder], tmp_path / "data", workers=1, **SMALL)
    dataset = Dataset(tmp_path / "data")
    assert [int(dataset.pairs[name][0]) for name in names] == [1, 2]
    assert list(Reader(str(dataset.shard_path(0))).handlers) == dataset.info["fields"]


def test_11_the_writer_hangs_when_a_worker_raises(
    hangs: dict[str, Any], difficult: dict[str, Any], tmp_path: Path
) -> None:
    assert not hangs["a whole source hangs"]
    assert hangs["a raising sample hangs"]
    assert hangs["an oversize sample hangs"]

    # The same two: samples that can't be read, and one larger than a page of the default size.
    dataset = Dataset(difficult["folders"][0])
    assert len(difficult["images"][8]) > MIN_PAGE
    assert dataset.image_bytes(list(dataset.keys).index("0008")) == difficult["images"][8]
    with WorkerPool(1) as pool, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        pool.submit(divmod, 1, 0).result(timeout=60)
    with (
        pytest.raises(CoreclipError, match="the page has 2097152; choose a larger one"),
        ShardWriter(tmp_path / "a.beton", captions_per_row=1, context=4, labels=False, max_rows=1) as writer,
    ):
        writer.add(bytes(MIN_PAGE + 1), "jpg", 9, 9, ["a"], np.zeros((1, 4), np.uint16), 0)
    assert not (tmp_path / "a.beton").exists()


def opens(reader: Callable[[str], Any], path: Path) -> bool:
    try:
        reader(str(path))
    except (CoreclipError, AssertionError):
        return False
    return True


def test_12_a_half_written_file_looks_whole(hangs: dict[str, Any], tmp_path: Path) -> None:
    from ffcv.reader import Reader

    stock = hangs["folder"] / "raising.beton"  # its writer was killed
    assert opens(Reader, stock)
    assert (Reader(str(stock)).num_samples, int(Reader(str(stock)).header["alloc_table_ptr"])) == (4, 0)
    assert not opens(read_shard, stock)

    ours = tmp_path / "ours.beton"
    writer = ShardWriter(ours, captions_per_row=1, context=4, labels=False, max_rows=9)
    for i in range(4):
        writer.add(bytes(MIN_PAGE - 100), "jpg", 9, 9, ["a"], np.zeros((1, 4), np.uint16), i)
    assert ours.stat().st_size > MIN_PAGE
    assert not opens(read_shard, ours)
    assert not opens(Reader, ours)
    writer.close()
    assert opens(read_shard, ours)
    assert opens(Reader, ours)


def test_12_finalize_swallows_every_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv.fields import RGBImageField
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.reader import Reader

    monkeypatch.setattr(MemoryAllocator, "set_current_sample", lambda self, _: setattr(self, "current_sample_id", "x"))
    path = stock_write(tmp_path / "stock.beton", {"image": RGBImageField()}, [(picture(i),) for i in range(2)])
    assert len(Reader(str(path)).alloc_table) == 0  # of two samples, and without a word
    assert opens(Reader, path)

    writer = ShardWriter(tmp_path / "ours.beton", captions_per_row=1, context=4, labels=False, max_rows=2)
    writer.add(picture(0).tobytes(), "raw", *SIZE, ["a"], np.zeros((1, 4), np.uint16), 0)

    def fail(_: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        writer.close()
    assert not opens(read_shard, tmp_path / "ours.beton")


def test_13_the_loader_hangs_and_leaks(hangs: dict[str, Any], whole: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hangs["a raising pipeline hangs"]
    assert hangs["threads after a break"] == 1

    def fail(*_: Any) -> None:
        raise RuntimeError("this operation fails")

    before = threading.active_count()
    loader = make_loader(whole, batch_size=1, image_size=8)
    for _ in loader:
        break
    gc.collect()
    assert threading.active_count() == before
    with monkeypatch.context() as patch:
        patch.setattr(feeds, "decode_images", fail)
        with pytest.raises(RuntimeError, match="this operation fails"):
            next(iter(loader))
    gc.collect()
    assert threading.active_count() == before
    assert len(list(loader)) == 10


def test_14_metadata_fill_shared_memory(tmp_path: Path, difficult: dict[str, Any]) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    writer = DatasetWriter(
        str(tmp_path / "stock.beton"), {"image": RGBImageField(), "label": IntField()}, num_workers=1
    )
    writer.num_samples = 100_000
    before = shared_memory_maps()
    writer.prepare()
    try:
        (name,) = shared_memory_maps() - before
        assert os.stat(name).st_size == 24 * writer.num_samples
    finally:
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()
    assert difficult["shared_memory"] == set()


def test_15_every_sample_is_read_twice(tmp_path: Path, difficult: dict[str, Any]) -> None:
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    n = 5
    source = write_tar(tmp_path / "pairs.tar", {str(i): {"jpg": encode_jpeg(picture(i))} for i in range(n)})
    log = tmp_path / "decoded"

    def pipeline(samples: Any) -> Iterator[tuple[np.ndarray]]:
        for sample in samples:
            with open(log, "a") as file:  # the stock writer counts in threads and writes in other processes
                file.write(".")
            yield (np.asarray(Image.open(io.BytesIO(sample["jpg"]))),)

    writer = DatasetWriter(str(tmp_path / "stock.beton"), {"image": RGBImageField()}, page_size=MIN_PAGE, num_workers=1)
    writer.from_webdataset([str(source)], pipeline)
    assert len(log.read_text()) == 2 * n
    # Each of two conversions asks its workers for the images that have bytes and a caption, once.
    assert difficult["submitted"] == 2 * (len(difficult["images"]) - 2)


def test_15_bytes_vary_with_the_number_of_workers(tmp_path: Path, difficult: dict[str, Any]) -> None:
    from ffcv.fields import RGBImageField

    class Samples:
        """Both workers begin before one of them ends: by chance, one could do all the work."""

        def __init__(self, workers: int) -> None:
            self.barrier = Barrier(workers)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[np.ndarray]:
            self.barrier.wait(60)
            return (picture(index),)

    def same(paths: Sequence[Path]) -> bool:
        return len({hashlib.sha256(path.read_bytes()).digest() for path in paths}) == 1

    def stock(workers: int) -> Path:
        path = tmp_path / f"stock-{workers}.beton"
        return stock_write(path, {"image": RGBImageField()}, Samples(workers), workers, chunksize=1)

    assert not same([stock(workers) for workers in (1, 2)])
    names = [sorted(path.name for path in folder.iterdir()) for folder in difficult["folders"]]
    assert names[0] == names[1]
    for name in names[0]:
        assert same([folder / name for folder in difficult["folders"]]), name


def test_16_one_large_image_asks_for_gigabytes(tmp_path: Path) -> None:
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder

    width, height, batch_size, batches_ahead = 6000, 4000, 256, 3
    large = encode_jpeg(np.full((height, width, 3), 99, np.uint8), quality=50)
    source = write_tar(tmp_path / "pairs.tar", {"0": {"jpg": large, "txt": b"a grey wall"}})
    convert([source], tmp_path / "data", workers=1, **SMALL)
    with Dataset(tmp_path / "data") as dataset:
        pipelines = IMAGE_ONLY | {"image": [CenterCropRGBImageDecoder((64, 64), ratio=1.0)]}
        loader = stock_loader(dataset.shard_path(0), pipelines=pipelines)
        (queries,) = [query for query in loader.graph.collect_requirements()[0]["operation"].values() if query]
        n_bytes = sum(math.prod(map(int, query.shape)) * query.dtype.itemsize for query in queries)
        assert n_bytes * batch_size * (batches_ahead + 2) > 90e9

        ours = make_loader(dataset, batch_size=batch_size, image_size=64, prefetch=batches_ahead, train=False)
        tracemalloc.start()  # numpy tells it of its arrays
        try:
            (batch,) = ours
            assert tracemalloc.get_traced_memory()[1] < 100e6
        finally:
            tracemalloc.stop()
        assert batch.valid.all()


def test_17_opening_makes_python_objects_of_every_allocation(tmp_path: Path, whole: Dataset) -> None:
    from ffcv.memory_managers import OSCacheManager
    from ffcv.memory_managers.base import MemoryContext
    from ffcv.memory_managers.os_cache import OSCacheContext
    from ffcv.reader import Reader

    n = 5000
    path = tmp_path / "many.beton"
    with ShardWriter(path, captions_per_row=1, context=4, labels=False, max_rows=n) as writer:
        for i in range(n):
            writer.add(b"pix", "raw", 1, 1, ["a"], np.zeros((1, 4), np.uint16), i)

    def objects_made(opener: Callable[[], Any]) -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        ALIVE.append(opener())
        gc.collect()
        return sys.getallocatedblocks() - before

    assert objects_made(lambda: OSCacheManager(Reader(str(path)))) > 2 * n
    dataset = make_dataset(tmp_path / "data", n, rows_per_shard=n, size=(1, 1), raw_every=1)
    assert objects_made(dataset.open_shards) < 1000
    assert OSCacheContext.start_batch is MemoryContext.start_batch  # which reads nothing ahead


def test_17_reads_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[int] = []

    def prefetch(_: ShardSet, indices: np.ndarray, windows: set[int] | None = None) -> None:
        announced.extend(indices.tolist())

    monkeypatch.setattr(ShardSet, "prefetch", prefetch)
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    with make_dataset(
        tmp_path / "data", 4, size=(100, 100), images={i: encode_jpeg(noise) for i in range(4)}
    ) as dataset:
        list(make_loader(dataset, batch_size=2, image_size=8, train=False))
    assert announced == [0, 1, 2, 3]


def test_18_every_image_is_encoded_again(
    difficult: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ffcv.fields import RGBImageField, rgb_image

    source = encode_jpeg(picture(0))
    pixels = np.asarray(Image.open(io.BytesIO(source)))
    encoded: list[np.ndarray] = []

    def recorded(
        image: np.ndarray, quality: int, encode_jpeg: Callable[..., Any] = rgb_image.encode_jpeg
    ) -> np.ndarray:
        encoded.append(encode_jpeg(image, quality))
        return encoded[-1]

    monkeypatch.setattr(rgb_image, "encode_jpeg", recorded)
    for mode, threshold in (("jpg", None), ("smart", 1 << 40)):
        field = RGBImageField(write_mode=mode, smart_threshold=threshold)
        stored = bytearray(pixels.nbytes)
        row = np.zeros(1, field.metadata_type)
        field.encode(row, pixels, lambda size, room=stored: (0, np.frombuffer(room, np.uint8)[:size]))
        assert source not in bytes(stored)
    assert len(encoded) == 2
    assert row["mode"] == 1  # "smart" has thrown its JPEG away

    for folder in difficult["folders"]:
        dataset = Dataset(folder)
        untouched = 0
        for index, key in enumerate(dataset.keys):
            untouched += dataset.image_bytes(index) == difficult["images"][int(key)]
        assert untouched == (~dataset.pairs["transcoded"]).sum() >= 4


def test_19_one_file_and_no_way_to_one_sample(several_shards: Dataset) -> None:
    from ffcv.loader import Loader

    with pytest.raises(AttributeError, match="'list' object"):
        Loader([str(several_shards.shard_path(i)) for i in range(4)], 1)
    with pytest.raises(IsADirectoryError):
        Loader(str(several_shards.path), 1)
    loader = stock_loader(several_shards.shard_path(0), pipelines=INDEX_ONLY)
    assert len(loader) == 3
    with pytest.raises(TypeError, match="not subscriptable"):
        loader[0]
    assert not {"append", "concat", "merge", "batch"} & set(dir(Loader))

    assert len(several_shards.info["shards"]) == 4
    assert wrong_images({i: several_shards.image(i) for i in (9, 0, 4)}) == []
    batch = next(iter(make_loader(several_shards, subset=[9, 0, 4, 4], train=False, image_size=8)))
    assert batch.index.tolist() == [9, 0, 4, 4]
    assert wrong_images(our_images(several_shards)) == []


COMPILED = """
import json, sys
import numba.core.event
from coreclip.pipeline import Dataset, make_loader
with numba.core.event.install_recorder("numba:compile") as recorder:
    batches = list(make_loader(Dataset(sys.argv[1]), image_size=16, batch_size=4))
print(json.dumps([len(batches), len(recorder.buffer), "ffcv" in sys.modules]))
"""


def test_20_every_process_compiles_again(whole: Dataset) -> None:
    list(make_loader(whole, image_size=16, batch_size=4))
    with numba.core.event.install_recorder("numba:compile") as recorder:
        list(stock_loader(whole.shard_path(0), pipelines=INDEX_ONLY))
        list(stock_loader(whole.shard_path(0), pipelines=INDEX_ONLY))
    # Even the second loader of a process, made from the same arguments.
    names = [event.data["dispatcher"].__name__ for _, event in recorder.buffer if event.is_start]
    assert names.count("decoder") == 2
    assert all(
        isinstance(event.data["dispatcher"]._cache, numba.core.caching.NullCache) for _, event in recorder.buffer
    )

    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(whole.path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == [3, 0, False]
