"""The images of a data set that fit a text or another image best.

The features are made as they are needed, or come from FEATURES, mapped into memory; either way a chunk of them is looked at after the
other, and no more than the best are kept. Left out: approximate search, which a million images on one machine do not need.
"""

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError, check_utf8
from coreclip.pipeline import Dataset
from coreclip.training.clip_model import ClipModel
from coreclip.training.features import image_features, load_features
from coreclip.training.ranking import on_grid

_ROWS = 1 << 14
_QUERIES = 256  # that are scored at a time


def search(
    run: str | Path,
    dataset: Dataset,
    query: str,
    *,
    top: int = 10,
    features: str | Path | None = None,
    workers: int = 2,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return the ``top`` images for a text: the results of :func:`search_all` for one query."""
    found = search_all(run, dataset, [query], top=top, features=features, workers=workers, device=device)
    return found[0]["results"]


def search_all(
    run: str | Path,
    dataset: Dataset,
    queries: Sequence[str] = (),
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    top: int = 10,
    features: str | Path | None = None,
    workers: int = 2,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Find the ``top`` images for each of some texts and images, looking at the data set once.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    dataset : Dataset
    queries : sequence of str
    images : sequence of path
        Image files to find similar ones of; they need not be in the data set.
    top : int
        At most the data set's size many are returned.
    features : path, optional
        FEATURES of this data set by this run: nothing is embedded again.
    workers : int
        Decoding threads.
    device : {"cpu", "cuda", "cuda:N", "auto"}

    Returns
    -------
    list of dict
        A search each, the texts' first: ``query``, ``kind`` ("text" or "image"), and ``results``, best first, a tie by the lower index:
        ``rank`` from 1, ``index``, ``key``, ``score`` (cosine), ``captions``.

    Raises
    ------
    CoreclipError
        For no query or an empty one, an image that can't be read, ``top`` below 1, features of something else, or a run that can't be
        loaded.
    """
    if not queries and not images:
        raise CoreclipError("nothing is asked for; give a text, or an image by --image")
    for query in queries:
        check_query(query)
    check_top(top)
    clip = ClipModel.load(run, device)
    wanted = np.concatenate([clip.encode_text(list(queries)).cpu(), clip.encode_image(list(images)).cpu()])
    if features is not None:
        stored = load_features(features, run, clip, dataset).image
        assert stored is not None
        rows = _blocks(stored)
    else:
        rows = ((index, part.cpu().numpy()) for index, part in image_features(clip, dataset, workers=workers))
    best = _best(rows, wanted, top)
    kinds = [(query, "text") for query in queries] + [(os.fspath(path), "image") for path in images]
    return [
        {"query": query, "kind": kind, "results": _results(dataset, hits)}
        for (query, kind), hits in zip(kinds, best, strict=True)
    ]


def check_query(query: str) -> None:
    """Refuse a text that says nothing, or that no file and no terminal can hold."""
    if not query.strip():
        raise CoreclipError("the query is empty; it must say what to look for, e.g. 'a dog on a beach'")
    check_utf8(query, "the query")


def check_top(top: int) -> None:
    """Refuse to list nothing."""
    if top < 1:
        raise CoreclipError(f"top = {top} is not allowed: ask for at least 1")


def _blocks(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        yield np.arange(start, start + len(block)), block


def _best(
    rows: Iterable[tuple[np.ndarray, np.ndarray]], queries: np.ndarray, top: int
) -> list[list[tuple[float, int]]]:
    """Return the (score, index) of the best rows for each query (float32 (q, d)), the lower index first of equals."""
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    wanted = on_grid(queries)  # exact scores: equal rows tie wherever they lie in a block
    for index, block in rows:
        columns = on_grid(block).T
        for first in range(0, len(queries), _QUERIES):
            scores = (wanted[first : first + _QUERIES] @ columns).numpy()
            order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
            for q, places in enumerate(order):
                found = zip(scores[q, places].tolist(), index[places].tolist(), strict=True)
                merged = [*best[first + q], *found]
                best[first + q] = heapq.nsmallest(top, merged, key=lambda hit: (-hit[0], hit[1]))
    return best


def _results(dataset: Dataset, hits: list[tuple[float, int]]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "index": index,
            "key": str(dataset.keys[index]),
            "score": score,
            "captions": dataset.captions(index),
        }
        for rank, (score, index) in enumerate(hits, start=1)
    ]
