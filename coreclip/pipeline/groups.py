"""Which pairs share an image or a caption, told by 64-bit codes of hashes so that ten million pairs fit in memory."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.rows import batches


def image_codes(dataset: Dataset) -> np.ndarray:
    """Return 64 bits of the SHA-256 of each pair's source image, uint64 (n,).

    Of ten million images, two different ones have the same code with a probability of 3e-6.
    """
    codes = np.empty(dataset.n, np.uint64)
    at = 0
    for table in batches(dataset, ["content_hash"]):
        texts = table.column("content_hash").to_pylist()
        codes[at : at + len(texts)] = [text_code(str(text)) for text in texts]
        at += len(texts)
    return codes


def caption_codes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return a code of each caption and the pair that it belongs to.

    Captions are compared in lower case, trimmed, and with single spaces.

    Returns
    -------
    codes : uint64 (captions,)
    pairs : int64 (captions,)
        Ascending.
    """
    codes, pairs, first = [], [], 0
    for table in batches(dataset, ["captions"]):
        lists = table.column("captions").to_pylist()
        codes.append(np.fromiter(_caption_codes(lists), np.uint64))
        pairs.append(np.repeat(np.arange(first, first + len(lists)), [len(texts) for texts in lists]))
        first += len(lists)
    return np.concatenate(codes), np.concatenate(pairs)


def components(links: Sequence[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """Return the number of the group of each pair, int64 (n,), where pairs that share a code are in one group.

    Parameters
    ----------
    links : sequence of (codes uint64 (m,), pairs int64 (m,))
        One for each kind of code.
    n : int
        Pairs.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns, width = [], [], n
    for codes, pairs in links:
        distinct, place = np.unique(codes, return_inverse=True)
        rows.append(pairs)
        columns.append(width + place)
        width += len(distinct)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row), bool), (row, column)), shape=(width, width))
    return np.asarray(connected_components(graph, directed=False)[1][:n], np.int64)


def normalise_caption(text: str) -> str:
    """Return a caption in lower case, trimmed, with single spaces."""
    return " ".join(text.split()).lower()


def _caption_codes(lists: list[list[str]]) -> Iterator[int]:
    return (text_code(normalise_caption(text)) for texts in lists for text in texts)


def text_code(text: str) -> int:
    """Return 64 bits of a hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")
