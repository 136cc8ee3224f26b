"""WebDataset archives: members ``KEY.EXTENSION`` of one sample share their KEY (github webdataset/webdataset).

A key goes up to the *last* dot of a name (WebDataset: the first), so that ``a.b.jpg`` and ``a.b.txt`` are one sample.
The members of a sample need not lie side by side. An archive of img2dataset has a table ``NAME.parquet`` beside it, which
adds columns, and rejects for what was not downloaded. Left out: compressed archives, other extensions.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.pipeline.img2dataset import DownloadTable, find_download_table
from coreclip.pipeline.records import (
    MAX_TEXT_BYTES,
    ImageReference,
    Record,
    Reject,
    SplitSource,
    TextProblem,
    decode_text,
    file_identity,
)
from coreclip.pipeline.tarindex import IMAGE_EXTENSIONS, IndexedMember, TarIndex, index_archive

_ROLES = {**dict.fromkeys(IMAGE_EXTENSIONS, "image"), "txt": "txt", "json": "json", "cls": "cls"}
_CAPTION_KEYS = ("captions", "caption")

ReadText = Callable[[IndexedMember], bytes]


@dataclass(slots=True)
class _Sample:
    key: str
    duplicate: bool
    members: dict[str, IndexedMember] = field(default_factory=dict)


class LocalArchive:
    """An archive on the local disk, open for reading."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._path = str(path.resolve())
        self.size = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def index(self, stop_at_text: bool = False) -> TarIndex:
        """List the members, or the first of them up to a text."""
        return index_archive(self._read_at, self.size, stop_at_text)

    def _read_at(self, offset: int, n_bytes: int) -> bytes:
        return os.pread(self._descriptor, n_bytes, offset)

    def read_text(self, member: IndexedMember) -> bytes:
        """Read a member."""
        return os.pread(self._descriptor, member.size, member.offset)

    def reference(self, member: IndexedMember) -> ImageReference:
        """Return where an image lies."""
        return ImageReference(self._path, member.offset, member.size)


@dataclass(frozen=True, kw_only=True)
class ArchiveSource(SplitSource):
    """A WebDataset archive, wherever it lies."""

    @property
    def name(self) -> str:
        """The archive's file name."""
        raise NotImplementedError

    def open(self) -> AbstractContextManager[Any]:
        """Open the archive."""
        raise NotImplementedError

    def find_table(self) -> DownloadTable | None:
        """Return the table of img2dataset that belongs to the archive."""
        return None

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the samples in the order of their keys' first members, then what is wrong with the rest."""
        table = self.find_table()
        with self.open() as archive:
            index = archive.index()
            start, stop = self.part.bounds(index.n_keys)
            for key, members in index.groups(start, stop):
                for sample in _to_samples(key, members):
                    row = table.row(key) if table is not None else None
                    yield self._to_record(sample, archive, index, row)
            if self.part.is_last:
                if index.problem:
                    yield Reject(self.name, "", index.problem)
                elif table is not None:
                    yield from table.not_in(index.run_keys(), self.name)

    def _to_record(
        self, sample: _Sample, archive: Any, index: TarIndex, row: dict[str, Any] | None
    ) -> Record | Reject:  # fmt: skip
        def reject(reason: str) -> Reject:
            return Reject(self.name, sample.key, reason)

        members = sample.members
        for member in members.values():
            if member.offset + member.size > index.size:
                return reject(f"the archive is cut short within {member.name}")
        if sample.duplicate:
            return reject("duplicate key: an earlier sample of this archive has it")
        if "image" not in members:
            return reject(f"text without an image ({', '.join(member.name for member in members.values())})")
        if members.keys() == {"image"} and row is None:
            return reject("image without text: no .txt, .json or .cls member has its key")
        try:
            captions, columns = _read_captions(members, archive.read_text)
            label = _read_label(members["cls"], archive.read_text) if "cls" in members else None
            if row is not None:
                captions = captions or _captions_of_row(row)
                columns = {**{k: v for k, v in row.items() if k not in ("key", *_CAPTION_KEYS)}, **columns}
        except TextProblem as problem:
            return reject(problem.reason)
        return Record(sample.key, archive.reference(members["image"]), captions, label, columns, self.name)


@dataclass(frozen=True)
class TarSource(ArchiveSource):
    """A local, uncompressed WebDataset archive, with the table of img2dataset if it lies beside."""

    path: Path
    described: dict[str, Any] | None = None  # the identity of a downloaded copy is that of its origin

    @property
    def name(self) -> str:
        """The archive's file name."""
        return self.path.name if self.described is None else Path(self.described["path"]).name

    def identity(self) -> list[dict[str, Any]]:
        """Return path, size and modification time of the archive and its table."""
        own = [self.described or file_identity(self.path)]
        return own if self._table_path is None else [*own, file_identity(self._table_path)]

    def open(self) -> AbstractContextManager[LocalArchive]:
        """Open the archive."""
        return closing(LocalArchive(self.path))

    def find_table(self) -> DownloadTable | None:
        """Read the table of img2dataset beside the archive, if there is one."""
        return None if self._table_path is None else DownloadTable(self._table_path)

    @property
    def _table_path(self) -> Path | None:
        return find_download_table(self.path)


@dataclass(frozen=True)
class ClassTarSource(SplitSource):
    """An archive of ``[SPLIT/]CLASS/NAME.jpg``: images alone, whose folders are their classes."""

    path: Path
    classes: tuple[str, ...]

    @property
    def class_names(self) -> list[str]:
        """Names of the folders, sorted, or in the order that was asked for."""
        return list(self.classes)

    def identity(self) -> list[dict[str, Any]]:
        """Return the archive's path, size and modification time."""
        return [file_identity(self.path)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the images in the order of the archive, then what is wrong with the rest of it."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        with closing(LocalArchive(self.path)) as archive:
            index = archive.index()
            for key, members in index.groups(*self.part.bounds(index.n_keys)):
                for member in members:
                    yield self._to_record(key, member, archive, index, numbers)
            if self.part.is_last and index.problem:
                yield Reject(self.path.name, "", index.problem)

    def _to_record(
        self, key: str, member: IndexedMember, archive: LocalArchive, index: TarIndex, numbers: dict[str, int]
    ) -> Record | Reject:
        if member.offset + member.size > index.size:
            return Reject(self.path.name, member.name, f"the archive is cut short within {member.name}")
        label = numbers.get(_class_of(key))
        if label is None:
            return Reject(self.path.name, member.name, f"{_class_of(key)} is a new class: the archive has changed")
        return Record(member.name, archive.reference(member), [], label, {}, self.path.name)


def open_tar(path: Path, class_names: list[str] | None) -> TarSource | ClassTarSource:
    """Return the source that an archive is: of samples with texts, or of images in class folders."""
    classes = set() if find_download_table(path) is not None else _find_classes(path)
    if len(classes) < (2 if class_names is None else 1):  # the one folder of an archive is hardly a class
        return TarSource(path)
    return ClassTarSource(path, order_classes(path, classes, class_names))


def order_classes(path: Path, folders: set[str], class_names: list[str] | None) -> tuple[str, ...]:
    """Return the names of class folders in the order of their numbers: sorted, or as the user has them.

    Raises
    ------
    CoreclipError
        Where the user's names are not the folders'.
    """
    if class_names is None:
        return tuple(sorted(folders))
    if set(class_names) != folders:
        extra, lacking = sorted(set(class_names) - folders), sorted(folders - set(class_names))
        what = f"has no folder {extra[0]!r}" if extra else f"has a folder {lacking[0]!r} that is not among them"
        raise CoreclipError(
            f"--classes names {len(class_names)} classes, but {path} {what}; with class folders the names must be the "
            f"folders', in the order that you want; or leave --classes out"
        )
    return tuple(class_names)


def _find_classes(path: Path) -> set[str]:
    """Return the classes of an archive that holds nothing but images in folders, else none."""
    with closing(LocalArchive(path)) as archive:
        index = archive.index(stop_at_text=True)
        classes = set() if index.has_text else {_class_of(key) for key in index.run_keys()}
    return set() if classes & {"", "."} else classes


def _class_of(key: str) -> str:
    """Return the name of the folder that a member lies in; "" for none."""
    return key.rpartition("/")[0].rpartition("/")[2]


def _to_samples(key: str, members: list[IndexedMember]) -> list[_Sample]:
    """Make samples of one key's members in their order; a second member of one role begins another sample."""
    samples = [_Sample(key, duplicate=False)]
    for member in members:
        role = _ROLES[member.extension]
        if role in samples[-1].members:
            samples.append(_Sample(key, duplicate=True))
        samples[-1].members[role] = member
    return samples


def _read_captions(members: dict[str, IndexedMember], read: ReadText) -> tuple[list[str], dict[str, Any]]:
    captions: list[str] = []
    columns: dict[str, Any] = {}
    if "json" in members:
        captions, columns = _parse_json(_read_member(members["json"], read), members["json"].name)
    if not captions and "txt" in members:
        captions = _read_member(members["txt"], read).split("\n")
    return captions, columns


def _captions_of_row(row: dict[str, Any]) -> list[str]:
    return [row[name] for name in _CAPTION_KEYS if isinstance(row.get(name), str)][:1]


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


def _read_label(member: IndexedMember, read: ReadText) -> int:
    text = _read_member(member, read).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TextProblem(f"{member.name} holds {text[:20]!r}; it must hold a class number, 0 or more")
    return int(text)


def _read_member(member: IndexedMember, read: ReadText) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise TextProblem(f"{member.name} has {member.size} bytes; text may have {MAX_TEXT_BYTES}")
    return decode_text(read(member), member.name)
