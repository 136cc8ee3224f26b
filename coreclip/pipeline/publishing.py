"""What every command that makes a data set (or a folder of other files) shares: the folder that is whole or absent, and ``dataset.json``.

A folder is built under the hidden name ``.NAME.building`` beside its place and renamed when all of it is on the disk; what
a killed command has left there goes when a command builds the same folder again. Left out: the resumable folder of
``convert``.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import coreclip
from coreclip.errors import CoreclipError
from coreclip.files import fsync_path, lock, publish, remove, sha256_file
from coreclip.pipeline.beton import field_names
from coreclip.pipeline.dataset import FORMAT_VERSION

_RENAME_EXCHANGE, _HERE = 2, -100  # of linux/fs.h and fcntl.h (AT_FDCWD)
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def describe(
    folder: Path,
    *,
    shards: Sequence[dict[str, Any]],
    labels: bool,
    context: int,
    captions_per_row: int,
    class_names: Sequence[str] | None,
    rejected: int,
    bytes_in: int,
    request: dict[str, Any],
) -> dict[str, Any]:
    """Return the ``dataset.json`` of a folder whose tables and tokenizer are written.

    Parameters
    ----------
    folder : path
        Holds ``pairs.parquet``, ``rejects.parquet`` and ``tokenizer.json``.
    shards : sequence of {file, rows, bytes, sha256}
    labels : bool
    context, captions_per_row : int
        Of a stored token array.
    class_names : sequence of str or None
    rejected : int
        Rows of ``rejects.parquet``.
    bytes_in : int
        Image bytes of the sources.
    request : {sources, options, version}
        What the data set was made from, and how.
    """
    hashes = {name: sha256_file(folder / name) for name in ("pairs.parquet", "rejects.parquet", "tokenizer.json")}
    n = sum(shard["rows"] for shard in shards)
    return {
        "format_version": FORMAT_VERSION,
        "n": n,
        "pairs": n,
        "rejected": rejected,
        "fields": field_names(labels),
        "shards": list(shards),
        "context": context,
        "captions_per_row": captions_per_row,
        "class_names": None if class_names is None else list(class_names),
        "tokenizer_sha256": hashes["tokenizer.json"],
        "pairs_sha256": hashes["pairs.parquet"],
        "rejects_sha256": hashes["rejects.parquet"],
        "fingerprint": fingerprint(
            [shard["sha256"] for shard in shards], hashes["pairs.parquet"], hashes["tokenizer.json"]
        ),
        "bytes_in": bytes_in,
        "bytes_out": sum(shard["bytes"] for shard in shards),
        "convert": request,
    }


def fingerprint(shards: Sequence[str], pairs: str, tokenizer: str) -> str:
    """Return the fingerprint of a data set whose files have these SHA-256."""
    return hashlib.sha256("\n".join([*shards, pairs, tokenizer]).encode()).hexdigest()


def derived_request(command: str, parents: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Return the ``convert`` entry of ``dataset.json`` for a data set that ``command`` makes from other data sets.

    The conversion options of the first parent stay, so that ``append`` converts more pairs in the same way.
    """
    sources = [{"path": Path(os.path.abspath(p.path)).name, "fingerprint": p.fingerprint} for p in parents]
    kept = conversion(parents[0].info)["options"]
    return {"sources": sources, "options": {**kept, "command": command, **options}, "version": coreclip.__version__}


def conversion(info: dict[str, Any]) -> dict[str, Any]:
    """Return ``sources`` (list of dict) and ``options`` (dict) of a ``dataset.json``, whatever it holds in their place."""
    entry = info.get("convert")
    entry = entry if isinstance(entry, dict) else {}
    sources, options = entry.get("sources"), entry.get("options")
    return {
        "sources": [
            source
            for source in (sources if isinstance(sources, list) else ())
            if isinstance(source, dict) and isinstance(source.get("path"), str)
        ],
        "options": options if isinstance(options, dict) else {},
    }


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``path``; on success it becomes ``path``, whole, else it is removed.

    Raises
    ------
    CoreclipError
        For a ``path`` that is there already (an empty folder is none), that another process writes, or whose disk is full.
    """
    target = Path(os.path.abspath(path))
    with lock(target):
        refuse_existing(target)
        staging = target.with_name(f".{target.name}.building")
        remove(staging)
        staging.mkdir()
        try:
            with explained_full_disk(target):
                yield staging
                publish(staging, target)
        finally:
            remove(staging)


def refuse_existing(target: Path) -> None:
    """Refuse to write where something is; an empty folder is nothing."""
    empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if os.path.lexists(target) and not empty:
        raise CoreclipError(f"{target} exists; nothing of yours is replaced; remove it or name another output")


def replace_folder(staging: Path, target: Path) -> None:
    """Put the whole folder ``staging`` in the place of the folder ``target`` in one step, and remove the old one.

    Where the file system can't exchange two names, there is a moment without ``target``: a crash in it leaves the old
    folder as ``.NAME.replaced``, which :func:`restore_folder` brings back.
    """
    for below in sorted(staging.rglob("*")):
        fsync_path(below)
    fsync_path(staging)
    if _exchange(staging, target):
        fsync_path(target.parent)
        remove(staging)
        return
    old = _replaced(target)
    os.rename(target, old)
    os.rename(staging, target)
    fsync_path(target.parent)
    remove(old)


def restore_folder(target: Path) -> None:
    """Undo a :func:`replace_folder` that a crash has cut in two, or remove what it had not removed yet."""
    old = _replaced(target)
    if old.is_dir() and not target.exists():
        os.rename(old, target)
    remove(old)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def explained_full_disk(target: Path, remedy: str = "run the same command again") -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CoreclipError(f"the disk of {target} is full ({error.strerror}); free some and {remedy}") from None
