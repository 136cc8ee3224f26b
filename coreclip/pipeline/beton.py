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
import json
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NoReturn, Self

import numpy as np

from coreclip.errors import CoreclipError

MIN_PAGE = 1 << 21
MAX_PAGE = 1 << 31
MODES = ("jpg", "raw")  # a mode's place is its code in the file

_VERSION = 2
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
_DESCRIPTOR = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])
_TOKEN = np.dtype("<u2")
_TOKEN_TYPE = json.dumps(_TOKEN.descr).encode("ascii")
_ALLOCATIONS_PER_ROW = 3  # tokens, captions, image

# Name: (FFCV's type id, its metadata). Unaligned records inside an aligned one, as numpy builds them for FFCV.
_FIELDS = {
    "image": (2, np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])),
    "captions": (5, np.dtype([("ptr", "<u8"), ("size", "<u8")])),
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


def page_size_for(n_bytes: int) -> int:
    """Return the smallest page, in bytes, that holds a row of ``n_bytes`` (see :func:`sample_bytes`).

    Raises
    ------
    CoreclipError
        For a row above the largest page, 2 GiB.
    """
    if n_bytes > MAX_PAGE:
        raise CoreclipError(
            f"a row of {n_bytes} bytes is too large: a row must fit in one page of at most {MAX_PAGE} bytes; shrink the image"
        )
    return max(MIN_PAGE, 1 << (n_bytes - 1).bit_length())


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
        n_rows = int(np.frombuffer(file.read(_HEADER.itemsize), _HEADER)["num_samples"][0])
        file.seek(_metadata_start(labels))
        rows = np.fromfile(file, _metadata_type(labels), n_rows)
        rows["index"] = np.arange(first_index, first_index + n_rows)
        file.seek(_metadata_start(labels))
        file.write(rows.tobytes())


class ShardWriter:
    """Writes one shard, row by row, with one page in memory; a context manager.

    Until :meth:`close` has returned, the file has no valid header and every reader refuses it. Leaving the context by
    an exception removes the file. Equal rows and parameters give equal bytes.

    Parameters
    ----------
    path : path
        Overwritten.
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

    Attributes
    ----------
    rows : int
        Added so far.
    stored_bytes : int
        Image bytes added so far.
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
        for name, value in (("captions_per_row", captions_per_row), ("context", context), ("max_rows", max_rows)):
            if value < 1:
                raise CoreclipError(f"{name} = {value} of shard {self.path} is not allowed: it must be at least 1")
        if not _is_page_size(page_size):
            raise CoreclipError(
                f"page_size = {page_size} of shard {self.path} is not allowed: a power of two, {MIN_PAGE} to {MAX_PAGE} bytes"
            )
        self.rows = 0
        self.stored_bytes = 0
        self._token_shape = (captions_per_row, context)
        self._labels = labels
        self._page_size = page_size
        self._metadata = np.zeros(max_rows, _metadata_type(labels))
        self._image_sizes = np.zeros(max_rows, np.uint64)
        self._page = bytearray(page_size)
        self._page_used = 0
        data_start = _metadata_start(labels) + self._metadata.nbytes
        self._page_start = -(-data_start // page_size) * page_size
        self._file: BinaryIO | None = open(self.path, "wb")  # noqa: SIM115 - closed by close() and abort()

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
        text = encode_captions(captions)
        n_bytes = tokens.nbytes + len(text) + len(image)
        self._check_row(image, mode, width, height, captions, tokens, index, label, n_bytes)
        start = -(-self._page_used // 8) * 8
        if start + n_bytes > self._page_size:
            self._write_page()
            start = 0
        text_start = start + tokens.nbytes
        image_start = text_start + len(text)
        self._page_used = image_start + len(image)
        self._page[start : self._page_used] = tokens.astype(_TOKEN).tobytes() + text + image
        base = self._page_start
        row = (
            (MODES.index(mode), width, height, base + image_start),
            (base + text_start, len(text)),
            base + start,
            index,
            *(() if label is None else (label,)),
        )
        self._metadata[self.rows] = row
        self._image_sizes[self.rows] = len(image)
        self.rows += 1
        self.stored_bytes += len(image)

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
        self._write_page()
        self._file.seek(_HEADER.itemsize)
        self._file.write(_descriptors(self._labels, self._token_shape).tobytes())
        self._file.write(self._metadata[: self.rows].tobytes())
        self._file.seek(self._page_start)
        self._file.write(self._allocation_table().tobytes())
        self._sync()
        n_fields = len(field_names(self._labels))
        header = np.array([(_VERSION, n_fields, self._page_size, self.rows, self._page_start)], _HEADER)
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._sync()
        self._file.close()
        self._file = None

    def abort(self) -> None:
        """Give the shard up and remove its file. Nothing happens after :meth:`close`."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)

    def _check_row(
        self,
        image: bytes,
        mode: str,
        width: int,
        height: int,
        captions: Sequence[str],
        tokens: np.ndarray,
        index: int,
        label: int | None,
        n_bytes: int,
    ) -> None:
        rules = (
            (self._file is not None, "is written to after close", "a closed shard takes no row"),
            (self.rows < len(self._metadata), f"is full with {self.rows} rows", "max_rows must cover them all"),
            (mode in MODES, f"has the image mode {mode!r}", f"it must be one of {', '.join(MODES)}"),
            (len(image) > 0, "has an image of 0 bytes", "FFCV loses the next field then; leave the pair out"),
            (1 <= width < 1 << 16 and 1 <= height < 1 << 16, f"has {width} x {height} pixels", "1 to 65535 a side fit"),
            (mode != "raw" or len(image) == width * height * 3, f"has {len(image)} raw bytes", "it must be h * w * 3"),
            (len(captions) > 0, "has no caption", "a pair has at least one; leave it out"),
            (tokens.dtype == np.uint16, f"has tokens of type {tokens.dtype}", "they must be uint16"),
            (
                tokens.shape == self._token_shape,
                f"has tokens of shape {tokens.shape}",
                f"it must be {self._token_shape}",
            ),
            (0 <= index < 1 << 63, f"has the index {index}", "it must be 0 to 2**63 - 1"),
            ((label is not None) == self._labels, f"has the label {label}", "all rows have a label or none has"),
            (
                n_bytes <= self._page_size,
                f"needs {n_bytes} bytes",
                f"the page has {self._page_size}; choose a larger one",
            ),
        )
        for holds, what, rule in rules:
            if not holds:
                raise CoreclipError(f"row {self.rows} of shard {self.path} {what}: {rule}")

    def _write_page(self) -> None:
        assert self._file is not None
        if self._page_used:
            self._file.seek(self._page_start)
            self._file.write(self._page)
            self._page_start += self._page_size
            self._page_used = 0
            self._page[:] = bytes(self._page_size)

    def _allocation_table(self) -> np.ndarray:
        rows = self._metadata[: self.rows]
        table = np.zeros((self.rows, _ALLOCATIONS_PER_ROW), _ALLOCATION)
        table["sample_id"] = np.arange(self.rows)[:, None]
        table["ptr"] = np.stack([rows["tokens"], rows["captions"]["ptr"], rows["image"]["ptr"]], axis=1)
        table["size"][:, 0] = self._token_shape[0] * self._token_shape[1] * _TOKEN.itemsize
        table["size"][:, 1] = rows["captions"]["size"]
        table["size"][:, 2] = self._image_sizes[: self.rows]
        return table

    def _sync(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())


@dataclass(eq=False)
class Shard:
    """One shard, mapped into memory; a context manager. Made by :func:`read_shard`, which has checked every address.

    Attributes
    ----------
    path : Path
    mapping : mmap.mmap
        The whole file, read-only; addresses are places in it.
    page_size, captions_per_row, context : int
    modes : uint8 (rows,)
        Places in :data:`MODES`.
    widths, heights : int32 (rows,)
        Pixels.
    image_addresses, image_sizes, caption_addresses, caption_sizes, token_addresses : uint64 (rows,)
        Bytes. Token arrays are 8-byte aligned.
    index : int64 (rows,)
    label : int64 (rows,) or None
    """

    path: Path
    mapping: mmap.mmap
    page_size: int
    captions_per_row: int
    context: int
    modes: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    image_addresses: np.ndarray
    image_sizes: np.ndarray
    caption_addresses: np.ndarray
    caption_sizes: np.ndarray
    token_addresses: np.ndarray
    index: np.ndarray
    label: np.ndarray | None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.modes)

    @property
    def base_address(self) -> int:
        """Address of the file's first byte in this process; good until :meth:`close`."""
        return int(np.frombuffer(self.mapping, np.uint8).ctypes.data)

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
        stored = self._read(self.caption_addresses[row], self.caption_sizes[row])
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

    def _read(self, address: np.uint64, size: np.uint64) -> bytes:
        return self.mapping[int(address) : int(address) + int(size)]


def read_shard(path: str | os.PathLike[str]) -> Shard:
    """Map a shard and check all of its tables, whoever wrote it; the data themselves are not read.

    Raises
    ------
    CoreclipError
        For a file that is missing, unfinished, truncated, damaged, or no shard of coreclip.
    """
    path = Path(path)
    mapping = _map(path)
    try:
        header = _read_header(path, mapping)
        labels, token_shape = _read_descriptors(path, mapping, int(header["num_fields"]))
        return _read_tables(path, mapping, header, labels, token_shape)
    except BaseException:
        with contextlib.suppress(BufferError):  # the traceback's frames still hold arrays; they let go of it
            mapping.close()
        raise


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
    return _HEADER.itemsize + len(field_names(labels)) * _DESCRIPTOR.itemsize


def _descriptors(labels: bool, token_shape: tuple[int, int]) -> np.ndarray:
    names = field_names(labels)
    descriptors = np.zeros(len(names), _DESCRIPTOR)
    for descriptor, name in zip(descriptors, names, strict=True):
        descriptor["type_id"] = _FIELDS[name][0]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    arguments = np.zeros(1, _ARRAY_ARGUMENTS)
    arguments["shape"][0, :2] = token_shape
    arguments["type_length"] = len(_TOKEN_TYPE)
    encoded = arguments.tobytes() + _TOKEN_TYPE
    descriptors["arguments"][names.index("tokens"), : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return descriptors


def _map(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CoreclipError(f"shard {path} is not a regular file; name a .beton file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _require(size >= _HEADER.itemsize, path, f"it has {size} bytes", f"a header alone has {_HEADER.itemsize}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CoreclipError(f"shard {path} can't be read: {error.strerror}; check the path or convert again") from None


def _read_header(path: Path, mapping: mmap.mmap) -> np.void:
    header = np.frombuffer(mapping[: _HEADER.itemsize], _HEADER)[0]
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


def _read_descriptors(path: Path, mapping: mmap.mmap, n_fields: int) -> tuple[bool, tuple[int, int]]:
    labels = n_fields == 5
    names = field_names(labels)
    stored = mapping[_HEADER.itemsize : _metadata_start(labels)]
    _require(len(stored) == n_fields * _DESCRIPTOR.itemsize, path, "it ends in its field table", "so it is truncated")
    descriptors = np.frombuffer(stored, _DESCRIPTOR)
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


def _read_tables(path: Path, mapping: mmap.mmap, header: np.void, labels: bool, token_shape: tuple[int, int]) -> Shard:
    n_rows, table_start, size = int(header["num_samples"]), int(header["alloc_table_ptr"]), len(mapping)
    metadata_type = _metadata_type(labels)
    data_start = _metadata_start(labels) + n_rows * metadata_type.itemsize
    _require(data_start <= table_start, path, f"its {n_rows} rows end at byte {data_start}", f"after {table_start}")
    expected_size = table_start + n_rows * _ALLOCATIONS_PER_ROW * _ALLOCATION.itemsize
    _require(size == expected_size, path, f"it has {size} bytes", f"its {n_rows} rows need {expected_size}")
    rows = np.frombuffer(mapping, metadata_type, n_rows, _metadata_start(labels))
    table = np.frombuffer(mapping, _ALLOCATION, n_rows * _ALLOCATIONS_PER_ROW, table_start)
    order = np.argsort(table["ptr"], kind="stable")
    table = table[order]
    _check_allocations(path, table, data_start, table_start, int(header["page_size"]))
    addresses = np.stack([rows["tokens"], rows["captions"]["ptr"], rows["image"]["ptr"]])
    sizes = _look_sizes_up(path, table, addresses)
    shard = Shard(
        path=path,
        mapping=mapping,
        page_size=int(header["page_size"]),
        captions_per_row=token_shape[0],
        context=token_shape[1],
        modes=rows["image"]["mode"].copy(),
        widths=rows["image"]["width"].astype(np.int32),
        heights=rows["image"]["height"].astype(np.int32),
        image_addresses=addresses[2],
        image_sizes=sizes[2],
        caption_addresses=addresses[1],
        caption_sizes=sizes[1],
        token_addresses=addresses[0],
        index=rows["index"].astype(np.int64),
        label=rows["label"].astype(np.int64) if labels else None,
    )
    _check_rows(shard, sizes[0], rows["captions"]["size"])
    return shard


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


def _check_rows(shard: Shard, token_sizes: np.ndarray, caption_sizes: np.ndarray) -> None:
    """Check each row's values against each other."""
    token_bytes = shard.captions_per_row * shard.context * _TOKEN.itemsize
    raw_bytes = shard.widths.astype(np.uint64) * shard.heights.astype(np.uint64) * np.uint64(3)
    rules = (
        (shard.modes < len(MODES), shard.modes, "image mode", f"below {len(MODES)}"),
        ((shard.widths > 0) & (shard.heights > 0), shard.widths, "width or height", "above 0"),
        ((shard.modes != 1) | (shard.image_sizes == raw_bytes), shard.image_sizes, "raw image size", "h * w * 3"),
        (token_sizes == token_bytes, token_sizes, "token size", f"{token_bytes} bytes"),
        (shard.token_addresses % 8 == 0, shard.token_addresses, "token address", "a multiple of 8"),
        (shard.caption_sizes == caption_sizes, caption_sizes, "caption size", "what the allocation table says"),
        (shard.index >= 0, shard.index, "index", "at least 0"),
    )
    for holds, values, name, rule in rules:
        if not holds.all():
            row = int(np.argmin(holds))
            _refuse(shard.path, f"the {name} of row {row} is {values[row]}", f"it must be {rule}")
