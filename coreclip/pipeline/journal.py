"""The journal of a conversion under way: one fsynced line for each whole shard, so that a killed one goes on behind it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreclip.files import write_text


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A whole shard, or rows of which every one was refused.

    Attributes
    ----------
    file : str
        Name of the ``.beton`` file; "" where there is no row.
    rows : int
    bytes : int
        Size of the file.
    sha256 : str
        Of the file, hexadecimal.
    rejected : int
        Samples refused since the shard before it.
    next_row : int
        First row of the manifest that belongs to a later shard.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    rejected: int
    next_row: int

    def to_info(self) -> dict[str, Any]:
        """Return what ``dataset.json`` says about the shard."""
        return {"file": self.file, "rows": self.rows, "bytes": self.bytes, "sha256": self.sha256}


def read_journal(path: Path, folder: Path) -> list[ShardEntry]:
    """Return the entries up to the first that is torn or whose shard in ``folder`` is not whole; forget the others."""
    entries: list[ShardEntry] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            entry = ShardEntry(**json.loads(line))
        except (ValueError, TypeError):
            break
        shard = folder / entry.file
        if entry.rows and (not shard.is_file() or shard.stat().st_size != entry.bytes):
            break
        entries.append(entry)
    write_text(path, "".join(map(_to_line, entries)))
    return entries


def append_entry(path: Path, entry: ShardEntry) -> None:
    """Append one entry; it is on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(_to_line(entry))
        file.flush()
        os.fsync(file.fileno())


def _to_line(entry: ShardEntry) -> str:
    return json.dumps(asdict(entry)) + "\n"
