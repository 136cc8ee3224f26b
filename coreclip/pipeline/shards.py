"""Cuts the stream of prepared pairs into shards and journals each whole one."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from coreclip.files import fsync_path, sha256_file
from coreclip.pipeline.beton import ShardWriter, page_size_for, sample_bytes
from coreclip.pipeline.journal import ShardEntry, append_entry, read_journal
from coreclip.pipeline.ledger import pairs_schema, source_values, write_rejects, write_rows
from coreclip.pipeline.manifest import Plan
from coreclip.pipeline.preparing import Outcome
from coreclip.pipeline.records import Record, Reject

_FEWEST_ROWS, _MOST_ROWS = 1024, 1 << 17  # for which a shard reserves metadata


@dataclass(frozen=True, slots=True)
class Staging:
    """Names of the files of a conversion under way: the data set's own in ``path``, the others below ``work``."""

    path: Path

    @property
    def work(self) -> Path:
        """Folder of what is removed before the data set is published."""
        return self.path / "work"

    @property
    def journal(self) -> Path:
        """File of the whole shards."""
        return self.work / "journal.jsonl"

    def part(self, table: str, shard: int) -> Path:
        """File of one shard's rows of ``pairs`` or ``rejects``."""
        return self.work / f"{table}-{shard:05d}.parquet"


class ShardSequence:
    """Writes shard after shard; a context manager.

    Which pairs share a shard depends on the pairs and on the parameters alone, so that a conversion that goes on
    behind the journal's last entry writes the same bytes as one that was never stopped.

    Parameters
    ----------
    staging : Staging
    plan : Plan
    context : int
        Tokens of a caption.
    shard_bytes : int
        Image bytes at which a shard ends.

    Attributes
    ----------
    entries : list of ShardEntry
        Whole shards, those of an earlier run included.
    next_row : int
        First row of the manifest that no whole shard covers.
    rejects : list of Reject
        Refused since the last whole shard.
    """

    def __init__(self, staging: Staging, plan: Plan, *, context: int, shard_bytes: int) -> None:
        self._staging, self._plan = staging, plan
        self._context, self._shard_bytes = context, shard_bytes
        self._schema = pairs_schema(plan.labels, plan.columns)
        self._writer: ShardWriter | None = None
        self._page_size = self._max_rows = 0
        self._pairs: list[dict[str, Any]] = []
        self.rejects: list[Reject] = []
        self.entries = read_journal(staging.journal, staging.path)
        self.next_row = self.entries[-1].next_row if self.entries else 0
        self._index = sum(entry.rows for entry in self.entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._writer is not None:
            self._writer.abort()

    def add(self, record: Record, outcome: Outcome, tokens: np.ndarray) -> None:
        """Take in the manifest's next row: store it, or note why not.

        Parameters
        ----------
        record : Record
        outcome : Outcome
            Of preparing the record's image.
        tokens : uint16 (captions_per_row, context)
        """
        reason = outcome.reason
        if self._plan.labels and record.label is None:
            reason = "no class number, which other pairs of this data set have"
        if outcome.image is None or reason:
            self.rejects.append(Reject(record.source, record.key, reason))
            self.next_row += 1
            return
        image = outcome.image
        writer = self._writer_for(len(image.data), record.captions)
        pair = {"index": self._index, "key": record.key, "shard": len(self.entries), "row": writer.rows}
        pair |= {"captions": record.captions, "label": record.label, "source": record.source}
        pair |= {"width": image.width, "height": image.height, "mode": image.mode, "bytes": len(image.data)}
        pair |= {"content_hash": outcome.content_hash, "warning": image.warning, "transcoded": image.transcoded}
        self._pairs.append(pair | source_values(record.columns, self._plan.columns))
        writer.add(
            image.data,
            "raw" if image.mode == "raw" else "jpg",
            image.width,
            image.height,
            record.captions,
            tokens,
            self._index,
            record.label,
        )
        self._index += 1
        self.next_row += 1

    def _writer_for(self, n_image_bytes: int, captions: list[str]) -> ShardWriter:
        """Return the shard that takes the next pair: the open one, or a new one where it is full or its page too small."""
        n_bytes = sample_bytes(n_image_bytes, captions, self._plan.captions_per_row, self._context)
        writer = self._writer
        if writer is not None and (
            writer.stored_bytes + n_image_bytes > self._shard_bytes
            or writer.rows == self._max_rows
            or n_bytes > self._page_size
        ):
            self._close_shard()
        if self._writer is None:
            mean = max(1, self._plan.bytes_to_store // self._plan.rows)
            likely = min(max(2 * self._shard_bytes // mean, _FEWEST_ROWS), _MOST_ROWS)
            self._max_rows = min(likely, self._plan.rows - self.next_row)
            self._page_size = page_size_for(n_bytes)
            self._writer = ShardWriter(
                self._staging.path / f"{len(self.entries):05d}.beton",
                captions_per_row=self._plan.captions_per_row,
                context=self._context,
                labels=self._plan.labels,
                page_size=self._page_size,
                max_rows=self._max_rows,
            )
        return self._writer

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        number, path = len(self.entries), self._writer.path
        self._writer.close()
        pairs_part, rejects_part = (self._staging.part(table, number) for table in ("pairs", "rejects"))
        write_rows(pairs_part, self._pairs, self._schema)
        write_rejects(rejects_part, self.rejects)
        for written in (pairs_part, rejects_part, self._staging.work, self._staging.path):
            fsync_path(written)
        entry = ShardEntry(
            file=path.name,
            rows=self._writer.rows,
            bytes=path.stat().st_size,
            sha256=sha256_file(path),
            rejected=len(self.rejects),
            next_row=self.next_row,
        )
        append_entry(self._staging.journal, entry)
        self.entries.append(entry)
        self._writer = None
        self._pairs, self.rejects = [], []
