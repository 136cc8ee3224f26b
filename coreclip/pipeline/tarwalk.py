"""The members of a tar archive by their headers alone: ustar, GNU long names and base-256 sizes, pax paths and sizes.

Python's ``tarfile`` takes some 50 us for a header, this walk a few; on a whole archive both name the same members. A header
out of the ordinary (sparse files, charsets of pax) is given to ``tarfile``. Left out: compressed archives.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from zlib import adler32

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MAX_EXTENDED = 1 << 20  # bytes of a long name or of pax records
_PLAIN_FILES = b"0\07"
_WITHOUT_DATA = b"123456"
_TELLING = (b"path=", b"size=", b"hdrcharset", b"GNU.sparse")
_FAR, _NEAR = 1 << 16, 2048

ReadAt = Callable[[int, int], bytes]
Member = tuple[str, int, int]


class ArchiveEnds(Exception):
    """Names the reason why the rest of the archive can't be read."""


class _BadHeader(Exception):
    """A header that no writer of archives makes."""


def walk(read_at: ReadAt, size: int) -> Iterator[Member]:
    """Yield (name, offset of the data, size) of each regular file, in order.

    Parameters
    ----------
    read_at : callable (offset, n_bytes) -> bytes
        Fewer bytes at the end; called with offsets that never decrease, but for a few hundred bytes.
    size : int
        Of the archive, in bytes.

    Raises
    ------
    ArchiveEnds
        Unless the archive ends with its end marker. A last member that is cut short is yielded before.
    """
    window = _Window(read_at)
    offset, last = 0, ""
    while True:
        header = window.read(offset, BLOCK)
        if header == _ZEROS:
            return
        if len(header) < BLOCK:
            raise ArchiveEnds(_cut_short(last, header, offset))
        try:
            member, offset = _plain(header, offset) or _extended(window, header, offset, size)
        except _BadHeader:
            raise ArchiveEnds(_damaged(last, header, offset)) from None
        if member is not None:
            last = member[0]
            yield member
        if offset > size:
            raise ArchiveEnds(f"the archive is cut short after the start of {last or 'its first member'}")


class _Window:
    """Reads ahead, far where headers follow each other closely and little where large images lie between them."""

    def __init__(self, read_at: ReadAt) -> None:
        self._read_at = read_at
        self._data, self._start = b"", 0

    def read(self, offset: int, n_bytes: int) -> bytes:
        at = offset - self._start
        if at >= 0 and at + n_bytes <= len(self._data):
            return self._data[at : at + n_bytes]
        ahead = _FAR if at < 2 * _FAR else _NEAR
        self._data, self._start = self._read_at(offset, max(n_bytes, ahead)), offset
        return self._data[:n_bytes]


def _cut_short(last: str, start: bytes, offset: int) -> str:
    if offset == 0:
        return _damaged("", start, 0) if start else "not a tar archive (empty file)"
    return f"the archive has no end marker: it is cut short after {last or 'its start'}"


def _damaged(last: str, header: bytes, offset: int) -> str:
    if offset > 0:
        where = last or "its start"
        return f"the archive is damaged after {where}: the next header can't be read; the rest is left out"
    if header[:2] == b"\x1f\x8b":
        return "the archive is compressed with gzip; unpack it with gunzip"
    if header[:4] == b"\x28\xb5\x2f\xfd":
        return "the archive is compressed with zstd; unpack it with unzstd"
    return "not a tar archive (it does not begin with a tar header)"


def _plain(header: bytes, offset: int) -> tuple[Member | None, int] | None:
    """Read a header that needs no other; return its member, if it has data, and the next header's place."""
    _check_sum(header)
    kind = header[156]
    if kind not in _PLAIN_FILES and kind not in _WITHOUT_DATA:
        return None
    data = offset + BLOCK
    if kind in _WITHOUT_DATA:
        return None, data
    name = _name(header)
    if kind == 0 and name.endswith("/"):  # the way of version 7 to write a folder
        return None, data
    n_bytes = _number(header[124:136])
    return (name, data, n_bytes), data + _padded(n_bytes)


def _extended(window: _Window, header: bytes, offset: int, size: int) -> tuple[Member | None, int]:
    """Read the headers of one member that begins at ``offset`` with a long name, pax records or something else."""
    kind, start, name, n_bytes = header[156:157], offset, "", -1
    if kind == b"g":
        if _has(_pax(_data(window, header, offset)), "path", "size", "hdrcharset", "GNU.sparse"):
            raise ArchiveEnds("the archive's global pax header renames its members; pack it again with plain tar")
        return None, offset + BLOCK + _padded(_number(header[124:136]))
    if kind in (b"L", b"K"):
        while kind in (b"L", b"K"):
            if kind == b"L":
                name = _data(window, header, offset).partition(b"\0")[0].decode("utf-8", "surrogateescape")
            offset, header = _next_header(window, header, offset)
            kind = header[156:157]
    elif kind in (b"x", b"X"):
        stored = _data(window, header, offset)
        # Many writers give every member records of its time alone.
        records = _pax(stored) if any(key in stored for key in _TELLING) else {}
        if _has(records, "hdrcharset", "GNU.sparse"):
            return _by_tarfile(window, start, size)
        name = records.get("path", "").rstrip("/")
        n_bytes = _number_of_pax(records["size"]) if "size" in records else -1
        offset, header = _next_header(window, header, offset)
    kind = header[156:157]
    if kind in (b"1", b"2", b"3", b"4", b"5", b"6") and n_bytes < 0:
        return None, offset + BLOCK
    if kind not in (b"0", b"7"):
        return _by_tarfile(window, start, size)
    n_bytes = n_bytes if n_bytes >= 0 else _number(header[124:136])
    data = offset + BLOCK
    return (name or _name(header), data, n_bytes), data + _padded(n_bytes)


def _next_header(window: _Window, header: bytes, offset: int) -> tuple[int, bytes]:
    offset += BLOCK + _padded(_number(header[124:136]))
    header = window.read(offset, BLOCK)
    if len(header) < BLOCK:
        raise _BadHeader
    _check_sum(header)
    return offset, header


def _data(window: _Window, header: bytes, offset: int) -> bytes:
    n_bytes = _number(header[124:136])
    if n_bytes > _MAX_EXTENDED:
        raise _BadHeader
    data = window.read(offset + BLOCK, n_bytes)
    if len(data) < n_bytes:
        raise _BadHeader
    return data


def _pax(data: bytes) -> dict[str, str]:
    """Return the records ``LENGTH KEY=VALUE\\n`` of pax."""
    records, at = {}, 0
    while at < len(data) and data[at]:
        digits, _, _ = data[at : at + 12].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + length].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _BadHeader
        records[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        at += length
    return records


def _has(records: dict[str, str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in records)


def _by_tarfile(window: _Window, start: int, size: int) -> tuple[Member | None, int]:
    """Let ``tarfile`` read the one member that begins at ``start``."""
    try:
        with tarfile.open(fileobj=_View(window, start, size), mode="r:") as archive:
            info = archive.next()
            end = archive.offset
    except tarfile.TarError:
        raise _BadHeader from None
    if info is None or end <= start:
        raise _BadHeader
    plain = info.isreg() and not info.issparse()
    return ((info.name, info.offset_data, info.size) if plain else None), end


class _View(io.RawIOBase):
    """What ``tarfile`` needs of a file, over ``read_at``."""

    def __init__(self, window: _Window, start: int, size: int) -> None:
        self._window, self._at, self._size = window, start, size

    def read(self, n_bytes: int = -1, /) -> bytes:
        n_bytes = self._size - self._at if n_bytes < 0 else n_bytes
        if n_bytes > _MAX_EXTENDED:
            raise _BadHeader
        data = self._window.read(self._at, n_bytes)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        assert whence == io.SEEK_SET
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True


def _check_sum(header: bytes) -> None:
    field = header[148:156]
    # The low half of Adler-32 is 1 + the sum of the bytes (modulo 65521), twenty times as fast as sum().
    total = (adler32(header) & 0xFFFF) - 1 - sum(field) + 256
    try:
        if field[:6].isdigit() and int(field[:6], 8) == total:
            return
        stored = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise _BadHeader from None
    others = header[:148] + header[156:]
    signed = sum(byte - 256 * (byte > 127) for byte in others)  # of some old writers
    if stored - 256 not in (sum(others), signed):
        raise _BadHeader


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Read an octal number, or one of base 256 in the way of GNU."""
    try:
        if field[11] == 0 and field[:11].isdigit():  # as nearly all writers have it
            return int(field[:11], 8)
        base_256 = field[0] == 0x80
        value = int.from_bytes(field[1:], "big") if base_256 else int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise _BadHeader from None
    if not 0 <= value < 1 << 62:
        raise _BadHeader
    return value


def _number_of_pax(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _BadHeader
    return int(text)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK) * BLOCK
