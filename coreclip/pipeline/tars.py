"""WebDataset archives: members ``KEY.EXTENSION`` of one sample share their KEY (github webdataset/webdataset).

A key goes up to the *last* dot of a name (WebDataset: the first), so that ``a.b.jpg`` and ``a.b.txt`` are one sample.
The members of a sample need not lie side by side. Left out: compressed archives, remote ones, other extensions.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreclip.pipeline.records import (
    MAX_TEXT_BYTES,
    ImageReference,
    Record,
    Reject,
    TextProblem,
    decode_text,
    file_identity,
)

_ROLES = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "txt": "txt", "json": "json", "cls": "cls"}
_CAPTION_KEYS = ("captions", "caption")


@dataclass(slots=True)
class _Member:
    name: str
    offset: int
    size: int


@dataclass(slots=True)
class _Sample:
    key: str
    duplicate: bool
    members: dict[str, _Member] = field(default_factory=dict)
    cut_at: str = ""


class _ArchiveEnds(Exception):
    """Names the reason why the rest of the archive can't be read."""


@dataclass(frozen=True)
class TarSource:
    """One local, uncompressed WebDataset archive."""

    path: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return the archive's path, size and modification time."""
        return [file_identity(self.path)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the archive's samples in the order of their first members, then what is wrong with the rest of it."""
        samples, problem = _list_samples(self.path)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for sample in samples:
                yield _to_record(sample, descriptor, self.path)
        finally:
            os.close(descriptor)
        if problem:
            yield Reject(self.path.name, "", problem)


def _list_samples(path: Path) -> tuple[list[_Sample], str]:
    """Group the members of an archive by key; the text says why the archive's rest is lost, if it is."""
    samples: list[_Sample] = []
    latest: dict[str, _Sample] = {}
    file_size = path.stat().st_size
    try:
        for member in _members(path):
            key, dot, extension = member.name.rpartition(".")
            role = _ROLES.get(extension.lower()) if dot and not key.endswith("/") else None
            if role is None:
                continue
            sample = latest.get(key)
            if sample is None or role in sample.members:
                sample = latest[key] = _Sample(key, duplicate=sample is not None)
                samples.append(sample)
            sample.members[role] = member
            if member.offset + member.size > file_size:
                sample.cut_at = member.name
    except _ArchiveEnds as end:
        return samples, str(end)
    return samples, ""


def _members(path: Path) -> Iterator[_Member]:
    """Yield the regular files of an archive, then raise :class:`_ArchiveEnds` unless it ends with its end marker."""
    last = "its start"
    try:
        with tarfile.open(path, "r:") as archive:
            reached = -1
            while archive.offset > reached and (info := archive.next()) is not None:
                reached = info.offset
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if info.isreg() and not info.issparse():
                    last = info.name
                    yield _Member(info.name, info.offset_data, info.size)
            _check_end(path, archive.offset, last)
    except tarfile.TarError as error:
        raise _ArchiveEnds(_broken_archive(path, last, str(error))) from None


def _check_end(path: Path, offset: int, last: str) -> None:
    # tarfile stops without a word at a damaged or missing header behind the first one.
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(512)
    if len(block) < 512:
        raise _ArchiveEnds(f"the archive has no end marker: it is cut short after {last}")
    if block.count(0) != len(block):
        raise _ArchiveEnds(f"the archive is damaged after {last}: the next header can't be read; the rest is left out")


def _broken_archive(path: Path, last: str, message: str) -> str:
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        return "the archive is compressed with gzip; unpack it with gunzip"
    if last == "its start":
        return f"not a tar archive ({message})"
    return f"the archive is cut short after the start of {last} ({message})"


def _to_record(sample: _Sample, descriptor: int, path: Path) -> Record | Reject:
    def reject(reason: str) -> Reject:
        return Reject(path.name, sample.key, reason)

    members = sample.members
    if sample.cut_at:
        return reject(f"the archive is cut short within {sample.cut_at}")
    if sample.duplicate:
        return reject("duplicate key: an earlier sample of this archive has it")
    if "image" not in members:
        return reject(f"text without an image ({', '.join(member.name for member in members.values())})")
    if members.keys() == {"image"}:
        return reject("image without text: no .txt, .json or .cls member has its key")
    image = members["image"]
    try:
        captions, columns = _read_captions(members, descriptor)
        label = _read_label(members["cls"], descriptor) if "cls" in members else None
    except TextProblem as problem:
        return reject(problem.reason)
    reference = ImageReference(str(path.resolve()), image.offset, image.size)
    return Record(sample.key, reference, captions, label, columns, path.name)


def _read_captions(members: dict[str, _Member], descriptor: int) -> tuple[list[str], dict[str, Any]]:
    captions: list[str] = []
    columns: dict[str, Any] = {}
    if "json" in members:
        captions, columns = _parse_json(_read_member(members["json"], descriptor), members["json"].name)
    if not captions and "txt" in members:
        captions = _read_member(members["txt"], descriptor).split("\n")
    return captions, columns


def _parse_json(text: str, name: str) -> tuple[list[str], dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TextProblem(f"{name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise TextProblem(f"{name} holds {type(value).__name__}; it must hold an object with captions or caption")
    captions: list[str] = []
    for caption_key in _CAPTION_KEYS:
        found = value.get(caption_key)
        found = [found] if isinstance(found, str) else found or []
        if not isinstance(found, list) or not all(isinstance(caption, str) for caption in found):
            raise TextProblem(f"{caption_key} in {name} is neither text nor a list of texts")
        captions = captions or found
    columns = {k: v for k, v in value.items() if k not in ("key", *_CAPTION_KEYS) and isinstance(v, str | int | float)}
    return captions, columns


def _read_label(member: _Member, descriptor: int) -> int:
    text = _read_member(member, descriptor).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TextProblem(f"{member.name} holds {text[:20]!r}; it must hold a class number, 0 or more")
    return int(text)


def _read_member(member: _Member, descriptor: int) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise TextProblem(f"{member.name} has {member.size} bytes; text may have {MAX_TEXT_BYTES}")
    return decode_text(os.pread(descriptor, member.size, member.offset), member.name)
