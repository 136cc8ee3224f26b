"""Verify finds every kind of damage, names file and pair, and finds nothing where nothing is wrong."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.files import sha256_file, write_json
from coreclip.pipeline import Dataset, materialise, verify
from coreclip.pipeline.beton import read_shard
from coreclip.pipeline.publishing import fingerprint
from coreclip.pipeline.verify import VerifyReport
from tests.helpers import encode_jpeg, make_dataset, make_pixels

DAMAGED = 6  # the pair that the damages hit: row 1 of the second shard


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("verify") / "data"
    make_dataset(at, 12, size=(48, 32), labels=["x", "y"], raw_every=5, rejects=[("a.tar", "k", "no caption")]).close()
    return at


@pytest.fixture
def data(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "data")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def rehash(data: Path) -> None:
    """Make ``dataset.json`` agree with the damaged files, as a conversion with a defect would."""
    info = json.loads((data / "dataset.json").read_text())
    for shard in info["shards"]:
        shard |= {"sha256": sha256_file(data / shard["file"]), "bytes": (data / shard["file"]).stat().st_size}
    info["pairs_sha256"] = sha256_file(data / "pairs.parquet")
    info["fingerprint"] = fingerprint(
        [shard["sha256"] for shard in info["shards"]], info["pairs_sha256"], info["tokenizer_sha256"]
    )
    write_json(data / "dataset.json", info)


def addresses(data: Path) -> dict[str, int]:
    """Places in the second shard's file where something of the damaged pair, or of the shard, lies."""
    with read_shard(data / "00001.beton") as shard:
        return {
            "image": int(shard.image_addresses[1]) + int(shard.image_sizes[1]) // 2,
            "captions": int(shard.caption_addresses[1]) + 3,
            "tokens": int(shard.token_addresses[1]) + 2,
            "metadata": 24 + 5 * 1041 + 56 + 2,
            "allocations": len(shard.mapping) - 1,
            "header": 8,
        }


def said(report: VerifyReport) -> str:
    assert not report.ok
    assert report.n_problems >= len(report.problems) > 0
    return "\n".join(map(str, report.problems))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_data_set_has_no_problem(whole, workers, monkeypatch):
    monkeypatch.setattr(sys.modules["coreclip.pipeline.verify"], "_SMALL", 0)
    report = verify(whole, decode="all", workers=workers)
    assert report.ok, report.problems
    assert (report.pairs, report.shards, report.decoded, report.n_problems) == (12, 3, 12, 0)
    assert report.bytes == sum(path.stat().st_size for path in whole.glob("*.beton"))
    assert json.loads(json.dumps(report.to_dict()))["problems"] == []


@pytest.mark.parametrize(("decode", "decoded"), [("none", 0), ("sample", 4), ("all", 12)])
def test_so_many_images_are_decoded(whole, decode, decoded):
    limit = Image.MAX_IMAGE_PIXELS
    assert verify(whole, decode=decode, sample=4).decoded == decoded
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("where", ["image", "captions", "tokens", "metadata", "allocations", "header"])
def test_a_flipped_byte_in_a_shard_is_found(data, where):
    flip(data / "00001.beton", addresses(data)[where])
    report = verify(data, decode="none", workers=1)
    assert "00001.beton: it has changed since it was written" in said(report)
    assert {problem.file for problem in report.problems} == {"00001.beton"}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("image", "its image has another hash"),
        ("tokens", "its tokens are not those of its captions"),
        ("captions", "captions"),
        ("metadata", "bytes"),
        ("header", "damaged"),
        ("allocations", "damaged"),
    ],
)
def test_damage_that_the_hashes_cover_up_is_found(data, where, words):
    if where == "metadata":  # the address of the tokens of the pair, now its neighbour's
        flip(data / "00001.beton", 24 + 5 * 1041 + 56 + 2)
    else:
        flip(data / "00001.beton", addresses(data)[where])
    rehash(data)
    report = verify(data, decode="none", workers=1)
    assert words in said(report) or "width" in said(report)
    if where in ("image", "tokens", "captions"):
        assert {problem.index for problem in report.problems} == {DAMAGED}
        assert all(problem.remedy for problem in report.problems)


def test_an_image_that_does_not_decode_is_found(tmp_path):
    broken = encode_jpeg(make_pixels(6, 48, 32))
    make_dataset(tmp_path / "data", 12, size=(48, 32), images={DAMAGED: broken[:-60]}).close()
    assert verify(tmp_path / "data", decode="none").ok
    report = verify(tmp_path / "data", decode="all")
    assert f"00001.beton, pair {DAMAGED}: its image can't be decoded" in said(report)
    assert report.n_problems == 1


@pytest.mark.parametrize(("noted", "ok"), [({DAMAGED: "extraneous bytes before marker"}, True), ({}, False)])
def test_a_warning_is_tolerated_where_it_was_noted(tmp_path, noted, ok):
    image = encode_jpeg(make_pixels(6, 48, 32))
    stray = image[:20] + b"stray" + image[20:]  # behind the JFIF segment
    make_dataset(tmp_path / "data", 12, size=(48, 32), images={DAMAGED: stray}, warnings=noted).close()
    report = verify(tmp_path / "data", decode="all")
    assert report.ok == ok
    if not ok:
        assert "warns" in said(report)


def test_a_progressive_image_is_not_the_stock_decoders(tmp_path):
    pixels = make_pixels(6, 48, 32)
    make_dataset(tmp_path / "data", 7, size=(48, 32), images={6: encode_jpeg(pixels, progressive=True)}).close()
    assert "stock decoder" in said(verify(tmp_path / "data", decode="all"))


def test_a_header_of_another_size_is_found(tmp_path):
    make_dataset(tmp_path / "data", 7, size=(48, 32), images={6: encode_jpeg(make_pixels(6, 56, 32))}).close()
    report = verify(tmp_path / "data", decode="none")
    assert "pair 6: its JPEG has 56 x 32 pixels, the shard says 48 x 32" in said(report)


def test_swapped_images_are_found_though_all_hashes_of_files_agree(data):
    path = data / "00001.beton"
    with read_shard(path) as shard:
        (a, b), (m, n) = shard.image_addresses[1:3].tolist(), shard.image_sizes[1:3].tolist()
        one, other = shard.image_bytes(1), shard.image_bytes(2)
    content = bytearray(path.read_bytes())
    length = min(m, n)
    content[a : a + length], content[b : b + length] = other[:length], one[:length]
    path.write_bytes(content)
    rehash(data)
    report = verify(data, decode="none")
    assert {problem.index for problem in report.problems} == {6, 7}
    assert "another hash" in said(report)


@pytest.mark.parametrize(
    "column", ["captions", "width", "height", "bytes", "label", "mode", "content_hash", "row", "shard"]
)
def test_a_table_that_says_something_else_is_found(data, column):
    table = pd.read_parquet(data / "pairs.parquet")
    other = {"captions": ["another text"], "mode": "raw", "content_hash": "0" * 64}.get(column, 9)
    table[column] = [other if i == DAMAGED else value for i, value in enumerate(table[column])]
    table.to_parquet(data / "pairs.parquet", index=False)
    rehash(data)
    report = verify(data, decode="none")
    assert {problem.index for problem in report.problems} == {DAMAGED}
    assert ("hash" if column == "content_hash" else column) in said(report)


def test_rows_of_the_table_in_another_order_are_found(data):
    pd.read_parquet(data / "pairs.parquet").iloc[::-1].to_parquet(data / "pairs.parquet", index=False)
    rehash(data)
    assert "not the pairs in order" in said(verify(data, decode="none"))


@pytest.mark.parametrize("file", ["pairs.parquet", "rejects.parquet", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_tables_are_named(data, file, damage):
    path = data / file
    if damage == "flip":
        flip(path, path.stat().st_size // 2)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    report = verify(data, decode="all", workers=1)
    assert f"{file}: it {'is missing' if damage == 'delete' else 'has changed'}" in said(report)
    assert report.decoded == 12


def test_a_truncated_a_missing_a_foreign_and_a_stray_shard_are_all_reported_at_once(data, tmp_path):
    (data / "00000.beton").write_bytes((data / "00000.beton").read_bytes()[:-1])
    (data / "00001.beton").unlink()
    make_dataset(tmp_path / "other", 12, context=8).close()
    shutil.copy(tmp_path / "other" / "00002.beton", data / "00002.beton")
    shutil.copy(tmp_path / "other" / "00000.beton", data / "00007.beton")
    report = verify(data, workers=1)
    text = said(report)
    assert "00000.beton: it has" in text
    assert "00001.beton: it is missing" in text
    assert "00002.beton: it has" in text
    assert "another data set" in text
    assert "00007.beton: dataset.json does not list this shard" in text


def test_a_foreign_shard_of_the_same_shape_is_found_pair_by_pair(data, tmp_path):
    make_dataset(tmp_path / "other", 15, size=(48, 32), labels=["x", "y"]).close()
    shutil.copy(tmp_path / "other" / "00002.beton", data / "00001.beton")
    rehash(data)
    report = verify(data, decode="none")
    assert "index is 10 in the shard and 5 in pairs.parquet" in said(report)


def test_a_damaged_description_is_a_problem_and_a_missing_one_an_error(data):
    (data / "dataset.json").write_text("{")
    report = verify(data)
    assert "dataset.json" in said(report)
    assert (report.pairs, report.n_problems) == (0, 1)
    (data / "dataset.json").unlink()
    with pytest.raises(CoreclipError, match=r"dataset\.json is missing"):
        verify(data)


def test_a_fingerprint_that_is_not_the_files_is_found(data):
    info = json.loads((data / "dataset.json").read_text())
    write_json(data / "dataset.json", {**info, "fingerprint": "0" * 64, "rejected": 5})
    text = said(verify(data, decode="none"))
    assert "the fingerprint is not" in text
    assert "it has 1 rows, dataset.json says 5" in text


def test_the_list_is_capped_and_the_count_is_not(tmp_path):
    make_dataset(tmp_path / "data", 130, rows_per_shard=130, size=(24, 16)).close()
    table = pd.read_parquet(tmp_path / "data" / "pairs.parquet")
    table.assign(width=np.int32(7)).to_parquet(tmp_path / "data" / "pairs.parquet", index=False)
    rehash(tmp_path / "data")
    report = verify(tmp_path / "data", decode="none")
    assert (len(report.problems), report.n_problems) == (100, 130)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"decode": "some"}, "decode = 'some'"), ({"sample": 0}, "sample = 0"), ({"workers": 0}, "workers = 0")],
)
def test_bad_options_are_refused(whole, options, words):
    with pytest.raises(CoreclipError, match=words):
        verify(whole, **options)


@pytest.mark.parametrize("entry", [None, [], "text", {"options": 3, "sources": [3]}])
def test_what_a_stranger_wrote_about_the_conversion_does_no_harm(data, entry, tmp_path):
    info = json.loads((data / "dataset.json").read_text())
    write_json(data / "dataset.json", {**info, "convert": entry})
    assert verify(data, decode="all").ok
    materialise(data, [1, 2], tmp_path / "out")
    assert Dataset(tmp_path / "out").info["convert"]["options"]["command"] == "materialise"
