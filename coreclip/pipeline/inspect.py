"""What a converted data set holds: counts, sizes, lengths, duplicates and warnings, from its tables alone.

No image is decoded and no shard is mapped, so that millions of pairs take seconds. Left out: the check of stored bytes.
"""

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.pipeline.dataset import Dataset, read_table

if TYPE_CHECKING:
    import pandas as pd

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
    pairs = opened.columns(["width", "height", "bytes", "content_hash", "warning", "mode", "transcoded"]).to_pandas()
    reasons = read_table(opened.path / "rejects.parquet", ["reason"]).to_pandas()["reason"]
    texts, offsets = opened.all_captions()
    words = [text.split() for text in texts]
    return {
        "pairs": opened.n,
        "rejected": len(reasons),
        "reject_reasons": _counts(reasons),
        "bytes": {"shards": sum(shard["bytes"] for shard in shards), "images": int(pairs["bytes"].sum())},
        "shards": shards,
        "image_width": _quantiles(pairs["width"].to_numpy()),
        "image_height": _quantiles(pairs["height"].to_numpy()),
        "image_modes": _counts(pairs["mode"]),
        "resolution": _histogram(pairs[["width", "height"]].min(axis=1).to_numpy(), _RESOLUTION_EDGES),
        "captions": _describe_captions(np.diff(offsets), np.array([len(line) for line in words])),
        "duplicates": {
            "images": int(pairs["content_hash"].duplicated().sum()),
            "captions": len(texts) - len({" ".join(line).lower() for line in words}),
        },
        "vocabulary": {
            "words": len({word.lower() for line in words for word in line}),
            "tokens": opened.tokenizer().vocab_size,
        },
        "warnings": _counts(pairs["warning"][pairs["warning"] != ""]),
        "transcoded": int(pairs["transcoded"].sum()),
        "classes": _class_counts(opened),
        "context": opened.context,
        "fingerprint": opened.fingerprint,
        "tokenizer_sha256": opened.tokenizer_sha256,
    }


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


def _counts(values: "pd.Series") -> dict[str, int]:
    """Count equal texts, the most frequent first, ties in alphabetical order."""
    counts = {str(text): int(count) for text, count in values.value_counts().items()}
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
