"""Parquet files that hold the images themselves, as Hugging Face datasets stores them: ``image: {bytes, path}`` or binary.

Names of classes come from the ``ClassLabel`` in the schema's metadata (key ``huggingface``; github huggingface/datasets,
``features.py``). An image is read again by its row, a few rows at a time, whatever the size of a row group. Left out: images
as nested lists of pixels, several images in a row.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import (
    CAPTION_NAMES,
    ImageReference,
    Record,
    Reject,
    SplitSource,
    TextProblem,
    file_identity,
)
from coreclip.pipeline.tables import ImageFinder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
_TEXT_COLUMNS = ("text", *CAPTION_NAMES, "txt")
_KEY_COLUMNS = ("__key__", "key")
_ROWS_AT_ONCE = 16
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ParquetSource(SplitSource):
    """One parquet file with a column of images."""

    path: Path
    image: str
    names: tuple[str, ...] | None = None

    @property
    def class_names(self) -> list[str] | None:
        """Names of the file's ClassLabel."""
        return None if self.names is None else list(self.names)

    def identity(self) -> list[dict[str, Any]]:
        """Return the file's path, size and modification time."""
        return [file_identity(self.path)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the rows in order; of the images only the sizes are kept."""
        import pyarrow as pa
        import pyarrow.compute as pc

        finder = ImageFinder(self.path.parent, self.path.parent)
        try:
            with _open(self.path) as file:
                groups = range(*self.part.bounds(file.num_row_groups))
                number = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
                layout = _find_layout(self.path, file.schema_arrow, self.image)
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=list(groups), columns=layout.all_columns):
                    sizes = pc.binary_length(_image_bytes(batch.column(self.image))).to_pylist()
                    paths = _image_paths(batch.column(self.image))
                    rows = batch.drop_columns([self.image]).to_pylist()
                    for row, size, path in zip(rows or [{}] * len(sizes), sizes, paths, strict=True):
                        yield self._to_record(row, size, path, number, layout, finder)
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise CoreclipError(_unreadable(self.path, error)) from None

    def _to_record(
        self,
        row: dict[str, Any],
        size: int | None,
        path: str | None,
        number: int,
        layout: "_Layout",
        finder: ImageFinder,
    ) -> Record | Reject:
        key = next((str(row[name]) for name in _KEY_COLUMNS if row.get(name) is not None), f"{number:08d}")
        try:
            captions = _to_captions(row.get(layout.caption)) if layout.caption else []
            image = self._to_reference(size, path, number, finder)
        except TextProblem as problem:
            return Reject(self.path.name, key, problem.reason)
        label = row.get(layout.label) if layout.label else None
        label = label if label is not None and label >= 0 else None  # datasets has -1 where the class is not known
        taken = (layout.caption, layout.label, *_KEY_COLUMNS)
        columns = {k: v for k, v in row.items() if k not in taken and v is not None}
        if path:
            columns.setdefault("image_path", path)
        return Record(key, image, captions, label, columns, self.path.name)

    def _to_reference(self, size: int | None, path: str | None, number: int, finder: ImageFinder) -> ImageReference:
        if size is not None:
            return ImageReference(str(self.path.resolve()), number, size, access=f"parquet {self.image}")
        if not path:
            raise TextProblem("the row has no image: neither bytes nor a path")
        return finder.find(path)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which columns of a file say what."""

    all_columns: list[str]
    caption: str | None
    label: str | None
    names: tuple[str, ...] | None


def find_image_column(path: Path) -> str | None:
    """Return the column of a parquet file that holds images; None for a table that names files, or no images at all."""
    import pyarrow as pa

    try:
        with _open(path) as file:
            return next((name for name in IMAGE_COLUMNS if _holds_images(file.schema_arrow, name)), None)
    except (pa.ArrowException, OSError):
        return None  # whoever reads it as a table says what is wrong with it


def open_parquet(path: Path, image: str) -> ParquetSource:
    """Return the source that a file with images in column ``image`` is.

    Raises
    ------
    CoreclipError
        Where it has neither captions nor labels.
    """
    with _open(path) as file:
        return ParquetSource(path, image, _find_layout(path, file.schema_arrow, image).names)


def read_cell(path: str, row: int, column: str) -> bytes:
    """Return the image of a row; nothing where there is none."""
    return _cells(path, column).read(row)


class _Cells:
    """Reads a column of images row by row, forward in batches of a few rows."""

    def __init__(self, path: str, column: str) -> None:
        self._file, self._column = _open(Path(path)), column
        metadata = self._file.metadata
        self._starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
        self._group, self._first, self._images = -1, 0, []  # type: tuple[int, int, Any]
        self._batches: Iterator[Any] = iter(())

    def read(self, row: int) -> bytes:
        if row < self._first or row >= self._starts[self._group + 1] or self._group < 0:
            self._group = int(np.searchsorted(self._starts, row, "right")) - 1
            if self._group + 1 >= len(self._starts):
                return b""  # the file has fewer rows than it had
            self._first, self._images = int(self._starts[self._group]), []
            self._batches = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[self._group], columns=[self._column])
        while row >= self._first + len(self._images):
            self._first += len(self._images)
            self._images = _image_bytes(next(self._batches).column(self._column))
        return self._images[row - self._first].as_py() or b""


@lru_cache(maxsize=2)
def _cells(path: str, column: str) -> _Cells:
    return _Cells(path, column)


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    # With a buffer and nothing fetched ahead, a row group is read page by page.
    return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_images(schema: "pa.Schema", name: str) -> bool:
    import pyarrow as pa

    if schema.get_field_index(name) < 0:
        return False
    kind = schema.field(name).type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _image_bytes(column: "pa.Array") -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _image_paths(column: "pa.Array") -> list[str | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        return [path if isinstance(path, str) else None for path in pc.struct_field(column, "path").to_pylist()]
    return [None] * len(column)


def _find_layout(path: Path, schema: "pa.Schema", image: str) -> _Layout:
    import pyarrow as pa

    kinds = pa.types
    integers = [field.name for field in schema if kinds.is_integer(field.type)]
    plain = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    kept = [field.name for field in schema if any(holds(field.type) for holds in plain)]
    texts = [
        field.name
        for field in schema
        if kinds.is_string(getattr(field.type, "value_type", field.type))
        or kinds.is_large_string(getattr(field.type, "value_type", field.type))
    ]
    named = _class_labels(path, schema)
    caption = next((name for name in _TEXT_COLUMNS if name in texts), None)
    label = next((name for name in (*_LABEL_COLUMNS, *named) if name in integers), None)
    if caption is None and label is None:
        raise CoreclipError(
            f"{path} has images in column {image!r}, but no caption and no label (columns: {', '.join(schema.names)}); "
            f"call the caption one of {', '.join(_TEXT_COLUMNS)}"
        )
    columns = dict.fromkeys([image, *([caption] if caption else []), *kept])
    return _Layout(list(columns), caption, label, named.get(label) if label is not None else None)


def _class_labels(path: Path, schema: "pa.Schema") -> dict[str, tuple[str, ...]]:
    """Return the names of the classes for each column that is a ClassLabel."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        features = json.loads(stored)["info"]["features"]
        named = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CoreclipError(f"{path} has metadata of datasets that can't be read; write the file again") from None
    if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in named.values()):
        raise CoreclipError(f"{path} has a ClassLabel whose names are no list of texts; write the file again")
    return {name: tuple(names) for name, names in named.items()}


def _to_captions(value: Any) -> list[str]:
    captions = [value] if isinstance(value, str) else value or []
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise TextProblem("its caption is neither text nor a list of texts")
    return captions


def _unreadable(path: Path, error: Exception) -> str:
    cause = str(error).partition("\n")[0]
    return f"{path} can't be read ({cause}); it must be a parquet file, whole; fetch it again"
