"""More pairs into a data set that is there: converted as the others were, then swapped in as a whole.

The new data set is built beside the old one, shares its shards (hard links) and takes its name in one step, so that a
crash at any moment leaves the old or the new one. Processes that have the old one open keep reading it.
"""

import glob
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import coreclip
from coreclip.errors import CoreclipError
from coreclip.files import lock, remove
from coreclip.pipeline.assemble import Part, assemble, check_space
from coreclip.pipeline.convert import convert
from coreclip.pipeline.dataset import Dataset, read_table
from coreclip.pipeline.merge import class_numbers, united_layout
from coreclip.pipeline.publishing import conversion, explained_full_disk, replace_folder, restore_folder

_KEPT_OPTIONS = {
    "template": str, "max_side": int, "raw": bool, "check": str, "max_pixels": int, "quality": int, "shard_bytes": int,
}  # fmt: skip


def append(
    dataset: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    captions: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Convert more sources with a data set's own tokenizer and options, and add their pairs to it.

    The old pairs keep their indices; the new ones come after them. The fingerprint changes, so that subsets and features
    of the old data set are refused for the new one. Old shards stay as they are, unless a new pair has more captions than
    any old one: then all are written anew with room for its tokens. A data set without labels takes none. A command that was killed goes on when it is run
    again; sources that are in the data set already are refused.

    Parameters
    ----------
    dataset : path
        Replaced in one step when the new one is whole.
    sources : sequence of path
        As :func:`coreclip.pipeline.convert` takes them.
    captions : path, optional
        Table of the one folder in ``sources``, if it lies elsewhere.
    workers : int, optional
        Processes; by default one for each core.

    Returns
    -------
    dict
        ``pairs`` (now), ``added``, ``rejected`` (of the new sources), ``shards``, ``bytes_out``, ``fingerprint``,
        ``seconds``.

    Raises
    ------
    CoreclipError
        For sources that ``convert`` refuses, that are in the data set, or whose labels do not fit it.
    """
    start = time.monotonic()
    target = Path(os.path.realpath(dataset))  # not a link to it
    if not target.parent.is_dir():
        Dataset(target)  # raises: nothing is there
    with lock(target), explained_full_disk(target):
        restore_folder(target)
        old = Dataset(target)
        staging = target.with_name(f".{target.name}.building")
        added = target.with_name(f"{_prefix(target)}{_digest(sources, captions)}")
        for left in [staging, *target.parent.glob(f"{glob.escape(_prefix(target))}*")]:
            if left != added:
                remove(left)
        new = _convert(old, target, added, sources, captions, workers)
        try:
            info = _swap(old, new, target, staging)
        except CoreclipError:
            remove(added)
            raise
        finally:
            remove(staging)
        remove(added)
    return {
        "pairs": info["pairs"],
        "added": new.n,
        "rejected": new.info["rejected"],
        "shards": len(info["shards"]),
        "bytes_out": info["bytes_out"],
        "fingerprint": info["fingerprint"],
        "seconds": round(time.monotonic() - start, 3),
    }


def _convert(
    old: Dataset,
    target: Path,
    added: Path,
    sources: Sequence[str | os.PathLike[str]],
    captions: str | os.PathLike[str] | None,
    workers: int | None,
) -> Dataset:
    """Convert the new sources into the hidden data set ``added``; convert itself goes on, or finds that it is done."""
    there = conversion(old.info)["options"]
    options = {name: there[name] for name, kind in _KEPT_OPTIONS.items() if isinstance(there.get(name), kind)}
    arguments: dict[str, Any] = {
        **options,
        "captions": captions,
        "class_names": old.class_names,
        "tokenizer": target / "tokenizer.json",
        "context": old.context,
        "workers": workers,
    }
    convert(sources, added, **arguments)
    new = Dataset(added)
    known = {_identity(source) for source in conversion(old.info)["sources"]}
    again = [source for source in new.info["convert"]["sources"] if _identity(source) in known]
    if again:
        remove(added)
        raise CoreclipError(
            f"{again[0]['path']} is in data set {target} already: each source is added once; name new ones only"
        )
    return new


def _prefix(target: Path) -> str:
    return f".{target.name}.appended-"


def _digest(sources: Sequence[str | os.PathLike[str]], captions: str | os.PathLike[str] | None) -> str:
    """Tell one append from another by the names of its sources."""
    names = [os.path.abspath(name) for name in [*sources, *([] if captions is None else [captions])]]
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _identity(source: dict[str, Any]) -> str:
    return json.dumps({**source, "path": Path(source["path"]).name}, sort_keys=True)


def _swap(old: Dataset, new: Dataset, target: Path, staging: Path) -> dict[str, Any]:
    labelled = "label" in old.info["fields"]
    if labelled and "label" not in new.info["fields"]:
        raise CoreclipError(
            f"the pairs of {target} have class labels, the new ones have none: all pairs of a data set have one or none "
            "has; give them class numbers (KEY.cls), or convert them on their own and merge with --drop-labels"
        )
    layout = united_layout([old, new], drop_labels=not labelled)
    parts = [Part(dataset=each, indices=np.arange(each.n), classes=class_numbers(each, layout)) for each in (old, new)]
    grows = layout.captions_per_row > old.captions_per_row
    check_space(target, parts if grows else parts[1:])
    rejects = [read_table(each.path / "rejects.parquet", ["source", "key", "reason"]) for each in (old, new)]
    there = conversion(old.info)
    request = {
        "sources": [*there["sources"], *new.info["convert"]["sources"]],
        "options": {**new.info["convert"]["options"], **there["options"]},
        "version": coreclip.__version__,
    }
    staging.mkdir()
    info = assemble(staging, parts, layout, request=request, rejects=rejects, label="appending", link=True)
    new.close()
    replace_folder(staging, target)
    return info
