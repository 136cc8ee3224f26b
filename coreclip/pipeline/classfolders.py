"""Class folders ``ROOT/CLASS/NAME.jpg``, numbered by name as torchvision's ImageFolder does.

The folder directly below ROOT is the class, however deep an image lies below that. Left out: links.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import (
    IMAGE_SUFFIXES,
    ImageReference,
    Record,
    Reject,
    SplitSource,
    images_identity,
    walk_files,
)
from coreclip.pipeline.tars import order_classes

_SPLIT = re.compile(r"(train|training|val|valid|validation|dev|test|testing)[-_]?\d*", re.IGNORECASE)


@dataclass(frozen=True)
class ClassFolderSource(SplitSource):
    """A folder whose folders are classes."""

    root: Path
    classes: tuple[str, ...]

    @property
    def class_names(self) -> list[str]:
        """Names of the folders, sorted, or in the order that was asked for."""
        return list(self.classes)

    def identity(self) -> list[dict[str, Any]]:
        """Return a digest of names, sizes and modification times of all images below the folder."""
        return [images_identity(self.root)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the images of each class by name, the classes by name."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        n_images = sum(1 for _ in self._images()) if self.part.of > 1 else 0
        start, stop = self.part.bounds(n_images) if self.part.of > 1 else (0, -1)
        root = str(self.root.resolve())
        for place, path in enumerate(self._images()):
            if place == stop:
                return
            if place < start:
                continue
            key = os.path.relpath(path, self.root)
            label = numbers.get(key.split(os.sep, 1)[0])
            if label is None:
                yield Reject(self.root.name, key, "its folder is new: it was not there when the classes were counted")
                continue
            image = ImageReference(os.path.join(root, key), 0, os.stat(path).st_size)
            yield Record(key, image, [], label, {}, self.root.name)

    def _images(self) -> Iterator[str]:
        """Yield the path of every image that lies in a folder of the root."""
        for directory, name in walk_files(self.root):
            if name.lower().endswith(IMAGE_SUFFIXES) and directory != os.fspath(self.root):
                yield os.path.join(directory, name)


def open_class_folder(root: Path, class_names: list[str] | None) -> ClassFolderSource | None:
    """Return the source that ``root`` is if its folders are classes: two or more, or those that the user names.

    Raises
    ------
    CoreclipError
        Where the folders are splits (``train``, ``val``), not classes, or not those that the user names.
    """
    folders = {path.name for path in root.iterdir() if path.is_dir() and _holds_image(path)}
    if len(folders) < (2 if class_names is None else 1):
        return None
    if all(_SPLIT.fullmatch(folder) for folder in folders):
        first = sorted(folders)[0]
        raise CoreclipError(
            f"the folders of {root} ({', '.join(sorted(folders))}) are splits, not classes; name one of them: {root / first}"
        )
    return ClassFolderSource(root, order_classes(root, folders, class_names))


def _holds_image(folder: Path) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for _, name in walk_files(folder))
