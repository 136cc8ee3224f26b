"""The list of candidate pairs of a conversion: written once by the scan, in parts, and read row by row by the second pass."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

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
        self._rows: list[dict[str, Any]] = []
        self._schema = _schema()
        self._file = pq.ParquetWriter(path, self._schema)

    def add(self, record: Record) -> None:
        """Append one record."""
        self.plan.count(record)
        self._rows.append({**asdict(record), "columns": json.dumps(record.columns)})
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows.clear()


def read_manifest(parts: Sequence[Path], part_rows: Sequence[int], first: int = 0) -> Iterator[Record]:
    """Yield the records of all parts, of so many rows each, from row ``first`` on."""
    for part, rows in zip(parts, part_rows, strict=True):
        if first < rows:
            yield from _read_part(part, first)
        first = max(0, first - rows)


def _read_part(part: Path, first: int) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(part) as file:
        for group in range(first // _ROW_GROUP, file.num_row_groups):
            table = file.read_row_group(group)
            for batch in table.slice(max(0, first - group * _ROW_GROUP)).to_batches(max_chunksize=512):
                for row in batch.to_pylist():
                    yield Record(
                        **{**row, "image": ImageReference(**row["image"]), "columns": json.loads(row["columns"])}
                    )


def cut_ranges(parts: Sequence[Path], shard_bytes: int, most_rows: int) -> Iterator[int]:
    """Cut the manifest's rows into ranges of about ``shard_bytes`` of images and at most ``most_rows``; yield their ends."""
    row = n_rows = n_bytes = 0
    for sizes in _read_sizes(parts):
        for size in sizes.tolist():
            if n_rows and (n_bytes + size > shard_bytes or n_rows == most_rows):
                yield row
                n_rows = n_bytes = 0
            row, n_rows, n_bytes = row + 1, n_rows + 1, n_bytes + size
    if n_rows:
        yield row


def _read_sizes(parts: Sequence[Path]) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["image.size", "image.height", "image.width"]):
                image = batch.column(0)
                yield bytes_to_store(*(image.field(name).to_numpy() for name in ("size", "height", "width")))


def read_captions(parts: Sequence[Path]) -> Iterator[str]:
    """Yield every caption in order."""
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=4096, columns=["captions"]):
                yield from batch.column(0).flatten().to_pylist()


def _schema() -> "pa.Schema":
    import pyarrow as pa

    image = [("path", pa.string()), *((name, pa.int64()) for name in ("offset", "size", "height", "width"))]
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
