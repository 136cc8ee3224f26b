"""Parquet files that hold images, as Hugging Face datasets writes them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import ImageReference, read_image
from coreclip.pipeline.sources import class_names_of, find_sources, scan
from tests.sources import assert_parts_make_the_whole, read, reasons

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
LABELS = {"label": {"names": ["tench", "great_white"], "_type": "ClassLabel"}}


def write(path, columns: dict, *, row_group=3, features=None, kinds=None):
    """Write a table; ``features`` goes to the metadata where datasets has it."""
    table = pa.table({name: pa.array(values, (kinds or {}).get(name)) for name, values in columns.items()})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group)
    return path


def images(n: int) -> list[dict]:
    return [{"bytes": b"image %d" % i * (i + 1), "path": f"{i}.jpg"} for i in range(n)]


def test_images_with_captions_are_read_by_row(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {
            "image": images(8),
            "text": [f"text {i}" for i in range(8)],
            "score": [i / 2 for i in range(8)],
            "nested": [[1]] * 8,
        },
        kinds={"image": IMAGE},
    )
    records, rejects = read(path)
    assert rejects == []
    assert [(r.key, r.captions, r.columns) for r in records] == [
        (f"{i:08d}", [f"text {i}"], {"score": i / 2, "image_path": f"{i}.jpg"}) for i in range(8)
    ]
    for order in (range(8), reversed(range(8)), (3, 3, 7, 0, 5)):
        for i in order:
            assert read_image(records[i].image) == images(8)[i]["bytes"]
            assert records[i].image.size == len(images(8)[i]["bytes"])
    assert_parts_make_the_whole(find_sources([path])[0])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("column", ["image", "jpg"])
def test_plain_binary_columns_and_lists_of_captions(kind, column, tmp_path):
    columns = {column: [b"a", b"b"], "captions": [["one", "two"], []], "__key__": ["x", "y"]}
    records, rejects = read(write(tmp_path / "a.parquet", columns, kinds={column: kind}))
    assert [(r.key, r.captions, read_image(r.image)) for r in records] == [("x", ["one", "two"], b"a")]
    assert reasons(rejects) == {"y": "no caption"}


def test_class_labels_have_names_and_captions_of_a_template(tmp_path):
    path = write(
        tmp_path / "a.parquet", {"image": images(3), "label": [1, 0, -1]}, features=LABELS, kinds={"image": IMAGE}
    )  # fmt: skip
    (source,) = find_sources([path])
    assert class_names_of([source]) == ["tench", "great_white"]
    items = list(scan(source, None, "a photo of a {}"))
    assert [(item.label, item.captions) for item in items[:2]] == [
        (1, ["a photo of a great white"]), (0, ["a photo of a tench"]),
    ]  # fmt: skip
    assert items[2].reason == "no caption"


def test_images_that_are_only_named_are_found_beside_the_table(tmp_path):
    rows = [
        {"bytes": None, "path": "images/a.jpg"}, {"bytes": None, "path": "none.jpg"}, None, {"bytes": b"", "path": None},
        {"bytes": b"inside", "path": None},
    ]  # fmt: skip
    path = write(tmp_path / "a.parquet", {"image": rows, "caption": list("abcde")}, kinds={"image": IMAGE})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"outside")
    records, rejects = read(path)
    assert [(r.captions, read_image(r.image)) for r in records] == [(["a"], b"outside"), (["e"], b"inside")]
    assert [reject.reason.split(" beside")[0] for reject in rejects] == [
        "no file of this name", "the row has no image: neither bytes nor a path", "the image is empty (0 bytes)",
    ]  # fmt: skip


@pytest.mark.parametrize("below", [".", "data"])
def test_a_folder_of_parquet_files_is_read_in_order(below, tmp_path):
    for i in (1, 0):
        columns = {"image": images(2), "text": [f"{i}a", f"{i}b"]}
        write(tmp_path / below / f"train-0000{i}-of-00002.parquet", columns, kinds={"image": IMAGE})
    (tmp_path / "README.md").write_text("dataset card")
    assert [record.captions[0] for record in read(tmp_path)[0]] == ["0a", "0b", "1a", "1b"]
    write(tmp_path / below / "test-00000-of-00001.parquet", {"image": images(1), "text": ["t"]}, kinds={"image": IMAGE})
    with pytest.raises(CoreclipError, match=r"several splits \(test, train\); name the files of one"):
        find_sources([tmp_path])


def test_a_file_without_captions_and_labels_is_refused_with_its_columns(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": images(1), "words": ["x"]}, kinds={"image": IMAGE})
    with pytest.raises(CoreclipError, match=r"no caption and no label \(columns: image, words\)"):
        find_sources([path])


@pytest.mark.parametrize(
    "stored", ["{", "[]", '{"info": {"features": {"label": {"names": 5, "_type": "ClassLabel"}}}}']
)
def test_metadata_that_is_no_description_is_named(stored, tmp_path):
    table = pa.table({"image": pa.array(images(1), IMAGE), "label": [0]}).replace_schema_metadata(
        {"huggingface": stored}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CoreclipError, match=r"metadata of datasets that can't be read|names are no list of texts"):
        find_sources([tmp_path / "a.parquet"])


def test_a_file_that_is_damaged_behind_its_schema_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": images(50), "text": ["text"] * 50}, kinds={"image": IMAGE})
    (source,) = find_sources([path])
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(CoreclipError, match=r"a\.parquet can't be read \(.*\); it must be a parquet file, whole"):
        list(source.scan())


def test_a_row_that_is_gone_gives_no_bytes(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": images(2), "text": ["a", "b"]}, kinds={"image": IMAGE})
    assert read_image(ImageReference(str(path), 2, 10, access="parquet image")) == b""


def test_a_row_group_of_any_size_is_read_page_by_page(tmp_path):
    n, size = 2000, 15_000
    content = [bytes([i % 251]) * size for i in range(n)]
    table = pa.table({"image": pa.array(content), "text": ["text"] * n})
    path = tmp_path / "a.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=n,
        use_dictionary=False,
        compression="none",
        data_page_size=1 << 16,
        write_batch_size=4,
    )
    del table
    before = pa.total_allocated_bytes()
    (source,) = find_sources([path])
    images, peak = [], 0
    for record in source.scan():
        images.append(record.image)
        peak = max(peak, pa.total_allocated_bytes() - before)
    for i in (0, 1, 2, 1000, 1999, 5):
        assert read_image(images[i]) == content[i]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 30e6
    assert peak < 6e6
