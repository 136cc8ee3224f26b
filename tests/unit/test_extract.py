"""Single pairs come out as they are stored."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, extract
from tests.helpers import make_dataset
from tests.unit.test_merge import edit


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    at = tmp_path_factory.mktemp("extract") / "data"
    make_dataset(at, 11, captions_per_pair=(1, 3), raw_every=5, labels=["x", "y"]).close()
    return edit(at, author=["me"] * 11)


def test_a_jpeg_comes_out_untouched(data, tmp_path):
    (found,) = extract(data.path, 7, tmp_path / "seven.jpg")
    assert (tmp_path / "seven.jpg").read_bytes() == data.image_bytes(7)
    assert found["file"] == str(tmp_path / "seven.jpg")
    assert (found["index"], found["key"], found["label"], found["class_name"]) == (7, "k0007", 1, "y")
    assert (found["shard"], found["row"], found["mode"]) == (1, 2, "jpg")
    assert found["captions"] == found["decoded_tokens"] == data.captions(7)
    assert found["columns"] == {"author": "me"}
    assert found["content_hash"] == data.pairs["content_hash"][7]


def test_raw_pixels_come_out_as_png(data, tmp_path):
    extract(data, 5, tmp_path / "five.png")
    with Image.open(tmp_path / "five.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), data.image(5))


def test_several_go_to_a_folder_under_their_index(data, tmp_path):
    found = extract(data, [5, 7, 0], tmp_path / "out")
    assert [Path(fact["file"]).name for fact in found] == ["00000005.png", "00000007.jpg", "00000000.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(Path(f["file"]).name for f in found)


def test_without_an_output_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert extract(data, np.int64(3))[0]["file"] is None
    assert list(tmp_path.iterdir()) == []


def test_long_captions_are_shown_as_the_model_sees_them(tmp_path):
    make_dataset(tmp_path / "data", 3, context=6).close()
    (found,) = extract(tmp_path / "data", 0)
    assert all(text.startswith(seen) for text, seen in zip(found["captions"], found["decoded_tokens"], strict=True))
    assert found["captions"] != found["decoded_tokens"]


@pytest.mark.parametrize(
    ("index", "out", "words"),
    [
        (11, None, "index 11 is not in"),
        (-1, None, "index -1 is not in"),
        ([], None, "no index"),
        (5, "five.jpg", "stored as raw pixels; name a file that ends with .png"),
        (7, "seven.png", "stored as a JPEG; name a file that ends with .jpg"),
        (7, "there.jpg", "nothing of yours is replaced"),
        ([5, 7], "there.jpg", "need a folder"),
    ],
)
def test_refusals(data, tmp_path, index, out, words):
    (tmp_path / "there.jpg").write_text("kept")
    with pytest.raises(CoreclipError, match=words):
        extract(data, index, None if out is None else tmp_path / out)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("there.jpg", "kept")]


def test_captions_that_the_table_does_not_have_are_refused(tmp_path):
    make_dataset(tmp_path / "data", 2).close()
    edit(tmp_path / "data", captions=[["other"]] * 2)
    with pytest.raises(CoreclipError, match="run coreclip verify"):
        extract(tmp_path / "data", 1)
