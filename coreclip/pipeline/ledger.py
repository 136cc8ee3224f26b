"""The tables of a data set: ``pairs.parquet`` (one row for each pair) and ``rejects.parquet`` (one for each refused sample)."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.pipeline.dataset import read_table
from coreclip.pipeline.images import PreparedImage
from coreclip.pipeline.records import Record, Reject

if TYPE_CHECKING:
    import pyarrow as pa

_WRITE_BYTES = 1 << 20
_OWN_COLUMNS = (
    ("index", "int64"),
    ("key", "string"),
    ("shard", "int32"),
    ("row", "int32"),
    ("captions", "list"),
    ("width", "int32"),
    ("height", "int32"),
    ("bytes", "int64"),
    ("content_hash", "string"),
    ("warning", "string"),
    ("mode", "string"),
    ("transcoded", "bool"),
    ("source", "string"),
)


def pairs_schema(labels: bool, columns: dict[str, str]) -> "pa.Schema":
    """Return the columns of ``pairs.parquet``: ours, ``label`` where there are labels, then the sources' own."""
    import pyarrow as pa

    types = {"list": pa.list_(pa.string()), "string": pa.string(), "bool": pa.bool_()}
    types |= {"int32": pa.int32(), "int64": pa.int64(), "float64": pa.float64()}
    own = [*_OWN_COLUMNS, *([("label", "int64")] if labels else [])]
    others = [(stored, columns[name]) for name, stored in stored_names(columns).items()]
    return pa.schema([(name, types[type_name]) for name, type_name in own + others])


def stored_names(columns: Iterable[str]) -> dict[str, str]:
    """Return the name in ``pairs.parquet`` of each column of the sources, sorted: its own unless that is taken."""
    taken = {"label", *(own for own, _ in _OWN_COLUMNS)}
    names: dict[str, str] = {}
    for name in sorted(columns):
        stored = name
        while stored in taken:
            stored = f"source_{stored}"
        taken.add(stored)
        names[name] = stored
    return names


def pairs_rows(
    records: list[Record], images: list[PreparedImage], hashes: list[str], labels: bool, columns: dict[str, str]
) -> bytes:
    """Return rows of ``pairs.parquet`` without their places (index, shard, row), as an Arrow record batch."""
    import pyarrow as pa

    values: dict[str, list[Any]] = {
        "key": [record.key for record in records],
        "captions": [record.captions for record in records],
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "bytes": [len(image.data) for image in images],
        "content_hash": hashes,
        "warning": [image.warning for image in images],
        "mode": [image.mode for image in images],
        "transcoded": [image.transcoded for image in images],
        "source": [record.source for record in records],
        "label": [record.label for record in records],
    }
    casts: dict[str, Callable[[Any], Any]] = {"bool": bool, "int64": int, "float64": float, "string": _as_text}
    for name, stored in stored_names(columns).items():
        cast = casts[columns[name]]
        found = [record.columns.get(name) for record in records]
        values[stored] = [None if value is None else cast(value) for value in found]
    schema = _without_places(pairs_schema(labels, columns))
    batch = pa.RecordBatch.from_arrays([pa.array(values[f.name], f.type) for f in schema], schema=schema)
    return bytes(batch.serialize())


def write_pairs(path: Path, rows: list[tuple[bytes, slice]], first_index: int, shard: int, schema: "pa.Schema") -> None:
    """Write the table of one shard: some rows of each batch that :func:`pairs_rows` made, with their places."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    bare = _without_places(schema)
    batches = [pa.ipc.read_record_batch(batch, bare).slice(part.start, part.stop - part.start) for batch, part in rows]
    table = pa.Table.from_batches(batches, bare)
    place = {
        "index": pa.array(np.arange(first_index, first_index + table.num_rows), pa.int64()),
        "shard": pa.array(np.full(table.num_rows, shard, np.int32)),
        "row": pa.array(np.arange(table.num_rows, dtype=np.int32)),
    }
    columns = [place[name] if name in place else table.column(name) for name in schema.names]
    with buffered_output(path) as file:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), file)


def _without_places(schema: "pa.Schema") -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([field for field in schema if field.name not in ("index", "shard", "row")])


def write_rows(path: Path, rows: list[dict[str, Any]], schema: "pa.Schema") -> None:
    """Write rows as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with buffered_output(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema), file)


def buffered_output(path: Path) -> "pa.NativeFile":
    """Open a file for a parquet writer, which by itself makes a system call for every page and every length of one."""
    import pyarrow as pa

    return pa.BufferedOutputStream(pa.OSFile(str(path), "wb"), _WRITE_BYTES)


def merge(parts: Iterable[Path], path: Path, schema: "pa.Schema") -> None:
    """Write the rows of ``parts``, in their order, to one parquet file, one part in memory at a time."""
    import pyarrow.parquet as pq

    with buffered_output(path) as file, pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            writer.write_table(read_table(part))


def rejects_schema() -> "pa.Schema":
    """Return the columns of ``rejects.parquet``."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("source", "key", "reason")])


def write_rejects(path: Path, rejects: list[Reject]) -> None:
    """Write rejects as a parquet file."""
    rows = [{"source": reject.source, "key": reject.key, "reason": reject.reason} for reject in rejects]
    write_rows(path, rows, rejects_schema())


def count_reasons(path: Path) -> dict[str, int]:
    """Return how often each reason occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for reason in read_table(path, ["reason"]).column(0).to_pylist():
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
