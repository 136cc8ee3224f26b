"""Several data sets as one: shards copied and numbered on, tokens and class numbers brought together."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.assemble import SHARD_BYTES, Layout, Part, assemble, check_shard_bytes, check_space
from coreclip.pipeline.dataset import Dataset, read_table
from coreclip.pipeline.groups import image_codes
from coreclip.pipeline.publishing import derived_request, new_folder
from coreclip.pipeline.rows import batches
from coreclip.pipeline.tokenizer import open_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa


def merge(
    datasets: Sequence[str | os.PathLike[str] | Dataset],
    out: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    drop_duplicates: bool = False,
    drop_labels: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write the pairs of several data sets, one data set after the other, as a new one.

    Images and captions are copied as they are stored. Tokens are too, unless a data set was made with another tokenizer
    or context than the first one: its captions are then encoded anew. Classes of one name get one number, the first data
    set's. Columns that one data set lacks are null for its pairs.

    Parameters
    ----------
    datasets : sequence of path or Dataset
        Two or more; all with labels, or none.
    out : path
        The folder to make; must not exist.
    tokenizer : path, optional
        As ``convert`` takes it; by default the first data set's.
    drop_duplicates : bool
        Leave out pairs whose source image an earlier pair has; they are listed in ``rejects.parquet``.
    drop_labels : bool
        Make a data set without labels.
    shard_bytes : int
        Image bytes at which a shard ends that is not copied whole.

    Returns
    -------
    dict
        ``pairs``, ``duplicates`` (pairs whose source image an earlier one has), ``dropped``, ``retokenised`` (data sets
        whose captions were encoded anew), ``shards``, ``shards_copied``, ``bytes_out``, ``fingerprint``, ``seconds``.

    Raises
    ------
    CoreclipError
        For labels or class names that do not fit together, an ``out`` that exists, and a data set that is damaged.
    """
    start = time.monotonic()
    opened = [each if isinstance(each, Dataset) else Dataset(each) for each in datasets]
    if len(opened) < 2:
        raise CoreclipError(f"{len(opened)} data set can't be merged: name two or more, then the output")
    layout = united_layout(opened, tokenizer=tokenizer, drop_labels=drop_labels, shard_bytes=shard_bytes)
    repeats = _repeats(opened)
    ends = np.cumsum([0, *(dataset.n for dataset in opened)])
    parts, rejects = [], []
    for first, stop, dataset in zip(ends, ends[1:], opened, strict=False):
        original = repeats[first:stop]
        kept = np.flatnonzero(original < 0) if drop_duplicates else np.arange(dataset.n)
        parts.append(Part(dataset=dataset, indices=kept, classes=class_numbers(dataset, layout)))
        rejects.append(read_table(dataset.path / "rejects.parquet", ["source", "key", "reason"]))
    if drop_duplicates:
        rejects.append(_dropped(opened, ends, repeats))
    with new_folder(out) as folder:
        check_space(out, parts)
        request = derived_request("merge", opened, drop_duplicates=drop_duplicates, drop_labels=drop_labels)
        kept_parts = [part for part in parts if len(part.indices)]
        info = assemble(folder, kept_parts, layout, request=request, rejects=rejects, label="merging")
    n_repeats = int((repeats >= 0).sum())
    return {
        "pairs": info["pairs"],
        "duplicates": n_repeats,
        "dropped": n_repeats if drop_duplicates else 0,
        "retokenised": sum(not _same_tokens(dataset, layout) for dataset in opened),
        "shards": len(info["shards"]),
        "shards_copied": info["copied"],
        "bytes_out": info["bytes_out"],
        "fingerprint": info["fingerprint"],
        "seconds": round(time.monotonic() - start, 3),
    }


def united_layout(
    datasets: Sequence[Dataset],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    drop_labels: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Layout:
    """Return the layout of one data set that holds all of these: the first one's, with room for every caption.

    Raises
    ------
    CoreclipError
        For labels or class names that do not fit together.
    """
    first = datasets[0]
    chosen = first.tokenizer() if tokenizer is None else open_tokenizer(tokenizer)
    labels = not drop_labels and _all_labelled(datasets)
    if labels:
        _check_class_names(datasets)
    return Layout(
        tokenizer=chosen,
        context=first.context,
        captions_per_row=max(dataset.captions_per_row for dataset in datasets),
        labels=labels,
        class_names=first.class_names if labels else None,
        shard_bytes=check_shard_bytes(shard_bytes),
    )


def class_numbers(dataset: Dataset, layout: Layout) -> np.ndarray | None:
    """Return the number that each class of ``dataset`` has in ``layout``, int64 (classes,); None where all stay."""
    if layout.class_names is None or dataset.class_names in (None, layout.class_names):
        return None
    assert dataset.class_names is not None
    return np.array([layout.class_names.index(name) for name in dataset.class_names], np.int64)


def _all_labelled(datasets: Sequence[Dataset]) -> bool:
    labelled = ["label" in dataset.info["fields"] for dataset in datasets]
    if any(labelled) and not all(labelled):
        with_labels, without = datasets[labelled.index(True)], datasets[labelled.index(False)]
        raise CoreclipError(
            f"{with_labels.path} has class labels, {without.path} has none: all pairs of a data set have a label or none "
            f"has; leave the labels out with --drop-labels, or convert {without.path} again with --classes"
        )
    return all(labelled)


def _check_class_names(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if (first.class_names is None) != (other.class_names is None):
            named, bare = (first, other) if other.class_names is None else (other, first)
            raise CoreclipError(
                f"{named.path} names its classes, {bare.path} only numbers them, so they can't be told to be the same; "
                "convert the latter again with --classes, or leave the labels out with --drop-labels"
            )
        differing = sorted(set(first.class_names or ()) ^ set(other.class_names or ()))
        if differing:
            raise CoreclipError(
                f"{first.path} and {other.path} have different classes ({', '.join(differing[:5])} only in one); the "
                "names must be the same, in any order: convert one again with all names, or use --drop-labels"
            )


def _same_tokens(dataset: Dataset, layout: Layout) -> bool:
    return dataset.tokenizer_sha256 == layout.tokenizer.sha256 and dataset.context == layout.context


def _repeats(datasets: Sequence[Dataset]) -> np.ndarray:
    """Return for each pair of all data sets the first pair with the same source image, int64 (n,), -1 for that one itself."""
    codes = np.concatenate([image_codes(dataset) for dataset in datasets])
    order = np.argsort(codes, kind="stable")
    heads = np.append(True, codes[order][1:] != codes[order][:-1])
    original = np.empty(len(codes), np.int64)
    original[order] = order[np.maximum.accumulate(np.where(heads, np.arange(len(codes)), 0))]
    return np.where(original == np.arange(len(codes)), -1, original)


def _dropped(datasets: Sequence[Dataset], ends: np.ndarray, repeats: np.ndarray) -> "pa.Table":
    import pyarrow as pa

    sources: list[str] = []
    keys: list[str] = []
    for first, dataset in zip(ends, datasets, strict=False):
        at = 0
        for table in batches(dataset, ["source", "key"]):
            here = np.flatnonzero(repeats[first + at : first + at + table.num_rows] >= 0)
            sources += table.column("source").take(here).to_pylist()
            keys += table.column("key").take(here).to_pylist()
            at += table.num_rows
    originals = repeats[repeats >= 0]
    numbers = np.searchsorted(ends, originals, side="right") - 1
    reasons = [
        f"the same image as pair {original - ends[number]} of {datasets[number].path.name}"
        for original, number in zip(originals.tolist(), numbers.tolist(), strict=True)
    ]
    return pa.table({"source": sources, "key": keys, "reason": reasons})
