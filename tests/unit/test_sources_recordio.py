"""MXNet's RecordIO: headers, several labels, records in several parts, lists of names, damage."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.records import ImageReference, read_image
from coreclip.pipeline.sources import find_sources
from tests.sources import assert_parts_make_the_whole, read, reasons

MAGIC = struct.pack("<I", 0xCED7230A)


def frame(data: bytes) -> bytes:
    """Write a record as dmlc-core's RecordIOWriter does: data are cut wherever the magic number stands, 4-byte aligned."""
    cuts = [at for at in range(0, len(data) - len(data) % 4, 4) if data[at : at + 4] == MAGIC]
    starts = [0, *(at + 4 for at in cuts)]
    parts = [data[start:stop] for start, stop in zip(starts, [*cuts, len(data)], strict=True)]
    out = b""
    for number, part in enumerate(parts):
        which = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
        out += MAGIC + struct.pack("<I", which << 29 | len(part)) + part + bytes(-len(part) % 4)
    return out


def packed(image: bytes, label, number: int) -> bytes:
    """Pack an image as mxnet.recordio.pack does."""
    if isinstance(label, list):
        head = struct.pack("<IfQQ", len(label), 0, number, 0) + struct.pack(f"<{len(label)}f", *label)
    else:
        head = struct.pack("<IfQQ", 0, label, number, 0)
    return frame(head + image)


def write(path, *records: bytes):
    path.write_bytes(b"".join(records))
    return path


@pytest.fixture
def rec(tmp_path):
    return write(tmp_path / "a.rec", *(packed(b"image %d" % i * (i + 1), i % 2, 10 + i) for i in range(6)))


def test_records_give_images_and_labels(rec):
    records, rejects = read(rec, class_names=["cat", "dog"], template="a {}")
    assert rejects == []
    assert [(r.key, r.label, r.captions, r.columns, read_image(r.image)) for r in records] == [
        (f"{10 + i:08d}", i % 2, [f"a {['cat', 'dog'][i % 2]}"], {"record_id": 10 + i}, b"image %d" % i * (i + 1))
        for i in range(6)
    ]
    assert_parts_make_the_whole(find_sources([rec])[0], (1, 2, 3, 7, 100))


def test_labels_without_names_say_what_they_need(rec):
    records, rejects = read(rec)
    assert records == []
    assert "name the classes with --classes" in rejects[0].reason


def test_a_list_gives_the_names(rec):
    rec.with_suffix(".lst").write_text("10\t0.0\tcats/a.jpg\n11\t1\t2\tdogs/b c.jpg\nnonsense\n\n")
    rec.with_suffix(".idx").write_text("10\t0\n")
    records, _ = read(rec.parent, class_names=["cat", "dog"])
    assert [record.key for record in records[:3]] == ["cats/a.jpg", "dogs/b c.jpg", "00000012"]
    (source,) = find_sources([rec])
    assert [identity["path"].rsplit(".", 1)[1] for identity in source.identity()] == ["rec", "lst"]


@pytest.mark.parametrize(
    ("label", "number", "columns"),
    [
        ([4.0], 4, {}),
        ([1.0, 2.5], None, {"source_labels": "1 2.5"}),
        (0.5, None, {"source_label": 0.5}),
        (-1.0, None, {"source_label": -1.0}),
        (float("inf"), None, {"source_label": float("inf")}),
    ],
)
def test_only_a_single_whole_number_is_a_class(label, number, columns, tmp_path):
    (source,) = find_sources([write(tmp_path / "a.rec", packed(b"image", label, 7))])
    (record,) = source.scan()
    assert (record.label, record.columns, read_image(record.image)) == (number, {"record_id": 7, **columns}, b"image")


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.lists(st.sampled_from([MAGIC, b"abcd", b"x", b"\n#"]), min_size=1, max_size=9), min_size=1, max_size=4
    )
)
def test_images_that_hold_the_magic_number_are_put_together(pieces, tmp_path_factory):
    images = [b"".join(parts) for parts in pieces]
    path = write(tmp_path_factory.mktemp("rec") / "a.rec", *(packed(image, [1.0], i) for i, image in enumerate(images)))
    (source,) = find_sources([path])
    records = list(source.scan())
    assert [read_image(record.image) for record in records] == images
    assert [record.image.size for record in records] == [len(image) for image in images]
    assert_parts_make_the_whole(source, (2, 5))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (frame(b"short"), "has 5 bytes; the header of an image alone has 24"),
        (frame(struct.pack("<IfQQ", 1000, 0, 1, 0)), "announces 1000 labels"),
        (frame(struct.pack("<IfQQ", 0xFFFFFFFF, 0, 1, 0)), "announces 4294967295 labels"),
        (packed(b"", 1, 1), "0 bytes"),
    ],
)
def test_every_bad_record_is_refused_with_its_reason(record, reason, tmp_path):
    records, rejects = read(write(tmp_path / "a.rec", record, packed(b"good", 1, 2)), class_names=["a", "b"])
    assert [read_image(record.image) for record in records] == [b"good"]
    assert [reason in reject.reason for reject in rejects] == [True], rejects


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:-5], "cut short within the record at byte"),
        (lambda content: content + MAGIC, "cut short at byte"),
        (lambda content: content + b"garbage!", "at byte 288 is 67617262, not the magic number 0a23d7ce"),
        (lambda content: content + MAGIC + struct.pack("<I", 3 << 29), "a part of the kind 3"),
        (
            lambda content: content + MAGIC + struct.pack("<I", 1 << 29) + MAGIC + struct.pack("<I", 0),
            "a part of the kind 0",
        ),
    ],
)
def test_damage_ends_the_file_with_its_place(spoil, reason, tmp_path):
    path = write(tmp_path / "a.rec", *(packed(bytes(37), 0, i) for i in range(4)))
    path.write_bytes(spoil(path.read_bytes()))
    records, (reject,) = read(path, class_names=["a"])
    assert len(records) in (3, 4)
    assert reason in reject.reason
    assert "the rest of the file is left out" in reject.reason
    assert_parts_make_the_whole(find_sources([path])[0])


def test_another_file_and_too_many_parts_are_refused(tmp_path, monkeypatch):
    _, rejects = read(write(tmp_path / "a.rec", b"something else"))
    assert "the file is no RecordIO" in reasons(rejects)[""]
    monkeypatch.setattr("coreclip.pipeline.recordio._MAX_PARTS", 3)
    _, rejects = read(write(tmp_path / "a.rec", packed(MAGIC * 5, [1.0], 1)))
    assert "more than 3 parts" in reasons(rejects)[""]
    monkeypatch.setattr("coreclip.pipeline.recordio._MAX_RECORD_BYTES", 8)
    _, rejects = read(write(tmp_path / "a.rec", packed(b"image", 1, 1)))
    assert "MiB are allowed" in reasons(rejects)["byte 0"]


def test_a_record_that_is_damaged_after_the_scan_gives_no_bytes(tmp_path):
    path = write(tmp_path / "a.rec", b"garbage!")
    assert read_image(ImageReference(str(path), 0, 10, access="recordio")) == b""


def test_a_folder_of_recordio_files_is_read_in_order(rec):
    write(rec.with_name("b.rec"), packed(b"last", 1, 99))
    records, _ = read(rec.parent, class_names=["cat", "dog"])
    assert [record.columns["record_id"] for record in records] == [*range(10, 16), 99]
