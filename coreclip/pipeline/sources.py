"""Finds the sources that a user names and turns each sample into a checked record.

Each kind of source has a module of its own beside this one. Left out: remote sources other than archives.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from coreclip.errors import CoreclipError
from coreclip.pipeline.classfolders import open_class_folder
from coreclip.pipeline.coco import CocoSource, find_captions, find_images
from coreclip.pipeline.datasets import BetonSource, open_dataset
from coreclip.pipeline.idx import find_labels
from coreclip.pipeline.parquets import find_image_column, open_parquet
from coreclip.pipeline.recordio import RecordioSource
from coreclip.pipeline.records import MAX_IMAGE_BYTES, Record, Reject, Source
from coreclip.pipeline.remote import is_url, open_url
from coreclip.pipeline.tables import TABLE_SUFFIXES, TableSource
from coreclip.pipeline.tars import open_tar
from coreclip.pipeline.tfrecords import open_tfrecord

KINDS = (
    "WebDataset .tar files (or a folder of them, a pattern like train-{00000..00004}.tar, a URL), also img2dataset's, a "
    "folder of images with one captions table (.csv, .tsv, .jsonl, .parquet, COCO's .json; or the table itself), class "
    "folders ROOT/CLASS/NAME.jpg or a .tar of them, parquet files of images as Hugging Face has them, .tfrecord, MXNet's "
    ".rec, an IDX NAME-images-idx3-ubyte.gz, a .beton file or a data set"
)
_TFRECORD = re.compile(r"\.tfrecords?(-\d+-of-\d+)?$|-\d{5}-of-\d{5}$", re.IGNORECASE)
_SPLIT = re.compile(r"^(train|validation|val|dev|test)\b", re.IGNORECASE)
_CAPTION_SUFFIXES = (*TABLE_SUFFIXES, ".json")

_Found = dict[str, Source]  # each source under the name of the one file or folder that stands for it


def find_sources(
    sources: Sequence[str | os.PathLike[str]],
    captions: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    cache: Path | None = None,
) -> list[Source]:
    """Return a source for each archive, table, folder or file that ``sources`` name.

    Parameters
    ----------
    sources : sequence of path, URL or brace pattern
    captions : path, optional
        Table of the one folder in ``sources``, if it lies elsewhere.
    class_names : sequence of str, optional
        IDX files need them; of class folders they give the order.
    cache : path, optional
        Folder for remote archives that can't be read piece by piece; by default one in the user's cache folder.

    Raises
    ------
    CoreclipError
        For a path that is missing, of an unknown kind or named twice, and for options that don't fit.

    Examples
    --------
    >>> find_sources(["train-{00000..00004}.tar", "https://host/more.tar"])  # doctest: +SKIP
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    names = [name for source in sources for name in _expand(os.fspath(source))]
    if not names:
        raise CoreclipError(f"no source is named; name at least one of: {KINDS}")
    if captions is not None:
        return [_table_of_folder([Path(name) for name in names], Path(captions))]
    known_classes = None if class_names is None else list(class_names)
    found: _Found = {}
    for name in names:
        opened: _Found = {name: open_url(name, cache)} if is_url(name) else _open(Path(name), known_classes)
        for file, source in opened.items():
            same = file if is_url(file) else os.path.realpath(file)
            if same in found:
                raise CoreclipError(f"{file} is named twice among the sources; each pair may come once; name it once")
            found[same] = source
    if known_classes is None:
        class_names_of(list(found.values()))
    return list(found.values())


def class_names_of(sources: Sequence[Source]) -> list[str] | None:
    """Return the names of the classes that the sources themselves know, in the order of their numbers; None for none.

    Raises
    ------
    CoreclipError
        Where two sources differ, so that one number would mean two classes.
    """
    known = [names for source in sources if (names := source.class_names) is not None]
    for names in known[1:]:
        if names != known[0]:
            only = sorted(set(names) ^ set(known[0])) or ["their order"]
            raise CoreclipError(
                f"the sources have different classes ({len(known[0])} and {len(names)}; one alone has {only[0]}), so that a "
                f"class number would mean two things; convert them one by one, or give all the same classes"
            )
    return known[0] if known else None


def scan(source: Source, class_names: Sequence[str] | None, template: str) -> Iterator[Record | Reject]:
    """Yield the samples of a source with clean captions; what can't become a pair comes as a reject.

    A record without a caption but with a label gets the caption ``template.format(class name)``.
    """
    own = source.class_names
    names = own if class_names is None else class_names
    # Names of folders have underscores where people have spaces; what a user types is left as it is.
    words = names if own is None or names is None else [name.replace("_", " ") for name in names]
    for item in source.scan():
        checked = _check(item, words, template) if isinstance(item, Record) else item
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


def _expand(name: str) -> list[str]:
    if "{" not in name or name.startswith("pipe:") or os.path.exists(name):
        return [name]
    from braceexpand import braceexpand  # webdataset's own, without its import of torch

    try:
        return list(braceexpand(name))
    except ValueError:
        raise CoreclipError(f"{name} has a brace without its partner; a pattern is NAME-{{00..04}}.tar") from None


def _open(path: Path, class_names: list[str] | None) -> _Found:
    """Return the sources that ``path`` means, each under the file that stands for it."""
    if not path.exists():
        raise CoreclipError(f"no source at {path}: it does not exist; sources are URLs or local paths of: {KINDS}")
    if path.is_dir():
        return _open_folder(path, class_names)
    opener = _find_opener(path, class_names)
    if opener is None:
        raise CoreclipError(f"{path} is of no known kind; known: {KINDS}")
    return {str(path): opener()}


def _find_opener(path: Path, class_names: list[str] | None) -> Callable[[], Source] | None:
    """Return what opens a file, by its name."""
    suffix = path.suffix.lower()
    if suffix == ".parquet" and (image := find_image_column(path)) is not None:
        return lambda: open_parquet(path, image)
    by_suffix: dict[str, Callable[[], Source]] = {
        ".tar": lambda: open_tar(path, class_names),
        ".json": lambda: CocoSource(path, find_images(path)),
        ".rec": lambda: RecordioSource(path),
        ".beton": lambda: BetonSource(path),
        **{table: lambda: TableSource(path, path.parent) for table in TABLE_SUFFIXES},
    }
    if suffix in by_suffix:
        return by_suffix[suffix]
    if _TFRECORD.search(path.name):
        return lambda: open_tfrecord(path)
    return (lambda: _open_idx(path, class_names)) if "idx3" in path.name else None


def _open_idx(path: Path, class_names: list[str] | None) -> Source:
    if class_names is None:
        raise CoreclipError(
            f"{path} holds class numbers, no captions; name the classes in their order, e.g. --classes cat,dog"
        )
    return find_labels(path)


def _open_folder(folder: Path, class_names: list[str] | None) -> _Found:
    if (folder / "dataset.json").is_file() and any(folder.glob("*.beton")):  # others call tables so too
        return {str(folder): open_dataset(folder)}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for chosen in (
        [path for path in files if path.suffix.lower() == ".tar"],
        _image_parquets(folder, files),
        [path for path in files if _TFRECORD.search(path.name)],
        [path for path in files if path.suffix.lower() == ".rec"],
        [path for path in files if path.suffix.lower() == ".beton"],
    ):
        if chosen:
            return {name: source for path in chosen for name, source in _open(path, class_names).items()}
    tables = [path for path in files if path.suffix.lower() in TABLE_SUFFIXES]
    coco = find_captions(folder, files)
    if len(tables) + len(coco) > 1:
        names = ", ".join(table.name for table in tables + coco)
        raise CoreclipError(f"{folder} holds {len(tables + coco)} tables ({names}); name one with --captions TABLE")
    if tables:
        return {str(tables[0]): TableSource(tables[0], folder)}
    if coco:
        return {str(coco[0]): CocoSource(coco[0], find_images(coco[0]) if coco[0].parent != folder else folder)}
    if any("idx3" in path.name for path in files):
        raise CoreclipError(f"{folder} holds IDX files; name the NAME-images-idx3-ubyte.gz file itself")
    classes = open_class_folder(folder, class_names)
    if classes is not None:
        return {str(folder): classes}
    raise CoreclipError(f"{folder} holds no .tar, no captions table and no class folders; known sources: {KINDS}")


def _image_parquets(folder: Path, files: list[Path]) -> list[Path]:
    """Return the parquet files with images in a folder, or in its ``data`` as on the Hugging Face hub."""
    deeper = sorted((folder / "data").glob("*.parquet")) if (folder / "data").is_dir() else []
    own = [path for path in files if path.suffix.lower() == ".parquet" and find_image_column(path) is not None]
    found = own or [path for path in deeper if find_image_column(path) is not None]
    splits = sorted({match[1].lower() for path in found if (match := _SPLIT.search(path.name))})
    if len(splits) > 1:
        raise CoreclipError(
            f"{found[0].parent} holds several splits ({', '.join(splits)}); name the files of one, "
            f"e.g. {found[0].parent}/{splits[0]}-*.parquet"
        )
    return found


def _table_of_folder(paths: list[Path], table: Path) -> Source:
    if len(paths) != 1 or not paths[0].is_dir():
        names = ", ".join(map(str, paths))
        raise CoreclipError(
            f"--captions {table} belongs to one folder of images, not to {names}; name the folder alone"
        )
    if not table.is_file() or table.suffix.lower() not in _CAPTION_SUFFIXES:
        what = "is of no known kind" if table.is_file() else "is not a file"
        raise CoreclipError(f"--captions {table} {what}; it must be one of {', '.join(_CAPTION_SUFFIXES)}")
    return CocoSource(table, paths[0]) if table.suffix.lower() == ".json" else TableSource(table, paths[0])
