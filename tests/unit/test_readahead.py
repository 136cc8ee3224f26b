"""Reading ahead: what is asked for covers the rows that are wanted and little else, and is asked for in time."""

import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreclip.pipeline import readahead
from coreclip.pipeline.dataset import Dataset, ShardSet
from coreclip.pipeline.loader import make_loader
from coreclip.pipeline.readahead import ReadAhead, page_runs
from tests.helpers import make_dataset

PAGE = mmap.PAGESIZE
KIB = 1024


def test_neighbouring_pages_are_one_run() -> None:
    first = np.array([100 * PAGE + 5, 3, 2 * PAGE, 60 * PAGE], np.uint64)
    end = np.array([100 * PAGE + 6, PAGE + 1, 3 * PAGE, 62 * PAGE + 1], np.uint64)
    start, stop = page_runs(first, end)
    assert (start // PAGE).tolist() == [0, 60, 100]
    assert (stop // PAGE).tolist() == [3, 63, 101]


def test_a_run_ends_with_its_longest_row() -> None:
    start, stop = page_runs(np.array([0, PAGE], np.uint64), np.array([50 * PAGE, 2 * PAGE], np.uint64))
    assert (start.tolist(), stop.tolist()) == ([0], [50 * PAGE])


def test_nothing_has_no_run() -> None:
    start, stop = page_runs(np.array([], np.uint64), np.array([], np.uint64))
    assert (len(start), len(stop)) == (0, 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Address and bytes of each request."""
    requests: list[tuple[int, int]] = []
    real = readahead._madvise

    def advise(address: int, n_bytes: int, advice: int) -> int:
        assert advice == mmap.MADV_WILLNEED
        requests.append((address, n_bytes))
        return real(address, n_bytes, advice)

    monkeypatch.setattr(readahead, "_madvise", advise)
    return requests


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """Forty raw images of 200 x 150 pixels, 90,000 bytes, in four shards."""
    path = tmp_path_factory.mktemp("large") / "data"
    with make_dataset(path, 40, rows_per_shard=10, size=(200, 150), raw_every=1) as made:
        yield made


def pages(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for first, n_bytes in ranges for page in range(first // PAGE, -(-(first + n_bytes) // PAGE))}


def pages_of(shards: ShardSet, indices: Any) -> set[int]:
    """The pages of rows from their tokens to the end of their images."""
    first = shards.token_address[indices].tolist()
    end = (shards.image_address[indices] + shards.image_size[indices]).tolist()
    return pages([(a, b - a) for a, b in zip(first, end, strict=True)])


def test_scattered_rows_are_asked_for_and_nothing_else(large: Dataset, asked: list[tuple[int, int]]) -> None:
    with large.open_shards() as shards:
        shards.prefetch(np.array([31, 0, 17, 0]))
        assert pages(asked) == pages_of(shards, [0, 17, 31])
        assert max(n_bytes for _, n_bytes in asked) <= 128 * KIB  # the system would cut a larger one
        assert sum(n_bytes for _, n_bytes in asked) < 1.1 * shards.image_size[[0, 17, 31]].sum()


def test_a_whole_shard_is_asked_for_once_and_in_its_order(large: Dataset, asked: list[tuple[int, int]]) -> None:
    with large.open_shards() as shards:
        shards.prefetch(np.arange(10)[::-1])
        assert pages(asked) == pages_of(shards, np.arange(10))
        assert asked == sorted(asked)
        assert sum(n_bytes for _, n_bytes in asked) == PAGE * len(pages(asked))


def test_no_row_is_no_request(large: Dataset, asked: list[tuple[int, int]]) -> None:
    with large.open_shards() as shards:
        shards.prefetch(np.array([], np.int64))
    assert asked == []


def test_small_images_come_with_what_lies_around_them_once(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    with make_dataset(tmp_path / "data", 12).open_shards() as shards:
        known: set[int] = set()
        shards.prefetch(np.array([0, 1, 11]), known)
        assert pages(asked) >= pages_of(shards, [0, 1, 11])
        assert all(n_bytes == 128 * KIB and address % (128 * KIB) == 0 for address, n_bytes in asked)
        before = len(asked)
        shards.prefetch(np.array([1, 0]), known)
        assert len(asked) == before


def read_so_far(ahead: ReadAhead) -> None:
    ahead._thread.submit(int).result()  # the thread does one thing after another


def test_batches_are_asked_for_ahead_of_their_turn(
    large: Dataset, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "_AHEAD_BYTES", 2 * 4 * 90_000)
    batches = np.arange(40).reshape(10, 4)
    with large.open_shards() as shards:
        ahead = ReadAhead(shards, batches)
        for turn in range(10):
            ahead.advance()
            read_so_far(ahead)
            assert pages(asked) == pages_of(shards, np.arange(min(4 * (turn + 3), 40)))
        ahead.advance()  # the loader may ask once more
        ahead.close()


def test_a_batch_larger_than_the_read_ahead_is_still_asked_for(
    large: Dataset, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "_AHEAD_BYTES", 1)
    with large.open_shards() as shards:
        ahead = ReadAhead(shards, np.arange(40).reshape(2, 20))
        ahead.advance()
        read_so_far(ahead)
        assert pages(asked) == pages_of(shards, np.arange(40))
        ahead.close()


def test_small_images_are_asked_for_no_further_ahead_than_what_comes_with_them(
    tmp_path: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "_AHEAD_BYTES", 4 * 128 * KIB)
    with make_dataset(tmp_path / "data", 12, rows_per_shard=4).open_shards() as shards:
        ahead = ReadAhead(shards, np.arange(12).reshape(3, 4))
        ahead.advance()
        read_so_far(ahead)
        assert pages_of(shards, np.arange(8)) <= pages(asked)
        assert not pages_of(shards, np.arange(8, 12)) <= pages(asked)
        ahead.close()


@pytest.mark.parametrize("train", [True, False])
def test_a_loader_asks_for_exactly_its_subset(large: Dataset, asked: list[tuple[int, int]], train: bool) -> None:
    subset = np.array([3, 12, 14, 25, 38])
    loader = make_loader(large, subset=subset, batch_size=2, image_size=16, train=train)
    threads = threading.active_count()
    assert all(batch.valid.all() for batch in loader)
    assert pages(asked) == pages_of(loader._shards, subset)
    assert threading.active_count() == threads


def test_resident_images_are_not_asked_for(large: Dataset, asked: list[tuple[int, int]]) -> None:
    assert sum(len(batch) for batch in make_loader(large, batch_size=16, image_size=16, resident=True)) == 40
    assert asked == []
