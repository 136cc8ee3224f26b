"""The page of a search: each query with the pictures that were found, their scores and captions, in one HTML file.

It composes pipeline and pages for the command line; like the other pages it needs no network and no script.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coreclip
from coreclip.files import write_text
from coreclip.pages import Gallery, Picture, check_page, generator_mark, template
from coreclip.selection_report import caption_of, printable, thumbnail

if TYPE_CHECKING:
    from coreclip.pipeline import Dataset

GENERATOR = "coreclip search results"  # the page's meta tag, by which it is known again

_SIDE, _QUALITY = 192, 78  # of the thumbnail of an image that was searched with


def check_search_page(path: str | Path) -> None:
    """Refuse to write a page over something else.

    Raises
    ------
    CoreclipError
        For a path that is there and is no page of :func:`write_search_page`.
    """
    check_page(Path(path), generator_mark(GENERATOR), "page of search results")


def write_search_page(
    path: str | Path, dataset: "Dataset", searches: Sequence[Mapping[str, Any]], command: str | None = None
) -> None:
    """Write the page of some searches, atomically.

    Parameters
    ----------
    path : path
    dataset : Dataset
        That was searched.
    searches : sequence of mapping
        What :func:`coreclip.training.search_all` returns.
    command : str or None
        That was run.

    Raises
    ------
    CoreclipError
        For a path that is there and is no such page.
    """
    check_search_page(path)
    write_text(path, render_search_page(dataset, searches, command))


def render_search_page(dataset: "Dataset", searches: Sequence[Mapping[str, Any]], command: str | None = None) -> str:
    """Return the page of :func:`write_search_page` as text."""
    return template("search.html").render(
        generator=GENERATOR,
        version=coreclip.__version__,
        dataset={"path": printable(os.fspath(dataset.path)), "n": dataset.n},
        searches=[_shown(dataset, search) for search in searches],
        command=None if command is None else printable(command),
    )


def _shown(dataset: "Dataset", search: Mapping[str, Any]) -> dict[str, Any]:
    pictures = [_picture(dataset, hit) for hit in search["results"]]
    query = printable(search["query"])
    scores = [hit["score"] for hit in search["results"]]
    text = f"Cosines from {scores[0]:.3f} down to {scores[-1]:.3f}, best first."
    is_image = search["kind"] == "image"
    return {
        "query": query,
        "is_image": is_image,
        "picture": _file_thumbnail(search["query"]) if is_image else None,
        "gallery": Gallery("", text, pictures),
    }


def _picture(dataset: "Dataset", hit: Mapping[str, Any]) -> Picture:
    jpeg = thumbnail(dataset, hit["index"])
    alt = f"image of pair {hit['index']}" + ("" if jpeg else ": can’t be decoded")
    note = f"{hit['rank']}. cosine {hit['score']:.3f}\nindex {hit['index']}, {printable(hit['key'])}"
    return Picture(jpeg, caption_of(dataset, hit["index"]), note, alt=alt)


def _file_thumbnail(path: str) -> bytes | None:
    """Return a small JPEG of an image file as conversion would store it; None where it has gone since it was searched with."""
    from PIL import Image

    from coreclip.pipeline.images import ImageRejected, prepare_image

    try:
        prepared = prepare_image(Path(path).read_bytes())
    except (OSError, ImageRejected):
        return None
    if prepared.mode == "raw":
        image = Image.frombytes("RGB", (prepared.width, prepared.height), prepared.data)
    else:
        image = Image.open(io.BytesIO(prepared.data), formats=("JPEG",)).convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
