"""Small data sets for tests, written row by row without ``convert``, and a run that learns them by heart."""

import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.files import sha256_file, write_json
from coreclip.pipeline.beton import ShardWriter, field_names
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.tokenizer import Tokenizer

WORDS = ("red", "green", "blue", "round", "small", "large", "dog", "cat", "boat", "house")
BY_HEART = Config(
    data=DataConfig(image_size=16, batch_size=6, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, signals=False),
)
CLASSES = ("red", "dog", "house", "boat", "cat", "blue")


def make_pixels(index: int, width: int = 48, height: int = 32) -> np.ndarray:
    """Return a smooth picture, uint8 (height, width, 3), another one for each index."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + index % 7) + channel + index) + np.cos(y / (4 + channel) - index) for channel in range(3)]
    return (127.5 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def encode_jpeg(pixels: np.ndarray, quality: int = 90, **options: Any) -> bytes:
    """Return ``pixels`` as a JPEG file made by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def make_captions(index: int, n_captions: int) -> list[str]:
    """Return ``n_captions`` texts that no other pair has."""
    return [f"a {WORDS[index % 10]} {WORDS[(index // 10 + j) % 10]} number {index} text {j}" for j in range(n_captions)]


def make_dataset(
    path: Path,
    n: int = 12,
    *,
    rows_per_shard: int = 5,
    captions_per_pair: Sequence[int] = (2,),
    size: tuple[int, int] | None = None,
    raw_every: int = 0,
    labels: Sequence[str] | None = None,
    warnings: dict[int, str] | None = None,
    rejects: Sequence[tuple[str, str, str]] = (),
    images: dict[int, bytes] | None = None,
    context: int = 16,
    copies: dict[int, int] | None = None,
) -> Dataset:
    """Write a valid data set at ``path`` (any test may use it) and open it.

    Pair i has the picture :func:`make_pixels` (JPEG, or raw pixels where ``raw_every`` divides i), the texts
    :func:`make_captions` (``captions_per_pair[i % len]`` of them), and the label i modulo the number of ``labels``.

    Parameters
    ----------
    size : (width, height) or None
        Pixels; None varies both.
    warnings : {index: text}
    rejects : sequence of (source, key, reason)
    images : {index: bytes}
        JPEG bytes in place of the picture's; the stored width and height stay the picture's.
    copies : {index: index}
        Pairs with the picture and the texts of another one.
    """
    path.mkdir(parents=True)
    originals = [(copies or {}).get(i, i) for i in range(n)]
    captions = [make_captions(i, captions_per_pair[i % len(captions_per_pair)]) for i in originals]
    tokenizer = Tokenizer.train([text for texts in captions for text in texts], 300)
    tokenizer.save(path / "tokenizer.json")
    m = min(max(captions_per_pair), 16)
    rows, shards = [], []
    for number, first in enumerate(range(0, n, rows_per_shard)):
        file = path / f"{number:05d}.beton"
        with ShardWriter(
            file, captions_per_row=m, context=context, labels=labels is not None, max_rows=rows_per_shard + 3
        ) as writer:
            for i in range(first, min(first + rows_per_shard, n)):
                original = originals[i]
                width, height = size or (48 + 8 * (original % 3), 32 + 8 * (original % 2))
                pixels = make_pixels(original, width, height)
                mode = "raw" if raw_every and i % raw_every == 0 else "jpg"
                stored = (images or {}).get(i) or (pixels.tobytes() if mode == "raw" else encode_jpeg(pixels))
                tokens = np.zeros((m, context), np.uint16)
                kept = captions[i][:m]
                tokens[: len(kept)] = tokenizer.encode(kept, context)
                label = None if labels is None else i % len(labels)
                writer.add(stored, mode, width, height, captions[i], tokens, i, label)
                row = {"index": i, "key": f"k{i:04d}", "shard": np.int32(number), "row": np.int32(i - first), "captions": captions[i],
                       "width": np.int32(width), "height": np.int32(height), "bytes": len(stored),
                       "content_hash": hashlib.sha256(stored).hexdigest(), "label": label,
                       "warning": (warnings or {}).get(i, ""), "mode": mode, "transcoded": False, "source": "made"}  # fmt: skip
                rows.append(row)
        shards.append(
            {"file": file.name, "rows": i + 1 - first, "bytes": file.stat().st_size, "sha256": sha256_file(file)}
        )
    table = pd.DataFrame(rows)
    (table if labels is not None else table.drop(columns="label")).to_parquet(path / "pairs.parquet", index=False)
    pd.DataFrame(rejects, columns=["source", "key", "reason"], dtype="str").to_parquet(
        path / "rejects.parquet", index=False
    )
    hashes = [*(shard["sha256"] for shard in shards), sha256_file(path / "pairs.parquet"), tokenizer.sha256]
    info = {
        "format_version": 1, "n": n, "fields": field_names(labels is not None), "shards": shards, "context": context,
        "captions_per_row": m, "tokenizer_sha256": tokenizer.sha256, "class_names": None if labels is None else list(labels),
        "fingerprint": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "pairs_sha256": sha256_file(path / "pairs.parquet"), "rejects_sha256": sha256_file(path / "rejects.parquet"),
        "pairs": n, "rejected": len(rejects), "bytes_in": 0, "bytes_out": sum(shard["bytes"] for shard in shards),
        "convert": {"sources": [], "options": {}, "version": "0"},
    }  # fmt: skip
    write_json(path / "dataset.json", info)
    return Dataset(path)


def one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Make batches one ahead of whoever asks for them, in a thread named "filler" that ends with the iteration."""
    end = object()
    with ThreadPoolExecutor(1, initializer=lambda: setattr(threading.current_thread(), "name", "filler")) as thread:
        made = thread.submit(next, batches, end)
        while (batch := made.result()) is not end:
            made = thread.submit(next, batches, end)
            yield batch
