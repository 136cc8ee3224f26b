"""COCO's captions (cocodataset.org, "data format"): ``images`` with a file name, ``annotations`` with a caption for an image.

Left out: boxes, segments and categories; an instances file has no captions and is refused.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import (
    Record,
    Reject,
    SplitSource,
    TextProblem,
    file_identity,
    images_identity,
)
from coreclip.pipeline.tables import ImageFinder

MAX_JSON_BYTES = 4 << 30


@dataclass(frozen=True)
class CocoSource(SplitSource):
    """A captions json and the folder that holds its images."""

    table: Path
    folder: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return the json's size and modification time, and a digest of those of all images below the folder."""
        return [file_identity(self.table), images_identity(self.folder)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield one record per image in the order of ``images``, then the captions that belong to none."""
        images, annotations, licences = _load(self.table)
        captions: dict[Any, list[str]] = {}
        known = {_id(image) for image in images} - {None}
        strays: list[Reject] = []
        for annotation in annotations:
            caption, image_id = _entry(annotation, "caption"), _entry(annotation, "image_id")
            if image_id not in known:
                reason = f"its caption {str(caption)[:60]!r} belongs to no image of the file"
                strays.append(Reject(self.table.name, str(image_id), reason))
            elif isinstance(caption, str):
                captions.setdefault(image_id, []).append(caption)
        finder = ImageFinder(self.table.parent, self.folder)
        start, stop = self.part.bounds(len(images))
        seen = {_id(image) for image in images[:start]}
        for image in images[start:stop]:
            yield self._to_record(image, captions, licences, finder, seen)
        if self.part.is_last:
            yield from strays

    def _to_record(
        self,
        image: Any,
        captions: dict[Any, list[str]],
        licences: dict[Any, str],
        finder: "ImageFinder",
        seen: set[Any],
    ) -> Record | Reject:
        name, image_id = _entry(image, "file_name"), _id(image)
        key = name if isinstance(name, str) else str(image_id)
        if not isinstance(name, str) or image_id is None:
            return Reject(self.table.name, key, "an image without id or file_name")
        if image_id in seen:
            return Reject(
                self.table.name, key, f"the id {image_id} is an earlier image's; which has its captions is not clear"
            )
        seen.add(image_id)
        try:
            reference = finder.find(name)
        except TextProblem as problem:
            return Reject(self.table.name, key, problem.reason)
        columns: dict[str, Any] = {"coco_id": image_id}
        licence = licences.get(_entry(image, "license"))
        if licence is not None:
            columns["license"] = licence
        return Record(key, reference, captions.get(image_id, []), None, columns, self.table.name)


def find_captions(folder: Path, files: list[Path]) -> list[Path]:
    """Return the captions files of a folder: within it (``files``), in its ``annotations``, or beside it by its name."""
    below, beside = folder / "annotations", folder.resolve().parent
    named = f"captions_{folder.resolve().name}.json"
    for found in (
        [path for path in files if path.name.startswith("captions") and path.suffix == ".json"],
        sorted(below.glob("captions_*.json")),
        [path for path in (beside / "annotations" / named, beside / named) if path.is_file()],
    ):
        if found:
            return found
    return []


def find_images(table: Path) -> Path:
    """Return the folder of the images of a captions file: the one that COCO's name tells, else its own, else its parent's.

    ``annotations/captions_train2017.json`` belongs to ``train2017/`` beside ``annotations``.
    """
    name = table.stem.removeprefix("captions_")
    for folder in (
        table.parent / name,
        table.parent.parent / name,
        table.parent.parent / "images",
        table.parent / "images",
    ):
        if folder.is_dir():
            return folder
    return table.parent


def _load(table: Path) -> tuple[list[Any], list[Any], dict[Any, str]]:
    size = os.path.getsize(table)
    if size > MAX_JSON_BYTES:
        raise CoreclipError(
            f"{table} has {size >> 20} MiB; captions in one json may have {MAX_JSON_BYTES >> 20}; use a .jsonl"
        )
    try:
        content = json.loads(table.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CoreclipError(f"{table} is not JSON ({error}); it must be COCO's captions; fetch it again") from None
    images, annotations = (
        content.get(part) if isinstance(content, dict) else None for part in ("images", "annotations")
    )
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise CoreclipError(
            f"{table} is not COCO's captions: it must hold an object with the lists images and annotations; "
            f"a table of one object a line is a .jsonl"
        )
    if annotations and not any(isinstance(_entry(a, "caption"), str) for a in annotations):
        raise CoreclipError(f"{table} has annotations, but no captions; name the captions_*.json")
    listed = content.get("licenses")
    licences = {
        _entry(entry, "id"): name
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(name := _entry(entry, "name"), str)
    }
    return images, annotations, licences


def _entry(item: Any, name: str) -> Any:
    """Return an entry that can be a key of a dict."""
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _id(image: Any) -> Any:
    return _entry(image, "id")
