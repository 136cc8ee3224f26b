"""Shards: what is written is read back, byte-deterministically, and a file that is not whole is refused by name."""

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline import beton
from coreclip.pipeline.beton import (
    MIN_PAGE,
    Shard,
    ShardWriter,
    encode_captions,
    page_size_for,
    read_shard,
    sample_bytes,
    write_rows_at,
)

M, CONTEXT = 3, 8
HEADER = 24
DESCRIPTOR = 1041
FIELDS_END = HEADER + 4 * DESCRIPTOR
ROW = 48  # metadata record without a label
COLUMNS = (
    *("modes", "widths", "heights", "image_addresses", "image_sizes", "token_addresses"),
    *("caption_addresses", "caption_sizes", "index", "label"),
)


def row(i: int, **changes: Any) -> dict[str, Any]:
    values = {
        "image": bytes([i % 251, 7, 9]) * (i % 5 + 1),
        "mode": "jpg",
        "width": 10 + i,
        "height": 20 + i,
        "captions": [f"caption {i} é", "a \0 \ud800 b"],
        "tokens": np.full((M, CONTEXT), i, np.uint16),
        "index": i,
    }
    return {**values, **changes}


def writer(path: Path, **changes: Any) -> ShardWriter:
    return ShardWriter(path, **{"captions_per_row": M, "context": CONTEXT, "labels": False, "max_rows": 50, **changes})


def write(path: Path, n: int = 6, labels: bool = False, **changes: Any) -> Path:
    with writer(path, labels=labels, **changes) as shard:
        for i in range(n):
            shard.add(**row(i, **({"label": i % 3} if labels else {})))
    return path


def corrupt(path: Path, offset: int, value: bytes) -> Path:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(value)
    return path


def number(value: int, n_bytes: int = 8) -> bytes:
    return value.to_bytes(n_bytes, "little")


def check_rows(shard: Shard, n: int) -> None:
    assert shard.rows == n
    assert shard.index.tolist() == list(range(n))
    assert shard.tokens(np.arange(n)).tolist() == [np.full((M, CONTEXT), i).tolist() for i in range(n)]
    for i in range(n):
        expected = row(i)
        assert shard.image_bytes(i) == expected["image"]
        assert shard.captions(i) == expected["captions"]
        assert (shard.widths[i], shard.heights[i]) == (expected["width"], expected["height"])


@pytest.mark.parametrize("labels", [False, True])
def test_rows_are_read_back(tmp_path: Path, labels: bool) -> None:
    with read_shard(write(tmp_path / "a.beton", labels=labels)) as shard:
        check_rows(shard, 6)
        assert (shard.captions_per_row, shard.context, shard.page_size) == (M, CONTEXT, MIN_PAGE)
        assert (shard.label is None) if not labels else (shard.label.tolist() == [0, 1, 2, 0, 1, 2])


def test_rows_go_over_many_pages_and_each_stays_in_one(tmp_path: Path) -> None:
    big = {i: os.urandom(MIN_PAGE // 3) for i in range(7)}
    with writer(tmp_path / "a.beton") as shard:
        for i, image in big.items():
            shard.add(**row(i, image=image))
        assert (shard.rows, shard.stored_bytes) == (7, 7 * (MIN_PAGE // 3))
    with read_shard(tmp_path / "a.beton") as read:
        assert [read.image_bytes(i) for i in range(7)] == list(big.values())
        first = read.token_addresses // MIN_PAGE
        assert (first == (read.image_addresses + read.image_sizes - 1) // MIN_PAGE).all()
        assert first.max() - first.min() == 3  # two rows a page


def test_a_row_may_fill_its_page_to_the_last_byte(tmp_path: Path) -> None:
    captions = ["x"]
    image = b"i" * (MIN_PAGE - sample_bytes(0, captions, M, CONTEXT))
    assert page_size_for(sample_bytes(len(image), captions, M, CONTEXT)) == MIN_PAGE
    with writer(tmp_path / "a.beton") as shard:
        for i in range(2):
            shard.add(**row(i, image=image, captions=captions))
        with pytest.raises(
            CoreclipError, match=f"needs {MIN_PAGE + 1} bytes: the page has {MIN_PAGE}; choose a larger"
        ):
            shard.add(**row(2, image=image + b"i", captions=captions))
    with read_shard(tmp_path / "a.beton") as read:
        assert read.image_bytes(1) == image
        assert read.rows == 2


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.beton").read_bytes() == write(tmp_path / "b.beton").read_bytes()


def test_nothing_follows_the_allocation_table(tmp_path: Path) -> None:
    stored = write(tmp_path / "a.beton").read_bytes()
    table = int.from_bytes(stored[16:24], "little")
    assert len(stored) - table == 6 * 3 * 24


def fail_half_way(path: Path) -> None:
    with writer(path) as shard:
        for i in range(20):
            shard.add(**row(i, image=bytes(MIN_PAGE // 3)))
        with pytest.raises(CoreclipError, match="header is empty, so its writer never finished"):
            read_shard(path)
        raise KeyError


def test_an_unfinished_file_is_refused_and_an_abandoned_one_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_half_way(tmp_path / "a.beton")
    assert not (tmp_path / "a.beton").exists()


def test_a_killed_writer_leaves_a_file_that_is_refused(tmp_path: Path) -> None:
    code = f"""
import os, numpy as np
from coreclip.pipeline.beton import ShardWriter
shard = ShardWriter({str(tmp_path / "a.beton")!r}, captions_per_row=1, context=4, labels=False, max_rows=9)
for i in range(4):
    shard.add(bytes(1 << 20), "jpg", 9, 9, ["a"], np.zeros((1, 4), np.uint16), i)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with pytest.raises(CoreclipError, match="is damaged"):
        read_shard(tmp_path / "a.beton")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": b""}, "has an image of 0 bytes"),
        ({"captions": []}, "has no caption"),
        ({"mode": "png"}, "image mode 'png': it must be one of jpg, raw"),
        ({"width": 65536}, "65536 x 20 pixels: 1 to 65535 a side"),
        ({"height": 0}, "10 x 0 pixels"),
        ({"mode": "raw"}, r"has 3 raw bytes: it must be h \* w \* 3"),
        ({"tokens": np.zeros((M, CONTEXT), np.int64)}, "type int64: they must be uint16"),
        ({"tokens": np.zeros((M, 2), np.uint16)}, r"shape \(3, 2\): it must be \(3, 8\)"),
        ({"index": -1}, "index -1"),
        ({"label": 1}, "label 1: all rows have a label or none has"),
    ],
)
def test_a_row_against_the_rules_is_refused_and_leaves_no_trace(tmp_path: Path, changes: Any, message: str) -> None:
    with writer(tmp_path / "a.beton") as shard:
        with pytest.raises(CoreclipError, match=f"row 0 of shard .*{message}"):
            shard.add(**row(0, **changes))
        for i in range(6):
            shard.add(**row(i))
    assert (tmp_path / "a.beton").read_bytes() == write(tmp_path / "b.beton").read_bytes()


def test_a_full_a_closed_and_an_empty_shard_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "a.beton", max_rows=1) as shard:
        shard.add(**row(0))
        with pytest.raises(CoreclipError, match="is full with 1 rows: max_rows must cover them all"):
            shard.add(**row(1))
    shard.close()
    shard.abort()  # too late: the file stays
    assert (tmp_path / "a.beton").exists()
    with pytest.raises(CoreclipError, match="a closed shard takes no row"):
        shard.add(**row(1))
    with pytest.raises(CoreclipError, match=r"b\.beton would be empty"):
        writer(tmp_path / "b.beton").close()
    assert not (tmp_path / "b.beton").exists()


@pytest.mark.parametrize(
    "changes", [{"page_size": 1 << 20}, {"page_size": MIN_PAGE + 1}, {"context": 0}, {"max_rows": 0}]
)
def test_a_writer_against_the_rules_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    (name, value), *_ = changes.items()
    with pytest.raises(CoreclipError, match=f"{name} = {value} of shard .* is not allowed"):
        writer(tmp_path / "a.beton", **changes)
    assert not (tmp_path / "a.beton").exists()


def test_page_sizes() -> None:
    assert page_size_for(1) == MIN_PAGE
    assert page_size_for(MIN_PAGE + 1) == 2 * MIN_PAGE
    assert page_size_for(1 << 31) == 1 << 31
    assert page_size_for(1, 100_000) == MIN_PAGE
    assert page_size_for(1, 1_100_000) == 16 << 20
    assert page_size_for(17 << 20, 1_100_000) == 32 << 20
    assert page_size_for(1, 1 << 40) == 64 << 20
    with pytest.raises(CoreclipError, match="too large: a row must fit in one page of at most 2147483648 bytes"):
        page_size_for((1 << 31) + 1)


def test_a_file_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoreclipError, match="can't be read: No such file"):
        read_shard(tmp_path / "none.beton")
    with pytest.raises(CoreclipError, match="is not a regular file"):
        read_shard(tmp_path)
    (tmp_path / "short.beton").write_bytes(b"12345")
    with pytest.raises(CoreclipError, match="it has 5 bytes, a header alone has 24"):
        read_shard(tmp_path / "short.beton")
    (tmp_path / "text.beton").write_bytes(b"hello " * 1000)
    with pytest.raises(CoreclipError, match=r"text\.beton is damaged or not coreclip's: its version is 25960"):
        read_shard(tmp_path / "text.beton")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, number(3, 2), "its version is 3"),
        (2, number(9, 2), "it has 9 fields"),
        (4, number(12345, 4), "its page size is 12345"),
        (8, number(0), "it has 0 rows"),
        (8, number(5), "its 5 rows need"),
        (8, number(1 << 60), "rows end at byte"),
        (16, number(1 << 63), "need"),
        (16, number(100), "rows end at byte"),
        (HEADER, b"\xff", r"its fields \(name, type\) are \[\('image', 255\)"),
        (HEADER + 1, b"\xe9mage", r"its fields .*\\xe9mage"),
        (HEADER + 2 * DESCRIPTOR + 17, number(1 << 40), "its token arrays have the shape"),
        (HEADER + 2 * DESCRIPTOR + 17, number(0), "its token arrays have the shape"),
        (HEADER + 2 * DESCRIPTOR + 17 + 264 + 9, b"8", "its token arrays have the shape"),
        (FIELDS_END, b"\x02", "image mode of row 0 is 2"),
        (FIELDS_END, b"\x01", "raw image size of row 0 is 3"),
        (FIELDS_END + 1, number(0, 2), "width or height of row 0 is 0"),
        (FIELDS_END + 5, number(1 << 62), "an address of row 0 is not in its allocation table"),
        (FIELDS_END + ROW + 13, number(0), "an address of row 1 is not"),
        (FIELDS_END + 13 + 8, number(1), "caption size of row 0 is 1"),
        (FIELDS_END + 40, number(1 << 63), "index of row 0"),
    ],
)
def test_a_damaged_header_or_record_is_named(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    with pytest.raises(CoreclipError, match=message):
        read_shard(corrupt(write(tmp_path / "a.beton"), offset, value))


@pytest.mark.parametrize(
    ("entry", "field", "value", "message"),
    [
        (0, 0, 1, "an address of row 0 is not"),  # the row that it belongs to
        (0, 1, 8, "outside of its data"),
        (0, 1, (1 << 64) - 8, "outside of its data"),
        (2, 2, 0, "outside of its data"),
        (17, 2, 1 << 63, "outside of its data"),
        (0, 2, 4096, "over the next one"),
        (17, 2, MIN_PAGE, "outside of its data"),
        (0, 2, 40, "token size of row 0 is 40"),
    ],
)
def test_a_damaged_allocation_table_is_named(tmp_path: Path, entry: int, field: int, value: int, message: str) -> None:
    path = write(tmp_path / "a.beton")
    table = int.from_bytes(path.read_bytes()[16:24], "little")
    with pytest.raises(CoreclipError, match=message):
        read_shard(corrupt(path, table + 24 * entry + 8 * field, number(value)))


def test_two_fields_at_one_address_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton")
    with read_shard(path) as shard:
        captions = int(shard.caption_addresses[0])
    with pytest.raises(CoreclipError, match="two fields of a row have one address"):
        read_shard(corrupt(path, FIELDS_END + 5, number(captions)))


def test_a_row_across_pages_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "a.beton", page_size=2 * MIN_PAGE) as shard:
        shard.add(**row(0, image=bytes(MIN_PAGE + 1)))
    with pytest.raises(CoreclipError, match="across a border of its 2097152-byte pages"):
        read_shard(corrupt(tmp_path / "a.beton", 4, number(MIN_PAGE, 4)))


def reorder_table(path: Path, order: np.ndarray) -> Path:
    """Put the allocations into another order, which a writer with several processes makes."""
    stored = path.read_bytes()
    start = int.from_bytes(stored[16:24], "little")
    table = np.frombuffer(stored[start:], np.uint64).reshape(-1, 3)
    path.write_bytes(stored[:start] + table[order].tobytes())
    return path


@pytest.mark.parametrize("labels", [False, True])
def test_a_table_in_any_order_is_read_alike(tmp_path: Path, labels: bool) -> None:
    path = write(tmp_path / "a.beton", labels=labels)
    with read_shard(path) as shard:
        expected = {name: getattr(shard, name) for name in COLUMNS}
    with read_shard(reorder_table(path, np.random.default_rng(0).permutation(18))) as shard:
        check_rows(shard, 6)
        assert shard.consecutive
        for name in COLUMNS:
            found = getattr(shard, name)
            assert np.array_equal(found, expected[name])
            assert getattr(found, "dtype", None) == getattr(expected[name], "dtype", None)


@pytest.mark.parametrize("piece", [1, 4, 6])
def test_tables_are_read_alike_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    path = write(tmp_path / "a.beton")
    monkeypatch.setattr(beton, "_PIECE", piece)
    monkeypatch.setattr(beton, "_read_in_any_order", None)  # not needed
    with read_shard(path) as shard:
        check_rows(shard, 6)
        assert shard.consecutive
    with pytest.raises(TypeError):
        read_shard(reorder_table(path, np.arange(18)[::-1]))


@pytest.mark.parametrize(
    "row_of_table", [[0, 1, 2, 4, 3, 5], [0, 2, 4, 1, 3, 5], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 5, 6]]
)
@pytest.mark.parametrize("piece", [2, 8192])
def test_indices_that_do_not_count_up_by_one_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_of_table: list[int], piece: int
) -> None:
    monkeypatch.setattr(beton, "_PIECE", piece)
    with writer(tmp_path / "a.beton") as shard:
        for i in row_of_table:
            shard.add(**row(i))
    path = tmp_path / "a.beton"
    for _ in range(2):
        with read_shard(path) as shard:
            assert shard.consecutive == (row_of_table == [1, 2, 3, 4, 5, 6])
            assert shard.first_index == row_of_table[0]
            assert shard.index.tolist() == row_of_table
        reorder_table(path, np.arange(18)[::-1])


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.beton")
    header = beton._read_header

    def then_shrink(*arguments: Any) -> Any:
        found = header(*arguments)
        os.truncate(path, path.stat().st_size - 30)
        return found

    monkeypatch.setattr(beton, "_read_header", then_shrink)
    with pytest.raises(CoreclipError, match=r"a\.beton is damaged .*it ends at byte \d+, so it is truncated"):
        read_shard(path)


def test_too_many_open_files_are_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton")
    code = f"""
import os, resource
from coreclip.pipeline.beton import read_shard
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
read_shard({str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Too many open files; raise this process's limit of open files, ulimit -n" in done.stderr


@pytest.mark.parametrize("text", [b"nonsense", b"[]", b"{}", b"[1]", b"\xff\xff", b"[" * 5000])
def test_damaged_captions_are_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.beton"
    with writer(path) as shard:
        shard.add(**row(0, captions=["x" * 6000]))
    with read_shard(path) as shard:
        address = int(shard.caption_addresses[0])
    with read_shard(corrupt(path, address, text + b"\0")) as damaged:
        with pytest.raises(CoreclipError, match=r"the captions of row 0 are .* they must be a JSON list of strings"):
            damaged.captions(0)


def test_close_is_safe_twice_and_while_an_array_looks_at_the_file(tmp_path: Path) -> None:
    shard = read_shard(write(tmp_path / "a.beton"))
    view = np.frombuffer(shard.mapping, np.uint8)
    shard.close()
    assert view[0] == 2
    del view
    shard.close()
    shard.close()
    with pytest.raises(ValueError, match="mmap closed"):
        shard.image_bytes(0)


def test_addresses_are_of_the_file_in_memory(tmp_path: Path) -> None:
    with read_shard(write(tmp_path / "a.beton")) as shard:
        assert isinstance(shard.mapping, mmap.mmap)
        assert shard.base_address % mmap.PAGESIZE == 0
        assert (shard.token_addresses % 8 == 0).all()


def test_captions_end_in_a_zero_byte_and_hold_no_other() -> None:
    assert encode_captions(["a\0b"]).count(b"\0") == 1


def _rows(sizes: list[int]) -> list[tuple[bytes, bytes]]:
    return [(bytes([1 + i % 200]) * 7, bytes([2 + i % 200]) * n) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("most_at_once", [1 << 40, 1000, 1])
def test_rows_written_side_by_side_lie_where_they_belong(tmp_path, monkeypatch, most_at_once):
    """However few bytes the system takes at once, which it may when the disk is nearly full."""
    system_pwritev = os.pwritev

    def some_of_them(descriptor: int, parts: list[bytes], address: int) -> int:
        left, taken = most_at_once, []
        for part in parts:
            taken.append(part[:left])
            left -= len(taken[-1])
        return system_pwritev(descriptor, taken, address)

    monkeypatch.setattr(os, "pwritev", some_of_them)
    rows = _rows([1, 100, 3000, 8, 9, 50, 700] * 200)
    addresses = []
    end = 40
    for number, row in enumerate(rows):
        start = -(-end // 8) * 8 + (4096 if number % 300 == 299 else 0)  # now and then a new page begins
        addresses.append(start)
        end = start + len(row[0]) + len(row[1])
    expected = bytearray(end)
    for row, address in zip(rows, addresses, strict=True):
        expected[address : address + len(row[0]) + len(row[1])] = b"".join(row)
    path = tmp_path / "rows"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    assert write_rows_at(descriptor, rows, addresses) == end
    os.close(descriptor)
    assert path.read_bytes() == bytes(expected)
