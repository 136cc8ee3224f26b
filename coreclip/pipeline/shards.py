"""Cuts the stream of prepared pairs into shards, gives every row its place, and journals each whole shard."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from coreclip.files import fsync_path, sha256_file
from coreclip.pipeline.beton import TOKEN_BYTES, RowFacts, ShardLayout, finish_shard, page_size_for
from coreclip.pipeline.journal import ShardEntry, append_entry, read_journal
from coreclip.pipeline.ledger import pairs_schema, write_pairs, write_rejects
from coreclip.pipeline.manifest import Plan
from coreclip.pipeline.preparing import Placement, Prepared
from coreclip.pipeline.records import Reject
from coreclip.pipeline.staging import Staging

_MOST_INFLATED = 2  # a shard ends early where what is stored is so many times larger than its sources


@dataclass(slots=True)
class _Entry:
    """What becomes one entry of the journal: a shard that takes rows (none where all rows are refused), and its refused rows."""

    path: Path | None = None
    layout: ShardLayout | None = None
    number: int = 0
    first_index: int = 0
    pairs: list[tuple[bytes, slice]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    writes: list["Future[None]"] = field(default_factory=list)
    next_row: int = 0


class ShardSequence:
    """Gives rows their places, shard after shard; a context manager.

    The manifest is cut into **ranges** of rows beforehand, one shard each (more where one page does not do). Which pairs
    share a shard so depends on the sources and the parameters alone: a conversion that goes on behind the journal's last
    entry writes the same bytes as one that was never stopped. A thread finishes shards (tables, fsync, hash, journal)
    while later ones are filled.

    Parameters
    ----------
    staging : Staging
    plan : Plan
    context : int
        Tokens of a caption.
    shard_bytes : int
        Image bytes for which ranges were cut.

    Attributes
    ----------
    next_row : int
        First row of the manifest that no journal entry covers, when the sequence begins.
    """

    def __init__(self, staging: Staging, plan: Plan, *, context: int, shard_bytes: int) -> None:
        self._staging, self._plan = staging, plan
        self._context, self._shard_bytes = context, shard_bytes
        self._typical_bytes = plan.bytes_to_store // max(plan.rows, 1)
        self._schema = pairs_schema(plan.labels, plan.columns)
        self._entries = read_journal(staging.journal, staging.path)
        self.next_row = self._row = self._entries[-1].next_row if self._entries else 0
        self._index = sum(entry.rows for entry in self._entries)
        self._n_shards = len(self.whole_shards())
        self._entry = _Entry()
        self._full: list[_Entry] = []
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="coreclip-finish")
        self._latest: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finisher.shutdown(cancel_futures=kind is not None)
        if kind is None and self._latest is not None:
            self._latest.result()

    def whole_shards(self) -> list[ShardEntry]:
        """Return the entries of the shards that are whole, those of an earlier run included."""
        return [entry for entry in self._entries if entry.rows]

    @property
    def n_entries(self) -> int:
        """Entries of the journal, ranges without a pair included."""
        return len(self._entries)

    def add(self, prepared: Prepared, n_records: int, rows_left: int) -> list[Placement]:
        """Give the manifest's next rows, of one range, their places; :meth:`wrote` must follow.

        Parameters
        ----------
        prepared : Prepared
        n_records : int
            Of the chunk, the refused ones included.
        rows_left : int
            Rows of the range from the first of these on.

        Returns
        -------
        list of Placement
            Runs of the prepared rows, in order.
        """
        facts = replace(prepared.facts, index=prepared.facts.index + self._index)
        rejects = deque(prepared.rejects)
        placements = []
        first = 0
        while first < len(facts):
            layout, path = self._shard_for(facts[first : first + 1], rows_left - int(prepared.record[first]))
            n = max(self._how_many_fit(layout, facts[first:]), 1)
            part = slice(first, first + n)
            placements.append(Placement(str(path), layout.place(facts[part])))
            self._entry.pairs.append((prepared.pairs, part))
            first += n
            if first < len(facts):
                self._end_entry(self._row + int(prepared.record[first]), rejects, int(prepared.record[first]))
        self._entry.rejects += [reject for _, reject in rejects]
        self._index += len(facts)
        self._row += n_records
        return placements

    def wrote(self, writing: "Future[None]") -> None:
        """Say that ``writing`` writes the rows that :meth:`add` has placed last."""
        for entry in [*self._full, self._entry]:
            entry.writes.append(writing)
        self._finish_full()

    def end_range(self) -> "Future[None]":
        """Finish the range's last shard; the future is done when all of the range is journaled."""
        self._end_entry(self._row, deque(), 0)
        self._finish_full()
        assert self._latest is not None
        return self._latest

    def _shard_for(self, row: RowFacts, rows_left: int) -> tuple[ShardLayout, Path]:
        """Return the open shard, or a new one where there is none; its page holds ``row``."""
        if self._entry.layout is None or self._entry.path is None:
            self._entry.path = self._staging.path / f"{self._n_shards:05d}.beton"
            self._entry.path.write_bytes(b"")
            self._entry.number, self._entry.first_index = self._n_shards, int(row.index[0])
            n_tokens = self._plan.captions_per_row * self._context
            n_bytes = n_tokens * TOKEN_BYTES + int(row.n_caption_bytes[0] + row.n_image_bytes[0])
            self._entry.layout = ShardLayout(
                captions_per_row=self._plan.captions_per_row, context=self._context, labels=self._plan.labels,
                page_size=page_size_for(n_bytes, self._typical_bytes), max_rows=rows_left, name=str(self._entry.path),
            )  # fmt: skip
            self._n_shards += 1
        return self._entry.layout, self._entry.path

    def _how_many_fit(self, layout: ShardLayout, rows: RowFacts) -> int:
        """Return how many of ``rows`` the shard takes before one needs a larger page, or it grows far beyond its sources."""
        stored = layout.stored_bytes + np.cumsum(rows.n_image_bytes)
        fits = (layout.row_sizes(rows) <= layout.page_size) & (stored <= _MOST_INFLATED * self._shard_bytes)
        return len(rows) if fits.all() else int(np.argmin(fits))

    def _end_entry(self, next_row: int, rejects: "deque[tuple[int, Reject]]", before: int) -> None:
        """Close the entry in front of row ``next_row``; of the chunk's ``rejects``, those of records ``before`` are its own."""
        while rejects and rejects[0][0] < before:
            self._entry.rejects.append(rejects.popleft()[1])
        self._entry.next_row = next_row
        self._full.append(self._entry)
        self._entry = _Entry()

    def _finish_full(self) -> None:
        for entry in self._full:
            self._latest = self._finisher.submit(self._finish, entry, self._latest)
        self._full = []

    def _finish(self, entry: _Entry, before: "Future[None] | None") -> None:
        """Make an entry durable, then journal it; runs in the finishing thread."""
        if before is not None:
            before.result()  # no entry may stand behind one that failed
        number = len(self._entries)
        pairs_part, rejects_part = (self._staging.part(table, number) for table in ("pairs", "rejects"))
        write_pairs(pairs_part, entry.pairs, entry.first_index, entry.number, self._schema)
        write_rejects(rejects_part, entry.rejects)
        whole = _finish_shard(entry)
        for written in (pairs_part, rejects_part, self._staging.work, self._staging.path):
            fsync_path(written)
        append_entry(self._staging.journal, whole)
        self._entries.append(whole)


def _finish_shard(entry: _Entry) -> ShardEntry:
    for write in entry.writes:
        write.result()
    facts = {"rejected": len(entry.rejects), "next_row": entry.next_row}
    if entry.path is None or entry.layout is None:
        return ShardEntry(file="", rows=0, bytes=0, sha256="", **facts)
    with open(entry.path, "r+b", buffering=0) as file:
        finish_shard(file.fileno(), entry.layout)
        n_bytes = os.fstat(file.fileno()).st_size
    return ShardEntry(
        file=entry.path.name, rows=entry.layout.rows, bytes=n_bytes, sha256=sha256_file(entry.path), **facts
    )
