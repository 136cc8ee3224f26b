"""Shards, for any rows and any damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.pipeline import beton
from coreclip.pipeline.beton import ShardWriter, read_shard

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "image": st.binary(min_size=1, max_size=400_000) | st.binary(min_size=1, max_size=50),
            "width": st.integers(1, 65535),
            "height": st.integers(1, 65535),
            "captions": st.lists(st.text(max_size=30), min_size=1, max_size=4),
            "index": st.integers(0, 2**63 - 1),
            "label": st.integers(-(2**63), 2**63 - 1),
        }
    ),
    min_size=1,
    max_size=8,
)


def write(path: Path, rows: list[dict[str, Any]], labels: bool, m: int = 2, context: int = 5) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, 65536, (len(rows), m, context)).astype(np.uint16)
    with ShardWriter(path, captions_per_row=m, context=context, labels=labels, max_rows=9) as shard:
        for row, its_tokens in zip(rows, tokens, strict=True):
            shard.add(mode="jpg", tokens=its_tokens, **(row if labels else {**row, "label": None}))
    return tokens


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, labels=st.booleans())
def test_any_rows_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], labels: bool
) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.beton"
    tokens = write(path, rows, labels)
    with read_shard(path) as shard:
        assert [shard.image_bytes(i) for i in range(shard.rows)] == [row["image"] for row in rows]
        assert [shard.captions(i) for i in range(shard.rows)] == [row["captions"] for row in rows]
        assert shard.widths.tolist() == [row["width"] for row in rows]
        assert shard.heights.tolist() == [row["height"] for row in rows]
        assert shard.index.tolist() == [row["index"] for row in rows]
        assert np.array_equal(shard.tokens(np.arange(len(rows))[::-1]), tokens[::-1])
        if labels:
            assert shard.label is not None
            assert shard.label.tolist() == [row["label"] for row in rows]
    path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("shard") / "a.beton"
    row = {"image": b"1234567", "width": 3, "height": 4, "captions": ["a"], "label": None}
    write(path, [{**row, "index": i} for i in range(3)], labels=False)
    return path, path.read_bytes()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_damage_to_the_tables_is_refused_or_keeps_every_read_inside(
    whole: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, good = whole
    table = int.from_bytes(good[16:24], "little")
    where = data.draw(st.integers(0, 24 + 4 * 1041 + 3 * 48 - 1) | st.integers(table, len(good) - 1))
    value = data.draw(st.binary(min_size=1, max_size=8))
    damaged = path.with_name("damaged.beton")
    damaged.write_bytes(good[:where] + value + good[where + len(value) :])
    try:
        shard = read_shard(damaged)
    except CoreclipError:
        return
    with shard:
        for i in range(shard.rows):
            assert len(shard.image_bytes(i)) == shard.image_sizes[i] > 0
        assert shard.tokens(np.arange(shard.rows)).shape == (3, 2, 5)


def read_columns(path: Path) -> list[Any]:
    """What reading gives: the columns, or the message."""
    try:
        with read_shard(path) as shard:
            columns = [shard.modes, shard.widths, shard.heights, shard.image_addresses, shard.image_sizes]
            columns += [shard.token_addresses, shard.caption_addresses, shard.caption_sizes, shard.index]
            return [shard.consecutive, *(column.tolist() for column in columns)]
    except CoreclipError as error:
        return [str(error)]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_the_quick_reading_takes_nothing_that_the_thorough_one_refuses(
    whole: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, good = whole
    table = int.from_bytes(good[16:24], "little")
    rows = 24 + 4 * 1041
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(rows, rows + 3 * 48 - 8) | st.integers(table, len(good) - 8))
        near = int.from_bytes(damaged[where : where + 8], "little") + data.draw(st.integers(-40, 40))
        value = data.draw(st.just(near % 2**64) | st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        damaged[where : where + 8] = value
    file = path.with_name("damaged.beton")
    file.write_bytes(damaged)
    found = read_columns(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton, "_read_in_order", lambda *_: None)
        assert read_columns(file) == found


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_truncation_is_refused(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    path, good = whole
    kept = data.draw(st.integers(0, 24 + 4 * 1041 + 200) | st.integers(0, len(good) - 1))
    cut = path.with_name("cut.beton")
    cut.write_bytes(good[:kept])
    with pytest.raises(CoreclipError, match=r"cut\.beton"):
        read_shard(cut)
