"""The table that img2dataset writes beside each archive (github rom1504/img2dataset, ``writer.py``): one row for each URL.

Rows of downloaded images add columns to their pairs; the others, which have no image in the archive, become rejects.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import Reject

_NEEDED = {"key", "status"}


def find_download_table(archive: Path) -> Path | None:
    """Return the table of img2dataset beside an archive; another table of that name is none."""
    path = archive.with_suffix(".parquet")
    if not path.is_file():
        return None
    import pyarrow.parquet as pq

    return path if set(_read(path, lambda: pq.read_schema(path)).names) >= _NEEDED else None


class DownloadTable:
    """The rows of a table by key."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = (pa.types.is_string, pa.types.is_large_string)
        kinds = (*texts, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        schema = _read(path, lambda: pq.read_schema(path))
        columns = [field.name for field in schema if any(holds(field.type) for holds in kinds)]
        if not all(any(holds(schema.field(name).type) for holds in texts) for name in _NEEDED):
            raise CoreclipError(f"{path} has keys that are not text; img2dataset writes text; remove the table")
        self._table: pa.Table = _read(path, lambda: pq.read_table(path, columns=columns)).combine_chunks()
        hashes = np.fromiter((hash(key.as_py()) for key in self._table["key"]), np.int64, self._table.num_rows)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def row(self, key: str) -> dict[str, Any] | None:
        """Return the values that are there for a pair, or None if the table has no row for it."""
        number = self._find(key)
        if number is None:
            return None
        return {name: value for name, value in self._values(number).items() if value is not None}

    def not_in(self, keys: Iterable[str], source: str) -> Iterator[Reject]:
        """Yield a reject for each row whose key is not among ``keys``, the archive's."""
        there = np.zeros(self._table.num_rows, bool)
        for key in keys:
            number = self._find(key)
            if number is not None:
                there[number] = True
        for number in np.flatnonzero(~there).tolist():
            values = self._values(number)
            yield Reject(source, values["key"] or "", _why(values))

    def _find(self, key: str) -> int | None:
        at = int(np.searchsorted(self._hashes, hash(key)))
        while at < len(self._hashes) and self._hashes[at] == hash(key):
            if self._table["key"][int(self._order[at])].as_py() == key:
                return int(self._order[at])
            at += 1
        return None

    def _values(self, number: int) -> dict[str, Any]:
        return {name: self._table[name][number].as_py() for name in self._table.column_names}


def _why(values: dict[str, Any]) -> str:
    if values["status"] == "success":
        return "the table beside the archive says that it was downloaded, but the archive has no such image"
    message = f" ({values['error_message']})" if values.get("error_message") else ""
    return f"img2dataset has no image: {values['status']}{message}"


def _read(path: Path, read: Any) -> Any:
    import pyarrow as pa

    try:
        return read()
    except (OSError, pa.ArrowException) as error:
        cause = str(error).partition("\n")[0]
        raise CoreclipError(
            f"{path} beside the archive can't be read ({cause}); it must be img2dataset's table; restore or remove it"
        ) from None
