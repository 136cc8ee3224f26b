"""TFRecord files of tf.train.Example (tensorflow ``core/lib/io/record_writer.h``, ``core/example/example.proto``).

A record is the length (8 bytes), its masked CRC-32C, the data and theirs; both sums are checked. The protocol buffer is read
by hand: features of bytes, floats and int64. Left out: compressed files, SequenceExample, images that are not encoded.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.pipeline.records import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    ImageReference,
    Record,
    Reject,
    SplitSource,
    TextProblem,
    decode_text,
    file_identity,
)

IMAGE_KEYS = ("image/encoded", "image", "jpeg", "image_raw", "jpg")
CAPTION_KEYS = ("image/caption", "caption", "text", "captions", "image/text")
LABEL_KEYS = ("image/class/label", "label")
_CLASS_TEXT_KEY = "image/class/text"
_KEY_KEYS = ("image/filename", "__key__", "key", "image/key")
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_MAX_RECORD_BYTES = MAX_IMAGE_BYTES + (16 << 20)
_MAX_THINGS = 1 << 14  # features of a record, values of a feature
_MAX_NUMBERS = 2  # of a feature: enough to know that there are several
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3


class _Malformed(Exception):
    """Bytes that are no protocol buffer of an Example; the text says what of them."""


@dataclass(frozen=True, slots=True)
class _Values:
    """A feature: its kind, and where its values lie in the record (bytes) or what they are (numbers)."""

    kind: int
    spans: list[tuple[int, int]]
    numbers: list[float]


@dataclass(frozen=True)
class TfrecordSource(SplitSource):
    """One TFRecord file; its parts are ranges of bytes."""

    path: Path

    def identity(self) -> list[dict[str, Any]]:
        """Return the file's path, size and modification time."""
        return [file_identity(self.path)]

    def scan(self) -> Iterator[Record | Reject]:
        """Yield the records in order; behind a length that is damaged nothing can be found again."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            start, stop = self.part.bounds(size)
            offset = number = 0
            while offset < stop:
                length, problem = _read_length(descriptor, offset, size)
                if offset >= start:
                    if problem:
                        reason = f"{problem} at byte {offset} (record {number}); the rest of the file is left out"
                        yield Reject(self.path.name, f"{number:08d}", reason)
                    else:
                        yield self._read_record(descriptor, offset + _HEADER.size, length, number)
                if problem:
                    return
                offset += _HEADER.size + length + _FOOTER_BYTES
                number += 1
        finally:
            os.close(descriptor)

    def _read_record(self, descriptor: int, offset: int, length: int, number: int) -> Record | Reject:
        from coreclip.pipeline.crc32c import masked_crc32c

        key = f"{number:08d}"
        if length > _MAX_RECORD_BYTES:
            reason = f"the record has {length >> 20} MiB; {_MAX_RECORD_BYTES >> 20} MiB are allowed"
            return Reject(self.path.name, key, reason)
        data = os.pread(descriptor, length + _FOOTER_BYTES, offset)
        data, stored = data[:length], data[length:]
        if masked_crc32c(data) != int.from_bytes(stored, "little"):
            return Reject(self.path.name, key, f"the record is damaged: its checksum differs (record {number})")
        try:
            features = parse_example(data)
            return _to_record(features, data, offset, key, self.path)
        except _Malformed as malformed:
            return Reject(self.path.name, key, f"the record is no tf.train.Example: {malformed}")
        except TextProblem as problem:
            return Reject(self.path.name, key, problem.reason)


def open_tfrecord(path: Path) -> TfrecordSource:
    """Return the source that a file is.

    Raises
    ------
    CoreclipError
        For a file that is compressed.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    if start in (b"\x1f\x8b", b"\x78\x9c", b"\x78\x01", b"\x78\xda") and not _begins_well(path):
        kind = "gzip" if start == b"\x1f\x8b" else "zlib"
        remedy = f"gunzip -c {path.name} > plain.tfrecord" if kind == "gzip" else "write it without compression"
        raise CoreclipError(
            f"{path} is compressed with {kind}, within which no image can be found; unpack it: {remedy}"
        )
    return TfrecordSource(path)


def _begins_well(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return not _read_length(descriptor, 0, os.fstat(descriptor).st_size)[1]
    finally:
        os.close(descriptor)


def _read_length(descriptor: int, offset: int, size: int) -> tuple[int, str]:
    """Return the length of the record at ``offset``, and what is wrong with it."""
    from coreclip.pipeline.crc32c import masked_crc32c

    header = os.pread(descriptor, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return 0, "the file is cut short"
    length, stored = _HEADER.unpack(header)
    if masked_crc32c(header[:8]) != stored:
        return 0, "the file is damaged or no TFRecord: the checksum of a record's length differs"
    if offset + _HEADER.size + length + _FOOTER_BYTES > size:
        return 0, "the file is cut short"
    return length, ""


def _to_record(features: dict[str, _Values], data: bytes, offset: int, key: str, path: Path) -> Record | Reject:
    image_key = next((name for name in IMAGE_KEYS if name in features and features[name].spans), None)
    if image_key is None:
        names = ", ".join(sorted(features)[:12]) or "none"
        raise TextProblem(f"no image: none of {', '.join(IMAGE_KEYS)} is among its features ({names})")
    if len(features[image_key].spans) > 1:
        raise TextProblem(f"{image_key} holds {len(features[image_key].spans)} images; a pair has one")
    caption_key = next((name for name in CAPTION_KEYS if name in features and features[name].spans), None)
    captions = _texts(features[caption_key], data, caption_key) if caption_key is not None else []
    label_key = next((name for name in LABEL_KEYS if name in features and features[name].kind == _INTEGERS), None)
    numbers = features[label_key].numbers if label_key is not None else []
    label = int(numbers[0]) if len(numbers) == 1 and numbers[0] >= 0 else None
    class_text = features.get(_CLASS_TEXT_KEY)
    if not captions and class_text is not None and class_text.spans:
        captions = _texts(class_text, data, _CLASS_TEXT_KEY)
    for name in _KEY_KEYS:
        if name in features and len(features[name].spans) == 1:
            key = _texts(features[name], data, name)[0] or key
            break
    first, behind = features[image_key].spans[0]
    image = ImageReference(str(path.resolve()), offset + first, behind - first)
    columns = {}
    for name, values in features.items():
        if name not in (image_key, caption_key, label_key, *_KEY_KEYS):
            value = _column(values, data)
            if value is not None:
                columns[name] = value
    return Record(key, image, captions, label, columns, path.name)


def _texts(values: _Values, data: bytes, name: str) -> list[str]:
    if any(behind - first > MAX_TEXT_BYTES for first, behind in values.spans):
        raise TextProblem(f"{name} has more than the {MAX_TEXT_BYTES} bytes that text may have")
    return [decode_text(data[first:behind], name) for first, behind in values.spans]


def _column(values: _Values, data: bytes) -> str | int | float | None:
    """Return a feature of one value as a column; short bytes that are text count as text."""
    if values.kind == _BYTES:
        if len(values.spans) != 1 or values.spans[0][1] - values.spans[0][0] > 4096:
            return None
        try:
            return data[slice(*values.spans[0])].decode("utf-8")
        except UnicodeDecodeError:
            return None
    return values.numbers[0] if len(values.numbers) == 1 else None


def parse_example(data: bytes) -> dict[str, _Values]:
    """Parse an Example: its features by name, of two with one name the last."""
    features = {}
    for number, start, stop in _fields(data, 0, len(data)):
        if number != 1:  # Example.features
            continue
        for inner, first, behind in _fields(data, start, stop):
            if inner == 1:  # Features.feature, an entry of a map
                name, values = _parse_entry(data, first, behind)
                features[name] = values
                if len(features) > _MAX_THINGS:
                    raise _Malformed(f"it has more than {_MAX_THINGS} features")
    return features


def _parse_entry(data: bytes, start: int, stop: int) -> tuple[str, _Values]:
    name, values = "", _Values(0, [], [])
    for number, first, behind in _fields(data, start, stop):
        if number == 1:
            name = data[first:behind].decode("utf-8", "backslashreplace")
        elif number == 2:
            for kind, low, high in _fields(data, first, behind):
                values = _parse_list(data, kind, low, high)
    return name, values


def _parse_list(data: bytes, kind: int, start: int, stop: int) -> _Values:
    """Parse a BytesList, FloatList or Int64List, packed or not; of numbers only whether there is one, and which."""
    spans: list[tuple[int, int]] = []
    numbers: list[float] = []
    if kind == _BYTES:
        for number, first, behind in _fields(data, start, stop):
            if number == 1:
                spans.append((first, behind))
            if len(spans) > _MAX_THINGS:
                raise _Malformed(f"a feature has more than {_MAX_THINGS} values")
    elif kind == _FLOATS:
        for _, first, behind in _fields(data, start, stop):
            n = min((behind - first) // 4, _MAX_NUMBERS - len(numbers))
            numbers += struct.unpack_from(f"<{n}f", data, first)
    elif kind == _INTEGERS:
        for _, first, behind in _fields(data, start, stop):
            while first < behind and len(numbers) < _MAX_NUMBERS:
                value, first = _varint(data, first, behind)
                numbers.append(value - (1 << 64) if value >> 63 else value)
    return _Values(kind, spans, numbers)


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, first byte, byte behind) of each field of a message; a number's bytes are the number."""
    while start < stop:
        tag, start = _varint(data, start, stop)
        wire = tag & 7
        if wire == 0:
            first = start
            _, start = _varint(data, start, stop)
        elif wire == 1:
            first, start = start, start + 8
        elif wire == 2:
            length, first = _varint(data, start, stop)
            start = first + length
        elif wire == 5:
            first, start = start, start + 4
        else:
            raise _Malformed(f"a field of wire type {wire}")
        if start > stop:
            raise _Malformed("a field is longer than its message")
        yield tag >> 3, first, start


def _varint(data: bytes, start: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while start < stop and shift < 70:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, start
        shift += 7
    raise _Malformed("a number does not end")
