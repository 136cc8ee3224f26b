"""A folder of images with a table that names an image and a caption in each row.

Rows of one image become one pair. Formats: csv (RFC 4180), tsv (one line a row; a field in quotes is unquoted), jsonl and
parquet. Values of csv and tsv stay text. Left out: images within the table, and annotations nested as COCO's are.
"""

import contextlib
import csv
import itertools
import json
import os
import stat
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import (
    CAPTION_NAMES,
    ImageReference,
    Record,
    Reject,
    SplitSource,
    TextProblem,
    file_identity,
    images_identity,
    walk_files,
)

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("image", "file", "filename", "filepath", "path", "image_path", "file_name")
_GROUPS_AT_ONCE = 1 << 18

_Row = dict[str, Any] | Reject


@dataclass(slots=True)
class _Group:
    """The rows of one image."""

    name: str
    captions: list[str]
    columns: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class TableSource(SplitSource):
    """A captions table and the folder that holds its images."""

    table: Path
    folder: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return the table's size and modification time, and a digest of those of all images below the folder."""
        return [file_identity(self.table), images_identity(self.folder)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield one record per image in the order of its first row, after the rows that can't be read.

        The table is read twice: once for which rows have one image, of which some 20 bytes a row are kept, and once for
        what they say. If the rows of an image lie apart in a long table, they are sorted on the disk in between.
        """
        groups = array("q")  # for each readable row, a hash of its image, and then the number of its group
        for row in table_rows(self.table):
            item = row if isinstance(row, Reject) else self._image_of(row)
            if isinstance(item, str):
                groups.append(hash(item))
            elif self.part.number == 0:
                yield item
        numbers = _number_groups(np.frombuffer(groups, np.int64))
        start, stop = self.part.bounds(int(numbers.max()) + 1 if len(numbers) else 0)
        finder = ImageFinder(self.table.parent, self.folder)
        for group in self._groups(numbers, start, stop):
            yield self._to_record(group, finder)

    def _image_of(self, row: dict[str, Any]) -> str | Reject:
        """Return the normalised name of a row's image."""
        name = row.get(self._find_column(row, IMAGE_COLUMNS, "an image"))
        caption = row.get(self._find_column(row, CAPTION_NAMES, "a caption"))
        if not isinstance(name, str) or not name.strip():
            return Reject(self.table.name, "", f"a row names no image (its caption: {str(caption)[:60]!r})")
        return os.path.normpath(name)

    def _groups(self, numbers: np.ndarray, start: int, stop: int) -> Iterator[_Group]:
        """Yield the groups ``start`` up to ``stop``, of which no more than :data:`_GROUPS_AT_ONCE` are in memory."""
        if stop <= start:
            return
        wanted = self._numbered_rows(numbers, start, stop)
        if not (np.diff(numbers) < 0).any():
            for _, together in itertools.groupby(wanted, key=lambda pair: pair[0]):
                yield from self._gather(row for _, row in together)
            return
        n_buckets = -(-(stop - start) // _GROUPS_AT_ONCE)
        if n_buckets == 1:
            yield from self._gather(row for _, row in wanted)
            return
        with contextlib.ExitStack() as files:
            buckets = [files.enter_context(tempfile.TemporaryFile("w+", encoding="ascii")) for _ in range(n_buckets)]
            for number, row in wanted:
                buckets[(number - start) // _GROUPS_AT_ONCE].write(json.dumps(row, default=_not_json) + "\n")
            for bucket in buckets:
                bucket.seek(0)
                yield from self._gather(json.loads(line) for line in bucket)

    def _numbered_rows(self, numbers: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the readable rows of the groups ``start`` up to ``stop`` with their groups."""
        rows = (row for row in table_rows(self.table) if isinstance(row, dict) and isinstance(self._image_of(row), str))
        for number, row in itertools.zip_longest(memoryview(numbers.data), rows):
            if number is None or row is None:
                raise CoreclipError(f"{self.table} has changed while it was read; run the same command again")
            if start <= number < stop:
                yield number, row

    def _gather(self, rows: Iterable[dict[str, Any]]) -> list[_Group]:
        groups: dict[str, _Group] = {}
        for row in rows:
            self._add(row, groups)
        return list(groups.values())

    def _add(self, row: dict[str, Any], groups: dict[str, _Group]) -> None:
        name = row.pop(self._find_column(row, IMAGE_COLUMNS, "an image"))
        captions = row.pop(self._find_column(row, CAPTION_NAMES, "a caption"), None)
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
        column = _match(tuple(row), allowed)
        if column is not None:
            return column
        if self.table.suffix.lower() == ".jsonl":
            return allowed[0]  # lines may differ, so that this one lacks it says nothing about the others
        raise CoreclipError(
            f"{self.table} has no column that names {what} (columns: {', '.join(map(str, row)) or 'none'}); "
            f"call it one of {', '.join(allowed)}"
        )

    def _to_record(self, group: _Group, finder: "ImageFinder") -> Record | Reject:
        try:
            if group.problem:
                raise TextProblem(group.problem)
            image = finder.find(group.name)
        except TextProblem as problem:
            return Reject(self.table.name, group.name, problem.reason)
        return Record(group.name, image, group.captions, None, group.columns, self.table.name)


@lru_cache(maxsize=64)
def _match(columns: tuple[str, ...], allowed: tuple[str, ...]) -> str | None:
    """Return the column that has the first of the allowed names, whatever its case."""
    by_lower = {column.lower().strip(): column for column in reversed(columns)}
    return next((by_lower[name] for name in allowed if name in by_lower), None)


def _number_groups(hashes: np.ndarray) -> np.ndarray:
    """Return for each row, int64 (n,), the number of its group: 0, 1, ... in the order of the groups' first rows."""
    order = np.argsort(hashes, kind="stable")
    new = np.append(True, np.diff(hashes[order]) != 0)[: len(order)]
    starts = np.flatnonzero(new)
    numbers = np.empty(len(starts), np.int64)
    numbers[np.argsort(order[starts], kind="stable")] = np.arange(len(starts))
    groups = np.empty(len(order), np.int64)
    groups[order] = np.repeat(numbers, np.diff(np.append(starts, len(order))))
    return groups


def _not_json(value: Any) -> dict[str, str]:
    return {"type": type(value).__name__}  # refused as a caption and left out as a column, as the value itself would be


def _whole_file(path: str) -> ImageReference | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return ImageReference(path, 0, status.st_size) if stat.S_ISREG(status.st_mode) else None


class ImageFinder:
    """Finds the file that a table's name of an image means: relative to the table, else unique below a folder.

    Parameters
    ----------
    beside, folder : path
        Folder of the table, and of the images.
    """

    def __init__(self, beside: Path, folder: Path) -> None:
        self._folders = (os.path.realpath(beside), os.path.realpath(folder))
        self._below = folder

    def find(self, name: str) -> ImageReference:
        """Return a regular file's whole content, or raise :class:`TextProblem`."""
        if "\0" in name or len(os.fsencode(name)) > 4096:
            raise TextProblem("its name of an image can't be a path")
        for directory in self._folders:
            reference = _whole_file(os.path.join(directory, name))
            if reference is not None:
                return reference
        # What the table says of folders must hold too: 1.jpg of another class is another picture.
        wanted = Path(os.path.normpath(name)).parts
        named = self._named(Path(name).name)
        found = [image for image in named if Path(image.path).parts[-len(wanted) :] == wanted]
        if len(found) != 1:
            what = "no file of this name" if not found else f"{len(found)} files of this name, which one is not clear,"
            raise TextProblem(f"{what} beside the table or below {self._below.name or self._below}")
        return found[0]

    def _named(self, name: str) -> list[ImageReference]:
        """Return the files below the folder that have exactly this name."""
        directories, hashes, places = self._files
        first, behind = np.searchsorted(hashes, hash(name)), np.searchsorted(hashes, hash(name), "right")
        paths = [os.path.join(directories[place], name) for place in places[first:behind].tolist()]
        return [image for path in paths if not os.path.islink(path) and (image := _whole_file(path)) is not None]

    @cached_property
    def _files(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The directories, and sorted hashes of file names with each one's directory: 12 bytes for each file."""
        directories: list[str] = []
        hashes, places = array("q"), array("I")
        for directory, name in walk_files(Path(self._folders[1])):
            if not directories or directories[-1] != directory:
                directories.append(directory)
            hashes.append(hash(name))
            places.append(len(directories) - 1)
        order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
        return directories, np.frombuffer(hashes, np.int64)[order], np.frombuffer(places, np.uint32)[order]


def table_rows(table: Path) -> Iterator[_Row]:
    """Yield the rows of a csv, tsv, jsonl or parquet table; a row that can't be read comes as a reject."""
    if table.suffix.lower() != ".parquet":
        _check_encoding(table)
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    return readers[table.suffix.lower()](table)


def _check_encoding(table: Path) -> None:
    with open(table, "rb") as file:
        start = file.read(64)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start[1::2].count(0) > 8 or start[::2].count(0) > 8:
        raise CoreclipError(
            f"{table} is UTF-16; tables must be UTF-8: save it so, or run iconv -f UTF-16 -t UTF-8 {table.name}"
        )


def _csv_rows(table: Path) -> Iterator[_Row]:
    csv.field_size_limit(1 << 20)
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)  # else a stray quote swallows the rows below it
        try:
            header = _checked_header(table, next(reader, []))
            for separator, name, remedy in ((";", "semicolons", "save it with commas"), ("\t", "tabs", "call it .tsv")):
                if len(header) == 1 and separator in header[0]:
                    raise CoreclipError(f"{table} is separated by {name}; a .csv is separated by commas; {remedy}")
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
