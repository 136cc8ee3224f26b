"""The page of a search: it stands alone, escapes what strangers wrote, and shows what was found."""

import base64
import io
import re

import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pages import generator_mark
from coreclip.search_report import GENERATOR, check_search_page, render_search_page, write_search_page
from tests.helpers import encode_jpeg, make_dataset, make_pixels
from tests.unit.test_selection_report import Page

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("page") / "data", 8, images={5: b"\xff\xd8 no image"})


def hits(dataset, *indices):
    return [
        {"rank": rank, "index": i, "key": str(dataset.keys[i]), "score": 0.9 - 0.1 * rank, "captions": dataset.captions(i)}
        for rank, i in enumerate(indices, start=1)
    ]  # fmt: skip


def found(query, kind, results):
    return {"query": query, "kind": kind, "results": results}


def pictures(page):
    sources = [a["src"] for a in page.all("img")]
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 192
    return sources


def test_page_stands_alone_and_shows_pictures_scores_and_captions(dataset):
    text = render_search_page(
        dataset, [found("a red dog", "text", hits(dataset, 3, 0, 5))], "coreclip search run data x"
    )
    page = Page(text)
    assert len(pictures(page)) == 2  # the third can't be decoded
    for words in ("a red dog", "1. cosine 0.800", "index 3, k0003", dataset.captions(3)[0], "8 images", "can’t be decoded",
                  "coreclip search run data x", "Cosines from 0.800 down to 0.600"):  # fmt: skip
        assert words in page.shown
    assert [a["alt"] for a in page.all("img")] == ["image of pair 3", "image of pair 0"]
    assert not re.search(r"@import|url\(|<script|https?://|\bon\w+=", text)
    assert text == render_search_page(
        dataset, [found("a red dog", "text", hits(dataset, 3, 0, 5))], "coreclip search run data x"
    )


def test_an_image_that_was_searched_with_is_shown(dataset, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(encode_jpeg(make_pixels(1, 640, 400)))
    Image.fromarray(make_pixels(2, 20, 16)).save(tmp_path / "small.png")
    for name in ("mine.jpg", "small.png"):
        page = Page(render_search_page(dataset, [found(str(tmp_path / name), "image", hits(dataset, 1))]))
        assert len(pictures(page)) == 2
        assert f"Images like {tmp_path / name}" in page.shown
    gone = Page(render_search_page(dataset, [found(str(tmp_path / "gone.jpg"), "image", hits(dataset, 1))]))
    assert len(pictures(gone)) == 1


def test_several_searches_have_a_heading_each(dataset):
    page = Page(
        render_search_page(dataset, [found("one", "text", hits(dataset, 1)), found("two", "text", hits(dataset, 2))])
    )
    assert "2 searches" in page.shown
    assert len(page.all("h2")) == 2


def test_what_strangers_wrote_is_escaped(tmp_path):
    data = make_dataset(tmp_path / "data", 2)
    results = hits(data, 0)
    results[0]["key"] = HOSTILE + "\ud800\x07"
    text = render_search_page(data, [found(HOSTILE, "text", results)], HOSTILE)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4
    text.encode("utf-8")


def test_no_page_is_written_over_something_else(dataset, tmp_path):
    mine = tmp_path / "thesis.html"
    mine.write_text("mine")
    with pytest.raises(CoreclipError, match="exists and is no page of search results; nothing of yours is replaced"):
        check_search_page(mine)
    page = tmp_path / "found.html"
    for query in ("one", "two"):
        write_search_page(page, dataset, [found(query, "text", hits(dataset, 1))])
        assert query in page.read_text(encoding="utf-8")
        assert generator_mark(GENERATOR) in page.read_text(encoding="utf-8")[:2000]
