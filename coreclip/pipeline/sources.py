"""Finds the sources that a user names and turns each sample into a checked record.

Kinds: WebDataset archives, a folder with a captions table, IDX files. Left out: remote sources.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from coreclip.errors import CoreclipError
from coreclip.pipeline.idx import find_labels
from coreclip.pipeline.records import MAX_IMAGE_BYTES, Record, Reject, Source
from coreclip.pipeline.tables import TABLE_SUFFIXES, TableSource
from coreclip.pipeline.tars import TarSource

KINDS = (
    "WebDataset .tar files (or a folder of them, or a pattern like train-{00000..00004}.tar), a folder of images with "
    "one captions table (.csv, .tsv, .jsonl, .parquet; or the table itself), an IDX NAME-images-idx3-ubyte.gz"
)


def find_sources(
    sources: Sequence[str | os.PathLike[str]],
    captions: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[Source]:
    """Return a source for each archive, table or IDX file that ``sources`` name.

    Parameters
    ----------
    sources : sequence of path or brace pattern
    captions : path, optional
        Table of the one folder in ``sources``, if it lies elsewhere.
    class_names : sequence of str, optional
        IDX files need them.

    Raises
    ------
    CoreclipError
        For a path that is missing, of an unknown kind or named twice, and for options that don't fit.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    paths = [path for name in sources for path in _expand(os.fspath(name))]
    if not paths:
        raise CoreclipError(f"no source is named; name at least one of: {KINDS}")
    if captions is not None:
        return [_table_of_folder(paths, Path(captions))]
    found: list[Source] = []
    seen: set[Path] = set()
    for path in paths:
        for file, source in _open(path, class_names).items():
            if file.resolve() in seen:
                raise CoreclipError(f"{file} is named twice among the sources; each pair may come once; name it once")
            seen.add(file.resolve())
            found.append(source)
    return found


def scan(source: Source, class_names: Sequence[str] | None, template: str) -> Iterator[Record | Reject]:
    """Yield the samples of a source with clean captions; what can't become a pair comes as a reject.

    A record without a caption but with a label gets the caption ``template.format(class name)``.
    """
    for item in source.scan():
        checked = _check(item, class_names, template) if isinstance(item, Record) else item
        # Names and texts from strangers may hold lone surrogates, which no table can store.
        if isinstance(checked, Reject):
            yield replace(checked, key=_storable(checked.key), reason=_storable(checked.reason))
        else:
            yield replace(checked, key=_storable(checked.key))


def _check(record: Record, class_names: Sequence[str] | None, template: str) -> Record | Reject:
    captions = [caption for text in record.captions if (caption := text.strip())]
    hint = ""
    if record.label is not None and class_names is not None:
        if record.label >= len(class_names):
            reason = f"class {record.label} is not one of the {len(class_names)} classes that have names"
            return Reject(record.source, record.key, reason)
        captions = captions or [template.format(class_names[record.label])]
    elif record.label is not None:
        hint = f"; it has class {record.label}: name the classes with --classes to make captions"
    if not captions:
        return Reject(record.source, record.key, f"no caption{hint}")
    if any(_storable(caption) != caption for caption in captions):
        return Reject(record.source, record.key, "a caption is not UTF-8")
    if record.image.size == 0:
        return Reject(record.source, record.key, "the image is empty (0 bytes)")
    if record.image.size > MAX_IMAGE_BYTES:
        reason = f"the image has {record.image.size >> 20} MiB; {MAX_IMAGE_BYTES >> 20} MiB are allowed"
        return Reject(record.source, record.key, reason)
    columns = {_storable(k): _storable(v) if isinstance(v, str) else v for k, v in record.columns.items()}
    return replace(record, captions=captions, columns=columns)


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _expand(name: str) -> list[Path]:
    if "{" not in name or os.path.exists(name):
        return [Path(name)]
    from braceexpand import braceexpand  # webdataset's own, without its import of torch

    try:
        return [Path(part) for part in braceexpand(name)]
    except ValueError:
        raise CoreclipError(f"{name} has a brace without its partner; a pattern is NAME-{{00..04}}.tar") from None


def _open(path: Path, class_names: Sequence[str] | None) -> dict[Path, Source]:
    """Return the sources that ``path`` means, each under the file that stands for it."""
    if not path.exists():
        raise CoreclipError(f"no source at {path}: it does not exist; sources are local paths of: {KINDS}")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() == ".tar":
        return {path: TarSource(path)}
    if path.suffix.lower() in TABLE_SUFFIXES:
        return {path: TableSource(path, path.parent)}
    if "idx3" in path.name:
        if class_names is None:
            raise CoreclipError(
                f"{path} holds class numbers, no captions; name the classes in their order, e.g. --classes cat,dog"
            )
        return {path: find_labels(path)}
    raise CoreclipError(f"{path} is of no known kind; known: {KINDS}")


def _open_folder(folder: Path) -> dict[Path, Source]:
    archives = sorted(folder.glob("*.tar"))
    if archives:
        return {archive: TarSource(archive) for archive in archives}
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    if len(tables) == 1:
        return {tables[0]: TableSource(tables[0], folder)}
    if tables:
        names = ", ".join(table.name for table in tables)
        raise CoreclipError(f"{folder} holds {len(tables)} tables ({names}); name one with --captions TABLE")
    if any("idx3" in path.name for path in folder.iterdir()):
        raise CoreclipError(f"{folder} holds IDX files; name the NAME-images-idx3-ubyte.gz file itself")
    raise CoreclipError(f"{folder} holds no .tar and no captions table; known sources: {KINDS}")


def _table_of_folder(paths: list[Path], table: Path) -> TableSource:
    if len(paths) != 1 or not paths[0].is_dir():
        names = ", ".join(map(str, paths))
        raise CoreclipError(
            f"--captions {table} belongs to one folder of images, not to {names}; name the folder alone"
        )
    if not table.is_file() or table.suffix.lower() not in TABLE_SUFFIXES:
        what = "is of no known kind" if table.is_file() else "is not a file"
        raise CoreclipError(f"--captions {table} {what}; it must be one of {', '.join(TABLE_SUFFIXES)}")
    return TableSource(table, paths[0])
