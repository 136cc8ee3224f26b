"""What a worker process does with a chunk of records: read, check and store anew, tokenise, then write it where it is told.

Between the two calls the bytes stay in the worker, so that images cross no process border and the parent alone decides
on places, in the order of the source.
"""

import ctypes
import functools
import hashlib
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from coreclip.pipeline.beton import encode_captions, row_bytes, write_at
from coreclip.pipeline.images import ImageRejected, PreparedImage, prepare_grey, prepare_image
from coreclip.pipeline.records import ImageReference, Record, read_image
from coreclip.pipeline.tokenizer import Tokenizer

_held: dict[int, list[bytes]] = {}  # rows of prepared chunks that wait for their places
_SYNC_FILE_RANGE_WRITE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Options of :func:`coreclip.pipeline.images.prepare_image`, which describes them."""

    max_side: int | None
    check: str
    max_pixels: int
    quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How captions are stored.

    Attributes
    ----------
    tokenizer : str
        Path of the ``tokenizer.json``.
    captions_per_row, context : int
        Shape of a pair's token array.
    """

    tokenizer: str
    captions_per_row: int
    context: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    Attributes
    ----------
    reason : str
        Why it can't be a pair; "" where it can.
    content_hash : str
        SHA-256 of the source's image bytes, hexadecimal; "" where they can't be read.
    mode, width, height, warning, transcoded
        As in :class:`coreclip.pipeline.images.PreparedImage`.
    n_caption_bytes, n_image_bytes : int
        As they will be stored.
    """

    reason: str
    content_hash: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    n_caption_bytes: int = 0
    n_image_bytes: int = 0
    warning: str = ""
    transcoded: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a row goes: a shard's file and the address in it."""

    path: str
    address: int


def prepare_chunk(number: int, records: list[Record], images: ImageOptions, text: TextOptions) -> list[Outcome]:
    """Prepare a chunk's pairs and hold their bytes until :func:`write_chunk`; a bad image is an outcome, not an exception."""
    Image.MAX_IMAGE_PIXELS = None  # max_pixels rules, and this process does nothing else
    outcomes, rows = [], []
    for record, tokens in zip(records, _tokenise(records, text), strict=True):
        outcome, image = _prepare(record.image, images)
        captions = encode_captions(record.captions)
        if image is not None:
            outcome = Outcome(
                "", outcome.content_hash, image.mode, image.width, image.height, len(captions), len(image.data),
                image.warning, image.transcoded,
            )  # fmt: skip
        rows.append(row_bytes(tokens, captions, image.data) if image is not None else b"")
        outcomes.append(outcome)
    _held[number] = rows
    return outcomes


def write_chunk(number: int, placements: list[Placement | None]) -> None:
    """Write a held chunk's rows, those without a place left out, and forget it."""
    rows = _held.pop(number)
    placed = [(placement, row) for placement, row in zip(placements, rows, strict=True) if placement is not None]
    for path in dict.fromkeys(placement.path for placement, _ in placed):
        here = [(placement.address, row) for placement, row in placed if placement.path == path]
        descriptor = os.open(path, os.O_WRONLY)
        try:
            for address, row in here:
                write_at(descriptor, row, address)
            _start_writeback(descriptor, here[0][0], here[-1][0] + len(here[-1][1]) - here[0][0])
        finally:
            os.close(descriptor)


def _start_writeback(descriptor: int, start: int, n_bytes: int) -> None:
    # Else a shard's whole content waits for its fsync, during which little else goes on. Failures show at that fsync.
    _libc().sync_file_range(descriptor, start, n_bytes, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return library


def _prepare(reference: ImageReference, options: ImageOptions) -> tuple[Outcome, PreparedImage | None]:
    try:
        data = read_image(reference)
    except OSError as error:
        return Outcome(f"the image can't be read: {error.strerror}"), None
    if len(data) != reference.size:
        return Outcome(f"the image can't be read: {len(data)} of its {reference.size} bytes are there"), None
    content_hash = hashlib.sha256(data).hexdigest()
    try:
        return Outcome("", content_hash), _to_prepared(data, reference, options)
    except ImageRejected as rejected:
        return Outcome(str(rejected), content_hash), None


def _to_prepared(data: bytes, reference: ImageReference, options: ImageOptions) -> PreparedImage:
    if reference.height:
        return prepare_grey(
            data, reference.height, reference.width, max_side=options.max_side, quality=options.quality
        )  # fmt: skip
    return prepare_image(
        data,
        max_side=options.max_side,
        check=options.check,
        max_pixels=options.max_pixels,
        quality=options.quality,
    )


def _tokenise(records: list[Record], text: TextOptions) -> np.ndarray:
    """Return the stored tokens as uint16 (len(records), captions_per_row, context), zeros where a caption is missing."""
    stored = np.zeros((len(records), text.captions_per_row, text.context), dtype=np.uint16)
    counts = [min(len(record.captions), text.captions_per_row) for record in records]
    captions = [caption for record, count in zip(records, counts, strict=True) for caption in record.captions[:count]]
    has_caption = np.arange(text.captions_per_row) < np.array(counts)[:, None]
    stored[has_caption] = _tokenizer(text.tokenizer).encode(captions, text.context)
    return stored


@functools.cache
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.load(path)
