"""``.beton`` files, stock FFCV's and ours, and data sets, as sources."""

import subprocess
import sys

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.images import ImageRejected, prepare_pixels
from coreclip.pipeline.records import Record, Reject, read_image
from coreclip.pipeline.sources import class_names_of, find_sources, scan
from tests.helpers import encode_jpeg, make_captions, make_dataset, make_pixels
from tests.sources import assert_parts_make_the_whole, read

# The stock writer starts worker processes, and importing it here would cost every other test 5 s.
STOCK_WRITER = """
import sys
import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter
from tests.helpers import make_pixels

class Pairs:
    def __len__(self):
        return 7
    def __getitem__(self, i):
        text = np.frombuffer(f"text {i}".encode(), np.uint8)
        return make_pixels(i), {"captions": [f"one {i}", f"zwölf {i}"]}, text, i % 3, i / 4, i, np.arange(3.0)

for path, mode, meta, note in ((sys.argv[1], "jpg", "captions", "note"), (sys.argv[2], "raw", "meta", "text")):
    fields = {"photo": RGBImageField(write_mode=mode), meta: JSONField(), note: BytesField(), "label": IntField(),
              "score": FloatField(), "number": IntField(), "vector": NDArrayField(np.dtype("float64"), (3,))}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Pairs())
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Files of stock FFCV by mode."""
    folder = tmp_path_factory.mktemp("stock")
    paths = {mode: folder / f"{mode}.beton" for mode in ("jpg", "raw")}
    subprocess.run([sys.executable, "-c", STOCK_WRITER, *map(str, paths.values())], capture_output=True, check=True)
    return paths


@pytest.mark.parametrize(("mode", "captions"), [("jpg", ["one {}", "zwölf {}"]), ("raw", ["text {}"])])
def test_a_file_of_stock_ffcv_gives_its_pairs(mode, captions, stock):
    records, rejects = read(stock[mode])
    assert rejects == []
    for i, record in enumerate(records):
        assert record.captions == [text.format(i) for text in captions]
        assert (record.label, record.columns) == (i % 3, {"score": i / 4, "number": i})
        stored, pixels = read_image(record.image), make_pixels(i)
        if mode == "raw":
            assert (record.image.height, record.image.width, record.image.channels) == pixels.shape
            assert stored == pixels.tobytes()
            prepared = prepare_pixels(stored, *pixels.shape, max_side=None, quality=95)
            assert (prepared.width, prepared.height) == pixels.shape[1::-1]
        else:
            assert record.image.channels == 0
            assert stored[:2] == b"\xff\xd8"
            assert stored[-2:] == b"\xff\xd9"
    assert len(records) == 7
    assert_parts_make_the_whole(find_sources([stock[mode]])[0])


def test_pixels_that_are_not_there_are_refused():
    with pytest.raises(ImageRejected, match="5 of 12 bytes"):
        prepare_pixels(bytes(5), 2, 2, 3, max_side=None, quality=95)
    assert prepare_pixels(bytes(4), 2, 2, 1, max_side=None, quality=95).data == bytes(12)


def patched(path, tmp_path, *changes: tuple[int, bytes]):
    content = bytearray(path.read_bytes())
    for place, new in changes:
        content[place : place + len(new)] = new
    copy = tmp_path / "patched.beton"
    copy.write_bytes(content)
    return copy


ROWS = 24 + 7 * 1041
# A row of the fixture: image 13 bytes, JSON 16, bytes 16, padding 3, then label, score, number and vector, 8 each.
ROW_BYTES = 13 + 16 + 16 + 3 + 4 * 8


@pytest.mark.parametrize(
    ("place", "new", "reason"),
    [
        (ROWS + 5, b"\x01", "its image lies at byte"),
        (ROWS + 5, b"\xff" * 8, "its image lies at byte 18446744073709551615"),
        (ROWS, b"\x02", "its image has the mode 2"),
        (ROWS, b"\x01", "its pixels have"),
        (ROWS + 13, b"\x01", "its caption lies at byte"),
        (ROWS + 21, b"\xff\xff\xff", "its caption has 16777215 bytes"),
        (ROWS + 21, b"\x05" + bytes(7), "is not JSON"),
    ],
)
def test_a_row_with_a_bad_address_is_a_reject_and_the_others_are_kept(place, new, reason, stock, tmp_path):
    records, rejects = read(patched(stock["jpg"], tmp_path, (place, new)))
    assert [reason in reject.reason for reject in rejects] == [True], rejects
    assert [record.captions[0] for record in records] == [f"one {i}" for i in range(1, 7)]


def test_an_address_of_another_row_makes_no_pair(stock, tmp_path):
    content = stock["jpg"].read_bytes()
    other = content[ROWS + ROW_BYTES + 5 : ROWS + ROW_BYTES + 13]
    _, (reject,) = read(patched(stock["jpg"], tmp_path, (ROWS + 5, other)))
    assert "does not give to this row" in reject.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([(0, b"\x03")], "has the version 3"),
        ([(2, b"\x00\x00")], "has 0 fields"),
        ([(2, b"\xff\xff")], "has 65535 fields"),
        ([(8, b"\xff" * 7)], "ends before the .* rows that it announces"),
        ([(16, bytes(8))], "was never finished"),
        ([(16, b"\xff" * 8)], "ends before the 7 rows"),
        ([(24, b"\xff")], "has a field 'photo' of type 255"),
        ([(24, b"\x01")], r"has 0 image fields \(none\)"),
        ([(25 + 1041, b"photo\0")], "has two fields 'photo'"),
        ([(25 + 1041, b"x\0"), (25 + 2 * 1041, b"y\0"), (25 + 3 * 1041, b"z\0")], "has neither captions nor a label"),
    ],
)
def test_a_file_whose_tables_lie_is_refused(changes, reason, stock, tmp_path):
    with pytest.raises(CoreclipError, match=rf"patched\.beton {reason}"):
        read(patched(stock["jpg"], tmp_path, *changes))


@pytest.mark.parametrize("size", [0, 10, 24, 3000, ROWS + 10, -1])
def test_a_file_that_is_cut_short_is_refused(size, stock, tmp_path):
    content = stock["jpg"].read_bytes()
    (tmp_path / "short.beton").write_bytes(content[:size])
    with pytest.raises(CoreclipError, match=r"short\.beton (has|ends|was)"):
        read(tmp_path / "short.beton")


# Our own


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "set", 12, raw_every=4, labels=["cat", "great_white"], captions_per_pair=(1, 3))


def test_a_shard_of_ours_is_a_source(dataset):
    records, rejects = read(dataset.path / "00001.beton")
    assert rejects == []
    assert [(r.captions, r.label, r.columns["index"], read_image(r.image)) for r in records] == [
        (make_captions(i, (1, 3)[i % 2]), i % 2, i, dataset.image_bytes(i)) for i in range(5, 10)
    ]


def test_a_data_set_gives_its_pairs_with_keys_labels_and_names(dataset):
    (source,) = find_sources([dataset.path])
    assert class_names_of([source]) == ["cat", "great_white"]
    records = list(scan(source, None, "{}"))
    assert all(isinstance(record, Record) for record in records)
    assert [(r.key, r.captions, r.label, r.columns, read_image(r.image)) for r in records] == [
        (f"k{i:04d}", make_captions(i, (1, 3)[i % 2]), i % 2, {}, dataset.image_bytes(i)) for i in range(12)
    ]
    assert [record.image.channels for record in records] == [3 if i % 4 == 0 else 0 for i in range(12)]
    assert_parts_make_the_whole(source)
    (identity,) = source.identity()
    assert identity["fingerprint"] == dataset.fingerprint


def test_columns_of_a_data_set_are_kept(dataset):
    path = dataset.path / "pairs.parquet"
    dataset.pairs.assign(url=[f"http://x/{i}" for i in range(12)], score=np.arange(12) / 2).to_parquet(
        path, index=False
    )
    records, _ = read(dataset.path)
    assert records[3].columns == {"url": "http://x/3", "score": 1.5}


def test_a_data_set_whose_rows_moved_makes_no_wrong_pair(dataset):
    pairs = dataset.pairs
    pairs.iloc[[1, 0, *range(2, 12)]].to_parquet(dataset.path / "pairs.parquet", index=False)
    with pytest.raises(CoreclipError, match="pair 0 is not where it must be"):
        read(dataset.path)
    pairs.iloc[:5].to_parquet(dataset.path / "pairs.parquet", index=False)
    with pytest.raises(CoreclipError, match="it has 5 rows for 12 pairs"):
        read(dataset.path)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('"one"', ["one"]), ('["a", "b"]', ["a", "b"]), ('{"caption": "c"}', ["c"]), ("[]", "no caption"),
        ("{}", "no caption"), ("[1]", "neither text nor a list"), ("5", "neither text nor a list"), ("[" * 99999, "not JSON"),
    ],
)  # fmt: skip
def test_what_a_json_field_may_hold(stored, expected, monkeypatch, dataset):
    monkeypatch.setattr("coreclip.pipeline.datasets.decode_text", lambda data, name: stored)
    (source,) = find_sources([dataset.path / "00002.beton"])
    item = next(iter(scan(source, None, "{}")))
    got = item.captions if isinstance(item, Record) else item.reason
    assert got == expected or (isinstance(item, Reject) and expected in got)


def test_the_images_are_those_that_were_written(dataset):
    records, _ = read(dataset.path)
    assert read_image(records[1].image) == encode_jpeg(make_pixels(1, 56, 40))


def test_folders_of_files_are_read_in_order(dataset, tmp_path):
    (tmp_path / "loose").mkdir()
    for number in (2, 1):
        (dataset.path / f"0000{number}.beton").rename(tmp_path / "loose" / f"0000{number}.beton")
    records, _ = read(tmp_path / "loose")
    assert [record.columns["index"] for record in records] == [*range(5, 12)]
