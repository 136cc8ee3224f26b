"""The list of candidate pairs of a conversion: written once by the scan, in parts, and read row by row by the second pass."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coreclip.pipeline.ledger import buffered_output
from coreclip.pipeline.records import ImageReference, Record

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 8192
_MAX_COLUMNS = 256
MAX_CAPTIONS_PER_ROW = 16
_RAW_PIXELS = 32 * 32


@dataclass(slots=True)
class Plan:
    """What the scan has found.

    Attributes
    ----------
    rows : int
        Candidate pairs.
    captions : int
        Of all candidates.
    captions_per_row : int
        Rows m of a stored token array: the most captions of a pair, at most 16.
    labels : bool
        Whether any candidate has a class number.
    columns : dict of str to str
        Type of each column of the sources: bool, int64, float64 or string.
    bytes_in : int
        Of the source images.
    bytes_to_store : int
        Image bytes if none is stored anew at another size.
    part_rows : list of int
        Candidates of each part of the manifest.
    """

    rows: int = 0
    captions: int = 0
    captions_per_row: int = 1
    labels: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_to_store: int = 0
    part_rows: list[int] = field(default_factory=list)

    def count(self, record: Record) -> None:
        """Take in one candidate."""
        self.rows += 1
        self.captions += len(record.captions)
        self.captions_per_row = max(self.captions_per_row, min(len(record.captions), MAX_CAPTIONS_PER_ROW))
        self.labels |= record.label is not None
        self.bytes_in += record.image.size
        self.bytes_to_store += int(bytes_to_store(record.image.size, record.image.height, record.image.width))
        for name, value in record.columns.items():
            if value is not None:
                self._add_column(name, _type_name(value))

    def join(self, part: "Plan") -> None:
        """Take in the plan of the following part of the sources."""
        self.part_rows.append(part.rows)
        self.rows += part.rows
        self.captions += part.captions
        self.captions_per_row = max(self.captions_per_row, part.captions_per_row)
        self.labels |= part.labels
        self.bytes_in += part.bytes_in
        self.bytes_to_store += part.bytes_to_store
        for name, type_name in part.columns.items():
            self._add_column(name, type_name)

    def _add_column(self, name: str, type_name: str) -> None:
        if name in self.columns or len(self.columns) < _MAX_COLUMNS:
            self.columns[name] = _wider(self.columns.get(name), type_name)


def bytes_to_store(size: Any, height: Any, width: Any) -> Any:
    """Return the stored bytes of images (int or int64 (n,)) of so many source bytes, before any is looked at.

    Height and width are those of unencoded pixels, else 0.
    """
    pixels = height * width
    return np.where((pixels > 0) & (pixels <= _RAW_PIXELS), 3 * pixels, size)[()]


class ManifestWriter:
    """Streams records to a parquet file; a context manager. ``plan`` counts them."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.plan = Plan()
        self._columns: dict[str, list[Any]] = {field.name: [] for field in fields(Record)}
        self._schema = _schema()
        self._output = buffered_output(path)
        self._file = pq.ParquetWriter(self._output, self._schema)

    def add(self, record: Record) -> None:
        """Append one record."""
        self.plan.count(record)
        for name, values in self._columns.items():
            values.append(getattr(record, name))
        if len(self._columns["key"]) == _ROW_GROUP:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._columns["key"]:
            self._flush()
        self._file.close()
        self._output.close()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = self._columns
        columns["image"] = [
            {name: getattr(image, name) for name in ImageReference.__dataclass_fields__} for image in columns["image"]
        ]
        columns["columns"] = list(map(json.dumps, columns["columns"]))
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._columns = {name: [] for name in columns}


def read_rows(part: Path, first: int, n: int) -> list[Record]:
    """Return rows ``first`` .. ``first + n - 1`` of one part."""
    records: list[Record] = []
    for group in range(first // _ROW_GROUP, (first + n - 1) // _ROW_GROUP + 1):
        low = max(first - group * _ROW_GROUP, 0)
        high = min(first + n - group * _ROW_GROUP, _ROW_GROUP)
        columns = _row_group(part, group).slice(low, high - low).to_pydict()
        columns["image"] = [ImageReference(**image) for image in columns["image"]]
        columns["columns"] = list(map(json.loads, columns["columns"]))
        records += map(Record, *(columns[field.name] for field in fields(Record)))
    return records


@lru_cache(maxsize=1)
def _row_group(part: Path, group: int) -> "pa.Table":
    import pyarrow.parquet as pq

    with pq.ParquetFile(part) as file:
        return file.read_row_group(group)


def read_sizes(parts: Sequence[Path]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield for some rows at a time, in order, their part's number and the bytes that each will likely store, int64 (m,)."""
    import pyarrow.parquet as pq

    for number, part in enumerate(parts):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["image.size", "image.height", "image.width"]):
                image = batch.column(0)
                yield number, bytes_to_store(*(image.field(name).to_numpy() for name in ("size", "height", "width")))


def read_captions(parts: Sequence[Path]) -> Iterator[str]:
    """Yield every caption in order."""
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=4096, columns=["captions"]):
                yield from batch.column(0).flatten().to_pylist()


def _schema() -> "pa.Schema":
    import pyarrow as pa

    numbers = ("offset", "size", "height", "width", "channels")
    image = [("path", pa.string()), *((name, pa.int64()) for name in numbers), ("access", pa.string())]
    return pa.schema(
        {
            "key": pa.string(),
            "image": pa.struct(image),
            "captions": pa.list_(pa.string()),
            "label": pa.int64(),
            "columns": pa.string(),
            "source": pa.string(),
        }
    )


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return "int64"
    return "float64" if isinstance(value, float) else "string"


def _wider(known: str | None, new: str) -> str:
    if known is None or known == new:
        return new
    return "float64" if {known, new} == {"int64", "float64"} else "string"
