"""Large data sets for measurements, made in seconds: valid, but with few different pictures and captions."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from coreclip.files import sha256_file, write_json
from coreclip.pipeline import beton
from coreclip.pipeline.beton import MIN_PAGE, ShardWriter, field_names
from coreclip.pipeline.tokenizer import Tokenizer

CONTEXT = 16
CAPTION = "a photo"
SIDE = 8
ROWS_PER_SHARD = 1 << 17


def draw_jpegs(n: int, width: int = 500, height: int = 375) -> list[bytes]:
    """Return n JPEGs with texture at every scale, about as large as photographs are (100 KB)."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(n):
        image = np.zeros((height, width, 3))
        for side in (4, 16, 64, 256):
            layer = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
            image += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) * (16 / side) ** 0.7
        image += rng.normal(0, 58, (height, width, 1))
        buffer = io.BytesIO()
        Image.fromarray(np.uint8(np.clip(image / 4, 0, 255))).save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
    return jpegs


def write_photos(path: Path, n_bytes: int, *, raw: bool = False, shard_bytes: int = 1 << 28) -> int:
    """Write a data set of about ``n_bytes``: photographs as JPEG, each with a comment of its own, or as raw pixels.

    Raw ones have 192 x 192 pixels, 110 KB, and cost so little to decode that the disk decides how fast they are read.
    Returns the number of pairs.
    """
    path.mkdir(parents=True)
    side = 192
    images = [np.random.default_rng(0).bytes(3 * side * side)] if raw else draw_jpegs(200)
    n = max(1, n_bytes // (sum(map(len, images)) // len(images)))
    per_shard = max(1, n * shard_bytes // n_bytes)
    tokenizer = _write_tokenizer(path)
    tokens = np.asarray(tokenizer.encode([CAPTION], CONTEXT), np.uint16)
    rows = []
    for number, first in enumerate(range(0, n, per_shard)):
        count = min(per_shard, n - first)
        with ShardWriter(
            path / f"{number:05d}.beton", captions_per_row=1, context=CONTEXT, labels=False, max_rows=count
        ) as writer:
            for index in range(first, first + count):
                image, own = images[index % len(images)], index.to_bytes(8, "little")
                if raw:
                    writer.add(own + image[8:], "raw", side, side, [CAPTION], tokens, index)
                else:
                    stored = image[:2] + b"\xff\xfe\x00\x0a" + own + image[2:]
                    writer.add(stored, "jpg", 500, 375, [CAPTION], tokens, index)
        rows.append(count)
    _finish(path, rows, tokenizer)
    return n


def write_many_rows(path: Path, n: int) -> None:
    """Write a data set of n raw pictures of 8 x 8 pixels, shard by shard, with a few copies of whole arrays."""
    path.mkdir(parents=True)
    tokenizer = _write_tokenizer(path)
    tokens = np.asarray(tokenizer.encode([CAPTION], CONTEXT), np.uint16)
    counts = [min(ROWS_PER_SHARD, n - first) for first in range(0, n, ROWS_PER_SHARD)]
    for number, count in enumerate(counts):
        with open(path / f"{number:05d}.beton", "wb") as file:
            for start, block in _blocks(number * ROWS_PER_SHARD, count, tokens):
                file.seek(start)
                file.write(block)
    _finish(path, counts, tokenizer)


def _blocks(first: int, count: int, tokens: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of a shard's file with their addresses."""
    text = beton.encode_captions([CAPTION])
    record = np.dtype(
        [("tokens", "<u2", CONTEXT), ("captions", f"S{len(text)}"), ("image", "u1", 3 * SIDE * SIDE)], align=False
    )
    stride = -(-record.itemsize // 8) * 8
    record = np.dtype({"names": record.names, "formats": [record[name] for name in record.names],
                       "offsets": [record.fields[name][1] for name in record.names], "itemsize": stride})  # fmt: skip
    kind = beton._metadata_type(False)
    per_page = MIN_PAGE // stride
    n_pages = -(-count // per_page)
    pages = -(-(beton._metadata_start(False) + count * kind.itemsize) // MIN_PAGE) * MIN_PAGE
    row = np.arange(count)
    address = pages + row // per_page * MIN_PAGE + row % per_page * stride
    data = np.zeros(per_page, record)
    data["tokens"], data["captions"] = tokens[0], text
    for page in range(n_pages):
        part = row[page * per_page : (page + 1) * per_page]
        data["image"][: len(part)] = (first + part)[:, None] % 251
        yield pages + page * MIN_PAGE, data[: len(part)].tobytes()
    rows = np.zeros(count, kind)
    rows["image"]["mode"], rows["image"]["width"], rows["image"]["height"] = 1, SIDE, SIDE
    rows["tokens"], rows["index"] = address, first + row
    rows["captions"]["ptr"], rows["captions"]["size"] = address + record.fields["captions"][1], len(text)
    rows["image"]["ptr"] = address + record.fields["image"][1]
    table = np.zeros((count, 3), beton.ALLOCATION)
    table["sample_id"] = row[:, None]
    table["ptr"] = np.stack([rows["tokens"], rows["captions"]["ptr"], rows["image"]["ptr"]], axis=1)
    table["size"] = [CONTEXT * 2, len(text), 3 * SIDE * SIDE]
    end = pages + n_pages * MIN_PAGE
    header = np.array([(2, len(field_names(False)), MIN_PAGE, count, end)], beton.HEADER)
    yield 0, header.tobytes() + beton._descriptors(False, (1, CONTEXT)).tobytes() + rows.tobytes()
    yield end, table.tobytes()


def _write_tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.train([CAPTION], 300)
    tokenizer.save(path / "tokenizer.json")
    return tokenizer


def _finish(path: Path, rows: list[int], tokenizer: Tokenizer) -> None:
    """Write the tables and the description of shards that have so many rows."""
    first = 0
    with pq.ParquetWriter(
        path / "pairs.parquet",
        pa.schema({"index": pa.int64(), "key": pa.string(), "captions": pa.list_(pa.string()), "warning": pa.string()}),
    ) as table:
        for count in rows:
            index = np.arange(first, first + count)
            keys = pa.array(np.char.mod("%09d", index)).cast(pa.string())
            captions = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), pa.array([CAPTION] * count))
            columns = {"index": index, "key": keys, "captions": captions, "warning": pa.array([""] * count)}
            table.write_table(pa.table(columns))
            first += count
    pq.write_table(
        pa.table({name: pa.array([], pa.string()) for name in ("source", "key", "reason")}), path / "rejects.parquet"
    )
    shards = [
        {"file": file.name, "rows": count, "bytes": file.stat().st_size, "sha256": ""}
        for count, file in zip(rows, sorted(path.glob("*.beton")), strict=True)
    ]
    info = {
        "format_version": 1, "n": first, "fields": field_names(False), "shards": shards, "context": CONTEXT,
        "captions_per_row": 1, "tokenizer_sha256": tokenizer.sha256, "class_names": None,
        "fingerprint": hashlib.sha256(str(rows).encode()).hexdigest(), "pairs_sha256": sha256_file(path / "pairs.parquet"),
        "rejects_sha256": sha256_file(path / "rejects.parquet"), "pairs": first, "rejected": 0, "bytes_in": 0,
        "bytes_out": sum(shard["bytes"] for shard in shards), "convert": {"sources": [], "options": {}, "version": "0"},
    }  # fmt: skip
    write_json(path / "dataset.json", info)
