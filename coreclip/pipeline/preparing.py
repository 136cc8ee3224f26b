"""What a worker process does with a chunk of the manifest: read, check and store anew, tokenise, then write as it is told.

Between the two calls the rows' bytes stay in the worker, so that images cross no process border and the parent alone
decides on places, in the order of the sources.
"""

import ctypes
import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from coreclip.pipeline.beton import MODES, RowFacts, encode_captions, row_bytes, write_rows_at
from coreclip.pipeline.images import ImageRejected, PreparedImage, prepare_image, prepare_pixels
from coreclip.pipeline.ledger import pairs_rows
from coreclip.pipeline.manifest import read_rows
from coreclip.pipeline.records import ImageReference, Record, Reject, read_image
from coreclip.pipeline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from coreclip.pipeline.entropy import ScanChecker

_held: dict[int, list[tuple[bytes, bytes]]] = {}  # rows of prepared chunks that wait for their places
_SYNC_FILE_RANGE_WRITE = 2
_BYTES_FOR_COMPILED_CODE = 1 << 29  # it loads as long as it then saves on half of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Options of :func:`coreclip.pipeline.images.prepare_image`, which describes them."""

    max_side: int | None
    check: str
    max_pixels: int
    quality: int
    raw: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """How captions and the sources' columns are stored.

    Attributes
    ----------
    tokenizer : str
        Path of the ``tokenizer.json``.
    captions_per_row, context : int
        Shape of a pair's token array.
    labels : bool
        Whether every pair must have a label.
    columns : dict of str to str
        Types of the sources' columns, see :class:`coreclip.pipeline.manifest.Plan`.
    """

    tokenizer: str
    captions_per_row: int
    context: int
    labels: bool
    columns: dict[str, str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a worker says of a prepared chunk; the bytes of its rows stay there until :func:`write_chunk`.

    Attributes
    ----------
    record : int64 (b,)
        Which of the chunk's records became the rows, ascending.
    facts : RowFacts of length b
        Indices count from 0.
    pairs : bytes
        The rows of ``pairs.parquet``, see :func:`coreclip.pipeline.ledger.pairs_rows`.
    rejects : list of (int, Reject)
        The other records of the chunk, and why.
    """

    record: np.ndarray
    facts: RowFacts
    pairs: bytes
    rejects: list[tuple[int, Reject]]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run of a chunk's rows goes: a shard's file, and an address int64 (rows,) for each."""

    path: str
    addresses: np.ndarray


def prepare_chunk(
    number: int, manifest: Path, first: int, n_records: int, images: ImageOptions, table: TableOptions, compiled: bool
) -> Prepared:
    """Prepare some records of a part of the manifest and hold their bytes; a bad image is a reject, not an exception.

    ``compiled`` says whether to check with compiled code, see :func:`is_worth_compiling`.
    """
    Image.MAX_IMAGE_PIXELS = None  # max_pixels rules, and this process does nothing else
    records = read_rows(manifest, first, n_records)
    is_clean = _is_clean(images, compiled)
    outcomes = [prepare_record(record, images, table.labels, is_clean) for record in records]
    kept = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Reject)]
    prepared = [outcome for outcome in outcomes if not isinstance(outcome, Reject)]
    stored = [image for image, _ in prepared]
    pairs = [records[i] for i in kept]
    captions = [encode_captions(record.captions) for record in pairs]
    facts = RowFacts(
        mode=np.array([MODES.index(image.mode) for image in stored], np.uint8),
        width=np.array([image.width for image in stored], np.int64),
        height=np.array([image.height for image in stored], np.int64),
        n_caption_bytes=np.array([len(text) for text in captions], np.int64),
        n_image_bytes=np.array([len(image.data) for image in stored], np.int64),
        index=np.arange(len(pairs)),
        label=np.array([record.label for record in pairs], np.int64) if table.labels else None,
    )
    tokens = _tokenise(pairs, table)
    _held[number] = [row_bytes(*row) for row in zip(tokens, captions, (image.data for image in stored), strict=True)]
    return Prepared(
        np.array(kept, np.int64),
        facts,
        pairs_rows(pairs, stored, [content_hash for _, content_hash in prepared], table.labels, table.columns),
        [(i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, Reject)],
    )


def write_chunk(number: int, placements: Sequence[Placement]) -> None:
    """Write a held chunk's rows, run after run, and forget them."""
    rows = _held.pop(number)
    for placement in placements:
        descriptor = os.open(placement.path, os.O_WRONLY)
        try:
            addresses = placement.addresses.tolist()
            end = write_rows_at(descriptor, rows[: len(addresses)], addresses)
            del rows[: len(addresses)]
            _start_writeback(descriptor, addresses[0], end)
        finally:
            os.close(descriptor)


def _start_writeback(descriptor: int, start: int, end: int) -> None:
    # Else a shard's whole content waits for its fsync, during which little else goes on. Failures show at that fsync.
    _libc().sync_file_range(descriptor, start, end - start, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return library


def prepare_record(
    record: Record, images: ImageOptions, labels: bool, is_clean: Callable[[bytes], bool] | None
) -> tuple[PreparedImage, str] | Reject:
    """Return what to store and the SHA-256 of the source's image bytes, or why there is nothing.

    ``labels`` says that every pair must have one, ``is_clean`` is that of :func:`coreclip.pipeline.images.prepare_image`.
    """
    reference = record.image
    reject = Reject(record.source, record.key, "no class number, which other pairs of this data set have")
    if labels and record.label is None:
        return reject
    try:
        data = read_image(reference)
    except OSError as error:
        return replace(reject, reason=f"the image can't be read: {error.strerror}")
    if len(data) != reference.size:
        reason = f"the image can't be read: {len(data)} of its {reference.size} bytes are there"
        return replace(reject, reason=reason)
    try:
        return _to_prepared(data, reference, images, is_clean), hashlib.sha256(data).hexdigest()
    except ImageRejected as rejected:
        return replace(reject, reason=str(rejected))


def _to_prepared(
    data: bytes, reference: ImageReference, options: ImageOptions, is_clean: Callable[[bytes], bool] | None
) -> PreparedImage:
    if reference.channels:
        return prepare_pixels(
            data, reference.height, reference.width, reference.channels,
            max_side=options.max_side, quality=options.quality, raw=options.raw,
        )  # fmt: skip
    return prepare_image(
        data,
        max_side=options.max_side,
        check=options.check,
        max_pixels=options.max_pixels,
        quality=options.quality,
        raw=options.raw,
        is_clean=is_clean,
    )


def time_image(
    part: Path, row: int, images: ImageOptions, labels: bool, compiled: bool
) -> tuple[float, tuple[int, int] | None]:
    """Prepare a row of a part of the manifest and keep nothing; return the seconds, and bytes read and stored, if any."""
    Image.MAX_IMAGE_PIXELS = None
    is_clean = _is_clean(images, compiled)
    start = time.monotonic()
    (record,) = read_rows(part, row, 1)
    outcome = prepare_record(record, images, labels, is_clean)
    sizes = None if isinstance(outcome, Reject) else (record.image.size, len(outcome[0].data))
    return time.monotonic() - start, sizes


def is_worth_compiling(bytes_in: int) -> bool:
    """Whether there is so much to check that compiled code, which takes a while to load, makes up for it."""
    return bytes_in >= _BYTES_FOR_COMPILED_CODE


def _is_clean(images: ImageOptions, compiled: bool) -> Callable[[bytes], bool] | None:
    return _scan_checker().is_clean if compiled and images.check == "decode" else None


@functools.cache
def _scan_checker() -> "ScanChecker":
    from coreclip.pipeline.entropy import ScanChecker

    checker = ScanChecker()
    checker.is_clean(b"")  # loads the compiled code
    return checker


def _tokenise(records: list[Record], table: TableOptions) -> np.ndarray:
    """Return the stored tokens as uint16 (len(records), captions_per_row, context), zeros where a caption is missing."""
    stored = np.zeros((len(records), table.captions_per_row, table.context), dtype=np.uint16)
    counts = [min(len(record.captions), table.captions_per_row) for record in records]
    captions = [caption for record, count in zip(records, counts, strict=True) for caption in record.captions[:count]]
    has_caption = np.arange(table.captions_per_row) < np.array(counts, np.int64)[:, None]
    stored[has_caption] = _tokenizer(table.tokenizer).encode(captions, table.context)
    return stored


@functools.cache
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.load(path)
