"""A converted data set on disk: ``dataset.json``, shards, ``pairs.parquet``, ``rejects.parquet``, ``tokenizer.json``.

Opening reads ``dataset.json`` alone; shards are mapped and columns of the table read when they are first asked for.
Left out: writing (``convert``), batches (``make_loader``) and the check of every byte against its hash.
"""

import contextlib
import io
import json
import mmap
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import read_json
from coreclip.pipeline.beton import MODES, Shard, field_names, read_shard
from coreclip.pipeline.readahead import expect_random_reads, fresh_windows, page_runs, request

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from coreclip.pipeline.tokenizer import Tokenizer

FORMAT_VERSION = 1

_TABLE_PIECE = 1 << 16  # rows of pairs.parquet that are in memory at a time
_PAIR_BYTES = 34  # of a ShardSet's arrays
_OTHER_FILES = 256  # that a process may open beside the shards
_OPENERS = 4  # shards that are opened at a time: their reading overlaps, and each has its columns in memory twice


class Dataset:
    """A converted data set, read-only.

    Every pair is known by its **index**, 0..n-1 over the whole data set. A single read opens the shard of its pair and
    no other. A shard is held against ``dataset.json`` and all of its tables are checked when it is opened, so that no
    read leaves its file and none gives another pair's data; that the stored bytes are the ones that were written is
    checked by ``coreclip verify`` alone, which reads them all.

    Parameters
    ----------
    path : path
        The folder that ``convert`` made.

    Attributes
    ----------
    path : Path
    info : dict
        ``dataset.json``.
    n : int
        Pairs.
    fingerprint : str
        Changes with any stored byte of the pairs.
    class_names : list of str or None
    context : int
        Tokens of a stored caption.
    captions_per_row : int
        Captions of a pair whose tokens are stored.
    tokenizer_sha256 : str
        Of the tokenizer that made the stored tokens.

    Raises
    ------
    CoreclipError
        For a folder that is no data set or is of another format version.

    Examples
    --------
    >>> dataset = Dataset("flickr")  # doctest: +SKIP
    >>> dataset.captions(0), dataset.image(0).shape  # doctest: +SKIP
    (['a dog on a beach'], (375, 500, 3))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = _read_info(self.path)
        self.n: int = self.info["n"]
        self.fingerprint: str = self.info["fingerprint"]
        self.class_names: list[str] | None = self.info["class_names"]
        self.context: int = self.info["context"]
        self.captions_per_row: int = self.info["captions_per_row"]
        self.tokenizer_sha256: str = self.info["tokenizer_sha256"]
        self._first_index = np.cumsum([0, *(shard["rows"] for shard in self.info["shards"])])
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, n={self.n})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the shards that single reads have opened; they are opened anew when they are needed."""
        while self._open:
            self._open.popitem()[1].close()

    @cached_property
    def pairs(self) -> "pd.DataFrame":
        """The whole of ``pairs.parquet``, one row for each pair, in order."""
        return self.columns(None).to_pandas()

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 (n,), or None where the data set has none."""
        if "label" not in self.info["fields"]:
            return None
        n_classes = len(self.class_names) if self.class_names is not None else np.iinfo(np.int64).max
        labels = np.empty(self.n, np.int64)
        for first, batch in self._batches("label"):
            part = batch.to_numpy(zero_copy_only=False)
            if part.dtype != np.int64 or part.min() < 0 or part.max() >= n_classes:
                raise CoreclipError(
                    f"{self.path / 'pairs.parquet'} is damaged: labels must be integers from 0 to {n_classes - 1}; convert again"
                )
            labels[first : first + len(part)] = part
        return labels

    @cached_property
    def keys(self) -> np.ndarray:
        """The pairs' keys in their source, object (n,)."""
        return self._column("key").to_numpy()

    @cached_property
    def tolerated(self) -> np.ndarray:
        """Bool (n,): True where ``convert`` kept an image with a warning (for example, stray bytes in the JPEG)."""
        import pyarrow.compute as pc

        tolerated = np.zeros(self.n, bool)
        for first, batch in self._batches("warning"):
            # A list, of the few there are, for the reason of _integers.
            tolerated[[first + row for row in pc.indices_nonzero(pc.binary_length(batch)).to_pylist()]] = True
        return tolerated

    def metadata(self, name: str) -> np.ndarray:
        """Return a column of ``pairs.parquet`` (n,); ``caption`` is each pair's first caption, object.

        Raises
        ------
        CoreclipError
            For a column that is not there.
        """
        if name != "caption":
            return self._column(name).to_numpy()
        texts, offsets = self.all_captions()
        return np.array(texts, object)[offsets[:-1]]

    @cached_property
    def column_names(self) -> list[str]:
        """The columns of ``pairs.parquet``, those of the source included."""
        with open_table(self.path / "pairs.parquet") as file:
            return list(file.schema_arrow.names)

    def captions(self, index: int) -> list[str]:
        """Return the captions of one pair."""
        shard, row = self._locate(index)
        return shard.captions(row)

    def all_captions(self) -> tuple[list[str], np.ndarray]:
        """Return every caption and where each pair's begin.

        Returns
        -------
        texts : list of str
            Pair after pair.
        offsets : int64 (n + 1,)
            Pair i has ``texts[offsets[i] : offsets[i + 1]]``.
        """
        import pyarrow.compute as pc

        column = self._column("captions")
        offsets = np.zeros(self.n + 1, np.int64)
        np.cumsum(pc.list_value_length(column).to_numpy(), out=offsets[1:])
        texts: list[str] = []
        for chunk in column.chunks:
            texts += chunk.flatten().to_pylist()
        if not (np.diff(offsets) > 0).all() or not all(isinstance(text, str) for text in texts):
            raise CoreclipError(
                f"{self.path / 'pairs.parquet'} is damaged: each pair must have one caption or more, all text; convert again"
            )
        return texts, offsets

    def image_bytes(self, index: int) -> bytes:
        """Return the stored bytes of one image: a JPEG, or raw pixels (see ``pairs["mode"]``)."""
        shard, row = self._locate(index)
        return shard.image_bytes(row)

    def image(self, index: int) -> np.ndarray:
        """Decode one image in full, strictly.

        Returns
        -------
        uint8 (h, w, 3)
            RGB.

        Raises
        ------
        CoreclipError
            Where the stored bytes are not the image that they should be.
        """
        shard, row = self._locate(index)
        size = (int(shard.widths[row]), int(shard.heights[row]))
        stored = shard.image_bytes(row)
        if MODES[shard.modes[row]] == "raw":
            return np.frombuffer(stored, np.uint8).reshape(size[1], size[0], 3).copy()
        return _decode_jpeg(stored, size, f"the image of pair {index} in {shard.path}")

    def stored_tokens(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return stored tokens.

        Parameters
        ----------
        indices : int (b,)

        Returns
        -------
        uint16 (b, captions_per_row, context)
            Row j is caption j, all zero where there is no j-th caption.
        """
        indices = self._check_indices(indices)
        tokens = np.empty((len(indices), self.captions_per_row, self.context), np.uint16)
        numbers = np.searchsorted(self._first_index, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            tokens[here] = self._shard(number).tokens(indices[here] - self._first_index[number])
        return tokens

    def tokenizer(self) -> "Tokenizer":
        """Return the tokenizer that made the stored tokens.

        Raises
        ------
        CoreclipError
            Where ``tokenizer.json`` is missing or another one.
        """
        from coreclip.pipeline.tokenizer import Tokenizer

        path = self.path / "tokenizer.json"
        tokenizer = Tokenizer.load(path)
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise CoreclipError(
                f"{path} has the hash {tokenizer.sha256[:12]}, the data set's tokens were made with {self.tokenizer_sha256[:12]}; "
                "restore the file or convert again"
            )
        return tokenizer

    def open_shards(self) -> "ShardSet":
        """Map and check all shards; close the result, or use it as a context manager."""
        return ShardSet(self)

    def shard_path(self, number: int) -> Path:
        """Return the file of one shard.

        Raises
        ------
        CoreclipError
            For a number that is not 0 to the number of shards - 1.
        """
        n_shards = len(self.info["shards"])
        if not 0 <= number < n_shards:
            raise CoreclipError(f"shard {number} is not in {self.path}: it must be 0 to {n_shards - 1}")
        return self.path / self.info["shards"][number]["file"]

    def _locate(self, index: int) -> tuple[Shard, int]:
        index = int(self._check_indices([index])[0])
        number = int(np.searchsorted(self._first_index, index, side="right")) - 1
        return self._shard(number), index - int(self._first_index[number])

    def _check_indices(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(indices)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise CoreclipError(
                f"indices of type {array.dtype} and shape {array.shape} are not allowed: they must be a list of integers"
            )
        outside = (array < 0) | (array >= self.n)
        if outside.any():
            raise CoreclipError(
                f"index {array[outside][0]} is not in {self.path}: it must be 0 to {self.n - 1}; check what made the indices"
            )
        return array.astype(np.int64)

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = self._open_shard(number)
        return self._open[number]

    def _open_shard(self, number: int) -> Shard:
        """Map one shard and hold it against ``dataset.json``."""
        entry = self.info["shards"][number]
        shard = read_shard(self.shard_path(number))
        first = int(self._first_index[number])
        rules = (
            ("bytes", len(shard.mapping), entry["bytes"]),
            ("rows", shard.rows, entry["rows"]),
            ("a context of", shard.context, self.context),
            ("captions per row:", shard.captions_per_row, self.captions_per_row),
            ("the fields", field_names(shard.labelled), self.info["fields"]),
            ("a first index of", shard.first_index, first),
            ("indices in order:", shard.consecutive, True),
        )
        for name, found, expected in rules:
            if found != expected:
                shard.close()
                raise CoreclipError(
                    f"shard {shard.path} has {name} {found}, dataset.json says {expected}; "
                    "they are not of one data set: restore the file or convert again"
                )
        return shard

    def _column(self, name: str) -> "pa.ChunkedArray":
        return self.columns([name]).column(name)

    def columns(self, names: list[str] | None) -> "pa.Table":
        """Return columns of ``pairs.parquet``, checked to be whole.

        Parameters
        ----------
        names : list of str or None
            None for all; else ``index`` comes first.

        Raises
        ------
        CoreclipError
            For a file that is missing or damaged, has no such column, or whose rows are not the pairs in order.
        """
        path = self.path / "pairs.parquet"
        table = read_table(path, None if names is None else ["index", *names])
        row = 0
        for chunk in table.column("index").chunks:
            row = self._check_order(path, chunk, row)
        self._check_whole(path, row == self.n and not any(table.column(name).null_count for name in names or ()), names)
        return table

    def _batches(self, name: str) -> Iterator[tuple[int, "pa.Array"]]:
        """Yield a column of ``pairs.parquet`` piece by piece, each with its first row, checked as by :meth:`columns`."""
        path, row = self.path / "pairs.parquet", 0
        with open_table(path, ["index", name]) as file:
            for batch in file.iter_batches(_TABLE_PIECE, columns=["index", name]):
                first, row = row, self._check_order(path, batch.column("index"), row)
                self._check_whole(path, not batch.column(name).null_count, [name])
                yield first, batch.column(name)
        self._check_whole(path, row == self.n, [name])

    def _check_order(self, path: Path, index: "pa.Array", row: int) -> int:
        """Hold a piece of the column ``index`` against the row at which it begins; return the row behind it."""
        end = row + len(index)
        in_order = end <= self.n and np.array_equal(_integers(index), np.arange(row, end))
        self._check_whole(path, in_order, None)
        return end

    def _check_whole(self, path: Path, holds: bool, names: list[str] | None) -> None:
        if not holds:
            raise CoreclipError(
                f"{path} is damaged: its rows must be the {self.n} pairs in order, without gaps in {names or 'index'}; "
                "restore the file or convert again"
            )


class ShardSet:
    """All shards of a data set mapped at once, as arrays over the **index**; a context manager.

    Opening reads every shard's tables, several shards at a time, and checks them (see
    :func:`coreclip.pipeline.beton.read_shard`) and that they are the shards of this data set. It takes 34 bytes of
    memory a pair. The data are not read; whether the bytes are those that were written, only ``coreclip verify`` says.
    Addresses are of this process's memory and good until :meth:`close`.

    Attributes
    ----------
    n : int
    context, captions_per_row : int
        The shape of a token array is (captions_per_row, context).
    image_address, image_size : uint64 (n,)
        Of the stored image bytes.
    token_address : uint64 (n,)
        Of the uint16 token array, 8-byte aligned.
    mode : uint8 (n,)
        0 = JPEG, 1 = raw pixels.
    width, height : int32 (n,)
    tolerated : bool (n,)
        The image was kept with a warning; a decoder's complaint about it is no failure.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.n, self.context, self.captions_per_row = dataset.n, dataset.context, dataset.captions_per_row
        self.closed = False
        try:
            self.image_address, self.image_size, self.token_address = (np.empty(self.n, np.uint64) for _ in range(3))
            self.width, self.height = (np.empty(self.n, np.int32) for _ in range(2))
            self.mode = np.empty(self.n, np.uint8)
        except (MemoryError, ValueError):
            raise CoreclipError(
                f"{dataset.path} has {self.n} pairs by its dataset.json, and a loader needs {_PAIR_BYTES} bytes of memory "
                "for each, more than there is; use a machine with more, or restore the file"
            ) from None
        self._first_index = dataset._first_index
        self._mappings: list[mmap.mmap] = []
        self._paths: list[Path] = []  # of each mapping
        self._lock = threading.Lock()
        numbers = range(len(self._first_index) - 1)
        _allow_open_files(len(numbers))
        with ThreadPoolExecutor(_OPENERS, thread_name_prefix="coreclip-open") as pool:
            try:
                tolerated = pool.submit(lambda: dataset.tolerated)
                for done in [pool.submit(self._take, dataset, number) for number in numbers]:
                    done.result()
                self.tolerated = tolerated.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                self.close()
                raise

    def _take(self, dataset: Dataset, number: int) -> None:
        shard = dataset._open_shard(number)
        with self._lock:
            self._mappings.append(shard.mapping)
            self._paths.append(dataset.shard_path(number))
        expect_random_reads(shard.mapping)
        rows = slice(self._first_index[number], self._first_index[number + 1])
        base = np.uint64(shard.base_address)
        np.add(shard.image_addresses, base, out=self.image_address[rows])
        np.add(shard.token_addresses, base, out=self.token_address[rows])
        self.image_size[rows], self.mode[rows] = shard.image_sizes, shard.modes
        self.width[rows], self.height[rows] = shard.widths, shard.heights

    def __len__(self) -> int:
        return self.n

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shard(self) -> np.ndarray:
        """In which shard each pair is, int32 (n,)."""
        return np.repeat(np.arange(len(self._first_index) - 1, dtype=np.int32), np.diff(self._first_index))

    def close(self) -> None:
        """Unmap the shards; nothing may read from the addresses any more. A second call does nothing."""
        self.closed = True
        while self._mappings:
            with contextlib.suppress(BufferError):
                self._mappings.pop().close()

    def forget_pages(self) -> None:
        """Have the system drop the shards' pages from its cache, as far as no other process has them mapped."""
        for mapping, path in zip(self._mappings, self._paths, strict=True):
            mapping.madvise(mmap.MADV_DONTNEED)  # what is mapped is not dropped
            with open(path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def prefetch(self, indices: np.ndarray, windows: set[int] | None = None) -> None:
        """Ask the system to read rows ahead; waits for room in the disk's queue, not for the reading.

        A row's tokens and image are asked for, and its captions where they lie between; neighbours are put together.

        Parameters
        ----------
        indices : int64 (b,)
        windows : set or None
            For small images: all that lies around them is asked for, but not what is in this set, which grows by it.
        """
        image, tokens = self.image_address[indices], self.token_address[indices]
        token_bytes = np.uint64(2 * self.captions_per_row * self.context)
        first, end = np.append(image, tokens), np.append(image + self.image_size[indices], tokens + token_bytes)
        request(*(page_runs(first, end) if windows is None else fresh_windows(first, end, windows)))


def _integers(array: "pa.Array") -> np.ndarray:
    """Return an int64 array without missing values; anything else comes as an empty one.

    ``to_numpy`` would import pandas when it is called first, for a quarter of a second that every loader has to wait.
    """
    import pyarrow as pa

    if array.type != pa.int64() or array.null_count or not len(array):
        return np.empty(0, np.int64)
    return np.frombuffer(array.buffers()[1], np.int64, len(array), 8 * array.offset)


def read_table(path: Path, columns: list[str] | None = None) -> "pa.Table":
    """Read columns of a Parquet file of a data set (None for all).

    Not by pyarrow's own ``read_table``, which first imports ``pyarrow.dataset``: that takes half a second.

    Raises
    ------
    CoreclipError
        For a file that is missing, damaged, or without such a column.
    """
    with open_table(path, columns) as file:
        return file.read(columns)


@contextlib.contextmanager
def open_table(path: Path, columns: list[str] | None = None) -> Iterator["pq.ParquetFile"]:
    """Open a Parquet file of a data set that must have some columns, for as long as the context lasts.

    Raises
    ------
    CoreclipError
        As :func:`read_table`, also for what is read within the context.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or () if name not in file.schema_arrow.names]
            if missing:
                raise CoreclipError(f"{path} has no column {missing[0]!r}; restore the file or convert again")
            yield file
    except FileNotFoundError:
        raise CoreclipError(f"{path} is missing, and a data set has one; restore the file or convert again") from None
    except (OSError, pa.ArrowException) as error:
        cause = str(error).partition("\n")[0]
        raise CoreclipError(f"{path} is damaged ({cause}); restore the file or convert again") from None


def _decode_jpeg(stored: bytes, size: tuple[int, int], name: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(stored), formats=("JPEG",)) as image:
            if image.size == size:
                return np.array(image.convert("RGB"))
            cause = f"it has {image.size[0]} x {image.size[1]} pixels, not {size[0]} x {size[1]}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cause = str(error).partition("\n")[0]
    raise CoreclipError(f"{name} can't be decoded: {cause}; the shard is damaged: restore it or convert again")


_INFO_TYPES: dict[str, tuple[type, ...]] = {
    "n": (int,),
    "fields": (list,),
    "shards": (list,),
    "tokenizer_sha256": (str,),
    "context": (int,),
    "captions_per_row": (int,),
    "class_names": (list, type(None)),
    "fingerprint": (str,),
}
_SHARD_TYPES: dict[str, tuple[type, ...]] = {"file": (str,), "rows": (int,), "bytes": (int,), "sha256": (str,)}


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CoreclipError(f"no data set at {path}: it is not a folder; name the folder that `coreclip convert` made")
    file = path / "dataset.json"
    if not file.exists():
        raise CoreclipError(
            f"no data set at {path}: dataset.json is missing; run `coreclip convert` (again) to make it"
        )
    info = read_json(file, "data set description")
    version = info.get("format_version") if isinstance(info, dict) else None
    if version != FORMAT_VERSION:
        raise CoreclipError(
            f"{file} has the format version {json.dumps(version)}, this coreclip reads {FORMAT_VERSION}; "
            "convert again, or use the version of coreclip that wrote it"
        )
    _check_types(file, info, _INFO_TYPES)
    for shard in info["shards"]:
        _check_types(file, shard, _SHARD_TYPES)
    _check_info(file, info)
    return info


def _check_types(file: Path, table: Any, types: dict[str, tuple[type, ...]]) -> None:
    for key, allowed in types.items():
        value = table.get(key) if isinstance(table, dict) else None
        if type(value) not in allowed or (value is None and key not in table):
            names = " or ".join(kind.__name__ for kind in allowed)
            _refuse(file, f"{key} is {json.dumps(value)[:80]}", f"it must be of type {names}")


def _check_info(file: Path, info: dict[str, Any]) -> None:
    n_rows = sum(shard["rows"] for shard in info["shards"])
    if info["n"] < 1 or n_rows != info["n"] or any(shard["rows"] < 1 for shard in info["shards"]):
        _refuse(file, f"n is {info['n']} and the shards have {n_rows} rows", "both must be the same, 1 or more")
    for shard in info["shards"]:
        # A name from a stranger's file must not lead out of the folder.
        if Path(shard["file"]).name != shard["file"] or not shard["file"].endswith(".beton"):
            _refuse(file, f"a shard is called {shard['file']!r}", "it must be the plain name of a .beton file")
    if info["fields"] not in (field_names(False), field_names(True)):
        _refuse(
            file, f"fields is {json.dumps(info['fields'])[:80]}", f"it must be {field_names(True)}, the label optional"
        )
    if info["context"] < 1 or info["captions_per_row"] < 1:
        sizes = (info["captions_per_row"], info["context"])
        _refuse(file, f"(captions_per_row, context) is {sizes}", "both must be 1 or more")
    if not all(isinstance(name, str) for name in info["class_names"] or ()):
        _refuse(file, "class_names has an entry that is no text", "each must be one")


def _refuse(file: Path, what: str, rule: str) -> None:
    raise CoreclipError(f"{file} is damaged: {what}, {rule}; restore the file or convert again")


def _allow_open_files(n_files: int) -> None:
    """Raise this process's own limit of open files, as far as it may, where ``n_files`` more are likely to pass it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + n_files + _OTHER_FILES
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
        )
