"""A folder of images with a table that names an image and a caption in each row.

Rows of one image become one pair. Formats: csv (RFC 4180), tsv (one line a row; a field in quotes is unquoted), jsonl and
parquet. Values of csv and tsv stay text. Left out: images within the table, and annotations nested as COCO's are.
"""

import csv
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import FolderDigest, ImageReference, Record, Reject, TextProblem, file_identity

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("image", "file", "filename", "filepath", "path", "image_path", "file_name")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

_Row = dict[str, Any] | Reject


@dataclass(slots=True)
class _Group:
    """The rows of one image."""

    name: str
    captions: list[str]
    columns: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class TableSource:
    """A captions table and the folder that holds its images."""

    table: Path
    folder: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return the table's size and modification time, and a digest of those of all images below the folder."""
        digest = FolderDigest()
        for directory, name in _walk(self.folder):
            if name.lower().endswith(_IMAGE_SUFFIXES):
                path = os.path.join(directory, name)
                digest.add(os.path.relpath(path, self.folder), os.stat(path))
        folder = {"path": str(self.folder.resolve()), "size": digest.size, "files": digest.count}
        return [file_identity(self.table), {**folder, "digest": digest.hexdigest()}]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield one record per image in the order of its first row, after the rows that can't be read."""
        groups: dict[str, _Group] = {}
        for row in _rows(self.table):
            if isinstance(row, Reject):
                yield row
            else:
                yield from self._add(row, groups)
        for group in groups.values():
            yield self._to_record(group)

    def _add(self, row: dict[str, Any], groups: dict[str, _Group]) -> Iterator[Reject]:
        image_column = self._find_column(row, IMAGE_COLUMNS, "an image")
        caption_column = self._find_column(row, CAPTION_COLUMNS, "a caption")
        name, captions = row.pop(image_column, None), row.pop(caption_column, None)
        if not isinstance(name, str) or not name.strip():
            yield Reject(self.table.name, "", f"a row names no image (its caption: {str(captions)[:60]!r})")
            return
        if isinstance(captions, str) or captions is None:
            captions = [captions or ""]
        problem = ""
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            captions, problem = [], f"its caption is {type(captions).__name__}; it must be text or a list of texts"
        same = os.path.normpath(name)
        if same in groups:
            groups[same].captions += captions
            groups[same].problem = groups[same].problem or problem
            return
        columns = {k: v for k, v in row.items() if v is None or isinstance(v, str | int | float)}
        groups[same] = _Group(name, list(captions), columns, problem)

    def _find_column(self, row: dict[str, Any], allowed: tuple[str, ...], what: str) -> str:
        by_lower = {column.lower().strip(): column for column in reversed(row)}
        for name in allowed:
            if name in by_lower:
                return by_lower[name]
        if self.table.suffix.lower() == ".jsonl":
            return allowed[0]  # lines may differ, so that this one lacks it says nothing about the others
        raise CoreclipError(
            f"{self.table} has no column that names {what} (columns: {', '.join(map(str, row)) or 'none'}); "
            f"call it one of {', '.join(allowed)}"
        )

    def _to_record(self, group: _Group) -> Record | Reject:
        try:
            if group.problem:
                raise TextProblem(group.problem)
            path = self._find(group.name)
        except TextProblem as problem:
            return Reject(self.table.name, group.name, problem.reason)
        image = ImageReference(str(path), 0, path.stat().st_size)
        return Record(group.name, image, group.captions, None, group.columns, self.table.name)

    def _find(self, name: str) -> Path:
        """Return the regular file that a table's ``name`` means: relative to the table, else unique below the folder."""
        if "\0" in name or len(os.fsencode(name)) > 4096:
            raise TextProblem("its name of an image can't be a path")
        for directory in (self.table.parent, self.folder):
            path = (directory / name).resolve()
            if path.is_file():
                return path
        # What the table says of folders must hold too: 1.jpg of another class is another picture.
        wanted = Path(os.path.normpath(name)).parts
        found = [path for path in self._files_by_name.get(Path(name).name, []) if path.parts[-len(wanted) :] == wanted]
        if len(found) != 1:
            what = "no file of this name" if not found else f"{len(found)} files of this name, which one is not clear,"
            raise TextProblem(f"{what} beside the table or below {self.folder.name or self.folder}")
        return found[0]

    @cached_property
    def _files_by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for directory, name in _walk(self.folder):
            found.setdefault(name, []).append(Path(directory, name).resolve())
        return found


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (directory, name) of every regular file below ``folder``, in sorted order."""
    for directory, directories, names in os.walk(folder):
        directories.sort()
        for name in sorted(names):
            if stat.S_ISREG(os.lstat(os.path.join(directory, name)).st_mode):
                yield directory, name


def _rows(table: Path) -> Iterator[_Row]:
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    return readers[table.suffix.lower()](table)


def _csv_rows(table: Path) -> Iterator[_Row]:
    csv.field_size_limit(1 << 20)
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)  # else a stray quote swallows the rows below it
        try:
            header = _checked_header(table, next(reader, []))
            for fields in reader:
                if fields:
                    yield _to_row(table, header, fields, reader.line_num)
        except csv.Error as error:
            raise CoreclipError(
                f"{table} is not well-formed csv, at or above line {reader.line_num}: {error}; "
                "a field that begins with a quote must end with one, and a quote in it is written twice; mend the table"
            ) from None


def _tsv_rows(table: Path) -> Iterator[_Row]:
    # Not with csv's quoting: a caption that begins with a stray quote would swallow the rows below it.
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        header: list[str] = []
        for number, line in enumerate(file, start=1):
            fields = [_unquote(part) for part in line.rstrip("\r\n").split("\t")]
            if not header:
                header = _checked_header(table, fields)
            elif fields != [""]:
                yield _to_row(table, header, fields, number)


def _unquote(text: str) -> str:
    inner = text[1:-1]
    if len(text) >= 2 and text[0] == text[-1] == '"' and inner.replace('""', "").count('"') == 0:
        return inner.replace('""', '"')
    return text


def _checked_header(table: Path, header: list[str]) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CoreclipError(f"{table} has two columns {twice[0]!r}; every column needs a name of its own; rename one")
    return header


def _to_row(table: Path, header: list[str], fields: list[str], line: int) -> _Row:
    if len(fields) != len(header):
        reason = (
            f"line {line} has {len(fields)} fields, the header {len(header)}; a caption with a separator needs quotes"
        )
        return Reject(table.name, fields[0], reason)
    return dict(zip(header, fields, strict=True))


def _jsonl_rows(table: Path) -> Iterator[_Row]:
    with open(table, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
                yield Reject(table.name, "", f"line {number} is not {kind} ({error})")
                continue
            if isinstance(row, dict):
                yield row
            else:
                yield Reject(table.name, "", f"line {number} holds {type(row).__name__}; it must hold an object")


def _parquet_rows(table: Path) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CoreclipError(f"{table} can't be read ({error}); it must be a parquet table; make it again") from None
