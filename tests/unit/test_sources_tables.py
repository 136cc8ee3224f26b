"""Captions tables: their parts, long ones whose rows are sorted on the disk, and tables that must be saved otherwise."""

import json
import random
import tracemalloc

import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline import tables
from coreclip.pipeline.records import ImageReference, Record
from coreclip.pipeline.sources import find_sources
from tests.sources import assert_parts_make_the_whole, read

WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(9):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(bytes([i]))
    return tmp_path


def make_rows(adjacent: bool) -> list[dict]:
    rows = [
        {"image": f"{'images/' * (j % 2)}{i}.jpg" if i % 2 else f"images/{i}.jpg", "caption": f"{i} é {j}", "n": f"{j}"}
        for i in range(11) for j in range(3)
    ]  # fmt: skip
    if not adjacent:
        random.Random(0).shuffle(rows)
    return [*rows, {"image": "", "caption": "of nothing", "n": "0"}]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("adjacent", [True, False])
def test_parts_of_a_table_make_the_whole(suffix, adjacent, folder):
    WRITERS[suffix](pd.DataFrame(make_rows(adjacent)), folder / f"t.{suffix}")
    assert_parts_make_the_whole(find_sources([folder])[0])


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_sorted_on_the_disk_give_the_pairs_of_rows_in_memory(suffix, folder, monkeypatch):
    WRITERS[suffix](pd.DataFrame(make_rows(adjacent=False)), folder / f"t.{suffix}")
    (source,) = find_sources([folder])
    in_memory = list(source.scan())
    monkeypatch.setattr(tables, "_GROUPS_AT_ONCE", 2)
    assert list(source.scan()) == in_memory
    assert sum(len(item.captions) for item in in_memory if isinstance(item, Record)) == 3 * 9
    assert_parts_make_the_whole(source, (2, 3))


def test_values_that_json_does_not_know_survive_the_disk(folder, monkeypatch):
    rows = [
        {"image": "images/0.jpg", "caption": "one\ud800", "odd": {"no": 1}, "x": 1.5},
        {"image": "images/1.jpg", "caption": {"no": 1}, "odd": None, "x": None},
        {"image": "images/0.jpg", "caption": ["two"], "odd": [1], "x": 2},
        {"image": "images/2.jpg", "caption": "three", "odd": True, "x": float("inf")},
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source,) = find_sources([folder])
    in_memory = list(source.scan())
    monkeypatch.setattr(tables, "_GROUPS_AT_ONCE", 1)
    on_disk = list(source.scan())
    assert on_disk == in_memory
    assert [getattr(item, "captions", "reject") for item in on_disk] == [["one\ud800", "two"], "reject", ["three"]]


def test_a_long_table_whose_rows_are_side_by_side_needs_little_memory(folder, monkeypatch):
    n = 9_000
    with open(folder / "t.csv", "w") as file:
        file.write("image,caption,more\n")
        for i in range(n):
            file.write(f"images/{i // 3}-none.jpg,{'long text ' * 5}{i},{'value ' * 5}{i}\n")
    (source,) = find_sources([folder])
    monkeypatch.setattr(tables.ImageFinder, "find", lambda self, name: ImageReference(name, 0, 1))
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.scan()) == n // 3
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * n  # the rows in memory would have 600 bytes each


def test_a_table_that_changes_while_it_is_read_is_named(folder, monkeypatch):
    (folder / "t.csv").write_text("image,caption\nimages/0.jpg,a\nimages/1.jpg,b\n")
    (source,) = find_sources([folder])
    scan, whole = source.scan(), tables._number_groups
    monkeypatch.setattr(tables, "_number_groups", lambda hashes: whole(hashes)[:1])
    with pytest.raises(CoreclipError, match="has changed while it was read"):
        list(scan)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_table_in_utf16_is_refused_with_its_remedy(encoding, suffix, folder):
    (folder / f"t.{suffix}").write_bytes("image,caption\nimages/0.jpg,a text that is long enough\n".encode(encoding))
    with pytest.raises(CoreclipError, match=r"is UTF-16; tables must be UTF-8.*iconv -f UTF-16"):
        read(folder)


@pytest.mark.parametrize(
    ("separator", "remedy"), [(";", "semicolons.*save it with commas"), ("\t", "tabs.*call it .tsv")]
)
def test_a_csv_with_another_separator_is_refused_with_its_remedy(separator, remedy, folder):
    (folder / "t.csv").write_text(f"image{separator}caption\nimages/0.jpg{separator}text\n")
    with pytest.raises(CoreclipError, match=remedy):
        read(folder)


def test_an_empty_table_gives_nothing(folder):
    (folder / "t.csv").write_text("image,caption\n")
    assert read(folder) == ([], [])
    assert_parts_make_the_whole(find_sources([folder])[0], (1, 3))
