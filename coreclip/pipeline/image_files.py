"""Image files that are in no data set, as a model sees them: they go the way of conversion and of the loader's evaluation.

A file's bytes become what ``convert`` would store (:func:`~coreclip.pipeline.images.prepare_image`, with its limits and its reasons to
refuse), and that is decoded, cropped at the centre and resized by the loader's own kernels. So a file and the pair that was made of it
show the same pixels, bit for bit. Left out: archives, URLs and videos.
"""

import codecs
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.crops import centre_boxes
from coreclip.pipeline.decode import EXACT_MARGIN, JPEG, RAW, load_decoder
from coreclip.pipeline.feeds import DecoderShelf, Images, start_decoding
from coreclip.pipeline.images import ImageRejected, PreparedImage, prepare_image
from coreclip.pipeline.records import IMAGE_SUFFIXES, Reject, walk_files
from coreclip.pipeline.tables import IMAGE_COLUMNS, TABLE_SUFFIXES, table_rows

LIST_SUFFIXES = (".txt", ".lst")
_MOST_BYTES = 1 << 30  # of an image file: more than the most pixels take uncompressed
_LIST_BYTES = 1 << 26

Source = str | os.PathLike[str] | bytes | np.ndarray
"""An image: a path, the bytes of a file, or pixels uint8 (h, w, 3)."""


@dataclass(frozen=True, eq=False)
class SeenImages:
    """Some images as a model sees them.

    Attributes
    ----------
    pixels : uint8 (b, size, size, 3)
        RGB; of those that can be read.
    places : int64 (b,)
        Which of the sources they are.
    failed : list of (int, str)
        Which others can't be read, and why.
    """

    pixels: np.ndarray
    places: np.ndarray
    failed: list[tuple[int, str]]


def see_images(sources: Sequence[Source], size: int, *, batch_size: int = 64, workers: int = 2) -> Iterator[SeenImages]:
    """Read images as the loader would show them in evaluation: shorter side to ``size`` (bicubic), the square at the centre.

    Parameters
    ----------
    sources : sequence of path, bytes or uint8 (h, w, 3)
    size : int
        Pixels.
    batch_size : int
        Sources at a time.
    workers : int
        Threads.

    Yields
    ------
    SeenImages
    """
    load_decoder()
    decoders = DecoderShelf()
    with ThreadPoolExecutor(workers, thread_name_prefix="coreclip-images") as pool:
        for start in range(0, len(sources), batch_size):
            prepared = list(pool.map(_prepare, sources[start : start + batch_size]))
            failed = [(start + i, found) for i, found in enumerate(prepared) if isinstance(found, str)]
            good = [(start + i, found) for i, found in enumerate(prepared) if not isinstance(found, str)]
            pixels, valid = _decode(pool, decoders, [found for _, found in good], size, workers)
            places = np.array([place for place, _ in good], np.int64)
            failed += [(place, "the loader's decoder refuses it") for place in places[~valid].tolist()]
            yield SeenImages(pixels[valid], places[valid], sorted(failed))


def resize_images(pixels: np.ndarray, size: int, *, workers: int = 2) -> np.ndarray:
    """Resize pixels, uint8 (b, h, w, 3), as :func:`see_images` does; returns uint8 (b, size, size, 3)."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[1:3] == (size, size):
        return pixels
    seen = list(see_images(list(pixels), size, batch_size=max(1, len(pixels)), workers=workers))
    return seen[0].pixels if seen else np.empty((0, size, size, 3), np.uint8)


def _prepare(source: Source) -> PreparedImage | str:
    """Return what would be stored of a source, or why nothing would."""
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2]
        return PreparedImage(np.ascontiguousarray(source).tobytes(), "raw", width, height)
    try:
        return prepare_image(source if isinstance(source, bytes) else _read(source))
    except ImageRejected as reason:
        return str(reason)
    except MemoryError:
        return "it needs more memory than there is"


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageRejected("it is a folder")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device may have no end
            raise ImageRejected("it is no regular file")
        if status.st_size > _MOST_BYTES:
            raise ImageRejected(f"it has {status.st_size >> 20} MiB, more than the limit of {_MOST_BYTES >> 20}")
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ImageRejected(getattr(error, "strerror", None) or str(error)) from None


def _decode(
    pool: ThreadPoolExecutor, decoders: DecoderShelf, prepared: list[PreparedImage], size: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 (b, size, size, 3) and which of them are good, bool (b,)."""
    stored = [np.frombuffer(one.data, np.uint8) for one in prepared]
    images = Images(
        address=np.array([one.ctypes.data for one in stored], np.uint64),
        n_bytes=np.array([one.size for one in stored], np.uint64),
        mode=np.array([JPEG if one.mode == "jpg" else RAW for one in prepared], np.uint8),
        width=np.array([one.width for one in prepared], np.int32),
        height=np.array([one.height for one in prepared], np.int32),
        tolerated=np.array([bool(one.warning) for one in prepared], bool),
        indices=None,
        owner=stored,
    )
    pixels, valid = np.empty((len(stored), size, size, 3), np.uint8), np.zeros(len(stored), bool)
    boxes = centre_boxes(images.width, images.height, size)
    rows = np.arange(len(stored))
    for future in start_decoding(pool, decoders, images, rows, boxes, EXACT_MARGIN, pixels, valid, parts):
        future.result()
    return pixels, valid


# ----------------------------------------------------------------------------------------------------------------- which files


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the image files that are meant, each once.

    Parameters
    ----------
    sources : sequence of path
        An image file, whatever it is called; a folder, whose images are found by their names' endings, however deep they lie; a list
        (.txt, .lst) with a path a line, relative to the list.

    Raises
    ------
    CoreclipError
        For a folder without images, and a list that is empty or can't be read. Files that are missing are found out when they are read.
    """
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            paths = [
                Path(directory, name) for directory, name in walk_files(source) if name.lower().endswith(IMAGE_SUFFIXES)
            ]
            if not paths:
                raise CoreclipError(
                    f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder or files"
                )
        else:
            paths = _read_list(source) if source.suffix.lower() in LIST_SUFFIXES else [source]
        found |= dict.fromkeys(paths)
    if not found:
        raise CoreclipError("no image is named; give image files, folders or a list (.txt) of them")
    return list(found)


def _read_list(path: Path) -> list[Path]:
    try:
        with open(path, "rb") as file:
            content = file.read(_LIST_BYTES + 1)
    except OSError as error:
        raise CoreclipError(f"the list {path} can't be read ({error.strerror}); check the path") from None
    if len(content) > _LIST_BYTES:
        raise CoreclipError(f"the list {path} has more than {_LIST_BYTES >> 20} MiB; divide it")
    content = content.removeprefix(codecs.BOM_UTF8)
    # A name is whatever bytes the system has for it; one with a NUL byte there is not.
    lines = [os.fsdecode(line.strip()) for line in content.splitlines() if line.strip() and b"\0" not in line]
    if not lines:
        raise CoreclipError(f"the list {path} names no image; it must have a path a line")
    return [path.parent / line for line in lines]


def read_candidates(table: str | os.PathLike[str]) -> dict[Path, float]:
    """Return image files with the scores that another system gave them.

    Parameters
    ----------
    table : path
        csv, tsv, jsonl or parquet with a column for the file (``path``, ``image``, ``file``, ...), relative to the table, and ``score``,
        higher = better. Of several rows of a file the first counts.

    Raises
    ------
    CoreclipError
        For a table that is missing, of another kind, empty, or has a row without the two.
    """
    path = Path(table)
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
        raise CoreclipError(f"no candidates at {path}: it must be a table, {', '.join(TABLE_SUFFIXES)}; check the path")
    found: dict[Path, float] = {}
    for number, row in enumerate(table_rows(path), start=1):
        if isinstance(row, Reject):
            raise CoreclipError(f"{path} is damaged: {row.reason}; mend the table")
        name = next((row[column] for column in IMAGE_COLUMNS if column in row), None)
        score = _as_number(row.get("score"))
        if not isinstance(name, str) or not name.strip() or score is None:
            raise CoreclipError(
                f"row {number} of {path} has no file and score; it needs a column {', '.join(IMAGE_COLUMNS[:3])}, ... and a number "
                "called score"
            )
        found.setdefault(path.parent / name, score)
    if not found:
        raise CoreclipError(f"{path} has no row; each must name an image file and its score")
    return found


def _as_number(value: object) -> float | None:
    convert: Callable[[object], float] = float  # type: ignore[assignment]
    try:
        number = convert(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be printed, also where its bytes are no UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")
