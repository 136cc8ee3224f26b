"""Archives on servers: a stream and ranges where the server has them, a copy in the cache elsewhere, and servers that fail."""

import email.utils
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline import remote
from coreclip.pipeline.records import read_image
from coreclip.pipeline.sources import find_sources, scan
from tests.sources import assert_parts_make_the_whole, read, reasons, write_tar


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder from 127.0.0.1.

    Attributes
    ----------
    ranges : bool
        Whether Range requests are answered.
    validator : {"etag", "date", ""}
        What tells a file from a changed one.
    spoil : callable (number of the request) -> str
        "" answers, "500" and "404" answer with that, "reset" closes the connection, "short" sends half of the body.
    log : list of (path, Range header, client port)
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.validator = folder, True, "etag"
        self.spoil: Callable[[int], str] = lambda number: ""
        self.log: list[tuple[str, str | None, int]] = []
        self.redirect = ""
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that a test resets."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.log.append((self.path, self.headers["Range"], self.client_address[1]))
        how = server.spoil(len(server.log))
        if how == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if how in ("500", "404"):
            return self.answer(int(how), b"no", {})
        if server.redirect and self.path.startswith("/old/"):
            return self.answer(302, b"moved", {"Location": server.redirect + self.path.removeprefix("/old")})
        path = server.folder / self.path.lstrip("/")
        content, status = path.read_bytes(), path.stat()
        headers = {}
        if server.validator == "etag":
            headers["ETag"] = f'"{hash((content, status.st_mtime_ns)) & 0xFFFFFFFF:x}"'
        elif server.validator == "date":
            headers["Last-Modified"] = email.utils.formatdate(status.st_mtime, usegmt=True)
        if self.headers["If-Match"] and self.headers["If-Match"] != headers.get("ETag"):
            return self.answer(412, b"", {})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if wanted is None or not server.ranges:
            return self.answer(200, content, headers, how)
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        if first >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.answer(206, content[first : last + 1], headers, how)

    def answer(self, status: int, body: bytes, headers: dict[str, str], how: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body[: len(body) // 2] if how == "short" else body)
        except OSError:  # the client has read what it wanted
            self.close_connection = True
        if how == "short":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    with Server(tmp_path / "www") as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()
    for connection in remote._connections.values():
        connection.close()
    remote._connections.clear()


def make_members(n: int = 6, size: int = 3000) -> list[tuple[str, bytes]]:
    """Members with two long names, texts apart from their images, and one bad sample."""
    members = []
    for i in range(n):
        key = f"{'deep/' * 40}{i}" if i in (1, 2) else f"{i}"
        members += [(f"{key}.jpg", bytes([i]) * size), (f"{key}.json", b'{"caption": "json %d", "n": %d}' % (i, i))]
    return [*members, ("late.txt", b"late"), ("lonely.txt", b"x"), ("late.jpg", b"late image")]


@pytest.fixture
def archive(server):
    write_tar(server.folder / "a-000.tar", make_members())
    return f"{server.url}/a-000.tar"


def as_local(server, name="a-000.tar"):
    return read(server.folder / name)


@pytest.mark.parametrize("validator", ["etag", "date"])
def test_a_remote_archive_gives_what_the_same_local_one_gives(validator, archive, server):
    server.validator = validator
    records, rejects = read(archive)
    local, local_rejects = as_local(server)
    assert [(r.key, r.captions, r.columns, r.source) for r in records] == [
        (r.key, r.captions, r.columns, r.source) for r in local
    ]
    assert rejects == local_rejects
    assert list(reasons(rejects)) == ["lonely"]
    for record, other in zip(records, local, strict=True):
        assert record.image.path == archive
        assert read_image(record.image) == read_image(other.image)
    (source,) = find_sources([archive])
    assert_parts_make_the_whole(source, (1, 3))
    (identity,) = source.identity()
    assert (identity["path"], identity["size"]) == (archive, (server.folder / "a-000.tar").stat().st_size)
    assert not (server.folder.parent / "cache").exists()


def test_the_scan_is_one_stream_and_the_images_come_over_one_connection(archive, server):
    (source,) = find_sources([archive])
    server.log.clear()
    records = [item for item in source.scan() if hasattr(item, "image")]
    assert len(server.log) == 1
    server.log.clear()
    for record in records:
        read_image(record.image)
    assert len(server.log) == len(records)
    assert len({port for _, _, port in server.log}) == 1


def test_a_pattern_names_several_archives(archive, server):
    write_tar(server.folder / "a-001.tar", [("z.jpg", b"z"), ("z.txt", b"last")])
    records, _ = read(f"{server.url}/a-{{000..001}}.tar")
    assert [record.key for record in records[-2:]] == ["late", "z"]
    with pytest.raises(CoreclipError, match="named twice"):
        find_sources([archive, archive])


def test_redirects_are_followed(archive, server):
    server.redirect = server.url
    records, _ = read(f"{server.url}/old/a-000.tar")
    assert read_image(records[3].image) == bytes([3]) * 3000
    server.redirect = server.url + "/old"
    with pytest.raises(CoreclipError, match="leads from place to place more than 5 times"):
        read(f"{server.url}/old/a-000.tar")
    server.redirect = "file:///etc"
    with pytest.raises(CoreclipError, match=r"leads to file:///etc/a-000\.tar, which is not http"):
        read(f"{server.url}/old/a-000.tar")


@pytest.mark.parametrize("how", ["500", "reset", "short"])
@pytest.mark.parametrize("every", [2, 3])
def test_failures_that_pass_change_nothing(how, every, archive, server, monkeypatch):
    monkeypatch.setattr(remote, "_CHUNK", 5000)
    expected = [(r.key, read_image(r.image)) for r in as_local(server)[0]]
    server.spoil = lambda number: how if number % every == 0 else ""
    records, rejects = read(archive)
    assert [(r.key, read_image(r.image)) for r in records] == expected
    assert list(reasons(rejects)) == ["lonely"]


@pytest.mark.parametrize("how", ["500", "reset", "short"])
def test_failures_that_stay_are_one_clear_line(how, archive, server):
    records, _ = read(archive)
    server.log.clear()
    server.spoil = lambda number: how
    with pytest.raises(
        CoreclipError, match=r"a-000\.tar can't be read \(5 attempts; the last: .*run the same command again"
    ) as info:
        read_image(records[0].image)
    assert "\n" not in str(info.value)
    assert len(server.log) == 5
    if how != "short":
        with pytest.raises(CoreclipError, match="5 attempts"):
            find_sources([archive])


def test_a_server_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.001)
    with pytest.raises(CoreclipError, match=r"5 attempts; the last: .*refused"):
        find_sources(["http://127.0.0.1:1/a.tar"])


def test_what_a_server_does_not_have_is_refused_at_once(archive, server):
    server.spoil = lambda number: "404"
    with pytest.raises(CoreclipError, match="the server answers 404 Not Found; check the URL"):
        find_sources([archive])
    assert len(server.log) == 1


def test_an_empty_file_is_refused(server):
    (server.folder / "empty.tar").write_bytes(b"")
    with pytest.raises(CoreclipError, match=r"empty\.tar is empty \(0 bytes\)"):
        find_sources([f"{server.url}/empty.tar"])


@pytest.mark.parametrize("validator", ["etag", "date"])
def test_a_file_that_changes_between_the_passes_is_an_error(validator, archive, server):
    server.validator = validator
    path = server.folder / "a-000.tar"
    records, _ = read(archive)
    (source,) = find_sources([archive])
    write_tar(path, [(name, content[::-1]) for name, content in make_members()])
    os.utime(path, (1e9, 1e9))
    for act in (lambda: read_image(records[0].image), lambda: list(source.scan())):
        with pytest.raises(CoreclipError, match=r"a-000\.tar has changed since it was scanned; remove what"):
            act()
    path.write_bytes(b"")
    with pytest.raises(CoreclipError, match="has changed"):
        read_image(records[0].image)


def test_a_file_that_changes_within_the_stream_is_an_error(archive, server, monkeypatch):
    monkeypatch.setattr(remote, "_CHUNK", 5000)
    (source,) = find_sources([archive])
    path = server.folder / "a-000.tar"

    def spoil(number: int) -> str:
        if number == 3:
            os.utime(path, (1e9, 1e9))
        return "short" if number == 2 else ""

    server.spoil = spoil
    with pytest.raises(CoreclipError, match="has changed"):
        list(source.scan())


def test_a_truncated_archive_keeps_what_is_whole(archive, server):
    path = server.folder / "a-000.tar"
    path.write_bytes(path.read_bytes()[:-18000])
    records, rejects = read(archive)
    assert (len(records), rejects) == (len(as_local(server)[0]), as_local(server)[1])
    assert any("cut short" in reject.reason for reject in rejects)


def test_a_text_that_is_too_long_and_odd_headers_are_as_in_a_local_archive(archive, server, monkeypatch):
    monkeypatch.setattr(remote, "_CHUNK", 3000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in [
            ("a.jpg", b"i" * 9000),
            ("a.txt", b"t" * ((1 << 20) + 1)),
            ("é" * 90 + ".jpg", b"j"),
            ("é" * 90 + ".txt", b"u"),
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            if name == "a.jpg":
                info.pax_headers = {"GNU.sparse.note": "odd"}
            tar.addfile(info, io.BytesIO(content))
    (server.folder / "a-000.tar").write_bytes(buffer.getvalue())
    records, rejects = read(archive)
    assert [(r.key, r.captions, read_image(r.image)) for r in records] == [("é" * 90, ["u"], b"j")]
    assert rejects == as_local(server)[1]
    assert "1048577 bytes" in reasons(rejects)["a"]


# Without ranges


def test_without_ranges_an_archive_is_fetched_once(archive, server, tmp_path):
    server.ranges = False
    local, rejects = as_local(server)
    for _ in range(2):
        (source,) = find_sources([archive], cache=tmp_path / "mine")
        items = list(scan(source, None, "{}"))
        records = [item for item in items if hasattr(item, "image")]
        assert [(r.key, r.captions, read_image(r.image)) for r in records] == [
            (r.key, r.captions, read_image(r.image)) for r in local
        ]
        assert [item.reason for item in items if not hasattr(item, "image")] == [r.reason for r in rejects]
        assert {item.source for item in items} == {"a-000.tar"}
    assert [span for _, span, _ in server.log] == ["bytes=0-0", None, "bytes=0-0"]
    assert source.identity()[0]["path"] == archive
    assert_parts_make_the_whole(source, (2,))


def test_a_changed_file_is_fetched_anew_and_a_cut_copy_too(archive, server, tmp_path):
    server.ranges = False
    find_sources([archive])
    write_tar(server.folder / "a-000.tar", [("new.jpg", b"i"), ("new.txt", b"t")])
    assert [record.key for record in read(archive)[0]] == ["new"]
    (copy,) = (tmp_path / "cache" / "coreclip" / "archives").glob("*.tar")
    copy.write_bytes(copy.read_bytes()[:100])
    assert [record.key for record in read(archive)[0]] == ["new"]


def test_a_download_that_fails_leaves_nothing_and_goes_through_later(archive, server, tmp_path):
    server.ranges = False
    server.spoil = lambda number: "short" if number > 1 else ""
    with pytest.raises(CoreclipError, match="5 attempts"):
        find_sources([archive])
    assert list((tmp_path / "cache").rglob("*.tar*")) == []
    server.spoil = lambda number: "reset" if number % 2 else ""
    assert len(read(archive)[0]) == 7


def test_a_file_that_changes_before_its_download_is_an_error(archive, server):
    server.ranges = False

    def spoil(number: int) -> str:
        if number == 2:
            os.utime(server.folder / "a-000.tar", (1e9, 1e9))
        return ""

    server.spoil = spoil
    with pytest.raises(CoreclipError, match="has changed"):
        find_sources([archive])


def test_ranges_without_a_validator_are_not_trusted(archive, server, tmp_path):
    server.validator = ""
    (source,) = find_sources([archive], cache=tmp_path / "mine")
    assert [path.suffix for path in sorted((tmp_path / "mine").glob("*.tar"))] == [".tar"]
    assert source.identity()[0]["path"] == archive


def test_a_full_disk_is_no_failure_of_the_server(archive, server):
    file = remote.probe(archive)
    server.log.clear()
    with pytest.raises(OSError, match="No space left"):
        remote._download(archive, file, Path("/dev/full"))
    assert len(server.log) == 1


# Other URLs


def test_a_pipe_that_the_user_types_is_run_once(tmp_path):
    path = write_tar(tmp_path / "a.tar", make_members())
    url = f"pipe:echo run >> {tmp_path}/runs; cat {path}"
    for _ in range(2):
        (source,) = find_sources([url], cache=tmp_path / "cache")
        records = [item for item in source.scan() if hasattr(item, "image")]
        assert [read_image(record.image) for record in records] == [read_image(r.image) for r in read(path)[0]]
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    ("url", "reason"),
    [("pipe:exit 3", "the command ended with 3"), ("s3://bucket/a.tar", "use pipe:COMMAND")],
)
def test_what_can_not_be_fetched_is_named_with_a_remedy(url, reason, tmp_path):
    with pytest.raises(CoreclipError, match=rf"{re.escape(url)} can't be fetched.*{reason}"):
        find_sources([url], cache=tmp_path)
    assert list(tmp_path.glob("*.tar")) == []


def test_finding_local_sources_loads_nothing_for_remote_ones():
    code = "import sys, coreclip.pipeline.sources; sys.exit(any(m in sys.modules for m in ('torch', 'webdataset', 'pyarrow', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
