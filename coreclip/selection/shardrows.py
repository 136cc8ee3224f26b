"""Rows of embeddings that lie in many ``.npz`` archives, read from the disk as they are asked for.

Left out: archives that were pickled, arrays of more dimensions, writing.
"""

import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import check_free_disk

_LOCAL_HEADER = 30  # bytes of a member's header in a zip archive, before its name
_CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class _Piece:
    """Rows of one file, uncompressed on the disk."""

    path: Path
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def rows(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


class ShardedRows:
    """Rows that lie in many files, one after the other; behaves like a read-only array (n, d) where rows are read from it.

    Indexed by a slice or by indices it returns an array of those rows. A file is open only while it is read. Members that are
    compressed are unpacked once, into one temporary file that goes with the object: what is held in memory is what was asked for.
    """

    ndim = 2

    def __init__(self, pieces: list[_Piece], unpacked: IO[bytes] | None = None) -> None:
        self._pieces, self._unpacked = pieces, unpacked
        self._ends = np.cumsum([piece.shape[0] for piece in pieces])
        self.dtype = pieces[0].dtype
        self.shape = (int(self._ends[-1]), pieces[0].shape[1])

    @classmethod
    def open(cls, archives: list[Path], member: str, rows: np.ndarray) -> "ShardedRows":
        """Find the member in each archive and check it against the rows that it must have.

        Parameters
        ----------
        archives : list of Path
            ``.npz`` files.
        member : str
            Name of an array (rows, d) of floats.
        rows : int64 (archives,)

        Raises
        ------
        CoreclipError
            For an archive that is missing or damaged, a member that is not there or of another shape or type.
        """
        unpacked: IO[bytes] | None = None
        pieces: list[_Piece] = []
        for archive, n_rows in zip(archives, rows.tolist(), strict=True):
            piece, unpacked = _find(archive, member, unpacked)
            first = pieces[0] if pieces else piece
            if piece.shape != (n_rows, first.shape[1]) or piece.dtype != first.dtype:
                raise CoreclipError(
                    f"{archive}: {member} is {piece.dtype} {piece.shape}; it must be {first.dtype} {(n_rows, first.shape[1])}, "
                    f"one row for each of the parquet file; fetch both again"
                )
            if n_rows:
                pieces.append(piece)
        return cls(pieces, unpacked)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        indices = np.arange(len(self))[index] if isinstance(index, slice) else np.asarray(index)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        if len(indices) and (indices.min() < -len(self) or indices.max() >= len(self)):
            raise IndexError(f"index {indices.max()} is out of bounds for {len(self)} rows")
        indices = np.where(indices < 0, indices + len(self), indices)
        result = np.empty((len(indices), self.shape[1]), self.dtype)
        for where, piece, local in self._parts(indices):
            result[where] = piece.rows()[local]
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        result = np.empty(self.shape, dtype or self.dtype)
        start = 0
        for piece in self._pieces:
            result[start : start + piece.shape[0]] = piece.rows()
            start += piece.shape[0]
        return result

    def _parts(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, _Piece, np.ndarray]]:
        of_piece = np.searchsorted(self._ends, indices, side="right")
        order = np.argsort(of_piece, kind="stable")
        edges = np.searchsorted(of_piece[order], np.arange(len(self._pieces) + 1))
        for number, piece in enumerate(self._pieces):
            where = order[edges[number] : edges[number + 1]]
            if len(where):
                yield where, piece, indices[where] - (self._ends[number] - piece.shape[0])


def _find(archive: Path, member: str, unpacked: IO[bytes] | None) -> tuple[_Piece, IO[bytes] | None]:
    try:
        with zipfile.ZipFile(archive) as file:
            if f"{member}.npy" not in file.namelist():
                known = ", ".join(name.removesuffix(".npy") for name in file.namelist()) or "nothing"
                raise CoreclipError(
                    f"{archive} holds {known}, and no {member}; name another architecture or fetch it again"
                )
            info = file.getinfo(f"{member}.npy")
            with file.open(info) as stream:
                shape, dtype = _npy_header(stream)
                n_bytes = int(np.prod(shape)) * dtype.itemsize
                if info.file_size != stream.tell() + n_bytes:
                    raise OSError(f"{info.file_size - stream.tell()} bytes of numbers, and {n_bytes} are needed")
                if info.compress_type == zipfile.ZIP_STORED:
                    return _Piece(archive, _start(archive, info) + stream.tell(), shape, dtype), unpacked
                check_free_disk(tempfile.gettempdir(), n_bytes)
                unpacked = unpacked or tempfile.NamedTemporaryFile(prefix="coreclip-")  # noqa: SIM115 - outlives the call
                offset = unpacked.seek(0, os.SEEK_END)
                shutil.copyfileobj(stream, unpacked, _CHUNK)
                unpacked.flush()
                return _Piece(Path(unpacked.name), offset, shape, dtype), unpacked
    except FileNotFoundError:
        raise CoreclipError(
            f"no embeddings at {archive}: the file does not exist; fetch it, or give --features"
        ) from None
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        struct.error,
        zlib.error,
    ) as error:
        raise CoreclipError(f"{archive} is not a readable .npz of numbers ({error}); fetch it again") from None


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Read what an array's file says of it; nothing is unpickled."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read(stream)
    except ValueError as error:
        raise OSError(str(error)) from None
    if len(shape) != 2 or in_columns or dtype not in (np.float16, np.float32, np.float64):
        raise OSError(f"an array of {dtype} and shape {shape}, not rows of floats")
    return shape, dtype


def _start(archive: Path, info: zipfile.ZipInfo) -> int:
    """Return where a stored member's bytes begin: after its header, its name and what else is noted of it."""
    with open(archive, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, extra = struct.unpack("<HH", header[26:])
    return info.header_offset + _LOCAL_HEADER + int(name) + int(extra)
