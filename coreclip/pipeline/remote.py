"""WebDataset archives on servers: read twice, once in a stream for the texts and then image by image, without a copy.

A server that answers Range requests (RFC 9110, section 14) needs no local copy of an archive. From one that does not, and
from every other kind of URL that ``webdataset.gopen`` knows (s3:, gs:, ``pipe:`` ...), the archive is fetched once into a
cache folder. Each response must carry the ETag or date and the size that the first one had: of an archive that changes, no
image is ever read beside another's text. Left out: remote tables, credentials other than in the URL, proxies.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import tempfile
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, read_json, write_json
from coreclip.pipeline.records import MAX_TEXT_BYTES, ImageReference
from coreclip.pipeline.tarindex import IMAGE_EXTENSIONS, IndexedMember, TarIndex
from coreclip.pipeline.tars import ArchiveSource, TarSource
from coreclip.pipeline.tarwalk import ArchiveEnds, walk

_ATTEMPTS = 5
_FIRST_PAUSE = 0.2  # seconds; doubled after each attempt
_TIMEOUT = 30.0
_REDIRECTS = 5
_CHUNK = 1 << 20
_KEPT = 2 << 20  # more than a long name or pax records may have
_SMALL_ANSWER = 1 << 16
_SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "ais", "hdfs", "ftp", "ftps", "hf", "htgs", "sftp", "scp")

_T = TypeVar("_T")

_connections: dict[tuple[int, str, str], http.client.HTTPConnection] = {}  # one for each process, scheme and host


class _Transient(Exception):
    """A failure that may be gone at the next attempt; its text says what it is."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What a server says of a file.

    Attributes
    ----------
    url : str
    size : int
        Bytes.
    validator : str
        ETag, else Last-Modified, else "".
    ranges : bool
        Whether Range requests are answered.
    """

    url: str
    size: int
    validator: str
    ranges: bool


@dataclass(frozen=True)
class RemoteTarSource(ArchiveSource):
    """A WebDataset archive on a server that answers Range requests."""

    file: RemoteFile

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return _name_of(self.file.url)

    def identity(self) -> list[dict[str, Any]]:
        """Return URL, size and validator of the archive."""
        return [{"path": self.file.url, "size": self.file.size, "validator": self.file.validator}]

    def open(self) -> AbstractContextManager[Any]:
        """Make ready to stream the archive."""
        return closing(_StreamedArchive(self.file))


class _StreamedArchive:
    """An archive that is read once from start to end; its texts stay in a temporary file."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._texts = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._text_offsets, self._text_places = array("Q"), array("Q")

    def close(self) -> None:
        """Forget the texts."""
        self._texts.close()

    def index(self) -> TarIndex:
        """Stream the archive, list its members, and keep the texts."""
        index, stream = TarIndex(self._file.size), _Stream(self._file)
        try:
            for name, offset, size in walk(stream.read_at, self._file.size):
                index.add(name, offset, size)
                if _is_text(name) and size <= MAX_TEXT_BYTES:
                    self._text_offsets.append(offset)
                    self._text_places.append(self._texts.tell())
                    self._texts.write(stream.read_at(offset, size))
        except ArchiveEnds as end:
            index.problem = str(end)
        finally:
            stream.close()
        self._texts.flush()
        index.finish()
        return index

    def read_text(self, member: IndexedMember) -> bytes:
        """Return a text that was kept."""
        place = self._text_places[bisect_left(self._text_offsets, member.offset)]
        return os.pread(self._texts.fileno(), member.size, place)

    def reference(self, member: IndexedMember) -> ImageReference:
        """Return where an image lies."""
        return ImageReference(self._file.url, member.offset, member.size, access=f"http {self._file.validator}")


def _is_text(name: str) -> bool:
    extension = name.rpartition(".")[2].lower()
    return extension in ("txt", "json", "cls") and extension not in IMAGE_EXTENSIONS


class _Stream:
    """Reads forward through a remote file, with a little memory of what it has read, and resumes where a server fails."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._kept, self._kept_start = bytearray(), 0
        self._response: http.client.HTTPResponse | None = None
        self._at = 0  # of the response

    def close(self) -> None:
        """Give the connection up, with what is still to come on it."""
        if self._response is not None:
            self._response.close()
            _drop_connection(self._response.url)
            self._response = None

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return a range that begins at most :data:`_KEPT` bytes before the last one."""
        end = min(offset + n_bytes, self._file.size)
        while (position := self._kept_start + len(self._kept)) < end:
            self._kept += self._next_block(position)
            surplus = min(offset - _KEPT - self._kept_start, len(self._kept))
            if surplus > _CHUNK:
                del self._kept[:surplus]
                self._kept_start += surplus
        assert offset >= self._kept_start
        return bytes(self._kept[offset - self._kept_start : max(0, end - self._kept_start)])

    def _next_block(self, position: int) -> bytes:
        def attempt() -> bytes:
            if self._response is None or self._at != position:
                self.close()
                self._response = _get(self._file.url, (position, self._file.size - 1), self._file.validator)
                _check_unchanged(self._file.url, self._response, self._file.validator, self._file.size)
                self._at = position
            block = self._response.read(_CHUNK)
            if not block:
                raise _Transient(f"the response ended at byte {position} of {self._file.size}")
            return block

        block = _with_retries(self._file.url, attempt, self.close)
        self._at += len(block)
        return block


def is_url(name: str) -> bool:
    """Whether a source's name is a URL of a kind that can be fetched."""
    scheme, colon, _ = name.partition(":")
    return bool(colon) and (scheme == "pipe" or (scheme in _SCHEMES and name.startswith(f"{scheme}://")))


def open_url(url: str, cache: Path | None = None) -> RemoteTarSource | TarSource:
    """Return the source that a URL means; fetch it first if it can't be read piece by piece.

    Parameters
    ----------
    url : str
    cache : path, optional
        Folder for what must be fetched; by default ``coreclip/archives`` in the user's cache folder.

    Raises
    ------
    CoreclipError
        For a URL that can't be read.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        return _fetch(url, None, cache)
    file = probe(url)
    return RemoteTarSource(file) if file.ranges and file.validator else _fetch(url, file, cache)


def probe(url: str) -> RemoteFile:
    """Ask a server for a file's first byte, and so for its size and what tells it from a changed one."""

    def attempt() -> RemoteFile:
        response = _get(url, (0, 0), "")
        try:
            validator = _validator(response)
            if response.status == 206:
                return RemoteFile(url, _total(response, url), validator, ranges=True)
            return RemoteFile(url, int(response.headers.get("Content-Length", -1)), validator, ranges=False)
        finally:
            response.close()
            _drop_connection(response.url)

    return _with_retries(url, attempt, lambda: None)


def read_range(url: str, offset: int, size: int, validator: str) -> bytes:
    """Read a range of a remote file over this process's connection to its server.

    Raises
    ------
    CoreclipError
        Where the file is not the one that had ``validator``, or can't be read.
    """

    def attempt() -> bytes:
        response = _get(url, (offset, offset + size - 1), validator)
        _check_unchanged(url, response, validator, None)
        data = response.read()
        if len(data) != size:
            raise _Transient(f"{len(data)} of {size} bytes came")
        return data

    return _with_retries(url, attempt, lambda: _drop_connection(url))


def _get(url: str, span: tuple[int, int] | None, validator: str) -> http.client.HTTPResponse:
    """Send a GET request and return the answer's head; what can't be retried raises CoreclipError."""
    where = url
    for _ in range(_REDIRECTS + 1):
        parts = urlsplit(where)
        headers = {"User-Agent": "coreclip", "Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1]}"
        if validator.startswith('"'):
            headers["If-Match"] = validator
        connection = _connection(parts.scheme, parts.netloc)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            _drop_connection(where)
            raise _Transient(f"{error}" or type(error).__name__) from None
        response.url = where
        if response.status not in (301, 302, 303, 307, 308):
            return _checked(url, response, validator)
        if (
            len(response.read(_SMALL_ANSWER)) == _SMALL_ANSWER
        ):  # only an answer that was read leaves the connection usable
            _drop_connection(where)
        where = urljoin(where, response.headers.get("Location", ""))
        if urlsplit(where).scheme not in ("http", "https"):
            raise CoreclipError(f"{url} leads to {where}, which is not http; name the place itself")
    raise CoreclipError(f"{url} leads from place to place more than {_REDIRECTS} times; name the place itself")


def _checked(url: str, response: http.client.HTTPResponse, validator: str) -> http.client.HTTPResponse:
    status = response.status
    if status in (200, 206):
        return response
    response.close()
    _drop_connection(response.url)
    if status == 416 and not validator:
        raise CoreclipError(f"{url} is empty (0 bytes); an archive has at least an end marker; check the URL")
    if status in (412, 416):
        _changed(url)
    if status >= 500 or status in (408, 429):
        raise _Transient(f"the server answers {status} {response.reason}")
    raise CoreclipError(f"{url} can't be read: the server answers {status} {response.reason}; check the URL")


def _check_unchanged(url: str, response: http.client.HTTPResponse, validator: str, size: int | None) -> None:
    if response.status == 200 or _validator(response) != validator:
        response.close()
        _drop_connection(response.url)
        _changed(url)
    if size is not None and _total(response, url) != size:
        _changed(url)


def _changed(url: str) -> NoReturn:
    raise CoreclipError(
        f"{url} has changed since it was scanned; remove what this conversion has begun, and convert again"
    )


def _validator(response: http.client.HTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _total(response: http.client.HTTPResponse, url: str) -> int:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not total.isdigit():
        raise CoreclipError(f"{url}: the server does not say how large the file is; fetch it and name the local copy")
    return int(total)


def _with_retries(url: str, attempt: Callable[[], _T], clean_up: Callable[[], None]) -> _T:
    pause = _FIRST_PAUSE
    for left in reversed(range(_ATTEMPTS)):
        try:
            return attempt()
        except (_Transient, OSError, http.client.HTTPException) as error:
            clean_up()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the disk of the cache, not the server
            if left == 0:
                cause = str(error) or type(error).__name__
                raise CoreclipError(
                    f"{url} can't be read ({_ATTEMPTS} attempts; the last: {cause}); run the same command again to go on"
                ) from None
        time.sleep(pause)
        pause *= 2
    raise AssertionError


def _connection(scheme: str, host: str) -> http.client.HTTPConnection:
    key = (os.getpid(), scheme, host)
    if key not in _connections:
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        _connections[key] = kind(host, timeout=_TIMEOUT)
    return _connections[key]


def _drop_connection(url: str) -> None:
    parts = urlsplit(url)
    connection = _connections.pop((os.getpid(), parts.scheme, parts.netloc), None)
    if connection is not None:
        connection.close()


def _name_of(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2] or url


def _fetch(url: str, file: RemoteFile | None, cache: Path | None) -> TarSource:
    """Return the copy of an archive in the cache; fetch it unless it is there, whole and of the same validator."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coreclip" / "archives"
    cache.mkdir(parents=True, exist_ok=True)
    described = {"path": url, "validator": "" if file is None else file.validator}
    name = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    copy, note = cache / f"{name}.tar", cache / f"{name}.json"
    with _waiting_lock(cache / f"{name}.lock"):
        known = read_json(note, "note of a fetched archive") if note.is_file() and copy.is_file() else {}
        sizes = {known.get("size"), copy.stat().st_size if copy.is_file() else None}
        sizes |= {file.size} if file is not None and file.size >= 0 else set()
        if len(sizes) > 1 or None in sizes or {k: known.get(k) for k in described} != described:
            note.unlink(missing_ok=True)
            with atomic_path(copy) as temporary:
                _download(url, file, temporary)
            write_json(note, {**described, "size": copy.stat().st_size})
    return TarSource(copy, described={**described, "size": copy.stat().st_size})


@contextlib.contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url: str, file: RemoteFile | None, target: Path) -> None:
    if file is None:
        _download_by_webdataset(url, target)
        return

    def attempt() -> None:
        response = _get(url, None, "")
        if _validator(response) != file.validator:
            _changed(url)
        n_bytes = 0
        with open(target, "wb") as output:
            while block := response.read(_CHUNK):
                output.write(block)
                n_bytes += len(block)
        if file.size >= 0 and n_bytes != file.size:
            raise _Transient(f"{n_bytes} of {file.size} bytes came")

    _with_retries(url, attempt, lambda: _drop_connection(url))


def _download_by_webdataset(url: str, target: Path) -> None:
    import webdataset

    try:
        with webdataset.gopen(url, "rb") as stream, open(target, "wb") as output:
            while block := stream.read(_CHUNK):
                output.write(block)
    except (ValueError, OSError, ImportError) as error:
        ended = re.search(
            r"exit (-?\d+)", str(error)
        )  # the rest of webdataset's message is a listing of Python objects
        cause = f"the command ended with {ended[1]}" if ended else str(error)
        raise CoreclipError(
            f"{url} can't be fetched ({cause}); use pipe:COMMAND with a command that writes the archive, or a local copy"
        ) from None
