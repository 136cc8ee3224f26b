"""Class folders and COCO's captions."""

import json

import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import Record, read_image
from coreclip.pipeline.sources import class_names_of, find_sources, scan
from tests.sources import assert_parts_make_the_whole, read


def make_files(root, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_class_folders_are_numbered_by_name(tmp_path):
    make_files(
        tmp_path, "dog/a.jpg", "dog/deep/a.PNG", "ice_cream/a.jpg", "loose.jpg", "dog/notes.txt", "empty/readme.md"
    )
    (source,) = find_sources([tmp_path])
    assert class_names_of([source]) == ["dog", "ice_cream"]
    items = list(scan(source, None, "a photo of a {}"))
    assert [(item.key, item.label, item.captions) for item in items] == [
        ("dog/a.jpg", 0, ["a photo of a dog"]),
        ("dog/deep/a.PNG", 0, ["a photo of a dog"]),
        ("ice_cream/a.jpg", 1, ["a photo of a ice cream"]),
    ]
    assert all(read_image(item.image).decode() == item.key for item in items)
    assert_parts_make_the_whole(source)


def test_classes_that_a_user_names_fix_the_order_and_must_be_the_folders(tmp_path):
    make_files(tmp_path, "dog/a.jpg", "ice_cream/a.jpg")
    records, _ = read(tmp_path, class_names=["ice_cream", "dog"])
    assert [(r.label, r.captions) for r in records] == [(1, ["dog"]), (0, ["ice cream"])]
    with pytest.raises(CoreclipError, match=r"--classes names 2 classes, but .* has no folder 'ice cream'"):
        read(tmp_path, class_names=["ice cream", "dog"])


def test_the_identity_of_class_folders_changes_with_an_image(tmp_path):
    make_files(tmp_path, "dog/a.jpg", "cat/a.jpg")
    (source,) = find_sources([tmp_path])
    before = source.identity()
    assert source.identity() == before
    (tmp_path / "dog" / "a.jpg").write_bytes(b"another")
    assert source.identity() != before


def test_a_class_that_appears_between_finding_and_scanning_is_a_reject(tmp_path):
    make_files(tmp_path, "dog/a.jpg", "cat/a.jpg")
    (source,) = find_sources([tmp_path])
    make_files(tmp_path, "bee/a.jpg")
    items = list(source.scan())
    assert [(item.key, isinstance(item, Record)) for item in items] == [
        ("bee/a.jpg", False), ("cat/a.jpg", True), ("dog/a.jpg", True),
    ]  # fmt: skip
    assert "its folder is new" in items[0].reason


def test_folders_of_splits_are_no_classes(tmp_path):
    make_files(tmp_path, "train/dog/a.jpg", "val2017/dog/a.jpg")
    with pytest.raises(CoreclipError, match=r"\(train, val2017\) are splits, not classes; name one of them: .*train"):
        find_sources([tmp_path])


def test_one_folder_of_images_is_no_class(tmp_path):
    make_files(tmp_path, "images/a.jpg", "images/b.jpg")
    with pytest.raises(CoreclipError, match="no captions table and no class folders"):
        find_sources([tmp_path])


# COCO

COCO = {
    "images": [
        {"id": 7, "file_name": "000000000007.jpg", "license": 2, "height": 4},
        {"id": 3, "file_name": "000000000003.jpg", "license": 9},
        {"id": 5, "file_name": "lost.jpg", "license": 2},
        {"id": 6, "file_name": "silent.jpg"},
        {"id": 7, "file_name": "silent.jpg"},
        {"file_name": "silent.jpg"},
        "nonsense",
    ],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "three"},
        {"image_id": 7, "id": 2, "caption": "seven"},
        {"image_id": 7, "id": 3, "caption": "seven again"},
        {"image_id": 5, "id": 4, "caption": "five"},
        {"image_id": 99, "id": 5, "caption": "of nothing"},
        {"image_id": 6, "id": 6, "caption": None},
        [],
    ],
    "licenses": [{"id": 2, "name": "Attribution License", "url": "u"}],
}


@pytest.fixture
def coco(tmp_path):
    """COCO's own folders: annotations/captions_val2017.json beside val2017/."""
    make_files(tmp_path, "val2017/000000000007.jpg", "val2017/000000000003.jpg", "val2017/silent.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(COCO))
    return tmp_path


@pytest.mark.parametrize("named", ["json", "folder and json", "folder", "folder beside", "root"])
def test_coco_gives_each_image_its_captions(coco, named):
    table = coco / "annotations" / "captions_val2017.json"
    if named == "json":
        records, rejects = read(table)
        assert_parts_make_the_whole(find_sources([table])[0])
    elif named == "folder and json":
        records, rejects = read(coco / "val2017", captions=table)
    elif named in ("folder beside", "root"):
        records, rejects = read(coco if named == "root" else coco / "val2017")
    else:
        table.rename(coco / "val2017" / table.name)
        records, rejects = read(coco / "val2017")
    assert [(r.key, r.captions, r.columns, read_image(r.image).decode()) for r in records] == [
        ("000000000007.jpg", ["seven", "seven again"], {"coco_id": 7, "license": "Attribution License"}, "val2017/000000000007.jpg"),
        ("000000000003.jpg", ["three"], {"coco_id": 3}, "val2017/000000000003.jpg"),
    ]  # fmt: skip
    assert [(reject.key, reject.reason.split(" ")[0]) for reject in rejects[:1]] == [("lost.jpg", "no")]
    texts = " | ".join(reject.reason for reject in rejects)
    for reason in (
        "no file of this name", "no caption", "the id 7 is an earlier image's", "an image without id or file_name",
        "'of nothing' belongs to no image",
    ):  # fmt: skip
        assert reason in texts
    assert len(rejects) == 7


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not COCO's captions"),
        ('{"images": [], "annotations": {}}', "is not COCO's captions"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": [1]}]}', "no captions; name the captions_"),
    ],
)
def test_other_json_is_refused(content, reason, tmp_path):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(CoreclipError, match=reason):
        read(tmp_path / "captions.json")


def test_a_json_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("coreclip.pipeline.coco.MAX_JSON_BYTES", 10)
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    with pytest.raises(CoreclipError, match=r"use a \.jsonl"):
        read(tmp_path / "captions.json")


def test_a_json_and_another_table_ask_which(coco):
    make_files(coco, "val2017/captions.json", "val2017/a.csv")
    with pytest.raises(CoreclipError, match="2 tables"):
        find_sources([coco / "val2017"])
