"""What a converted data set holds: counts, sizes, lengths, duplicates and warnings, from its tables alone.

No image is decoded and no shard is mapped. The table is read batch by batch; of each pair and caption a few numbers stay in
memory, so that ten million pairs take about 1 GB. Left out: the check of stored bytes (``verify``).
"""

import itertools
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.dataset import Dataset, read_table
from coreclip.pipeline.groups import normalise_caption, text_code
from coreclip.pipeline.rows import batches

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("width", "height", "bytes", "content_hash", "warning", "mode", "transcoded", "captions")
_QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
_RESOLUTION_EDGES = (1, 64, 128, 224, 336, 512, 1024, 2048)  # pixels of the shorter side
_COUNT_EDGES = (1, 2, 3, 4, 5, 6, 11)  # captions of a pair
_LENGTH_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)  # words of a caption


def inspect(dataset: str | os.PathLike[str] | Dataset) -> dict[str, Any]:
    """Describe a data set.

    Parameters
    ----------
    dataset : path or Dataset

    Returns
    -------
    dict
        Of JSON's types:

        - ``pairs``, ``rejected`` (counts), ``reject_reasons`` {reason: count};
        - ``bytes`` {shards, images} and ``shards`` (list of {file, rows, bytes});
        - ``image_width``, ``image_height`` (pixels: min, p5, p25, median, p75, p95, max, mean), ``image_modes`` {mode: count};
        - ``resolution`` {range of the shorter side in pixels: images};
        - ``captions`` {total, per_pair {range: pairs}, words {range: captions}, mean_words};
        - ``duplicates``: pairs whose source image, captions whose text (trimmed, in lower case), an earlier one has;
        - ``vocabulary`` {words: different words of the captions, tokens: entries of the tokenizer};
        - ``warnings`` {warning: pairs}, ``transcoded`` (pairs whose image was not stored as it came);
        - ``classes`` {name: pairs} or None, ``context``, ``fingerprint``, ``tokenizer_sha256``.

    Raises
    ------
    CoreclipError
        For a folder that is no data set, or lacks a file, or has a damaged one.
    """
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    shards = [{key: entry[key] for key in ("file", "rows", "bytes")} for entry in opened.info["shards"]]
    found = _Tally(opened.n)
    for table in batches(opened, [*_COLUMNS]):
        found.add(table, opened)
    width, height = found.pixels.T
    reasons = read_table(opened.path / "rejects.parquet", ["reason"]).to_pandas()["reason"]
    return {
        "pairs": opened.n,
        "rejected": len(reasons),
        "reject_reasons": _by_frequency(Counter(reasons)),
        "bytes": {"shards": sum(shard["bytes"] for shard in shards), "images": found.bytes},
        "shards": shards,
        "image_width": _quantiles(width),
        "image_height": _quantiles(height),
        "image_modes": _by_frequency(found.modes),
        "resolution": _histogram(np.minimum(width, height), _RESOLUTION_EDGES),
        "captions": _describe_captions(found.captions, np.concatenate(found.words)),
        "duplicates": {
            "images": opened.n - len(np.unique(found.images)),
            "captions": sum(map(len, found.texts)) - len(np.unique(np.concatenate(found.texts))),
        },
        "vocabulary": {"words": len(found.vocabulary), "tokens": opened.tokenizer().vocab_size},
        "warnings": _by_frequency(found.warnings),
        "transcoded": found.transcoded,
        "classes": _class_counts(opened),
        "context": opened.context,
        "fingerprint": opened.fingerprint,
        "tokenizer_sha256": opened.tokenizer_sha256,
    }


class _Tally:
    """What is kept of the batches: numbers for each pair and caption, and counts."""

    def __init__(self, n: int) -> None:
        self._next = 0
        self.pixels = np.empty((n, 2), np.int32)  # width, height
        self.captions = np.empty(n, np.int32)  # of a pair
        self.images = np.empty(n, np.uint64)  # codes of the source images
        self.words: list[np.ndarray] = []  # of each caption
        self.texts: list[np.ndarray] = []  # codes of the captions
        self.modes: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.vocabulary: set[str] = set()
        self.bytes = self.transcoded = 0

    def add(self, table: "pa.Table", dataset: Dataset) -> None:
        here = slice(self._next, self._next + table.num_rows)
        self._next = here.stop
        columns = {name: table.column(name).to_pylist() for name in table.schema.names}
        damaged = [name for name, values in columns.items() if None in values]
        if not damaged and not all(texts and None not in texts for texts in columns["captions"]):
            damaged = ["captions"]
        if damaged:
            raise CoreclipError(
                f"{dataset.path / 'pairs.parquet'} is damaged: {damaged[0]} has gaps, and each pair must have all of its "
                "values and one caption or more; convert again"
            )
        self.pixels[here] = np.stack([columns["width"], columns["height"]], axis=1)
        self.images[here] = [text_code(text) for text in columns["content_hash"]]
        self.captions[here] = [len(texts) for texts in columns["captions"]]
        self.modes.update(columns["mode"])
        self.warnings.update(warning for warning in columns["warning"] if warning)
        self.bytes += sum(columns["bytes"])
        self.transcoded += sum(columns["transcoded"])
        lines = [normalise_caption(text) for texts in columns["captions"] for text in texts]
        words = [line.split() for line in lines]
        self.words.append(np.array([len(line) for line in words], np.int32))
        self.texts.append(np.array([text_code(line) for line in lines], np.uint64))
        self.vocabulary.update(*words)


def _describe_captions(per_pair: np.ndarray, n_words: np.ndarray) -> dict[str, Any]:
    return {
        "total": len(n_words),
        "per_pair": _histogram(per_pair, _COUNT_EDGES),
        "words": _histogram(n_words, _LENGTH_EDGES),
        "mean_words": round(float(n_words.mean()), 2),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    measured = np.quantile(values, list(_QUANTILES.values()), method="nearest")
    return {**dict(zip(_QUANTILES, measured.tolist(), strict=True)), "mean": round(float(values.mean()), 1)}


def _histogram(values: np.ndarray, edges: tuple[int, ...]) -> dict[str, int]:
    """Count whole numbers per range; a range goes from one edge up to, not with, the next; none is below the first."""
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    names = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)]
    return dict(zip([*names, f"{edges[-1]} and more"], counts.tolist(), strict=True))


def _by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts of equal texts, the most frequent first, ties in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _class_counts(dataset: Dataset) -> dict[str, int] | None:
    labels = dataset.labels
    if labels is None:
        return None
    names = dataset.class_names
    if names is None:
        return _counts_of_numbers(labels)
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def _counts_of_numbers(labels: np.ndarray) -> dict[str, int]:
    numbers, counts = np.unique(labels, return_counts=True)
    return {str(number): int(count) for number, count in zip(numbers, counts, strict=True)}
