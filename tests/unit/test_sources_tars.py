"""WebDataset archives beyond their pairs: order, parts, memory, class folders within, and img2dataset's table beside."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.pipeline import tarindex
from coreclip.pipeline.records import Record, Reject, read_image
from coreclip.pipeline.sources import class_names_of, find_sources, scan
from coreclip.pipeline.tarindex import TarIndex
from tests.sources import assert_parts_make_the_whole, read, reasons, write_tar

EXTENSIONS = st.sampled_from(["jpg", "PNG", "txt", "json", "cls", "webp", "md"])
MEMBERS = st.lists(st.tuples(st.sampled_from("abcde"), EXTENSIONS), max_size=14)
CONTENT = {"json": b'{"caption": "from json", "n": 1}', "txt": b"one\ntwo", "cls": b"3"}


def slow_samples(members: list[tuple[str, str]]) -> list[tuple[str, dict[str, str], bool]]:
    """Group members by key in the plainest way: (key, {role: content}, duplicate)."""
    roles = {"jpg": "image", "png": "image", "webp": "image", "txt": "txt", "json": "json", "cls": "cls"}
    by_key: dict[str, list[dict[str, str]]] = {}
    for number, (key, extension) in enumerate(members):
        role = roles.get(extension.lower())
        if role is None:
            continue
        samples = by_key.setdefault(key, [{}])
        if role in samples[-1]:
            samples.append({})
        samples[-1][role] = str(number)
    return [(key, sample, i > 0) for key, samples in by_key.items() for i, sample in enumerate(samples)]


@settings(max_examples=60, deadline=None)
@given(members=MEMBERS)
def test_any_order_of_members_gives_the_pairs_that_a_plain_grouping_gives(members, tmp_path_factory):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    content = [
        (f"{key}.{extension}", CONTENT.get(extension, str(number).encode()))
        for number, (key, extension) in enumerate(members)
    ]
    write_tar(path, [*content, ("z.jpg", b"z"), ("z.txt", b"last")])
    (source,) = find_sources([path])
    items = list(source.scan())
    expected = [*slow_samples(members), ("z", {"image": "z", "txt": ""}, False)]
    assert [item.key for item in items] == [key for key, _, _ in expected]
    for item, (_, sample, duplicate) in zip(items, expected, strict=True):
        good = "image" in sample and len(sample) > 1 and not duplicate
        assert isinstance(item, Record) == good
        if good:
            assert read_image(item.image).decode() == sample["image"]
    assert_parts_make_the_whole(source, (1, 2, 5))


def test_keys_whose_hashes_collide_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(tarindex, "hash", lambda key: 7, raising=False)
    members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("b.txt", b"two"), ("a.txt", b"one")]
    records, rejects = read(write_tar(tmp_path / "a.tar", members))
    assert [(r.key, read_image(r.image), r.captions) for r in records] == [("a", b"1", ["one"]), ("b", b"2", ["two"])]
    assert rejects == []


def test_an_index_needs_some_100_bytes_for_a_sample():
    index = TarIndex(1 << 40)
    n = 20_000
    for i in range(n):
        for extension in ("jpg", "txt", "json"):
            index.add(f"{i:09d}.{extension}", i << 12, 3000)
    index.finish()
    kept = [value for value in vars(index).values() if hasattr(value, "__len__") and not isinstance(value, str)]
    n_bytes = sum(len(value) * getattr(value, "itemsize", 1) for value in kept)
    assert n_bytes <= 110 * n


@pytest.mark.parametrize("extension", ["jpeg", "webp", "gif", "bmp", "tif", "tiff", "JPG"])
def test_every_kind_of_image_that_is_decoded_is_found(extension, tmp_path):
    (record,), _ = read(write_tar(tmp_path / "a.tar", [(f"1.{extension}", b"i"), ("1.txt", b"t")]))
    assert read_image(record.image) == b"i"


def test_parts_of_a_damaged_archive_report_the_damage_once(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.{e}", b"x" * 600) for i in range(9) for e in ("jpg", "txt")])
    path.write_bytes(path.read_bytes()[:9000])
    (source,) = find_sources([path])
    assert any("cut short" in item.reason for item in source.scan() if isinstance(item, Reject))
    assert_parts_make_the_whole(source)


def test_a_source_has_one_part_or_more(tmp_path):
    (source,) = find_sources([write_tar(tmp_path / "a.tar", [("1.jpg", b"i"), ("1.txt", b"t")])])
    with pytest.raises(ValueError, match="parts = 0"):
        source.split(0)


# Class folders within an archive


def class_members(*names: str) -> list[tuple[str, bytes]]:
    return [(name, name.encode()) for name in names]


@pytest.mark.parametrize("prefix", ["", "train/", "./"])
def test_an_archive_of_class_folders_has_labels_and_captions_of_its_folders(prefix, tmp_path):
    names = [f"{prefix}{name}" for name in ("ice_cream/1.jpg", "dog/1.jpg", "dog/2.PNG")]
    path = write_tar(tmp_path / "a.tar", class_members(*names, "README.md"))
    (source,) = find_sources([path])
    assert class_names_of([source]) == ["dog", "ice_cream"]
    items = list(scan(source, None, "a photo of a {}"))
    assert [(item.label, item.captions, read_image(item.image)) for item in items] == [
        (1, ["a photo of a ice cream"], names[0].encode()),
        (0, ["a photo of a dog"], names[1].encode()),
        (0, ["a photo of a dog"], names[2].encode()),
    ]
    assert len({item.key for item in items}) == 3
    assert_parts_make_the_whole(source)


def test_a_users_order_of_the_folders_is_kept_and_other_names_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", class_members("cat/1.jpg", "dog/1.jpg"))
    records, _ = read(path, class_names=["dog", "cat"])
    assert [(record.label, record.captions) for record in records] == [(1, ["cat"]), (0, ["dog"])]
    with pytest.raises(CoreclipError, match=r"has no folder 'cow'.*leave --classes out"):
        read(path, class_names=["dog", "cat", "cow"])
    with pytest.raises(CoreclipError, match=r"has a folder 'dog' that is not among them"):
        read(path, class_names=["cat"])


@pytest.mark.parametrize(
    "names", [("cat/1.jpg", "2.jpg"), ("images/1.jpg", "images/2.jpg"), ("a/1.jpg", "b/1.jpg", "b/1.txt")]
)
def test_other_archives_are_of_samples_with_texts(names, tmp_path):
    path = write_tar(tmp_path / "a.tar", class_members(*names))
    (source,) = find_sources([path])
    assert source.class_names is None
    _, rejects = read(path)
    assert any("image without text" in reject.reason for reject in rejects)


def test_sources_with_different_classes_are_refused(tmp_path):
    one = write_tar(tmp_path / "1.tar", class_members("cat/1.jpg", "dog/1.jpg"))
    two = write_tar(tmp_path / "2.tar", class_members("cat/1.jpg", "emu/1.jpg"))
    with pytest.raises(CoreclipError, match=r"different classes \(2 and 2; one alone has dog\)"):
        find_sources([one, two])


def test_an_archive_of_classes_that_changes_after_it_was_found_makes_no_wrong_label(tmp_path):
    path = write_tar(tmp_path / "a.tar", class_members("cat/1.jpg", "dog/1.jpg"))
    (source,) = find_sources([path])
    write_tar(path, class_members("cat/1.jpg", "emu/1.jpg"))
    items = list(source.scan())
    assert [item.label for item in items if isinstance(item, Record)] == [0]
    assert [item.reason for item in items if isinstance(item, Reject)] == [
        "emu is a new class: the archive has changed"
    ]


# img2dataset


def write_img2dataset(tmp_path, keys=("000000000", "000000001", "000000003")):
    """Write what img2dataset writes: key 2 failed to download, key 3 has no json."""
    members = []
    for key in keys:
        members += [(f"{key}.jpg", key.encode()), (f"{key}.txt", f"text {key}".encode())]
        if key != "000000003":
            members.append((f"{key}.json", json.dumps({"caption": f"json {key}", "width": 5}).encode()))
    rows = [
        {"url": f"http://x/{i}", "key": f"{i:09d}", "caption": f"row {i}", "status": "success", "error_message": None, "width": 9,
         "sha256": f"{i}"}
        for i in range(4)
    ]  # fmt: skip
    rows[2] |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found", "width": None}
    pd.DataFrame(rows).iloc[[3, 0, 2, 1]].to_parquet(tmp_path / "00000.parquet", index=False)
    (tmp_path / "00000_stats.json").write_text('{"count": 4}')
    return write_tar(tmp_path / "00000.tar", members)


def test_the_table_of_img2dataset_adds_columns_and_says_what_failed(tmp_path):
    write_img2dataset(tmp_path)
    records, rejects = read(tmp_path)
    assert [(r.key, r.captions, r.columns["url"], r.columns["width"], r.columns["sha256"]) for r in records] == [
        ("000000000", ["json 000000000"], "http://x/0", 5, "0"),
        ("000000001", ["json 000000001"], "http://x/1", 5, "1"),
        ("000000003", ["text 000000003"], "http://x/3", 9, "3"),
    ]
    assert all(read_image(record.image).decode() == record.key for record in records)
    assert reasons(rejects) == {
        "000000002": "img2dataset has no image: failed_to_download (HTTP Error 404: Not Found)"
    }  # fmt: skip
    (source,) = find_sources([tmp_path])
    assert [identity["path"].rsplit("/", 1)[1] for identity in source.identity()] == ["00000.tar", "00000.parquet"]
    assert_parts_make_the_whole(source)


def test_a_row_of_success_without_an_image_is_a_reject_and_captions_may_come_from_the_row(tmp_path):
    write_img2dataset(tmp_path, keys=())
    write_tar(tmp_path / "00000.tar", [("000000001.jpg", b"i")])
    (record,), rejects = read(tmp_path)
    assert (record.key, record.captions) == ("000000001", ["row 1"])
    assert "the archive has no such image" in reasons(rejects)["000000000"]
    assert sorted(reasons(rejects)) == ["000000000", "000000002", "000000003"]


def test_another_table_beside_an_archive_is_left_alone_and_a_damaged_one_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", b"i"), ("1.txt", b"t")])
    pd.DataFrame({"anything": [1]}).to_parquet(tmp_path / "a.parquet")
    records, rejects = read(tmp_path / "a.tar")
    assert (len(records), rejects) == (1, [])
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(CoreclipError, match=r"a\.parquet beside the archive can't be read.*restore or remove it"):
        read(tmp_path / "a.tar")
    pd.DataFrame({"key": np.arange(2.0)[:, None].tolist(), "status": "success"}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(CoreclipError, match="keys that are not text"):
        read(tmp_path / "a.tar")
