"""Which image files are meant, and what becomes of those that are none."""

import os
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline import image_files
from coreclip.pipeline.image_files import find_images, read_candidates, resize_images, see_images, shown_path
from coreclip.pipeline.images import PreparedImage
from tests.helpers import encode_jpeg, make_pixels


def test_files_folders_and_lists_are_found_once_in_order(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.md", ".hidden.txt"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "found.txt").write_text("\ufefffolder/a.png \nfolder/strange name\n\n/elsewhere/d.jpg\n")
    found = find_images([folder, tmp_path / "odd", tmp_path / "found.txt"])
    assert [os.path.relpath(path, tmp_path) if path.is_relative_to(tmp_path) else str(path) for path in found] == [
        "folder/a.png", "folder/b.JPG", "folder/deep/c.webp", "odd", "folder/strange name", "/elsewhere/d.jpg",
    ]  # fmt: skip


def test_sources_without_an_image_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n\n")
    for sources, message in (
        ([], "no image is named; give image files, folders or a list"),
        ([tmp_path / "empty"], r"empty holds no image \(.jpg, "),
        ([tmp_path / "blank.txt"], "blank.txt names no image; it must have a path a line"),
        ([tmp_path / "missing.lst"], r"the list .*missing.lst can't be read \(No such file or directory\)"),
    ):
        with pytest.raises(CoreclipError, match=message):
            find_images(sources)


def test_what_is_no_image_is_told_with_the_reason_and_its_neighbours_are_right(tmp_path):
    good = make_pixels(1, 48, 32)
    jpeg = encode_jpeg(good)
    files = {"good.jpg": jpeg, "cut.jpg": jpeg[: len(jpeg) // 2], "empty.png": b"", "text.jpg": b"a dog on a beach"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would never end
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(tmp_path / "bomb.png")
    sources = [tmp_path / name for name in (*files, "pipe.jpg", "bomb.png", "missing.jpg")]
    sources += [tmp_path, "null\0byte", jpeg, good]
    seen = list(see_images(sources, 16, batch_size=4))
    places = np.concatenate([one.places for one in seen]).tolist()
    assert places == [0, 9, 10]
    reasons = dict(failure for one in seen for failure in one.failed)
    expected = {
        1: "damaged|Truncated",
        2: r"the image is empty \(0 bytes\)",
        3: "not an image of a known kind",
        4: "it is no regular file",
        5: r"400000000 pixels\) exceeds limit",
        6: "No such file or directory",
        7: "it is a folder",
        8: "null byte",
    }
    assert reasons.keys() == expected.keys()
    assert [place for place, reason in reasons.items() if not re.search(expected[place], reason)] == []
    pixels = np.concatenate([one.pixels for one in seen])
    assert np.array_equal(pixels[0], pixels[1])
    by_pillow = Image.fromarray(good).resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    assert np.abs(pixels[2].astype(int) - np.asarray(by_pillow)).max() <= 1


def test_what_fails_behind_the_checks_is_told_too(monkeypatch):
    jpeg = encode_jpeg(make_pixels(1, 48, 32))
    damaged = PreparedImage(jpeg[:100], "jpg", 48, 32)
    monkeypatch.setattr(image_files, "prepare_image", lambda data: damaged)
    (seen,) = see_images([b"x"], 16)
    assert seen.failed == [(0, "the loader's decoder refuses it")]
    assert seen.pixels.shape == (0, 16, 16, 3)

    def exhausted(data):
        raise MemoryError

    monkeypatch.setattr(image_files, "prepare_image", exhausted)
    (seen,) = see_images([b"x"], 16)
    assert seen.failed == [(0, "it needs more memory than there is")]


def test_a_list_without_an_end_is_refused(tmp_path, monkeypatch):
    (tmp_path / "long.txt").write_text("a.jpg\n" * 1000)
    monkeypatch.setattr(image_files, "_LIST_BYTES", 1 << 12)
    with pytest.raises(CoreclipError, match=r"the list .*long.txt has more than 0 MiB; divide it"):
        find_images([tmp_path / "long.txt"])


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "huge.bmp", "wb") as file:
        file.truncate((1 << 30) + (1 << 20))  # a hole: it takes no disk
    (seen,) = see_images([tmp_path / "huge.bmp"], 16)
    assert seen.failed == [(0, "it has 1025 MiB, more than the limit of 1024")]


def test_pixels_of_the_right_size_stay_as_they_are():
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(3)])
    assert np.array_equal(resize_images(pixels, 16), pixels)
    assert resize_images(pixels, 8).shape == (3, 8, 8, 3)
    assert resize_images(np.empty((0, 9, 7, 3), np.uint8), 8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_candidates_are_files_with_scores(tmp_path, suffix):
    table = pd.DataFrame({"path": ["b.jpg", "a.jpg", "b.jpg"], "score": [0.5, 2.0, 9.0]})
    file = tmp_path / f"found{suffix}"
    if suffix == ".parquet":
        table.to_parquet(file)
    elif suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_csv(file, index=False, sep="," if suffix == ".csv" else "\t")
    assert list(read_candidates(file).items()) == [(tmp_path / "b.jpg", 0.5), (tmp_path / "a.jpg", 2.0)]


def test_tables_that_are_no_candidates_are_refused(tmp_path):
    for name, content, message in (
        ("a.json", "[]", r"no candidates at .*: it must be a table, .csv, .tsv, .jsonl, .parquet"),
        ("b.csv", "path,score\n", "has no row; each must name an image file and its score"),
        ("c.csv", "path,rank\na.jpg,1\n", "row 1 of .* has no file and score; it needs a column image, file, filename"),
        ("d.csv", "path,score\na.jpg,nan\n", "row 1 of .* has no file and score"),
        ("e.csv", "path,score\na.jpg,1\nb.jpg\n", "is damaged: line 3 has 1 fields, the header 2"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(CoreclipError, match=message):
            read_candidates(tmp_path / name)


def test_a_path_of_any_bytes_can_be_shown():
    assert shown_path(os.fsdecode(b"caf\xe9.jpg")) == "caf\ufffd.jpg"
