"""The walk over an archive's headers names the members that Python's ``tarfile`` names."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.tarwalk import ArchiveEnds, walk

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300).filter(
    lambda name: name.strip("/") == name
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
                         tarfile.FIFOTYPE, tarfile.CHRTYPE])  # fmt: skip
MEMBERS = st.lists(st.tuples(NAMES, KINDS, st.integers(0, 2000), st.sampled_from([0, 1.5])), max_size=8)


def make_archive(members, format, encoding="utf-8") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format, encoding=encoding, errors="surrogateescape") as archive:
        for name, kind, size, time in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.linkname = kind, time, "somewhere/" * 15
            info.size = size if kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) else 0
            archive.addfile(info, io.BytesIO(b"\x80" * info.size))
    return file.getvalue()


def by_tarfile(content: bytes):
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        return [(info.name, info.offset_data, info.size) for info in archive if info.isreg() and not info.issparse()]


def by_walk(content: bytes):
    return list(walk(lambda offset, n_bytes: content[offset : offset + n_bytes], len(content)))


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_both_name_the_same_members(members, format):
    content = make_archive(members, format)
    assert by_walk(content) == by_tarfile(content)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text("abc/", min_size=1, max_size=150).filter(lambda n: n.strip("/") == n), st.integers(0, 999)), max_size=5))  # fmt: skip
def test_names_of_ustar_with_a_prefix_are_put_together(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            try:
                archive.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # too long a part for this format
                continue
    assert by_walk(file.getvalue()) == by_tarfile(file.getvalue())


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.data())
def test_a_damaged_archive_ends_with_a_reason_and_invents_no_member(members, data):
    content = bytearray(make_archive(members, tarfile.PAX_FORMAT))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    found, reason = [], "whole"
    try:
        for member in walk(lambda offset, n_bytes: bytes(content[offset : offset + n_bytes]), len(content)):
            found.append(member)  # noqa: PERF402 - what came before the end counts
    except ArchiveEnds as end:
        reason = str(end)
    assert reason
    whole = by_walk(make_archive(members, tarfile.PAX_FORMAT))
    before = [member for member in whole if member[1] + member[2] <= place]
    assert found[: len(before)] == before
    assert {member[1:] for member in found} <= {member[1:] for member in whole}


def header(name: bytes, kind: bytes, size: bytes) -> bytearray:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def test_a_size_of_base_256_is_read():
    content = header(b"a.jpg", b"0", b"\x80" + (700).to_bytes(11, "big")) + b"x" * 1024 + bytes(1024)
    assert by_walk(bytes(content)) == by_tarfile(bytes(content)) == [("a.jpg", 512, 700)]


def test_a_pax_size_stands_above_the_header():
    record = b"12 size=700\n"
    pax = header(b"p", b"x", b"%011o\0" % len(record)) + record.ljust(512, b"\0")
    content = bytes(pax + header(b"a.jpg", b"0", b"0" * 11 + b"\0") + b"x" * 1024 + bytes(1024))
    assert by_walk(content) == by_tarfile(content) == [("a.jpg", 1536, 700)]


def test_a_sum_over_signed_bytes_is_accepted():
    block = header(b"\xe9.jpg", b"0", b"%011o\0" % 1)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    content = bytes(block) + b"x".ljust(512, b"\0") + bytes(1024)
    assert by_walk(content) == by_tarfile(content)


def test_a_sparse_member_is_passed_by():
    block = header(b"hole.jpg", b"S", b"%011o\0" % 512)
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    block[483:495] = b"%011o\0" % 4096
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    content = bytes(block + b"x" * 512 + header(b"b.jpg", b"0", b"%011o\0" % 3) + b"abc".ljust(512, b"\0")) + bytes(
        1024
    )
    assert by_walk(content) == by_tarfile(content) == [("b.jpg", 1536, 3)]


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        (b"0", b"-0000000001\0", "does not begin with a tar header"),
        (b"0", b"\x80" + b"\xff" * 11, "does not begin with a tar header"),
        (b"0", b"%011o\0" % 5000, "cut short after the start of a.jpg"),
        (b"L", b"%011o\0" % (2 << 20), "does not begin with a tar header"),
        (b"x", b"%011o\0" % 5000, "does not begin with a tar header"),
    ],
)
def test_headers_that_lie_end_the_archive(kind, size, reason):
    with pytest.raises(ArchiveEnds, match=reason):
        by_walk(bytes(header(b"a.jpg", kind, size)) + bytes(1024))


def test_a_global_header_that_renames_members_is_refused():
    record = b"14 path=a.jpg\n"
    content = header(b"p", b"g", b"%011o\0" % len(record)) + record.ljust(512, b"\0") + bytes(1024)
    with pytest.raises(ArchiveEnds, match=r"global pax header.*pack it again"):
        by_walk(bytes(content))


def test_a_global_comment_as_git_writes_it_is_passed_by():
    record = b"19 comment=0123456\n"
    content = bytes(header(b"p", b"g", b"%011o\0" % len(record)) + record.ljust(512, b"\0"))
    content += bytes(header(b"a.jpg", b"0", b"%011o\0" % 3)) + b"abc".ljust(512, b"\0") + bytes(1024)
    assert by_walk(content) == by_tarfile(content) == [("a.jpg", 1536, 3)]
