"""Copies pairs of data sets into a new one: the shared work of ``materialise``, ``merge``, ``append`` and ``split``.

No image is decoded and none encoded. A shard that goes over whole is copied as a file and gets new indices; other rows
are packed into new shards, their stored bytes untouched. Nothing is copied on trust: whole shards must have the SHA-256
of ``dataset.json``, single rows must agree with ``pairs.parquet`` and with the hash of their image.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import check_free_disk, sha256_file, write_json
from coreclip.pipeline.beton import MODES, Shard, ShardWriter, page_size_for, read_shard, renumber_rows
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.ledger import pairs_schema, rejects_schema
from coreclip.pipeline.publishing import describe
from coreclip.pipeline.rows import PairsReader, own_columns, read_checked
from coreclip.pipeline.tokenizer import Tokenizer
from coreclip.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 256 << 20
_ROW_GROUP = 1 << 16  # of pairs.parquet
_CHUNK = 512  # rows whose captions are in memory at once
_FEWEST_ROWS, _MOST_ROWS = 1024, 1 << 17  # for which a shard reserves metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Pairs of one data set that go into a new one.

    Attributes
    ----------
    dataset : Dataset
    indices : int64 (k,)
        Ascending and distinct.
    classes : int64 (classes,) or None
        The new number of each class; None: as it was.
    columns : dict of str to array (k,)
        New columns of ``pairs.parquet``.
    """

    dataset: Dataset
    indices: np.ndarray
    classes: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What all pairs of the new data set have in common.

    Attributes
    ----------
    tokenizer : Tokenizer
    context, captions_per_row : int
        Of a stored token array.
    labels : bool
    class_names : list of str or None
    shard_bytes : int
        Image bytes at which a packed shard ends.
    """

    tokenizer: Tokenizer
    context: int
    captions_per_row: int
    labels: bool
    class_names: list[str] | None
    shard_bytes: int = SHARD_BYTES


def layout_of(dataset: Dataset, shard_bytes: int = SHARD_BYTES) -> Layout:
    """Return the layout that ``dataset`` has."""
    return Layout(
        tokenizer=dataset.tokenizer(),
        context=dataset.context,
        captions_per_row=dataset.captions_per_row,
        labels="label" in dataset.info["fields"],
        class_names=dataset.class_names,
        shard_bytes=check_shard_bytes(shard_bytes),
    )


def check_shard_bytes(shard_bytes: int) -> int:
    """Return ``shard_bytes`` where it is 64 KiB to 1 TiB, refuse it elsewhere."""
    if not 1 << 16 <= shard_bytes <= 1 << 40:
        raise CoreclipError(f"shard_bytes = {shard_bytes} is not allowed: {1 << 16} to 2**40")
    return shard_bytes


def check_space(out: str | os.PathLike[str], parts: Sequence[Part]) -> None:
    """Refuse an output whose disk has less room than the parts need."""
    needed = 1 << 20
    for part in parts:
        stored = sum(shard["bytes"] for shard in part.dataset.info["shards"])
        needed += stored * len(part.indices) // part.dataset.n
    check_free_disk(out, needed)


def assemble(
    folder: Path,
    parts: Sequence[Part],
    layout: Layout,
    *,
    request: dict[str, Any],
    rejects: "Sequence[pa.Table]" = (),
    label: str = "copying",
    link: bool = False,
) -> dict[str, Any]:
    """Write a data set of the parts' pairs, in their order, into the empty ``folder``.

    Parameters
    ----------
    folder : path
    parts : sequence of Part
    layout : Layout
    request : dict
        The ``convert`` entry of ``dataset.json``.
    rejects : sequence of pyarrow.Table
        Rows of ``rejects.parquet``.
    label : str
        Of the progress.
    link : bool
        Share the file of a shard that does not change at all (a hard link) instead of copying it.

    Returns
    -------
    dict
        What ``dataset.json`` says; beside that, under ``"copied"``, the number of shards that went over whole.

    Raises
    ------
    CoreclipError
        For a data set whose files do not agree with each other.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = sum(len(part.indices) for part in parts)
    assert total > 0
    layout.tokenizer.save(folder / "tokenizer.json")
    readers = [PairsReader(part.dataset) for part in parts]
    try:
        schema, renamed = _united_schema([reader.schema for reader in readers], parts, layout.labels)
        with (
            Progress(total, label, "pairs") as progress,
            _PairsWriter(folder / "pairs.parquet", schema, renamed, progress) as table,
            _Copier(folder, layout, table, total, link) as copier,
        ):
            for part, reader in zip(parts, readers, strict=True):
                copier.add(part, reader)
    finally:
        for reader in readers:
            reader.__exit__(None, None, None)
    refused = pa.concat_tables([rejects_schema().empty_table(), *(table.cast(rejects_schema()) for table in rejects)])
    pq.write_table(refused, folder / "rejects.parquet")
    info = describe(
        folder,
        shards=copier.shards,
        labels=layout.labels,
        context=layout.context,
        captions_per_row=layout.captions_per_row,
        class_names=layout.class_names,
        rejected=refused.num_rows,
        bytes_in=copier.image_bytes,
        request=request,
    )
    write_json(folder / "dataset.json", info)
    return {**info, "copied": copier.copied}


class _PairsWriter:
    """Writes the new ``pairs.parquet``; a context manager.

    Attributes
    ----------
    next_index : int
        Of the next pair.
    """

    def __init__(self, path: Path, schema: "pa.Schema", renamed: dict[str, str], progress: Progress) -> None:
        import pyarrow.parquet as pq

        self._schema, self._renamed, self._progress = schema, renamed, progress
        self._file = pq.ParquetWriter(path, schema)
        self._unwritten: list[pa.Table] = []
        self.next_index = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._unwritten:
            self._flush()
        self._file.close()

    def add(self, table: "pa.Table", new: dict[str, np.ndarray]) -> None:
        """Append rows of a source's table with new values of some columns."""
        import pyarrow as pa

        n = table.num_rows
        there = {self._renamed.get(name, name): table.column(name) for name in table.schema.names}
        there |= {name: pa.array(values) for name, values in new.items()}
        there["index"] = pa.array(np.arange(self.next_index, self.next_index + n))
        columns = [
            there[field.name].cast(field.type) if field.name in there else pa.nulls(n, field.type)
            for field in self._schema
        ]
        self._unwritten.append(pa.table(columns, schema=self._schema))
        if sum(map(len, self._unwritten)) >= _ROW_GROUP:
            self._flush()
        self.next_index += n
        self._progress.advance(n)

    def _flush(self) -> None:
        import pyarrow as pa

        self._file.write_table(pa.concat_tables(self._unwritten))
        self._unwritten.clear()


def _united_schema(
    schemas: "Sequence[pa.Schema]", parts: Sequence[Part], labels: bool
) -> "tuple[pa.Schema, dict[str, str]]":
    """Return the new table's columns, and the new names of columns whose name one of ours takes."""
    import pyarrow as pa

    new = {name: pa.array(values[:1]).type for part in parts for name, values in part.columns.items()}
    own = own_columns()
    others = sorted({name for schema in schemas for name in schema.names if name not in own})
    taken, renamed = own | set(new) | (set(others) - set(new)), {}
    for name in sorted(set(others) & set(new)):
        stored = name
        while stored in taken:
            stored = f"source_{stored}"
        taken.add(stored)
        renamed[name] = stored
    fields = list(pairs_schema(labels, {}))
    for name in others:
        types = [schema.field(name).type for schema in schemas if name in schema.names]
        fields.append(pa.field(renamed.get(name, name), _widest(types)))
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in new.items())]), renamed


def _widest(types: "list[pa.DataType]") -> "pa.DataType":
    import pyarrow as pa

    known = [kind for kind in types if not pa.types.is_null(kind)] or types
    if all(kind == known[0] for kind in known):
        return known[0]
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in known):
        return pa.int64() if all(map(pa.types.is_integer, known)) else pa.float64()
    return pa.string()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The rows of one shard that go into the new data set.

    Attributes
    ----------
    part : Part
    number : int
        Of the shard.
    first : int
        Index of the shard's first row.
    rows : int64 (b,)
        Ascending.
    columns : dict of str to array (b,)
        New columns of ``pairs.parquet``.
    """

    part: Part
    number: int
    first: int
    rows: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def entry(self) -> dict[str, Any]:
        """What ``dataset.json`` says about the shard."""
        entry: dict[str, Any] = self.part.dataset.info["shards"][self.number]
        return entry

    @property
    def path(self) -> Path:
        return self.part.dataset.shard_path(self.number)


def _runs(part: Part) -> Iterator[_Run]:
    first = at = 0
    for number, entry in enumerate(part.dataset.info["shards"]):
        stop = at + int(np.searchsorted(part.indices[at:], first + entry["rows"]))
        if stop > at:
            columns = {name: values[at:stop] for name, values in part.columns.items()}
            yield _Run(part=part, number=number, first=first, rows=part.indices[at:stop] - first, columns=columns)
        at, first = stop, first + entry["rows"]


class _Copier:
    """Takes parts one after the other and writes shards and the table; a context manager."""

    def __init__(self, folder: Path, layout: Layout, table: "_PairsWriter", total: int, link: bool) -> None:
        self._folder, self._layout, self._table = folder, layout, table
        self._total, self._link = total, link
        self._writer: ShardWriter | None = None
        self._page_size = self._max_rows = 0
        self.shards: list[dict[str, Any]] = []
        self.copied = self.image_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._writer is not None:
            self._writer.abort()

    def add(self, part: Part, reader: PairsReader) -> None:
        """Take all pairs of one part."""
        path, sha256 = part.dataset.path, part.dataset.info.get("pairs_sha256")
        if sha256_file(path / "pairs.parquet") != sha256:
            raise CoreclipError(
                f"data set {path} is damaged: pairs.parquet has changed since it was written; restore it or convert again"
            )
        keeps = self._keeps_shards(part)
        for run in _runs(part):
            if keeps and len(run.rows) == run.entry["rows"]:
                self._copy_shard(run, reader)
            else:
                self._pack_rows(run, reader)

    def _keeps_tokens(self, dataset: Dataset) -> bool:
        return dataset.tokenizer_sha256 == self._layout.tokenizer.sha256 and dataset.context == self._layout.context

    def _keeps_shards(self, part: Part) -> bool:
        """Whether a shard of which all rows are kept can go over as a file."""
        dataset, layout = part.dataset, self._layout
        return (
            self._keeps_tokens(dataset)
            and dataset.captions_per_row == layout.captions_per_row
            and ("label" in dataset.info["fields"]) == layout.labels
            and (part.classes is None or np.array_equal(part.classes, np.arange(len(part.classes))))
        )

    def _copy_shard(self, run: _Run, reader: PairsReader) -> None:
        self._close_shard()
        dataset, entry = run.part.dataset, run.entry
        with read_shard(run.path) as shard:
            found = (shard.rows, shard.context, shard.captions_per_row, int(shard.index[0]))
            self.image_bytes += int(shard.image_sizes.sum())
        expected = (entry["rows"], dataset.context, dataset.captions_per_row, run.first)
        if found != expected or sha256_file(run.path) != entry["sha256"]:
            raise CoreclipError(
                f"data set {dataset.path} is damaged: {run.path.name} has changed since it was written; "
                "restore it or convert again"
            )
        target = self._folder / f"{len(self.shards):05d}.beton"
        unchanged = run.first == self._table.next_index
        _copy_file(run.path, target, link=self._link and unchanged)
        if not unchanged:
            renumber_rows(target, self._layout.labels, self._table.next_index)
        table = reader.read(run.first, run.first + entry["rows"])
        self._table.add(table, {**run.columns, "shard": np.full(len(run.rows), len(self.shards)), "row": run.rows})
        self.shards.append(_describe_shard(target, entry["rows"]))
        self.copied += 1

    def _pack_rows(self, run: _Run, reader: PairsReader) -> None:
        layout = self._layout
        with read_shard(run.path) as shard:
            if shard.rows != run.entry["rows"]:
                raise CoreclipError(
                    f"shard {run.path} has {shard.rows} rows, dataset.json says {run.entry['rows']}; restore it or convert again"
                )
            sizes = shard.image_sizes[run.rows].astype(np.int64)
            captions = shard.caption_sizes[run.rows].astype(np.int64)
            needed = sizes + captions + 2 * layout.captions_per_row * layout.context
            mean, largest = max(1, int(sizes.mean())), int(needed.max())
            for at in range(0, len(run.rows), _CHUNK):
                here = slice(at, at + _CHUNK)
                columns = {name: values[here] for name, values in run.columns.items()}
                chunk = replace(run, rows=run.rows[here], columns=columns)
                writers = (
                    self._writer_for(*each, largest, mean) for each in zip(sizes[here], needed[here], strict=True)
                )
                self._pack_chunk(chunk, shard, reader, writers)
            self.image_bytes += int(sizes.sum())

    def _pack_chunk(self, run: _Run, shard: Shard, reader: PairsReader, writers: Iterator[ShardWriter]) -> None:
        table, captions = read_checked(run.part.dataset, reader, shard, run.number, run.first, run.rows)
        tokens = self._tokens(shard, run.rows, captions, self._keeps_tokens(run.part.dataset))
        labels = self._labels(shard, run)
        places = []
        for i, (row, writer) in enumerate(zip(run.rows.tolist(), writers, strict=True)):
            places.append((len(self.shards), writer.rows))
            writer.add(
                shard.image_bytes(row),
                cast("Literal['jpg', 'raw']", MODES[shard.modes[row]]),
                int(shard.widths[row]),
                int(shard.heights[row]),
                captions[i],
                tokens[i],
                self._table.next_index + i,
                None if labels is None else int(labels[i]),
            )
        numbers, rows = np.array(places).T
        columns = {**run.columns, "shard": numbers, "row": rows}
        self._table.add(table, columns if labels is None else {**columns, "label": labels})

    def _tokens(self, shard: Shard, rows: np.ndarray, captions: list[list[str]], same_tokens: bool) -> np.ndarray:
        """Return uint16 (b, captions_per_row, context): the stored tokens as far as they go, else new ones."""
        m, context = self._layout.captions_per_row, self._layout.context
        known = shard.captions_per_row if same_tokens else 0
        tokens = np.zeros((len(rows), m, context), np.uint16)
        if known:
            tokens[:, : min(m, known)] = shard.tokens(rows)[:, :m]
        missing = [(i, j) for i, texts in enumerate(captions) for j in range(known, min(m, len(texts)))]
        if missing:
            i, j = np.array(missing).T
            tokens[i, j] = self._layout.tokenizer.encode([captions[a][b] for a, b in missing], context)
        return tokens

    def _labels(self, shard: Shard, run: _Run) -> np.ndarray | None:
        if not self._layout.labels:
            return None
        assert shard.label is not None
        labels, classes = shard.label[run.rows], run.part.classes
        if classes is None:
            return labels
        if labels.min() < 0 or labels.max() >= len(classes):
            raise CoreclipError(
                f"data set {run.part.dataset.path} is damaged: a label is not one of its {len(classes)} classes; convert again"
            )
        return np.asarray(classes[labels], np.int64)

    def _writer_for(self, n_image_bytes: int, needed: int, largest: int, mean: int) -> ShardWriter:
        writer = self._writer
        if writer is not None and (
            writer.stored_bytes + n_image_bytes > self._layout.shard_bytes
            or writer.rows == self._max_rows
            or needed > self._page_size
        ):
            self._close_shard()
        if self._writer is None:
            likely = min(max(2 * self._layout.shard_bytes // mean, _FEWEST_ROWS), _MOST_ROWS)
            self._max_rows = min(likely, self._total)
            self._page_size = page_size_for(largest, mean)
            self._writer = ShardWriter(
                self._folder / f"{len(self.shards):05d}.beton",
                captions_per_row=self._layout.captions_per_row,
                context=self._layout.context,
                labels=self._layout.labels,
                page_size=self._page_size,
                max_rows=self._max_rows,
            )
        return self._writer

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self.shards.append(_describe_shard(self._writer.path, self._writer.rows))
        self._writer = None


def _describe_shard(path: Path, rows: int) -> dict[str, Any]:
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _copy_file(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # the file system has no hard links
            pass
    shutil.copyfile(source, target)
