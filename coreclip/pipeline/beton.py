"""The `.beton` file of one shard, byte for byte as FFCV 1.0.2 lays it out (``ffcv/types.py``, ``fields/*.py``, ``writer.py``).

A shard has the fields ``image`` (RGB), ``captions`` (JSON), ``tokens`` (uint16 array), ``index`` (int) and perhaps
``label`` (int), all with FFCV's own type ids, so that the stock ``ffcv.loader.Loader`` reads it too. In the file:

- header, 24 bytes: version, number of fields, page size, number of rows, address of the allocation table;
- one descriptor of 1041 bytes for each field: type id, name, arguments;
- one metadata record for each row, with room for rows that never came (their number is unknown at the start);
- pages of data: a row's tokens (8-byte aligned), captions and image lie in one page;
- the allocation table (row, address, size), up to the end of the file.

All addresses count from the start of the file; all numbers are little-endian. FFCV is not imported: it takes seconds.
Left out: every other field type, and samples that span pages.
"""

import contextlib
import errno
import json
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NoReturn, Self

import numpy as np

from coreclip.errors import CoreclipError

MIN_PAGE = 1 << 21
MAX_PAGE = 1 << 31
TOKEN_BYTES = 2
MODES = ("jpg", "raw")  # a mode's place is its code in the file

_VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
DESCRIPTOR = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
SPAN = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])
_TOKEN = np.dtype("<u2")
_TOKEN_TYPE = json.dumps(_TOKEN.descr).encode("ascii")
_ALLOCATIONS_PER_ROW = 3  # tokens, captions, image
_ROWS_PER_PAGE, _LARGEST_FOR_SEVERAL = 8, 1 << 26
_ALIGNMENT_ZEROS = bytes(8)
_MOST_PARTS = 1024  # of one pwritev, by Linux
_PIECE = 1 << 13  # rows whose tables are read and checked at a time: 1 MB, which a core's cache holds

# Name: (FFCV's type id, its metadata). Unaligned records inside an aligned one, as numpy builds them for FFCV.
_FIELDS = {
    "image": (2, IMAGE),
    "captions": (5, SPAN),
    "tokens": (4, np.dtype("<u8")),
    "index": (1, np.dtype("<i8")),
    "label": (1, np.dtype("<i8")),
}


def field_names(labels: bool) -> list[str]:
    """Return a shard's fields in their order in the file."""
    return [name for name in _FIELDS if labels or name != "label"]


def encode_captions(captions: Sequence[str]) -> bytes:
    """Return captions as FFCV's ``JSONField`` stores them: JSON with a final zero byte."""
    return json.dumps(list(captions)).encode("utf-8") + b"\0"


def sample_bytes(n_image_bytes: int, captions: Sequence[str], captions_per_row: int, context: int) -> int:
    """Return the bytes of a page that one row needs; the page must hold the largest row of its shard."""
    return captions_per_row * context * _TOKEN.itemsize + len(encode_captions(captions)) + n_image_bytes


def page_size_for(n_bytes: int, typical_bytes: int = 1) -> int:
    """Return the smallest page, in bytes, that holds a row of ``n_bytes`` (see :func:`sample_bytes`) and several typical ones.

    No row reaches over a page's end, so that half a typical row is lost there: of 16 rows or 8, but not of a single one.

    Raises
    ------
    CoreclipError
        For a row above the largest page, 2 GiB.
    """
    if n_bytes > MAX_PAGE:
        raise CoreclipError(
            f"a row of {n_bytes} bytes is too large: a row must fit in one page of at most {MAX_PAGE} bytes; shrink the image"
        )
    several = min(_ROWS_PER_PAGE * typical_bytes, _LARGEST_FOR_SEVERAL)
    return max(MIN_PAGE, 1 << (max(n_bytes, several) - 1).bit_length())


def renumber_rows(path: str | os.PathLike[str], labels: bool, first_index: int) -> None:
    """Give the rows of a whole shard the indices from ``first_index`` on, in place; nothing else in it changes.

    Parameters
    ----------
    path : path
        A shard that :func:`read_shard` accepts.
    labels : bool
        Whether it has a ``label`` field.
    first_index : int
    """
    with open(path, "r+b") as file:
        n_rows = int(np.frombuffer(file.read(HEADER.itemsize), HEADER)["num_samples"][0])
        file.seek(_metadata_start(labels))
        rows = np.fromfile(file, _metadata_type(labels), n_rows)
        rows["index"] = np.arange(first_index, first_index + n_rows)
        file.seek(_metadata_start(labels))
        file.write(rows.tobytes())


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What a shard's tables say of some rows, beside their addresses.

    Attributes
    ----------
    mode : uint8 (b,)
        Places in :data:`MODES`.
    width, height : int64 (b,)
        Pixels, 1 to 65535; a JPEG's own, before any rotation that its EXIF data ask for.
    n_caption_bytes, n_image_bytes : int64 (b,)
        Of :func:`encode_captions` and of the stored image.
    index : int64 (b,)
        The pairs' places in the whole data set.
    label : int64 (b,) or None
    """

    mode: np.ndarray
    width: np.ndarray
    height: np.ndarray
    n_caption_bytes: np.ndarray
    n_image_bytes: np.ndarray
    index: np.ndarray
    label: np.ndarray | None

    def __len__(self) -> int:
        return len(self.mode)

    def __getitem__(self, part: slice) -> "RowFacts":
        return RowFacts(
            mode=self.mode[part], width=self.width[part], height=self.height[part],
            n_caption_bytes=self.n_caption_bytes[part], n_image_bytes=self.n_image_bytes[part], index=self.index[part],
            label=None if self.label is None else self.label[part],
        )  # fmt: skip


class ShardLayout:
    """Where the rows of a shard lie, and the tables that say so; no file is touched.

    Whoever writes the rows' bytes to the places that :meth:`place` returns, then :meth:`tables`, and :meth:`header` last,
    has written the shard; what is between rows must read as zeros. Equal rows and parameters give equal bytes.

    Parameters
    ----------
    captions_per_row : int
        Rows m of a token array.
    context : int
        Columns of a token array.
    labels : bool
        Whether there is a ``label`` field.
    page_size : int
        Bytes, a power of two of at least 2 MiB, see :func:`page_size_for`.
    max_rows : int
        Rows for which metadata is reserved (48 or 56 bytes each, as a hole in the file where they do not come).
    name : str
        Of the shard, for messages.

    Attributes
    ----------
    rows : int
        Placed so far.
    stored_bytes : int
        Image bytes placed so far.
    page_size, max_rows : int
    """

    def __init__(
        self,
        *,
        captions_per_row: int,
        context: int,
        labels: bool,
        page_size: int = MIN_PAGE,
        max_rows: int,
        name: str = "of a data set",
    ) -> None:
        for parameter, value in (
            ("captions_per_row", captions_per_row), ("context", context), ("max_rows", max_rows),
        ):  # fmt: skip
            if value < 1:
                raise CoreclipError(f"{parameter} = {value} of shard {name} is not allowed: it must be at least 1")
        if not _is_page_size(page_size):
            raise CoreclipError(
                f"page_size = {page_size} of shard {name} is not allowed: a power of two, {MIN_PAGE} to {MAX_PAGE} bytes"
            )
        self.rows = 0
        self.stored_bytes = 0
        self.page_size, self.max_rows = page_size, max_rows
        self._name = name
        self._token_shape = (captions_per_row, context)
        self._token_bytes = captions_per_row * context * _TOKEN.itemsize
        self._labels = labels
        self._metadata = np.zeros(max_rows, _metadata_type(labels))
        self._image_sizes = np.zeros(max_rows, np.uint64)
        data_start = _metadata_start(labels) + self._metadata.nbytes
        self._end = -(-data_start // page_size) * page_size

    def place(self, rows: "RowFacts") -> np.ndarray:
        """Give the next rows their places.

        Returns
        -------
        int64 (b,)
            Addresses; at each lie the row's tokens, captions and image side by side (:func:`row_bytes`).

        Raises
        ------
        CoreclipError
            For a value against the rules or a row larger than a page; the layout is then as it was before.
        """
        self._check_rows(rows)
        n_bytes = self.row_sizes(rows)
        addresses = np.empty(len(rows), np.int64)
        end, page = self._end, self.page_size
        for i, n in enumerate(n_bytes.tolist()):
            start = -(-end // 8) * 8
            if start // page != (start + n - 1) // page:
                start = -(-start // page) * page
            addresses[i] = start
            end = start + n
        self._end = end
        placed = self._metadata[self.rows : self.rows + len(rows)]
        placed["image"]["mode"] = rows.mode
        placed["image"]["width"] = rows.width
        placed["image"]["height"] = rows.height
        placed["image"]["ptr"] = addresses + self._token_bytes + rows.n_caption_bytes
        placed["captions"]["ptr"] = addresses + self._token_bytes
        placed["captions"]["size"] = rows.n_caption_bytes
        placed["tokens"] = addresses
        placed["index"] = rows.index
        if rows.label is not None:
            placed["label"] = rows.label
        self._image_sizes[self.rows : self.rows + len(rows)] = rows.n_image_bytes
        self.rows += len(rows)
        self.stored_bytes += int(rows.n_image_bytes.sum())
        return addresses

    def row_sizes(self, rows: "RowFacts") -> np.ndarray:
        """Return the bytes that each row takes in its page, int64 (b,)."""
        return self._token_bytes + rows.n_caption_bytes + rows.n_image_bytes

    def tables(self) -> list[tuple[int, bytes]]:
        """Return (address, bytes) of all that is neither a row nor the header; the last one ends the file."""
        metadata = _descriptors(self._labels, self._token_shape).tobytes() + self._metadata[: self.rows].tobytes()
        return [(HEADER.itemsize, metadata), (self._table_address, self._allocation_table().tobytes())]

    def header(self) -> bytes:
        """Return the first bytes of the file; without them every reader refuses it."""
        n_fields = len(field_names(self._labels))
        header = np.array([(_VERSION, n_fields, self.page_size, self.rows, self._table_address)], HEADER)
        return header.tobytes()

    @property
    def _table_address(self) -> int:
        return -(-self._end // self.page_size) * self.page_size

    def _check_rows(self, rows: "RowFacts") -> None:
        w, h, n_image, n_bytes = rows.width, rows.height, rows.n_image_bytes, self.row_sizes(rows)
        fits = (w > 0) & (w < 1 << 16) & (h > 0) & (h < 1 << 16)
        has_room = np.arange(len(rows)) < self.max_rows - self.rows
        labelled = np.full(len(rows), (rows.label is not None) == self._labels)
        rules: tuple[tuple[np.ndarray, Callable[[int], str], str], ...] = (
            (has_room, lambda i: f"is full with {self.max_rows} rows", "max_rows must cover them all"),
            (rows.mode < len(MODES), lambda i: f"has the image mode {rows.mode[i]}", f"below {len(MODES)}"),
            (n_image > 0, lambda i: "has an image of 0 bytes", "FFCV loses the next field then; leave the pair out"),
            (fits, lambda i: f"has {w[i]} x {h[i]} pixels", "1 to 65535 a side fit"),
            ((rows.mode != 1) | (n_image == w * h * 3), lambda i: f"has {n_image[i]} raw bytes", "it must be h * w * 3"),
            (rows.index >= 0, lambda i: f"has the index {rows.index[i]}", "it must be 0 to 2**63 - 1"),
            (labelled, lambda i: f"has the label {None if rows.label is None else rows.label[i]}",
             "all rows have a label or none has"),
            (n_bytes <= self.page_size, lambda i: f"needs {n_bytes[i]} bytes",
             f"the page has {self.page_size}; choose a larger one"),
        )  # fmt: skip
        for holds, what, rule in rules:
            if not holds.all():
                row = int(np.argmin(holds))
                raise CoreclipError(f"row {self.rows + row} of shard {self._name} {what(row)}: {rule}")

    def _allocation_table(self) -> np.ndarray:
        rows = self._metadata[: self.rows]
        table = np.zeros((self.rows, _ALLOCATIONS_PER_ROW), ALLOCATION)
        table["sample_id"] = np.arange(self.rows)[:, None]
        table["ptr"] = np.stack([rows["tokens"], rows["captions"]["ptr"], rows["image"]["ptr"]], axis=1)
        table["size"][:, 0] = self._token_bytes
        table["size"][:, 1] = rows["captions"]["size"]
        table["size"][:, 2] = self._image_sizes[: self.rows]
        return table


class ShardWriter:
    """Writes one shard, row by row; a context manager.

    Until :meth:`close` has returned, the file has no valid header and every reader refuses it. Leaving the context by
    an exception removes the file. Equal rows and parameters give equal bytes.

    Parameters
    ----------
    path : path
        Overwritten.
    captions_per_row, context, labels, page_size, max_rows
        As in :class:`ShardLayout`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        captions_per_row: int,
        context: int,
        labels: bool,
        page_size: int = MIN_PAGE,
        max_rows: int,
    ) -> None:
        self.path = Path(path)
        self._layout = ShardLayout(
            captions_per_row=captions_per_row, context=context, labels=labels, page_size=page_size, max_rows=max_rows,
            name=str(self.path),
        )  # fmt: skip
        self._token_shape = (captions_per_row, context)
        self._file: BinaryIO | None = open(self.path, "wb")  # noqa: SIM115 - closed by close() and abort()

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return self._layout.rows

    @property
    def stored_bytes(self) -> int:
        """Image bytes added so far."""
        return self._layout.stored_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add(
        self,
        image: bytes,
        mode: Literal["jpg", "raw"],
        width: int,
        height: int,
        captions: Sequence[str],
        tokens: np.ndarray,
        index: int,
        label: int | None = None,
    ) -> None:
        """Append one row.

        Parameters
        ----------
        image : bytes
            JPEG bytes, or for ``"raw"`` the height x width x 3 pixels.
        mode : {"jpg", "raw"}
        width, height : int
            Pixels, 1 to 65535; a JPEG's own, before any rotation that its EXIF data ask for.
        captions : sequence of str
            At least one.
        tokens : uint16 (captions_per_row, context)
        index : int
            The pair's place in the whole data set.
        label : int or None
            Given if and only if the shard has labels.

        Raises
        ------
        CoreclipError
            For a value against these rules or a row larger than a page; the shard is then as it was before.
        """
        rules = (
            (self._file is not None, "is written to after close", "a closed shard takes no row"),
            (mode in MODES, f"has the image mode {mode!r}", f"it must be one of {', '.join(MODES)}"),
            (-1 < index < 1 << 63, f"has the index {index}", "it must be 0 to 2**63 - 1"),
            (len(captions) > 0, "has no caption", "a pair has at least one; leave it out"),
            (tokens.dtype == np.uint16, f"has tokens of type {tokens.dtype}", "they must be uint16"),
            (
                tokens.shape == self._token_shape,
                f"has tokens of shape {tokens.shape}",
                f"it must be {self._token_shape}",
            ),
        )
        for holds, what, rule in rules:
            if not holds:
                raise CoreclipError(f"row {self.rows} of shard {self.path} {what}: {rule}")
        assert self._file is not None
        text = encode_captions(captions)
        row = RowFacts(
            mode=np.array([MODES.index(mode)], np.uint8), width=np.array([width]), height=np.array([height]),
            n_caption_bytes=np.array([len(text)]), n_image_bytes=np.array([len(image)]), index=np.array([index]),
            label=None if label is None else np.array([label]),
        )  # fmt: skip
        self._file.seek(int(self._layout.place(row)[0]))
        self._file.writelines(row_bytes(tokens, text, image))

    def close(self) -> None:
        """Write the tables and, last, the header; each is on the disk when this returns. A second call does nothing.

        Raises
        ------
        CoreclipError
            For a shard without a row (the file is removed).
        """
        if self._file is None:
            return
        if self.rows == 0:
            self.abort()
            raise CoreclipError(
                f"shard {self.path} would be empty: a shard holds at least one row; add one or do not write it"
            )
        self._file.flush()
        finish_shard(self._file.fileno(), self._layout)
        self._file.close()
        self._file = None

    def abort(self) -> None:
        """Give the shard up and remove its file. Nothing happens after :meth:`close`."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)


def row_bytes(tokens: np.ndarray, captions: bytes, image: bytes) -> tuple[bytes, bytes]:
    """Return a row as it lies in its page, in two parts: tokens (uint16) with captions (:func:`encode_captions`), and image."""
    return tokens.astype(_TOKEN, copy=False).tobytes() + captions, image


def finish_shard(descriptor: int, layout: ShardLayout) -> None:
    """Write a shard's tables and, last, its header behind its rows; each is on the disk when this returns."""
    for address, content in layout.tables():
        write_at(descriptor, content, address)
    os.fsync(descriptor)
    write_at(descriptor, layout.header(), 0)
    os.fsync(descriptor)


def write_rows_at(descriptor: int, rows: Sequence[tuple[bytes, bytes]], addresses: Sequence[int]) -> int:
    """Write rows of :func:`row_bytes` to their ascending places, zeros between them; return where the last one ends.

    Rows that lie side by side are one call to the system, without being copied to one another first.
    """
    run: list[bytes] = []
    start = end = addresses[0]
    for row, address in zip(rows, addresses, strict=True):
        if address - end >= len(_ALIGNMENT_ZEROS) or len(run) + 3 > _MOST_PARTS:
            _write_parts(descriptor, run, start)
            run, start = [], address
        elif address > end:
            run.append(_ALIGNMENT_ZEROS[: address - end])
        run += row
        end = address + len(row[0]) + len(row[1])
    _write_parts(descriptor, run, start)
    return end


def _write_parts(descriptor: int, parts: list[bytes], address: int) -> None:
    written = os.pwritev(descriptor, parts, address)
    for part in parts:  # all of them are written already, unless the disk is about to be full
        if written < len(part):
            write_at(descriptor, memoryview(part)[written:], address + written)
        address += len(part)
        written = max(written - len(part), 0)


def write_at(descriptor: int, content: bytes | memoryview, address: int) -> None:
    """Write all of ``content`` at one place of a file."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, address)
        view, address = view[written:], address + written


@dataclass(eq=False)
class Shard:
    """One shard, mapped into memory; a context manager. Made by :func:`read_shard`, which has checked every address.

    What is in memory is what a loader needs; the other columns are read from the file whenever they are asked for.

    Attributes
    ----------
    path : Path
    mapping : mmap.mmap
        The whole file, read-only; addresses are places in it.
    page_size, captions_per_row, context : int
    labelled : bool
        Whether the rows have labels.
    consecutive : bool
        Whether each row's index is the one before it plus 1.
    modes : uint8 (rows,)
        Places in :data:`MODES`.
    widths, heights : int32 (rows,)
        Pixels.
    image_addresses, image_sizes, token_addresses : uint64 (rows,)
        Bytes. Token arrays are 8-byte aligned.
    """

    path: Path
    mapping: mmap.mmap
    page_size: int
    captions_per_row: int
    context: int
    labelled: bool
    consecutive: bool
    modes: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    image_addresses: np.ndarray
    image_sizes: np.ndarray
    token_addresses: np.ndarray

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.modes)

    @property
    def base_address(self) -> int:
        """Address of the file's first byte in this process; good until :meth:`close`."""
        return int(np.frombuffer(self.mapping, np.uint8).ctypes.data)

    @property
    def first_index(self) -> int:
        """The first row's index."""
        return int(self._records["index"][0])

    @property
    def index(self) -> np.ndarray:
        """Each row's index, int64 (rows,)."""
        return self._records["index"].astype(np.int64)

    @property
    def label(self) -> np.ndarray | None:
        """Each row's label, int64 (rows,), or None without labels."""
        return self._records["label"].astype(np.int64) if self.labelled else None

    @property
    def caption_addresses(self) -> np.ndarray:
        """Where the captions lie, uint64 (rows,)."""
        return self._records["captions"]["ptr"].astype(np.uint64)

    @property
    def caption_sizes(self) -> np.ndarray:
        """Bytes of the captions, uint64 (rows,)."""
        return self._records["captions"]["size"].astype(np.uint64)

    def image_bytes(self, row: int) -> bytes:
        """Return a copy of the stored image bytes."""
        return self._read(self.image_addresses[row], self.image_sizes[row])

    def captions(self, row: int) -> list[str]:
        """Return the row's captions.

        Raises
        ------
        CoreclipError
            Where they are not a JSON list of at least one string.
        """
        stored = self._read(*self._records["captions"][row].tolist())
        try:
            captions = json.loads(stored.partition(b"\0")[0])
        except (ValueError, RecursionError):
            captions = None
        if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
            _refuse(self.path, f"the captions of row {row} are {stored[:40]!r}", "they must be a JSON list of strings")
        return captions

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Return the token arrays of ``rows`` (int64 (b,)) as uint16 (b, captions_per_row, context)."""
        words = np.frombuffer(self.mapping, _TOKEN, len(self.mapping) // _TOKEN.itemsize)
        first = self.token_addresses[rows].astype(np.int64) // _TOKEN.itemsize
        flat = words[first[:, None] + np.arange(self.captions_per_row * self.context)]
        return flat.reshape(-1, self.captions_per_row, self.context).astype(np.uint16, copy=False)

    def close(self) -> None:
        """Unmap the file, or leave that to the last array that still looks at it. A second call does nothing."""
        with contextlib.suppress(BufferError):
            self.mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _records(self) -> np.ndarray:
        start = _metadata_start(self.labelled)
        return np.frombuffer(self.mapping, _metadata_type(self.labelled), self.rows, start)

    def _read(self, address: int, size: int) -> bytes:
        return self.mapping[int(address) : int(address) + int(size)]


def read_shard(path: str | os.PathLike[str]) -> Shard:
    """Map a shard and check all of its tables, whoever wrote it.

    Checked are the header, the fields, and for each row that its mode, size and index can be, that its three addresses
    are each in the allocation table once, with the right size, whole, apart from all others and in one page. Not read
    are the data: whether an image decodes, captions are JSON and tokens the captions' own is seen when they are used
    (tokens are only ever numbers below 65536), and only the file's hash tells whether its bytes are those that were written.

    The tables are read in pieces, so that no more of them is in memory than the columns of :class:`Shard`.

    Raises
    ------
    CoreclipError
        For a file that is missing, unfinished, truncated, damaged, or no shard of coreclip.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CoreclipError(f"shard {path} is not a regular file; name a .beton file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(path, file.fileno(), size)
            labels, token_shape = _read_descriptors(path, file.fileno(), int(header["num_fields"]))
            tables = _find_tables(path, file.fileno(), size, header, labels)
            columns = _read_in_order(tables, token_shape) or _read_in_any_order(tables, token_shape)
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        remedy = "check the path or convert again"
        if error.errno == errno.EMFILE:
            remedy = "raise this process's limit of open files, ulimit -n"
        raise CoreclipError(f"shard {path} can't be read: {error.strerror}; {remedy}") from None
    page_size, (captions_per_row, context) = tables.page_size, token_shape
    return Shard(path, mapping, page_size, captions_per_row, context, labels, **columns)


@dataclass(frozen=True, eq=False, slots=True)
class _Tables:
    """Where the tables of an open file are, in bytes: records before ``data_start``, allocations from ``data_end`` on."""

    path: Path
    file: int
    rows: int
    labels: bool
    data_start: int
    data_end: int
    page_size: int

    def records(self, first: int, out: np.ndarray) -> np.ndarray:
        """Read the metadata of as many rows as ``out`` holds."""
        return _read_into(self.path, self.file, out, _metadata_start(self.labels) + first * out.itemsize)

    def allocations(self, first: int, out: np.ndarray) -> np.ndarray:
        """Read the allocations of the rows from ``first`` on, three for each."""
        return _read_into(self.path, self.file, out, self.data_end + first * _ALLOCATIONS_PER_ROW * out.itemsize)

    def buffers(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return room for the metadata and the allocations of ``count`` rows."""
        return np.empty(count, _metadata_type(self.labels)), np.empty(count * _ALLOCATIONS_PER_ROW, ALLOCATION)


def _read_into(path: Path, file: int, out: np.ndarray, start: int) -> np.ndarray:
    view, done = out.view(np.uint8).data, 0
    while done < len(view):
        n_read = os.preadv(file, [view[done:]], start + done)
        _require(n_read > 0, path, f"it ends at byte {start + done}", "so it is truncated")
        done += n_read
    return out


def _refuse(path: Path, what: str, rule: str) -> NoReturn:
    raise CoreclipError(f"shard {path} is damaged or not coreclip's: {what}, {rule}; restore the file or convert again")


def _require(holds: bool | np.bool_, path: Path, what: str, rule: str) -> None:
    if not holds:
        _refuse(path, what, rule)


def _is_page_size(page_size: int) -> bool:
    return MIN_PAGE <= page_size <= MAX_PAGE and page_size & (page_size - 1) == 0


def _metadata_type(labels: bool) -> np.dtype:
    return np.dtype([(name, _FIELDS[name][1]) for name in field_names(labels)], align=True)


def _metadata_start(labels: bool) -> int:
    return HEADER.itemsize + len(field_names(labels)) * DESCRIPTOR.itemsize


def _descriptors(labels: bool, token_shape: tuple[int, int]) -> np.ndarray:
    names = field_names(labels)
    descriptors = np.zeros(len(names), DESCRIPTOR)
    for descriptor, name in zip(descriptors, names, strict=True):
        descriptor["type_id"] = _FIELDS[name][0]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    arguments = np.zeros(1, _ARRAY_ARGUMENTS)
    arguments["shape"][0, :2] = token_shape
    arguments["type_length"] = len(_TOKEN_TYPE)
    encoded = arguments.tobytes() + _TOKEN_TYPE
    descriptors["arguments"][names.index("tokens"), : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return descriptors


def _read_header(path: Path, file: int, size: int) -> np.void:
    _require(size >= HEADER.itemsize, path, f"it has {size} bytes", f"a header alone has {HEADER.itemsize}")
    header = _read_into(path, file, np.empty(1, HEADER), 0)[0]
    if header["version"] == 0:
        _refuse(path, "its header is empty", "so its writer never finished")
    _require(header["version"] == _VERSION, path, f"its version is {header['version']}", f"it must be {_VERSION}")
    _require(header["num_fields"] in (4, 5), path, f"it has {header['num_fields']} fields", "there must be 4 or 5")
    _require(
        _is_page_size(int(header["page_size"])),
        path,
        f"its page size is {header['page_size']}",
        f"it must be a power of two, {MIN_PAGE} to {MAX_PAGE}",
    )
    _require(header["num_samples"] > 0, path, "it has 0 rows", "there must be at least 1")
    return header


def _read_descriptors(path: Path, file: int, n_fields: int) -> tuple[bool, tuple[int, int]]:
    labels = n_fields == 5
    names = field_names(labels)
    descriptors = _read_into(path, file, np.empty(n_fields, DESCRIPTOR), HEADER.itemsize)
    found = [
        (descriptor["name"].tobytes().split(b"\0")[0].decode("ascii", "backslashreplace"), int(descriptor["type_id"]))
        for descriptor in descriptors
    ]
    expected = [(name, _FIELDS[name][0]) for name in names]
    _require(found == expected, path, f"its fields (name, type) are {found}", f"they must be {expected}")
    arguments = descriptors["arguments"][names.index("tokens")].tobytes()
    shape = np.frombuffer(arguments[: _ARRAY_ARGUMENTS.itemsize], _ARRAY_ARGUMENTS)[0]["shape"].tolist()
    m, context = shape[:2]
    right = 0 < m < 1 << 31 and 0 < context < 1 << 31
    right = right and arguments == _descriptors(labels, (m, context))["arguments"][names.index("tokens")].tobytes()
    _require(right, path, f"its token arrays have the shape {shape[:3]}", "it must be (captions, context) of uint16")
    return labels, (m, context)


def _find_tables(path: Path, file: int, size: int, header: np.void, labels: bool) -> _Tables:
    n_rows, table_start = int(header["num_samples"]), int(header["alloc_table_ptr"])
    data_start = _metadata_start(labels) + n_rows * _metadata_type(labels).itemsize
    _require(data_start <= table_start, path, f"its {n_rows} rows end at byte {data_start}", f"after {table_start}")
    expected_size = table_start + n_rows * _ALLOCATIONS_PER_ROW * ALLOCATION.itemsize
    _require(size == expected_size, path, f"it has {size} bytes", f"its {n_rows} rows need {expected_size}")
    return _Tables(path, file, n_rows, labels, data_start, table_start, int(header["page_size"]))


def _read_in_order(tables: _Tables, token_shape: tuple[int, int]) -> dict[str, Any] | None:
    """Read and check tables whose allocations are in the order of the rows and of the file, as ours are.

    Returns
    -------
    dict or None
        Columns of :class:`Shard`. None for tables in another order, and for wrong ones, without saying what is wrong.
    """
    n = tables.rows
    columns: dict[str, Any] = {
        "consecutive": True,
        "modes": np.empty(n, np.uint8),
        "widths": np.empty(n, np.int32),
        "heights": np.empty(n, np.int32),
        "image_addresses": np.empty(n, np.uint64),
        "image_sizes": np.empty(n, np.uint64),
        "token_addresses": np.empty(n, np.uint64),
    }
    room_for_rows, room_for_table = tables.buffers(min(_PIECE, n))
    end, next_index = tables.data_start, None
    for first in range(0, n, _PIECE):
        count = min(_PIECE, n - first)
        rows = tables.records(first, room_for_rows[:count])
        table = tables.allocations(first, room_for_table[: 3 * count])
        if not _are_in_order(rows, table, first, end, tables, token_shape):
            return None
        part, image = slice(first, first + count), rows["image"]
        columns["modes"][part], columns["widths"][part], columns["heights"][part] = (
            image["mode"],
            image["width"],
            image["height"],
        )
        columns["image_addresses"][part], columns["image_sizes"][part] = image["ptr"], table["size"][2::3]
        columns["token_addresses"][part] = rows["tokens"]
        index = rows["index"]
        columns["consecutive"] &= next_index in (None, int(index[0])) and bool((np.diff(index) == 1).all())
        end, next_index = int(table["ptr"][-1]) + int(table["size"][-1]), int(index[-1]) + 1
    return columns


def _are_in_order(
    rows: np.ndarray, table: np.ndarray, first: int, end: int, tables: _Tables, token_shape: tuple[int, int]
) -> bool:
    """Whether some rows (from ``first`` on, behind byte ``end``) are right and their allocations in order."""
    start, size, image = table["ptr"].copy(), table["size"].copy(), rows["image"]
    inside = (size > 0) & (start < tables.data_end) & (size <= tables.data_end - np.minimum(start, tables.data_end))
    last = start + size - np.uint64(1)  # can't wrap where it is inside
    token_bytes = np.uint64(token_shape[0] * token_shape[1] * _TOKEN.itemsize)
    raw_bytes = image["width"].astype(np.uint64) * image["height"].astype(np.uint64) * np.uint64(3)
    return bool(
        inside.all()
        and start[0] >= end
        and (last[:-1] < start[1:]).all()
        and ((start ^ last) < tables.page_size).all()
        and (table["sample_id"].reshape(-1, 3) == np.arange(first, first + len(rows), dtype=np.uint64)[:, None]).all()
        and np.array_equal(start[0::3], rows["tokens"])
        and np.array_equal(start[1::3], rows["captions"]["ptr"])
        and np.array_equal(start[2::3], image["ptr"])
        and np.array_equal(size[1::3], rows["captions"]["size"])
        and (size[0::3] == token_bytes).all()
        and not (rows["tokens"] & np.uint64(7)).any()
        and (image["mode"] < len(MODES)).all()
        and raw_bytes.all()
        and ((image["mode"] != 1) | (size[2::3] == raw_bytes)).all()
        and (rows["index"] >= 0).all()
    )


def _read_in_any_order(tables: _Tables, token_shape: tuple[int, int]) -> dict[str, Any]:
    """Read the tables at once, in whatever order they are, and name what is wrong."""
    path = tables.path
    rows, table = tables.buffers(tables.rows)
    tables.records(0, rows)
    tables.allocations(0, table)
    table = table[np.argsort(table["ptr"], kind="stable")]
    _check_allocations(path, table, tables.data_start, tables.data_end, tables.page_size)
    addresses = np.stack([rows["tokens"], rows["captions"]["ptr"], rows["image"]["ptr"]])
    sizes = _look_sizes_up(path, table, addresses)
    _check_rows(path, rows, sizes, token_shape)
    image = rows["image"]
    return {
        "consecutive": bool((np.diff(rows["index"]) == 1).all()),
        "modes": image["mode"].copy(),
        "widths": image["width"].astype(np.int32),
        "heights": image["height"].astype(np.int32),
        "image_addresses": addresses[2],
        "image_sizes": sizes[2],
        "token_addresses": addresses[0],
    }


def _check_allocations(path: Path, table: np.ndarray, data_start: int, data_end: int, page_size: int) -> None:
    """Check that the allocations, sorted by address, are whole, apart, in the data's region and each in one page."""
    start, size = table["ptr"], table["size"]
    inside = (start >= data_start) & (start < data_end) & (size > 0) & (size <= data_end - np.minimum(start, data_end))
    _require_all(inside, path, table, f"outside of its data ({data_start} to {data_end})")
    end = start + size  # can't wrap: both are inside the file
    apart = np.append(end[:-1] <= start[1:], True)
    _require_all(apart, path, table, "over the next one")
    _require_all(
        start // page_size == (end - 1) // page_size, path, table, f"across a border of its {page_size}-byte pages"
    )


def _require_all(holds: np.ndarray, path: Path, table: np.ndarray, what: str) -> None:
    if not holds.all():
        row, start, size = table[int(np.argmin(holds))].tolist()
        _refuse(path, f"row {row} has {size} bytes at {start}, {what}", "which its table must not say")


def _look_sizes_up(path: Path, table: np.ndarray, addresses: np.ndarray) -> np.ndarray:
    """Return the sizes, uint64 (3, rows), of what lies at ``addresses``; each entry of the table must be used once."""
    place = np.minimum(np.searchsorted(table["ptr"], addresses), len(table) - 1)
    right = (table["ptr"][place] == addresses) & (table["sample_id"][place] == np.arange(addresses.shape[1]))
    used = np.zeros(len(table), bool)
    used[place[right]] = True
    if not right.all():
        row = int(np.argmin(right.all(axis=0)))
        _refuse(path, f"an address of row {row} is not in its allocation table", "where each must be")
    _require(used.all(), path, "two fields of a row have one address", "each must have its own")
    return table["size"][place]


def _check_rows(path: Path, rows: np.ndarray, sizes: np.ndarray, token_shape: tuple[int, int]) -> None:
    """Check each row's values against each other and against its sizes in the allocation table, uint64 (3, rows)."""
    token_bytes = token_shape[0] * token_shape[1] * _TOKEN.itemsize
    modes, widths, heights = (rows["image"][name] for name in ("mode", "width", "height"))
    raw_bytes = widths.astype(np.uint64) * heights.astype(np.uint64) * np.uint64(3)
    caption_sizes = rows["captions"]["size"]
    rules = (
        (modes < len(MODES), modes, "image mode", f"below {len(MODES)}"),
        ((widths > 0) & (heights > 0), widths, "width or height", "above 0"),
        ((modes != 1) | (sizes[2] == raw_bytes), sizes[2], "raw image size", "h * w * 3"),
        (sizes[0] == token_bytes, sizes[0], "token size", f"{token_bytes} bytes"),
        (rows["tokens"] % 8 == 0, rows["tokens"], "token address", "a multiple of 8"),
        (sizes[1] == caption_sizes, caption_sizes, "caption size", "what the allocation table says"),
        (rows["index"] >= 0, rows["index"], "index", "at least 0"),
    )
    for holds, values, name, rule in rules:
        if not holds.all():
            row = int(np.argmin(holds))
            _refuse(path, f"the {name} of row {row} is {values[row]}", f"it must be {rule}")
