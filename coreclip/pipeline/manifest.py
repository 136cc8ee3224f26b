"""The list of candidate pairs of a conversion: written once by the scan, read row by row by the second pass."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

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
    """

    rows: int = 0
    captions: int = 0
    captions_per_row: int = 1
    labels: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_to_store: int = 0

    def count(self, record: Record) -> None:
        """Take in one candidate."""
        self.rows += 1
        self.captions += len(record.captions)
        self.captions_per_row = max(self.captions_per_row, min(len(record.captions), MAX_CAPTIONS_PER_ROW))
        self.labels |= record.label is not None
        self.bytes_in += record.image.size
        pixels = record.image.height * record.image.width
        self.bytes_to_store += 3 * pixels if 0 < pixels <= _RAW_PIXELS else record.image.size
        for name, value in record.columns.items():
            if value is not None and (name in self.columns or len(self.columns) < _MAX_COLUMNS):
                self.columns[name] = _wider(self.columns.get(name), _type_name(value))


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


def read_manifest(path: Path, first: int = 0) -> Iterator[Record]:
    """Yield the records from row ``first`` on."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(first // _ROW_GROUP, file.num_row_groups):
            table = file.read_row_group(group)
            for batch in table.slice(max(0, first - group * _ROW_GROUP)).to_batches(max_chunksize=512):
                for row in batch.to_pylist():
                    yield Record(
                        **{**row, "image": ImageReference(**row["image"]), "columns": json.loads(row["columns"])}
                    )


def read_captions(path: Path) -> Iterator[str]:
    """Yield every caption in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
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
