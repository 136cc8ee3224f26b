"""Rows of ``pairs.parquet`` by ranges, and whether they agree with the shards: the shared part of all tools that copy or check pairs.

One row group is in memory at a time, however large the table is.
"""

import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.beton import MODES, Shard
from coreclip.pipeline.ledger import pairs_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from coreclip.pipeline.dataset import Dataset

_BATCH = 1 << 16
_DAMAGES = (OSError, ValueError)  # pyarrow's ArrowInvalid is a ValueError


class PairsReader:
    """Reads ranges of a data set's ``pairs.parquet``; a context manager.

    Parameters
    ----------
    dataset : Dataset

    Attributes
    ----------
    schema : pyarrow.Schema
        Checked to have every column of ours.

    Raises
    ------
    CoreclipError
        For a table that is missing, damaged, lacks a column or has another number of rows than the data set.
    """

    def __init__(self, dataset: "Dataset") -> None:
        import pyarrow.parquet as pq

        self._path = dataset.path / "pairs.parquet"
        if not self._path.is_file():
            raise CoreclipError(f"{self._path} is missing, and a data set has one; restore the file or convert again")
        try:
            self._file = pq.ParquetFile(self._path)
        except _DAMAGES as error:
            raise self._damaged(str(error).partition("\n")[0]) from None
        self.schema: pa.Schema = self._file.schema_arrow
        metadata = self._file.metadata
        ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64)
        self._starts = np.concatenate([[0], ends])
        self._cached: tuple[int, pa.Table] | None = None
        missing = [n for n in pairs_schema("label" in dataset.info["fields"], {}).names if n not in self.schema.names]
        if missing or metadata.num_rows != dataset.n:
            self._file.close()
            cause = f"it has no column {missing[0]!r}" if missing else f"it has {metadata.num_rows} of {dataset.n} rows"
            raise self._damaged(cause)

    def read(self, first: int, stop: int) -> "pa.Table":
        """Return the rows from ``first`` up to, not with, ``stop``, checked to be those of these indices.

        Raises
        ------
        CoreclipError
            For rows that can't be read, or that are not the pairs in order.
        """
        import pyarrow as pa

        groups = range(
            int(np.searchsorted(self._starts, first, side="right")) - 1, int(np.searchsorted(self._starts, stop))
        )
        pieces = []
        for group in groups:
            start = int(self._starts[group])
            low, high = max(first - start, 0), min(stop, int(self._starts[group + 1])) - start
            pieces.append(self._group(group).slice(low, high - low))
        table = pa.concat_tables(pieces)
        index = table.column("index")
        if index.null_count or not np.array_equal(index.to_numpy(), np.arange(first, stop)):
            raise self._damaged(f"its rows {first} to {stop - 1} are not the pairs in order")
        return table

    def _group(self, group: int) -> "pa.Table":
        if self._cached is None or self._cached[0] != group:
            self._cached = None  # the old one goes before the new one comes
            try:
                self._cached = (group, self._file.read_row_group(group))
            except _DAMAGES as error:
                raise self._damaged(str(error).partition("\n")[0]) from None
        return self._cached[1]

    def _damaged(self, cause: str) -> CoreclipError:
        return CoreclipError(f"{self._path} is damaged ({cause}); restore the file or convert again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cached = None
        self._file.close()


def batches(dataset: "Dataset", columns: list[str]) -> "Iterator[pa.Table]":
    """Yield columns of ``pairs.parquet``, 65,536 rows at a time, checked to be the pairs in order."""
    with PairsReader(dataset) as reader:
        for first in range(0, dataset.n, _BATCH):
            yield reader.read(first, min(first + _BATCH, dataset.n)).select(columns)


def own_columns() -> set[str]:
    """Return the names of the columns of ``pairs.parquet`` that do not come from the sources."""
    return {"label", *pairs_schema(False, {}).names}


def disagreements(
    shard: Shard, number: int, rows: np.ndarray, table: "pa.Table", captions: list[list[str]]
) -> Iterator[tuple[int, str]]:
    """Yield (place in ``rows``, what differs) where a shard and ``pairs.parquet`` say different things about a pair.

    Parameters
    ----------
    shard : Shard
    number : int
        The shard's place in the data set.
    rows : int64 (b,)
        Rows of the shard.
    table : pyarrow.Table
        ``pairs.parquet`` at these rows.
    captions : list of b lists of str
        As the shard has them.
    """
    said: dict[str, Any] = {
        "index": shard.index[rows],
        "shard": np.full(len(rows), number),
        "row": rows,
        "width": shard.widths[rows],
        "height": shard.heights[rows],
        "bytes": shard.image_sizes[rows].astype(np.int64),
        "mode": np.array(MODES)[shard.modes[rows]],
        "captions": captions,
    }
    if shard.label is not None:
        said["label"] = shard.label[rows]
    for name, values in said.items():
        there = table.column(name).to_pylist()
        here = values if isinstance(values, list) else values.tolist()
        if here == there:
            continue
        for place, (stored, listed) in enumerate(zip(here, there, strict=True)):
            if stored != listed:
                yield place, f"{name} is {_short(stored)} in the shard and {_short(listed)} in pairs.parquet"
    hashes, transcoded = table.column("content_hash").to_pylist(), table.column("transcoded").to_pylist()
    for place, row in enumerate(rows.tolist()):
        if transcoded[place] is False and hashlib.sha256(shard.image_bytes(row)).hexdigest() != hashes[place]:
            yield place, f"its image has another hash than the {_short(hashes[place])} in pairs.parquet"


def read_checked(
    dataset: "Dataset", reader: PairsReader, shard: Shard, number: int, first: int, rows: np.ndarray
) -> "tuple[pa.Table, list[list[str]]]":
    """Return ``pairs.parquet`` and the captions of some rows of a shard that agree with each other.

    Parameters
    ----------
    dataset : Dataset
    reader : PairsReader
    shard : Shard
    number : int
        Of the shard.
    first : int
        Index of its first row.
    rows : int64 (b,)
        Ascending.

    Raises
    ------
    CoreclipError
        For the first pair of which the shard and the table say different things.
    """
    low, high = int(rows[0]), int(rows[-1]) + 1
    table = reader.read(first + low, first + high).take(rows - low)
    captions = [shard.captions(row) for row in rows.tolist()]
    for place, problem in disagreements(shard, number, rows, table, captions):
        raise CoreclipError(
            f"pair {first + int(rows[place])} of {dataset.path} is damaged: {problem}; restore the files or convert again"
        )
    return table, captions


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
