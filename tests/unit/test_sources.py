"""What each kind of source yields, and the reason of every sample that it leaves out."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import read_image
from coreclip.pipeline.sources import find_sources
from tests.sources import assert_parts_make_the_whole, read, reasons, write_tar

# WebDataset


def test_a_tar_pairs_members_by_key_and_refers_to_their_bytes(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [("x/1.jpg", b"one"), ("x/1.txt", b"a\n\n b \n"), ("2.PNG", b"two!"), ("2.txt", b"c")]
    )
    records, rejects = read(path)
    assert rejects == []
    assert [(r.key, r.captions, read_image(r.image), r.source) for r in records] == [
        ("x/1", ["a", "b"], b"one", "a.tar"),
        ("2", ["c"], b"two!", "a.tar"),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"captions": ["a", "b"], "caption": "no"}, ["a", "b"]),
        ({"caption": "c"}, ["c"]),
        ({"captions": [], "caption": None}, ["from txt"]),
        ({"url": "x"}, ["from txt"]),
    ],
)
def test_captions_come_from_the_json_before_the_txt(value, expected, tmp_path):
    members = [("1.jpg", b"i"), ("1.txt", b"from txt"), ("1.json", json.dumps(value).encode())]
    (record,), _ = read(write_tar(tmp_path / "a.tar", members))
    assert record.captions == expected


def test_other_values_of_the_json_are_kept_as_columns(tmp_path):
    value = {"caption": "c", "key": "1", "url": "u", "similarity": 0.25, "width": 640, "nested": {"no": 1}}
    (record,), _ = read(write_tar(tmp_path / "a.tar", [("1.jpg", b"i"), ("1.json", json.dumps(value).encode())]))
    assert record.columns == {"url": "u", "similarity": 0.25, "width": 640}


def test_members_of_a_sample_may_lie_apart_and_keys_may_have_dots(tmp_path):
    members = [("a.1.jpg", b"i1"), ("a.2.jpg", b"i2"), ("a.1.txt", b"one"), ("a.2.txt", b"two")]
    records, rejects = read(write_tar(tmp_path / "a.tar", members))
    assert [(r.key, r.captions, read_image(r.image)) for r in records] == [
        ("a.1", ["one"], b"i1"),
        ("a.2", ["two"], b"i2"),
    ]
    assert rejects == []


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("k.jpg", b"i")], "image without text"),
        ([("k.txt", b"t")], "text without an image"),
        ([("k.jpg", b"i"), ("k.txt", b" \n\n")], "no caption"),
        ([("k.jpg", b"i"), ("k.txt", b"\xff\xfe")], "not UTF-8"),
        ([("k.jpg", b"i"), ("k.json", b'{"caption": "\\ud800"}')], "not UTF-8"),
        ([("k.jpg", b"i"), ("k.json", b"{")], "not JSON"),
        ([("k.jpg", b"i"), ("k.json", b"[1]")], "must hold an object"),
        ([("k.jpg", b"i"), ("k.json", b'{"captions": [1]}')], "neither text nor a list"),
        ([("k.jpg", b"i"), ("k.cls", b"3")], "no caption; it has class 3: name the classes with --classes"),
        ([("k.jpg", b"i"), ("k.txt", b"t"), ("k.cls", b"cat")], "must hold a class number"),
        ([("k.jpg", b""), ("k.txt", b"t")], "0 bytes"),
        ([("k.jpg", b"i"), ("k.txt", b"t" * (1 << 20) + b"t")], "1048577 bytes"),
    ],
)
def test_every_bad_sample_of_a_tar_is_refused_with_its_reason(members, reason, tmp_path):
    good = [("good.jpg", b"i"), ("good.txt", b"t")]
    records, rejects = read(write_tar(tmp_path / "a.tar", members + good))
    assert [record.key for record in records] == ["good"]
    assert list(reasons(rejects)) == ["k"]
    assert reason in rejects[0].reason


def test_of_samples_with_one_key_the_first_is_kept(tmp_path):
    members = [("k.jpg", b"1"), ("k.txt", b"one"), ("k.jpg", b"2"), ("k.txt", b"two")]
    records, rejects = read(write_tar(tmp_path / "a.tar", members))
    assert [(read_image(r.image), r.captions) for r in records] == [(b"1", ["one"])]
    assert [(r.key, "duplicate key" in r.reason) for r in rejects] == [("k", True)]


@pytest.mark.parametrize("order", ["1.jpg 2.jpg 1.txt 2.txt", "1.jpg 2.jpg 2.txt", "1.jpg 2.png 2.txt"])
def test_texts_that_could_belong_to_either_image_make_no_pair(order, tmp_path):
    members = [("k" + name[1:], name[:1].encode()) for name in order.split()]
    records, rejects = read(write_tar(tmp_path / "a.tar", members))
    assert records == []
    assert {reject.key for reject in rejects} == {"k"}


MEMBERS = [
    (f"{i}.{extension}", content) for i in range(5) for extension, content in (("jpg", b"i" * 700), ("txt", b"t"))
]


@pytest.mark.parametrize(("size", "whole"), [(2560, 1), (2860, 1), (3172, 1), (4184, 1), (4708, 2)])
def test_of_a_truncated_tar_what_is_whole_is_kept(size, whole, tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    content = path.read_bytes()
    path.write_bytes(content[:size])
    records, rejects = read(path)
    assert [record.key for record in records] == [str(i) for i in range(whole)]
    assert any("cut short" in reject.reason for reject in rejects)


def test_a_damaged_header_within_a_tar_is_reported(tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    content[512 * 10 : 512 * 11] = b"\x55" * 512
    path.write_bytes(content)
    records, rejects = read(path)
    assert [record.key for record in records] == ["0", "1"]
    assert [(r.key, "damaged after 1.txt" in r.reason) for r in rejects] == [("", True)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"garbage" * 300, "not a tar"), (b"", "not a tar"), (gzip.compress(b"x" * 999, mtime=0), "gzip")],
)
def test_what_is_no_tar_is_a_reject_with_a_reason(content, reason, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    records, rejects = read(tmp_path / "a.tar")
    assert records == []
    assert [reason in reject.reason for reject in rejects] == [True]


def test_member_names_that_are_not_utf8_are_escaped(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ("\xe9.jpg", "\xe9.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    (record,), _ = read(path)
    assert record.key == "\\udce9"


def test_patterns_and_folders_name_several_tars_in_order(tmp_path):
    for i in (1, 0):
        write_tar(tmp_path / f"s-{i:03d}.tar", [(f"{i}.jpg", b"i"), (f"{i}.txt", b"t")])
    for name in (tmp_path, f"{tmp_path}/s-{{000..001}}.tar"):
        assert [record.key for record in read(name)[0]] == ["0", "1"]
    with pytest.raises(CoreclipError, match=r"s-002\.tar: it does not exist"):
        find_sources([f"{tmp_path}/s-{{000..002}}.tar"])
    with pytest.raises(CoreclipError, match="named twice"):
        find_sources([tmp_path, tmp_path / "s-000.tar"])
    with pytest.raises(CoreclipError, match="brace"):
        find_sources([f"{tmp_path}/s-{{000..002.tar"])


# Folder and table


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "deep/c.jpg", "twice.jpg", "deep/twice.jpg"):
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path


ROWS = [
    {"Image": "images/a.jpg", "caption": 'says "hi", twice', "group": "x"},
    {"Image": "b.jpg", "caption": "second", "group": "NA"},
    {"Image": "images/a.jpg", "caption": "null", "group": "y"},
    {"Image": "c.jpg", "caption": "third", "group": ""},
]
WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("named", ["folder", "table", "both"])
def test_rows_of_one_image_are_one_pair(suffix, named, folder):
    table = folder / f"captions.{suffix}"
    WRITERS[suffix](pd.DataFrame(ROWS), table)
    if named == "both":
        table = table.rename(folder / "images" / table.name)
        records, rejects = read(folder, captions=table)
    else:
        records, rejects = read(folder if named == "folder" else table)
    assert rejects == []
    got = [(r.key, r.captions, r.columns["group"], read_image(r.image)) for r in records]
    assert got == [
        ("images/a.jpg", ['says "hi", twice', "null"], "x", b"a.jpg"),
        ("b.jpg", ["second"], "NA", b"b.jpg"),
        ("c.jpg", ["third"], "", b"deep/c.jpg"),
    ]


def test_lists_of_captions_are_read_from_jsonl(folder):
    (folder / "t.jsonl").write_text('{"file_name": "a.jpg", "text": ["one", "", "two"], "score": 0.5, "nested": [1]}\n')
    (record,), _ = read(folder)
    assert (record.captions, record.columns) == (["one", "two"], {"score": 0.5})


def test_a_stray_quote_in_a_tsv_swallows_no_rows(folder):
    (folder / "t.tsv").write_text('image\tcaption\na.jpg\t"so he said\nb.jpg\tplain\n')
    records, rejects = read(folder)
    assert [record.captions for record in records] == [['"so he said'], ["plain"]]
    assert rejects == []


@pytest.mark.parametrize(
    ("row", "key", "reason"),
    [
        (b"none.jpg,text", "none.jpg", "no file of this name"),
        (b"twice.jpg,text", "twice.jpg", "2 files of this name"),
        (b"b.jpg,", "b.jpg", "no caption"),
        (b"b.jpg,\xff\xfe", "b.jpg", "a caption is not UTF-8"),
        (b",text", "", "names no image"),
        (b"b.jpg,one,two", "b.jpg", "3 fields, the header 2"),
        (b"b.jpg", "b.jpg", "1 fields, the header 2"),
        (b"images,text", "images", "no file of this name"),
        (b"a\0.jpg,text", "a\0.jpg", "can't be a path"),
        (b"%s,text" % (b"x" * 5000), "x" * 5000, "can't be a path"),
    ],
)
def test_every_bad_row_of_a_csv_is_refused_with_its_reason(row, key, reason, folder):
    (folder / "t.csv").write_bytes(b"image,caption\n" + row + b"\na.jpg,good\n")
    records, rejects = read(folder)
    assert [record.key for record in records] == ["a.jpg"]
    assert [(reject.key, reason in reject.reason) for reject in rejects] == [(key, True)], rejects


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 1 is not JSON"),
        (b"\xff", "line 1 is not UTF-8"),
        (b"[1]", "must hold an object"),
        (b'{"image": 5, "caption": "x"}', "names no image"),
        (b'{"caption": "x"}', "names no image"),
        (b'{"image": "b.jpg"}', "no caption"),
        (b'{"image": "b.jpg", "caption": 5}', "its caption is int"),
    ],
)
def test_every_bad_line_of_a_jsonl_is_refused_with_its_reason(line, reason, folder):
    (folder / "t.jsonl").write_bytes(line + b'\n{"image": "a.jpg", "caption": "good"}\n')
    records, rejects = read(folder)
    assert [record.key for record in records] == ["a.jpg"]
    assert [reason in reject.reason for reject in rejects] == [True], rejects


def test_a_pipe_named_as_an_image_is_not_opened(folder):
    os.mkfifo(folder / "images" / "pipe.jpg")
    (folder / "t.csv").write_text("image,caption\nimages/pipe.jpg,text\npipe.jpg,text\n")
    records, rejects = read(folder)
    assert records == []
    assert len(rejects) == 2


def test_a_changed_image_changes_the_identity_of_a_folder(folder):
    (folder / "t.csv").write_text("image,caption\na.jpg,text\n")
    (source,) = find_sources([folder])
    before = source.identity()
    assert source.identity() == before
    os.utime(folder / "images" / "a.jpg", ns=(1, 1))
    assert source.identity() != before


# IDX


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(params=[".gz", ""])
def idx(tmp_path, request):
    images = tmp_path / f"t-images-idx3-ubyte{request.param}"
    write_idx(images, np.arange(3 * 4 * 5).reshape(3, 4, 5))
    write_idx(tmp_path / f"t-labels-idx1-ubyte{request.param}", np.array([1, 0, 7]))
    return images


def test_idx_gives_pixels_labels_and_captions_of_a_template(idx):
    records, rejects = read(idx, class_names=["cat", "dog"], template="a {}!")
    assert [(r.label, r.captions, r.image.height, r.image.width) for r in records] == [
        (1, ["a dog!"], 4, 5),
        (0, ["a cat!"], 4, 5),
    ]
    assert read_image(records[1].image) == bytes(range(20, 40))
    assert [reject.reason for reject in rejects] == ["class 7 is not one of the 2 classes that have names"]


def test_parts_of_an_idx_make_the_whole(idx):
    (source,) = find_sources([idx], class_names=["cat"])
    assert_parts_make_the_whole(source)


def test_idx_needs_class_names(idx):
    with pytest.raises(CoreclipError, match="--classes"):
        find_sources([idx])


def test_idx_needs_its_labels(idx):
    next(idx.parent.glob("*labels*")).unlink()
    with pytest.raises(CoreclipError, match="t-labels-idx1-ubyte"):
        find_sources([idx], class_names=["cat"])


def test_a_short_idx_gives_what_is_whole(tmp_path):
    write_idx(tmp_path / "t-images-idx3-ubyte", np.zeros((3, 4, 5)))
    write_idx(tmp_path / "t-labels-idx1-ubyte", np.zeros(3))
    path = tmp_path / "t-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    records, rejects = read(path, class_names=["cat"])
    assert len(records) == 2
    assert [reject.reason for reject in rejects] == ["3 images are announced, but only 2 have pixels and a label"]


@pytest.mark.parametrize("content", [b"", b"garbage" * 9, gzip.compress(b"x" * 9999, mtime=0)[:40]])
def test_a_damaged_idx_is_named(content, idx):
    idx.write_bytes(content)
    with pytest.raises(CoreclipError, match="t-images-idx3"):
        find_sources([idx], class_names=["cat"])


# What is no source


def test_unknown_kinds_are_refused_with_the_known_ones(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name in ("a.zip", "empty", "missing"):
        with pytest.raises(CoreclipError, match=rf"{name}.*WebDataset \.tar.*captions table.*IDX"):
            find_sources([tmp_path / name])
    with pytest.raises(CoreclipError, match="no source is named"):
        find_sources([])


def test_a_folder_with_two_tables_asks_which(tmp_path):
    for name in ("a.csv", "b.tsv"):
        (tmp_path / name).write_text("image,caption\n")
    with pytest.raises(CoreclipError, match=r"2 tables \(a\.csv, b\.tsv\); name one with --captions"):
        find_sources([tmp_path])


def test_a_folder_of_idx_files_asks_for_the_file(idx):
    with pytest.raises(CoreclipError, match="name the NAME-images"):
        find_sources([idx.parent], class_names=["cat"])


def test_captions_belong_to_one_folder(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    (tmp_path / "t.csv").write_text("image,caption\n")
    with pytest.raises(CoreclipError, match="belongs to one folder"):
        find_sources([tmp_path / "a.tar"], tmp_path / "t.csv")
    with pytest.raises(CoreclipError, match="is not a file"):
        find_sources([tmp_path], tmp_path / "none.csv")
    with pytest.raises(CoreclipError, match="no known kind"):
        find_sources([tmp_path], tmp_path / "a.tar")


@pytest.mark.parametrize(("header", "what"), [("photo,caption", "an image"), ("image,words", "a caption")])
def test_columns_that_are_not_recognised_are_listed(header, what, tmp_path):
    (tmp_path / "t.csv").write_text(f"{header}\na.jpg,text\n")
    with pytest.raises(CoreclipError, match=rf"no column that names {what} \(columns: {header.replace(',', ', ')}\)"):
        read(tmp_path)


def test_a_damaged_parquet_table_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1garbage")
    with pytest.raises(CoreclipError, match=r"t\.parquet can't be read"):
        read(tmp_path)


# What a table must not do: give a caption to another picture, or lose rows


def write_table(folder: Path, text: str) -> Path:
    for name in ("dog/1.jpg", "dog/2.jpg", "plain.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "captions.csv").write_text(text)
    return folder


def test_a_missing_file_is_not_replaced_by_one_of_the_same_name_elsewhere(tmp_path):
    folder = write_table(tmp_path, "image,caption\ncat/1.jpg,a cat\ndog/2.jpg,a dog\n2.jpg,again\n")
    records, rejects = read(folder)
    assert {r.key: read_image(r.image) for r in records} == {"dog/2.jpg": b"dog/2.jpg", "2.jpg": b"dog/2.jpg"}
    assert "no file of this name" in reasons(rejects)["cat/1.jpg"]


def test_one_image_under_two_spellings_is_one_pair(tmp_path):
    records, _ = read(write_table(tmp_path, "image,caption\nplain.jpg,one\n./plain.jpg,two\n"))
    assert [r.captions for r in records] == [["one", "two"]]


@pytest.mark.parametrize(
    "row", ['plain.jpg,"a cat\ndog/1.jpg,house\n', 'plain.jpg,"tall tree\ndog/2.jpg,"red" house\n']
)
def test_a_stray_quote_does_not_swallow_rows(tmp_path, row):
    with pytest.raises(CoreclipError, match=r"is not well-formed csv.*a quote in it is written twice"):
        read(write_table(tmp_path, "image,caption\n" + row))


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(CoreclipError, match="has two columns 'caption'"):
        read(write_table(tmp_path, "image,caption,caption\nplain.jpg,one,two\n"))
