"""Cuts the manifest of a conversion into ranges, which become a shard each, and these into chunks, a worker's piece of work.

The cuts depend on the sources' sizes alone, so that a conversion that goes on makes the same ones. Left out: what an
image really takes when it is stored, which nobody knows beforehand.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coreclip.pipeline.manifest import read_sizes

_CHUNK_ROWS, _CHUNK_BYTES = 64, 16 << 20
_MOST_ROWS = 1 << 17  # of a shard


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one part of the manifest and of one range; ``rows_left`` counts the range's from the first of them on."""

    number: int
    part: int
    first: int
    rows: int
    range: int
    rows_left: int


def cut_chunks(manifest: list[Path], first_row: int, shard_bytes: int) -> Iterator[Chunk]:
    """Cut the manifest's rows from ``first_row`` on into chunks; none reaches over the end of a range or a part."""
    number = 0
    row = 0
    for range_number, segments in enumerate(_ranges(manifest, shard_bytes)):
        left = sum(len(sizes) for _, _, sizes in segments)
        for part, first, sizes in segments:
            skipped = min(max(first_row - row, 0), len(sizes))
            row, left = row + len(sizes), left - skipped
            for start, stop in _cut(sizes[skipped:], _CHUNK_BYTES, _CHUNK_ROWS):
                yield Chunk(number, part, first + skipped + start, stop - start, range_number, left)
                number, left = number + 1, left - (stop - start)


def _ranges(manifest: list[Path], shard_bytes: int) -> Iterator[list[tuple[int, int, list[int]]]]:
    """Yield what will be about one shard each: (part of the manifest, first row in it, bytes of each row)."""
    segments: list[tuple[int, int, list[int]]] = []
    n_rows = n_bytes = first = 0
    for part, all_sizes in itertools.groupby(read_sizes(manifest), key=lambda found: found[0]):
        first = 0
        for _, sizes in all_sizes:
            rest = sizes.tolist()
            while rest:
                n = next(_cut(rest, shard_bytes - n_bytes, _MOST_ROWS - n_rows))[1] if n_rows < _MOST_ROWS else 0
                if n_rows and (n == 0 or n_bytes + rest[0] > shard_bytes):
                    yield segments
                    segments, n_rows, n_bytes = [], 0, 0
                    continue
                segments.append((part, first, rest[:n]))
                n_rows, n_bytes, first = n_rows + n, n_bytes + sum(rest[:n]), first + n
                rest = rest[n:]
    if segments:
        yield segments


def _cut(sizes: list[int], most_bytes: int, most_rows: int) -> Iterator[tuple[int, int]]:
    """Cut rows of so many bytes each into runs (start, stop) of at most so many bytes and rows, of one row at least."""
    start = n_bytes = 0
    for i, size in enumerate(sizes):
        if i > start and (n_bytes + size > most_bytes or i - start == most_rows):
            yield start, i
            start, n_bytes = i, 0
        n_bytes += size
    if len(sizes) > start:
        yield start, len(sizes)
