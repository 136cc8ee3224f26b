"""TFRecord files: Examples by hand, both checksums, damage, parts; and the checksum itself against its standard."""

import gzip
import re
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.pipeline.crc32c import crc32c, masked_crc32c
from coreclip.pipeline.records import read_image
from coreclip.pipeline.sources import find_sources
from tests.sources import assert_parts_make_the_whole, read


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict, packed: bool = True) -> bytes:
    """Encode a tf.train.Example; a value is bytes, str, int, float or a list of one of them."""
    entries = b""
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        values = [value.encode() if isinstance(value, str) else value for value in values]
        if not values or isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(values[0], float):
            packed_values = field(1, struct.pack(f"<{len(values)}f", *values))
            feature = field(2, packed_values if packed else b"".join(b"\x0d" + struct.pack("<f", v) for v in values))
        else:
            inner = field(1, b"".join(map(varint, values))) if packed else b"".join(b"\x08" + varint(v) for v in values)
            feature = field(3, inner)
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def write(path, *records: bytes):
    path.write_bytes(b"".join(map(frame, records)))
    return path


def pair(i: int) -> bytes:
    return example({"image/encoded": b"image %d" % i, "image/caption": f"caption {i}", "image/height": 5 + i})


# RFC 3720, B.4, and the check value of the CRC catalogue.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_crc32c_gives_the_sums_of_its_standard(data, expected):
    assert crc32c(data) == expected


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_crc32c_agrees_with_a_bit_by_bit_sum(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecords", "train-00000-of-00010", "a.tfrecord-00000-of-00001"])
def test_examples_give_pairs_whose_images_lie_in_the_file(name, tmp_path):
    path = write(tmp_path / name, *(pair(i) for i in range(5)))
    records, rejects = read(path)
    assert rejects == []
    assert [(r.key, r.captions, r.columns, read_image(r.image)) for r in records] == [
        (f"{i:08d}", [f"caption {i}"], {"image/height": 5 + i}, b"image %d" % i) for i in range(5)
    ]
    assert_parts_make_the_whole(find_sources([path])[0], (1, 2, 3, 7, 100))


@pytest.mark.parametrize("packed", [True, False])
def test_every_kind_of_feature_is_read(packed, tmp_path):
    features = {
        "jpg": b"i", "captions": ["one", "zwölf"], "label": 3, "width": 640, "low": -7, "score": 0.5, "many": [1, 2, 3],
        "floats": [0.5, 1.5], "empty": [], "text/short": "abc", "raw": b"\xff\xfe", "key": "the key",
    }  # fmt: skip
    (record,), _ = read(write(tmp_path / "a.tfrecord", example(features, packed)))
    assert (record.key, record.captions, record.label) == ("the key", ["one", "zwölf"], 3)
    assert record.columns == {"width": 640, "low": -7, "score": 0.5, "text/short": "abc"}


def test_labels_have_captions_of_their_own_text_or_of_a_template(tmp_path):
    path = write(
        tmp_path / "a.tfrecord",
        example({"image/encoded": b"a", "image/class/label": 1}),
        example({"image/encoded": b"b", "image/class/label": 0, "image/class/text": "a tench"}),
    )
    records, _ = read(path, class_names=["x", "y"], template="photo of {}")
    assert [(r.label, r.captions) for r in records] == [(1, ["photo of y"]), (0, ["a tench"])]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (example({"caption": "no picture", "n": 1}), r"no image: none of image/encoded.*\(caption, n\)"),
        (example({"image": [b"1", b"2"], "caption": "t"}), "image holds 2 images"),
        (example({"image": b"1"}), "no caption"),
        (example({"image": b"1", "caption": b"\xff"}), "caption is not UTF-8"),
        (example({"image": b"1", "caption": "t" * ((1 << 20) + 1)}), "more than the 1048576 bytes"),
        (b"\x0a\xff", "no tf.train.Example: a number does not end|longer than its message"),
        (b"\x0b", "wire type 3"),
        (b"\x80" * 12, "a number does not end"),
        (field(1, field(1, field(1, b"x") + field(2, b"\x0a\x7f"))), "longer than its message"),
    ],
)
def test_every_bad_record_is_refused_with_its_reason(data, reason, tmp_path):
    records, rejects = read(write(tmp_path / "a.tfrecord", data, pair(1)))
    assert [record.captions for record in records] == [["caption 1"]]
    assert len(rejects) == 1
    assert re.search(reason, rejects[0].reason), rejects[0].reason


def test_hostile_counts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("coreclip.pipeline.tfrecords._MAX_THINGS", 5)
    many = example({f"n{i}": 1 for i in range(7)})
    values = example({"image": [b""] * 7})
    _, rejects = read(write(tmp_path / "a.tfrecord", many, values))
    assert ["more than 5" in reject.reason for reject in rejects] == [True, True]
    monkeypatch.setattr("coreclip.pipeline.tfrecords._MAX_RECORD_BYTES", 8)
    _, rejects = read(tmp_path / "a.tfrecord")
    assert all("MiB are allowed" in reject.reason for reject in rejects)


def test_damaged_data_cost_one_record_and_a_damaged_length_the_rest(tmp_path):
    frames = [frame(pair(i)) for i in range(4)]
    path = tmp_path / "a.tfrecord"
    spoilt = bytearray(frames[1])
    spoilt[20] ^= 1
    path.write_bytes(frames[0] + spoilt + frames[2] + frames[3])
    records, rejects = read(path)
    assert [record.key for record in records] == ["00000000", "00000002", "00000003"]
    assert [(r.key, r.reason) for r in rejects] == [
        ("00000001", "the record is damaged: its checksum differs (record 1)")
    ]
    spoilt = bytearray(frames[1])
    spoilt[3] ^= 1
    path.write_bytes(frames[0] + spoilt + frames[2])
    records, (reject,) = read(path)
    assert [record.key for record in records] == ["00000000"]
    assert f"checksum of a record's length differs at byte {len(frames[0])} (record 1)" in reject.reason
    assert_parts_make_the_whole(find_sources([path])[0])


@pytest.mark.parametrize("cut", [1, 5, 13, 40])
def test_a_file_that_is_cut_short_gives_what_is_whole(cut, tmp_path):
    path = write(tmp_path / "a.tfrecord", pair(0), pair(1))
    path.write_bytes(path.read_bytes()[:-cut])
    records, (reject,) = read(path)
    assert len(records) == 1
    assert "the file is cut short at byte" in reject.reason
    assert_parts_make_the_whole(find_sources([path])[0])


@pytest.mark.parametrize(("compress", "kind"), [(gzip.compress, "gzip"), (zlib.compress, "zlib")])
def test_compressed_files_are_refused_with_a_remedy(compress, kind, tmp_path):
    path = write(tmp_path / "a.tfrecord", pair(0))
    path.write_bytes(compress(path.read_bytes()))
    with pytest.raises(CoreclipError, match=rf"compressed with {kind}.*unpack it"):
        find_sources([path])


def test_a_folder_of_tfrecords_is_read_in_order(tmp_path):
    for i in (1, 0):
        write(tmp_path / f"train-0000{i}-of-00002", pair(i))
    assert [record.captions for record in read(tmp_path)[0]] == [["caption 0"], ["caption 1"]]
