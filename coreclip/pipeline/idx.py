"""IDX files, the format of MNIST and its kin (yann.lecun.com/exdb/mnist): grey images and their class numbers."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import ImageReference, Record, Reject, SplitSource, file_identity, unpacked

_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801


@dataclass(frozen=True)
class IdxSource(SplitSource):
    """A file of images with its file of labels, found by name."""

    images: Path
    labels: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return path, size and modification time of both files."""
        return [file_identity(self.images), file_identity(self.labels)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield each image with its label; what a truncated file lacks is one reject."""
        labels = _read(self.labels, _LABELS_MAGIC, 1)[1]
        (n, height, width), pixels = _read(self.images, _IMAGES_MAGIC, 3)
        size, path = height * width, str(self.images.resolve())
        if size == 0:
            raise CoreclipError(f"{self.images} holds images of {height} x {width} pixels; they must have some")
        whole = min(n, len(pixels) // size, len(labels))
        for i in range(*self.part.bounds(whole)):
            image = ImageReference(path, 16 + i * size, size, height, width, 1, "unpacked")
            yield Record(f"{i:08d}", image, [], int(labels[i]), {}, self.images.name)
        if whole < n and self.part.is_last:
            yield Reject(self.images.name, "", f"{n} images are announced, but only {whole} have pixels and a label")


def find_labels(images: Path) -> IdxSource:
    """Pair an IDX file of images with the labels file beside it: ``images`` and ``idx3`` become ``labels``, ``idx1``."""
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == images or not labels.is_file():
        raise CoreclipError(
            f"{images} has no labels file beside it ({labels.name}); an IDX source is NAME-images-idx3-ubyte.gz "
            f"with NAME-labels-idx1-ubyte.gz in the same folder"
        )
    _read(images, _IMAGES_MAGIC, 3)
    _read(labels, _LABELS_MAGIC, 1)
    return IdxSource(images, labels)


def _read(path: Path, magic: int, dimensions: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape that an IDX file announces and the uint8 values that it has."""
    try:
        data = unpacked(str(path.resolve()))
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CoreclipError(
            f"{path} can't be unpacked ({error}); it must be an IDX file, whole; fetch it again"
        ) from None
    header = np.frombuffer(data[: 4 * (1 + dimensions)], dtype=np.uint8)
    if header.size < 4 * (1 + dimensions) or int.from_bytes(data[:4], "big") != magic:
        raise CoreclipError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes (it starts with {data[:4].hex()}, "
            f"not {magic:08x}); check the file"
        )
    shape = tuple(int(value) for value in header[4:].view(">u4"))
    return shape, np.frombuffer(data, dtype=np.uint8, offset=4 * (1 + dimensions))
