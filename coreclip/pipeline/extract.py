"""Single pairs out of a data set: the stored image as a file, and all that is known about the pair."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.export import to_png
from coreclip.pipeline.rows import PairsReader, own_columns

_SUFFIXES = {"jpg": (".jpg", ".jpeg"), "raw": (".png",)}


def extract(
    dataset: str | os.PathLike[str] | Dataset,
    index: int | Sequence[int],
    out: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Describe pairs, and write their images where ``out`` is given.

    Parameters
    ----------
    dataset : path or Dataset
    index : int, or sequence of int
    out : path, optional
        For one pair a file to write, with the suffix .jpg (.png for raw pixels), or a folder; for several a folder, in
        which the images are called INDEX.jpg. A JPEG is written as it is stored. No file is replaced.

    Returns
    -------
    list of dict
        For each pair ``index``, ``key``, ``captions``, ``decoded_tokens`` (the texts that a model sees), ``label`` and
        ``class_name`` (or None), ``shard``, ``row``, ``mode``, ``width``, ``height``, ``bytes``, ``content_hash``,
        ``warning``, ``transcoded``, ``source``, ``columns`` (of the sources), ``file`` (written, or None).

    Raises
    ------
    CoreclipError
        For an index that is not in the data set, and an ``out`` that exists or has another suffix.
    """
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    indices = [index] if isinstance(index, int | np.integer) else list(index)
    if not indices:
        raise CoreclipError(f"no index is named: name one or more of 0 to {opened.n - 1}")
    tokens = opened.stored_tokens(indices)
    with PairsReader(opened) as reader:
        facts = [reader.read(i, i + 1).to_pylist()[0] for i in map(int, indices)]
    texts = _decode(opened, tokens)
    found = [_describe(opened, fact, decoded) for fact, decoded in zip(facts, texts, strict=True)]
    if out is not None:
        _write(opened, found, Path(out), several=len(indices) > 1)
    return found


def _describe(dataset: Dataset, fact: dict[str, Any], decoded: list[str]) -> dict[str, Any]:
    own = own_columns()
    label, names = fact.get("label"), dataset.class_names
    index = fact["index"]
    captions = dataset.captions(index)
    if captions != fact["captions"]:
        raise CoreclipError(
            f"pair {index} of {dataset.path} has other captions in its shard than in pairs.parquet; run coreclip verify"
        )
    described = {name: fact[name] for name in sorted(own - {"label"})}
    return {
        **described,
        "label": label,
        "class_name": names[label] if names and label is not None and 0 <= label < len(names) else None,
        "decoded_tokens": decoded[: len(captions)],
        "columns": {name: value for name, value in fact.items() if name not in own},
        "file": None,
    }


def _decode(dataset: Dataset, tokens: np.ndarray) -> list[list[str]]:
    """Return the texts of token arrays, uint16 (b, captions_per_row, context)."""
    from tokenizers import Tokenizer, decoders

    tokenizer = dataset.tokenizer()
    backend = Tokenizer.from_str(tokenizer.serialised)
    backend.decoder = decoders.ByteLevel()

    def text(ids: list[int]) -> str:
        if tokenizer.end not in ids:
            return ""  # the place of a caption that the pair has not
        words = backend.decode(ids[1 : ids.index(tokenizer.end)], skip_special_tokens=False)
        return (words.replace("</w>", " ") if tokenizer.is_clip else words).strip()

    return [[text(ids) for ids in row] for row in tokens.tolist()]


def _write(dataset: Dataset, found: list[dict[str, Any]], out: Path, *, several: bool) -> None:
    as_folder = several or out.is_dir() or not out.suffix
    files = [out / f"{fact['index']:08d}{_SUFFIXES[fact['mode']][0]}" if as_folder else out for fact in found]
    for fact, file in zip(found, files, strict=True):
        allowed = _SUFFIXES[fact["mode"]]
        if file.suffix.lower() not in allowed:
            raise CoreclipError(
                f"--out {file} does not fit: the image of pair {fact['index']} is stored as "
                f"{'a JPEG' if fact['mode'] == 'jpg' else 'raw pixels'}; name a file that ends with {allowed[0]}"
            )
    if as_folder and out.exists() and not out.is_dir():
        raise CoreclipError(f"--out {out} is a file; the images of several pairs need a folder")
    for file in files:
        if os.path.lexists(file):
            raise CoreclipError(f"--out {file} exists; nothing of yours is replaced; remove it or name another one")
    for fact, file in zip(found, files, strict=True):
        stored = dataset.image_bytes(fact["index"])
        with atomic_path(file) as temporary:
            content = stored if fact["mode"] == "jpg" else to_png(stored, fact["width"], fact["height"])
            temporary.write_bytes(content)
        fact["file"] = str(file)
