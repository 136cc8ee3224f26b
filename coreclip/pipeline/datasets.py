"""Pairs that lie in ``.beton`` files already: those of stock FFCV's DatasetWriter (1.0.2) or ours, and whole data sets.

Of a ``.beton`` file one RGB image field is read, captions from a JSON or bytes field, a label from an integer field, and other
numbers as columns. Every address is checked against the file's allocation table. Left out: arrays, and fields of types that
FFCV does not define.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.beton import ALLOCATION, DESCRIPTOR, HEADER, IMAGE, MODES, SPAN, Shard, read_shard
from coreclip.pipeline.dataset import Dataset, read_table
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

CAPTION_FIELDS = ("captions", "caption", "text", "texts", "txt", "title")
LABEL_FIELDS = ("label", "labels", "class", "target", "y")
_FLOAT, _INT, _RGB, _BYTES, _ARRAY, _JSON, _TENSOR = range(7)
_METADATA = {
    _FLOAT: np.dtype("<f8"), _INT: np.dtype("<i8"), _RGB: IMAGE, _BYTES: SPAN, _ARRAY: np.dtype("<u8"), _JSON: SPAN,
    _TENSOR: np.dtype("<u8"),
}  # fmt: skip
_MAX_FIELDS = 256
_OWN_COLUMNS = {
    "index", "key", "shard", "row", "captions", "width", "height", "bytes", "content_hash", "label", "warning", "mode",
    "transcoded", "source",
}  # fmt: skip


@dataclass(frozen=True)
class BetonSource(SplitSource):
    """One ``.beton`` file with an image field."""

    path: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return the file's path, size and modification time."""
        return [file_identity(self.path)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the rows in order."""
        with _Beton(self.path) as beton:
            for row in range(*self.part.bounds(beton.n_rows)):
                try:
                    yield self._to_record(beton, row)
                except TextProblem as problem:
                    yield Reject(self.path.name, f"{row:08d}", problem.reason)

    def _to_record(self, beton: "_Beton", row: int) -> Record:
        image = beton.metadata[beton.image][row]
        mode, width, height = int(image["mode"]), int(image["width"]), int(image["height"])
        size = beton.size_of(row, int(image["ptr"]), "its image")
        if mode > 1:
            raise TextProblem(f"its image has the mode {mode}; FFCV knows 0 (JPEG) and 1 (pixels)")
        if mode == 1 and size != width * height * 3:
            raise TextProblem(f"its pixels have {size} bytes; {width} x {height} need {width * height * 3}")
        pixels = (height, width, 3) if mode == 1 else (0, 0, 0)
        reference = ImageReference(str(self.path.resolve()), int(image["ptr"]), size, *pixels)
        captions = beton.captions_of(row)
        label = int(beton.metadata[beton.label][row]) if beton.label is not None else -1
        columns = {name: beton.metadata[name][row].item() for name in beton.number_fields}
        return Record(f"{row:08d}", reference, captions, label if label >= 0 else None, columns, self.path.name)


class _Beton:
    """A ``.beton`` file, mapped, its tables checked to lie within it; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            content = file.read(HEADER.itemsize)
            self._require(len(content) == HEADER.itemsize, f"has {len(content)} bytes; a header has {HEADER.itemsize}")
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = np.frombuffer(content, HEADER)[0]
        self.n_rows = int(header["num_samples"])
        n_fields, table_start, size = int(header["num_fields"]), int(header["alloc_table_ptr"]), len(self._mapping)
        self._require(header["version"] == 2, f"has the version {header['version']}; FFCV 1.0 writes 2")
        self._require(0 < n_fields <= _MAX_FIELDS, f"has {n_fields} fields; 1 to {_MAX_FIELDS} are allowed")
        self._require(table_start > 0, "was never finished: it has no allocation table")
        rows_start = HEADER.itemsize + n_fields * DESCRIPTOR.itemsize
        self._require(rows_start <= size, "ends within its field table")
        kinds = self._read_fields(n_fields)
        row_type = np.dtype([(f"f{i}", _METADATA[kind]) for i, kind in enumerate(kinds.values())], align=True)
        rows_end = rows_start + self.n_rows * row_type.itemsize
        self._require(rows_end <= table_start <= size, f"ends before the {self.n_rows} rows that it announces")
        n_allocations = (size - table_start) // ALLOCATION.itemsize
        self._require(table_start + n_allocations * ALLOCATION.itemsize == size, "ends within its allocation table")
        rows = np.frombuffer(self._mapping, row_type, self.n_rows, rows_start)
        self.metadata = {name: rows[f"f{i}"] for i, name in enumerate(kinds)}
        table = np.frombuffer(self._mapping, ALLOCATION, n_allocations, table_start)
        self._data = (rows_end, table_start)
        self._table = table[np.argsort(table["ptr"], kind="stable")]
        self._assign(kinds)

    def __enter__(self) -> "_Beton":
        return self

    def __exit__(self, *_: object) -> None:
        self.metadata.clear()

    def size_of(self, row: int, address: int, what: str) -> int:
        """Return the bytes that are allocated for ``row`` at ``address``."""
        place = int(np.searchsorted(self._table["ptr"], np.uint64(address)))
        if place < len(self._table):
            owner, start, size = self._table[place].tolist()
            if start == address and owner == row and self._data[0] <= start and start + size <= self._data[1]:
                return size
        raise TextProblem(f"{what} lies at byte {address}, which the file's allocation table does not give to this row")

    def captions_of(self, row: int) -> list[str]:
        """Return the texts of a row."""
        if self.captions is None:
            return []
        address, size = self.metadata[self.captions][row].tolist()
        allocated = self.size_of(row, address, "its caption") if size else 0
        if size > MAX_TEXT_BYTES or size > allocated:
            raise TextProblem(f"its caption has {size} bytes; {min(allocated, MAX_TEXT_BYTES)} can be right")
        text = decode_text(self._mapping[address : address + size].partition(b"\0")[0], f"the field {self.captions}")
        return _parse_captions(text, self.captions) if self._is_json else [text]

    def _read_fields(self, n_fields: int) -> dict[str, int]:
        descriptors = np.frombuffer(self._mapping, DESCRIPTOR, n_fields, HEADER.itemsize)
        kinds: dict[str, int] = {}
        for descriptor in descriptors:
            name = descriptor["name"].tobytes().partition(b"\0")[0].decode("utf-8", "backslashreplace")
            kind = int(descriptor["type_id"])
            self._require(
                kind in _METADATA, f"has a field {name!r} of type {kind}, which FFCV does not define; leave it out"
            )
            self._require(name not in kinds, f"has two fields {name!r}")
            kinds[name] = kind
        return kinds

    def _assign(self, kinds: dict[str, int]) -> None:
        """Decide which field is the image, the captions, the label; other numbers are columns."""
        images = [name for name, kind in kinds.items() if kind == _RGB]
        self._require(
            len(images) == 1, f"has {len(images)} image fields ({', '.join(images) or 'none'}); a pair has one"
        )
        texts = [name for name, kind in kinds.items() if kind in (_JSON, _BYTES)]
        numbers = [name for name, kind in kinds.items() if kind in (_INT, _FLOAT)]
        integers = [name for name, kind in kinds.items() if kind == _INT]
        self.image = images[0]
        self.captions = _choose(texts, CAPTION_FIELDS, alone=True)
        self.label = _choose(integers, LABEL_FIELDS, alone=self.captions is None)
        self._require(
            self.captions is not None or self.label is not None,
            f"has neither captions nor a label (fields: {', '.join(kinds)}); call them captions (JSON) and label (int)",
        )
        self._is_json = self.captions is not None and kinds[self.captions] == _JSON
        self.number_fields = [name for name in numbers if name != self.label]

    def _require(self, holds: Any, what: str) -> None:
        if not holds:
            raise CoreclipError(
                f"{self.path} {what}; a source must be a .beton file of FFCV 1.0, whole; write it again"
            )


def _choose(names: list[str], wanted: tuple[str, ...], *, alone: bool) -> str | None:
    """Return the first wanted name, or the only one there is where ``alone`` is enough."""
    by_lower = {name.lower(): name for name in reversed(names)}
    for name in wanted:
        if name in by_lower:
            return by_lower[name]
    return names[0] if alone and len(names) == 1 else None


def _parse_captions(text: str, name: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TextProblem(f"the field {name} is not JSON ({error})") from None
    if isinstance(value, dict):
        value = next((value[key] for key in CAPTION_FIELDS if key in value), [])
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise TextProblem(f"the field {name} holds neither text nor a list of texts")
    return captions


@dataclass(frozen=True)
class DatasetSource(SplitSource):
    """A data set of ours, whose pairs are converted anew."""

    path: Path
    names: tuple[str, ...] | None

    @property
    def class_names(self) -> list[str] | None:
        """The data set's."""
        return None if self.names is None else list(self.names)

    def identity(self) -> list[dict[str, Any]]:
        """Return path, size and fingerprint of the data set."""
        with Dataset(self.path) as dataset:
            size = sum(shard["bytes"] for shard in dataset.info["shards"])
            return [{"path": str(self.path.resolve()), "size": size, "fingerprint": dataset.fingerprint}]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the pairs in order, with the captions that lie beside the images."""
        with Dataset(self.path) as dataset:
            info, n = dataset.info, dataset.n
        start, stop = self.part.bounds(n)
        rows = self._rows(n, start, stop)
        first = 0
        for described in info["shards"]:
            behind = first + described["rows"]
            if max(first, start) < min(behind, stop):
                with read_shard(self.path / described["file"]) as shard:
                    for index in range(max(first, start), min(behind, stop)):
                        yield self._to_record(shard, index - first, index, next(rows))
            first = behind

    def _to_record(self, shard: Shard, row: int, index: int, values: dict[str, Any]) -> Record:
        if row >= shard.rows or shard.index[row] != index or values.pop("index") != index:
            raise CoreclipError(
                f"data set {self.path} is damaged: pair {index} is not where it must be; convert it again"
            )
        width, height = int(shard.widths[row]), int(shard.heights[row])
        pixels = (height, width, 3) if MODES[shard.modes[row]] == "raw" else (0, 0, 0)
        address, size = int(shard.image_addresses[row]), int(shard.image_sizes[row])
        image = ImageReference(str(shard.path.resolve()), address, size, *pixels)
        label = None if shard.label is None else int(shard.label[row])
        return Record(str(values.pop("key")), image, shard.captions(row), label, values, self.path.name)

    def _rows(self, n: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield index, key and the sources' columns of the pairs ``start`` up to ``stop``."""
        path = self.path / "pairs.parquet"
        others = [name for name in read_table(path).column_names if name not in _OWN_COLUMNS]
        table = read_table(path, ["index", "key", *others])
        if table.num_rows != n:
            raise CoreclipError(f"{path} is damaged: it has {table.num_rows} rows for {n} pairs; convert again")
        for batch in table.slice(start, stop - start).to_batches(max_chunksize=512):
            yield from batch.to_pylist()


def open_dataset(path: Path) -> DatasetSource:
    """Return the source that a data set is."""
    with Dataset(path) as dataset:
        return DatasetSource(path, None if dataset.class_names is None else tuple(dataset.class_names))
