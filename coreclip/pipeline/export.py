"""A data set as WebDataset archives, for other people's loaders: KEY.jpg (or .png), KEY.txt, KEY.json and, with labels, KEY.cls.

Equal data sets give equal bytes: no time, no owner, a fixed order. ``convert`` reads the result back with the same image
bytes, captions, labels and keys.
"""

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import check_free_disk
from coreclip.pipeline.beton import MODES, Shard, read_shard
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.groups import text_code
from coreclip.pipeline.publishing import new_folder
from coreclip.pipeline.rows import PairsReader, batches, own_columns, read_checked
from coreclip.pipeline.subsets import checked_subset
from coreclip.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 512  # pairs in memory at once
_BLOCK = 512  # bytes of a tar
_LONGEST_KEY = 120  # bytes
_SMALLEST_SHARD = 1 << 16


def export_webdataset(
    dataset: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    *,
    subset: Any = None,
    shard_bytes: int = 1 << 30,
) -> dict[str, Any]:
    """Write a data set, or a subset of it, as ``out/00000.tar``, ``out/00001.tar``, ...

    Each pair has ``KEY.jpg`` with the stored bytes (``KEY.png`` for raw pixels), ``KEY.txt`` with its first caption,
    ``KEY.json`` with ``key``, ``captions``, the sources' columns and a subset's ``weight``, and ``KEY.cls`` with its class
    number where there are labels. Keys that are not safe as names or not the only ones of theirs are changed; ``key`` in the
    JSON is the original.

    Parameters
    ----------
    dataset : path or Dataset
    out : path
        The folder to make; must not exist.
    subset : int (k,), or an object with ``indices``, ``weights`` and ``fingerprint``, optional
        Written in the order of the data set.
    shard_bytes : int
        Size at which an archive ends.

    Returns
    -------
    dict
        ``pairs``, ``shards``, ``bytes_out``, ``changed_keys``, ``seconds``.

    Raises
    ------
    CoreclipError
        For a subset of another data set, an ``out`` that exists, and a data set that is damaged.
    """
    start = time.monotonic()
    if shard_bytes < _SMALLEST_SHARD:
        raise CoreclipError(
            f"shard_bytes = {shard_bytes} is not allowed: an archive may end at {_SMALLEST_SHARD} or more"
        )
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    indices, weights = checked_subset(subset, opened)
    indices, place = np.unique(indices, return_inverse=True)
    weights = np.bincount(place, weights, len(indices))
    with new_folder(out) as folder:
        stored = sum(shard["bytes"] for shard in opened.info["shards"]) * len(indices) // opened.n
        check_free_disk(out, stored + 4 * _BLOCK * len(indices))
        keys = _Keys(opened, indices)
        archives = _Archives(folder, shard_bytes)
        with Progress(len(indices), "exporting", "pairs") as progress, archives:
            for shard, rows, table, captions, at in _read(opened, indices):
                facts = table.select([name for name in table.schema.names if name not in own_columns()]).to_pylist()
                names = table.column("key").to_pylist()
                for i, row in enumerate(rows.tolist()):
                    described = {"key": names[i], "captions": captions[i]}
                    described |= {name: value for name, value in facts[i].items() if value is not None}
                    if subset is not None:
                        described["weight"] = float(weights[at + i])
                    label = None if shard.label is None else int(shard.label[row])
                    archives.add(_members(shard, row, described, label), keys.name(names[i], int(indices[at + i])))
                progress.advance(len(rows))
    return {
        "pairs": len(indices),
        "shards": len(archives.sizes),
        "bytes_out": sum(archives.sizes),
        "changed_keys": keys.changed,
        "seconds": round(time.monotonic() - start, 3),
    }


def _read(
    dataset: Dataset, indices: np.ndarray
) -> "Iterator[tuple[Shard, np.ndarray, pa.Table, list[list[str]], int]]":
    """Yield chunks of pairs: shard, rows in it, their rows of ``pairs.parquet``, captions, place in ``indices``."""
    first = at = 0
    with PairsReader(dataset) as reader:
        for number, entry in enumerate(dataset.info["shards"]):
            stop = at + int(np.searchsorted(indices[at:], first + entry["rows"]))
            if stop > at:
                with read_shard(dataset.shard_path(number)) as shard:
                    while at < stop:
                        rows = indices[at : min(at + _CHUNK, stop)] - first
                        table, captions = read_checked(dataset, reader, shard, number, first, rows)
                        yield shard, rows, table, captions, at
                        at += len(rows)
            first += entry["rows"]


def _members(shard: Shard, row: int, described: dict[str, Any], label: int | None) -> dict[str, bytes]:
    image = shard.image_bytes(row)
    raw = MODES[shard.modes[row]] == "raw"
    members = {"png": to_png(image, int(shard.widths[row]), int(shard.heights[row]))} if raw else {"jpg": image}
    members["txt"] = described["captions"][0].encode("utf-8", "surrogateescape")
    members["json"] = json.dumps(described, ensure_ascii=False).encode("utf-8", "surrogateescape")
    if label is not None:
        members["cls"] = str(label).encode("ascii")
    return members


def to_png(pixels: bytes, width: int, height: int) -> bytes:
    """Return raw pixels, uint8 (height, width, 3), as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(file, "PNG")
    return file.getvalue()


class _Keys:
    """Makes keys safe and unique as member names."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        """Look at all keys once: 8 bytes for each stay in memory."""
        codes = np.empty(len(indices), np.uint64)
        first = at = 0
        for table in batches(dataset, ["key"]):
            stop = at + int(np.searchsorted(indices[at:], first + table.num_rows))
            keys = table.column("key").take(indices[at:stop] - first).to_pylist()
            codes[at:stop] = [text_code(_safe(key)) for key in keys]
            at, first = stop, first + table.num_rows
        distinct, firsts = np.unique(codes, return_index=True)
        self._taken, self._owners = distinct, indices[firsts]
        self.changed = 0

    def name(self, key: str, index: int) -> str:
        """Return the name of one pair's members; the first pair with a key keeps it."""
        name = _safe(key)
        while not self._is_free(name, index):
            name = f"{name}-{index}"
        self.changed += name != key
        return name

    def _is_free(self, name: str, index: int) -> bool:
        code = np.uint64(text_code(name))
        place = int(np.searchsorted(self._taken, code))
        return place == len(self._taken) or self._taken[place] != code or int(self._owners[place]) == index


def _safe(key: str) -> str:
    """Return ``key`` without dots (WebDataset ends a key at the first), without ways out of a folder, and not too long."""
    text = re.sub(r"[^\w/+=@-]", "_", key)
    text = "/".join(piece for piece in text.split("/") if piece) or "_"
    kept = text.encode("utf-8", "replace")[:_LONGEST_KEY].decode("utf-8", "ignore")
    return kept.rstrip("/")


class _Archives:
    """Writes archive after archive; a context manager."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._archive: tarfile.TarFile | None = None
        self.sizes: list[int] = []

    def __enter__(self) -> "_Archives":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, members: dict[str, bytes], key: str) -> None:
        """Append one sample."""
        size = sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for content in members.values())
        if self._archive is not None and self._archive.offset + size > self._shard_bytes:
            self._close()
        if self._archive is None:
            path = self._folder / f"{len(self.sizes):05d}.tar"
            self._archive = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by _close
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(content), 0o644
            self._archive.addfile(info, io.BytesIO(content))
            self._archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise

    def _close(self) -> None:
        if self._archive is not None:
            self._archive.close()
            self.sizes.append(Path(str(self._archive.name)).stat().st_size)
            self._archive = None
