"""Is a data set what was written? Every byte against its hash, every table against the others, images by decoding them.

All problems are found and reported, not the first alone. What no hash and no second copy covers can't be checked: the
free text fields of ``dataset.json`` (``convert``, ``bytes_in``).
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import sha256_file
from coreclip.pipeline.beton import MODES, Shard, read_shard
from coreclip.pipeline.dataset import Dataset, read_table
from coreclip.pipeline.images import ImageRejected, prepare_image
from coreclip.pipeline.publishing import conversion, fingerprint
from coreclip.pipeline.rows import PairsReader, disagreements
from coreclip.pipeline.tokenizer import Tokenizer
from coreclip.pipeline.workers import WorkerPool
from coreclip.progress import Progress
from coreclip.randomness import permutation

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_LISTED = 100
_MOST_OF_A_SHARD = 100
_CHUNK = 512
_SMALL = 64 << 20  # bytes that are checked before worker processes would have started
_MAX_PIXELS = 179_000_000  # of an image that says that it is larger than the shard does
_TABLES = {"pairs.parquet": "pairs_sha256", "rejects.parquet": "rejects_sha256", "tokenizer.json": "tokenizer_sha256"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a data set.

    Attributes
    ----------
    file : str
        Name of the file in the data set.
    index : int or None
        The pair, where it is one pair's.
    problem, remedy : str
    """

    file: str
    index: int | None
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = "" if self.index is None else f", pair {self.index}"
        return f"{self.file}{where}: {self.problem}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was checked, and what is wrong.

    Attributes
    ----------
    ok : bool
        Nothing is wrong.
    pairs, shards : int
        Of the data set; 0 where ``dataset.json`` can't be read.
    bytes : int
        Of the shards that were read and hashed.
    decoded : int
        Images.
    n_problems : int
    problems : list of Problem
        The first 100, in the order of files and pairs.
    seconds : float
    """

    ok: bool
    pairs: int
    shards: int
    bytes: int
    decoded: int
    n_problems: int
    problems: list[Problem]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report, of JSON's types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Found:
    problems: list[Problem]
    n_problems: int
    bytes: int
    decoded: int


def verify(
    dataset: str | os.PathLike[str],
    *,
    decode: str = "sample",
    sample: int = 1000,
    workers: int | None = None,
    seed: int = 0,
) -> VerifyReport:
    """Check that a data set is whole and that its files agree with each other.

    Checked are the SHA-256 of every shard and table, the structure of every shard, and for each pair that
    ``pairs.parquet`` says what the shard holds (size, captions, label, ...), that the tokens are the captions', that a
    JPEG's header has the stored size, that an image that was stored untouched has its source's hash, and, for those that
    ``decode`` asks for, that the image decodes without a complaint that ``convert`` has not noted.

    Parameters
    ----------
    dataset : path
    decode : {"sample", "all", "none"}
    sample : int
        Images to decode for ``"sample"``, spread at random over the data set.
    workers : int, optional
        Processes; by default one for each core.
    seed : int
        Of the sample.

    Returns
    -------
    VerifyReport

    Raises
    ------
    CoreclipError
        For a folder that holds no ``dataset.json`` and for options that are not allowed; damage is reported, not raised.
    """
    start = time.monotonic()
    if decode not in ("sample", "all", "none"):
        raise CoreclipError(f"decode = {decode!r} is not allowed: sample, all or none")
    if sample < 1:
        raise CoreclipError(f"sample = {sample} is not allowed: at least 1 image; use decode = none for none")
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if not 1 <= workers <= 256:
        raise CoreclipError(f"workers = {workers} is not allowed: 1 to 256 processes")
    path = Path(dataset)
    try:
        opened = Dataset(path)
    except CoreclipError as error:
        if not (path / "dataset.json").is_file():
            raise
        problem = Problem("dataset.json", None, str(error), "nothing else could be checked")
        return _report([_Found([problem], 1, 0, 0)], 0, 0, start)
    chosen = _chosen(opened.n, decode, sample, seed)
    found = [_check_tables(opened), *_check_shards(opened, chosen, workers)]
    return _report(found, opened.n, len(opened.info["shards"]), start)


def _report(found: list[_Found], pairs: int, shards: int, start: float) -> VerifyReport:
    problems = [problem for each in found for problem in each.problems]
    n_problems = sum(each.n_problems for each in found)
    return VerifyReport(
        ok=n_problems == 0,
        pairs=pairs,
        shards=shards,
        bytes=sum(each.bytes for each in found),
        decoded=sum(each.decoded for each in found),
        n_problems=n_problems,
        problems=problems[:_MOST_LISTED],
        seconds=round(time.monotonic() - start, 3),
    )


def _chosen(n: int, decode: str, sample: int, seed: int) -> np.ndarray:
    """Return the indices whose images are decoded, ascending."""
    if decode == "none":
        return np.empty(0, np.int64)
    if decode == "all" or sample >= n:
        return np.arange(n)
    return np.sort(permutation(n, seed)[:sample])


class _Ledger:
    """Collects problems up to a number, and counts all."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.n_problems = 0

    def add(
        self, file: str, problem: str, index: int | None = None, remedy: str = "restore it or convert again"
    ) -> None:
        self.n_problems += 1
        if len(self.problems) < _MOST_OF_A_SHARD:
            self.problems.append(Problem(file, index, problem, remedy))


def _check_tables(dataset: Dataset) -> _Found:
    ledger, info = _Ledger(), dataset.info
    for name, key in _TABLES.items():
        file = dataset.path / name
        if not file.is_file():
            ledger.add(name, "it is missing", remedy="restore the file or convert again")
        elif sha256_file(file) != info.get(key):
            ledger.add(name, "it has changed since it was written: its SHA-256 is not the one in dataset.json")
    shards = [shard["sha256"] for shard in info["shards"]]
    if fingerprint(shards, str(info.get("pairs_sha256")), info["tokenizer_sha256"]) != dataset.fingerprint:
        ledger.add("dataset.json", "the fingerprint is not that of the hashes it lists")
    _check_columns(dataset, ledger)
    known = {"dataset.json", *_TABLES, *(shard["file"] for shard in info["shards"])}
    for stray in sorted(dataset.path.glob("*.beton")):
        if stray.name not in known:
            ledger.add(stray.name, "dataset.json does not list this shard", remedy="move it elsewhere")
    return _Found(ledger.problems, ledger.n_problems, 0, 0)


def _check_columns(dataset: Dataset, ledger: _Ledger) -> None:
    """Read what is small enough to be read whole: does it parse, and do the counts agree?"""
    if (dataset.path / "pairs.parquet").is_file():
        try:
            with PairsReader(dataset):
                pass
        except CoreclipError as error:
            ledger.add("pairs.parquet", str(error))
    if (dataset.path / "rejects.parquet").is_file():
        try:
            n_rejects = read_table(dataset.path / "rejects.parquet", ["reason"]).num_rows
            if n_rejects != dataset.info.get("rejected"):
                ledger.add(
                    "rejects.parquet", f"it has {n_rejects} rows, dataset.json says {dataset.info.get('rejected')}"
                )
        except CoreclipError as error:
            ledger.add("rejects.parquet", str(error))
    if (dataset.path / "tokenizer.json").is_file():
        try:
            Tokenizer.load(dataset.path / "tokenizer.json")
        except CoreclipError as error:
            ledger.add("tokenizer.json", str(error))


def _check_shards(dataset: Dataset, chosen: np.ndarray, workers: int) -> list[_Found]:
    shards = dataset.info["shards"]
    firsts = np.cumsum([0, *(shard["rows"] for shard in shards)])
    bounds = np.searchsorted(chosen, firsts)
    calls = [(str(dataset.path), i, chosen[bounds[i] : bounds[i + 1]] - firsts[i]) for i in range(len(shards))]
    workers = min(workers, len(shards))
    found: list[_Found] = []
    with Progress(dataset.n, "verifying", "pairs") as progress:
        for each in _results(calls, workers if sum(shard["bytes"] for shard in shards) > _SMALL else 1):
            progress.advance(shards[len(found)]["rows"])
            found.append(each)
    return found


def _results(calls: list[tuple[str, int, np.ndarray]], workers: int) -> Iterator[_Found]:
    """Yield what :func:`check_shard` finds for each call, in order."""
    if workers == 1:
        yield from (check_shard(*call) for call in calls)
        return
    with WorkerPool(workers) as pool:
        under_way: deque[Future[Any]] = deque()
        for call in calls:
            under_way.append(pool.submit(check_shard, *call))
            if len(under_way) == 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def check_shard(path: str, number: int, to_decode: np.ndarray) -> _Found:
    """Check one shard and its rows of ``pairs.parquet``; what a worker process calls.

    Parameters
    ----------
    path : str
        The data set.
    number : int
    to_decode : int64 (b,)
        Rows of the shard, ascending.
    """
    dataset, ledger = Dataset(path), _Ledger()
    entry = dataset.info["shards"][number]
    file = dataset.shard_path(number)
    if not file.is_file():
        ledger.add(entry["file"], "it is missing", remedy="restore the file or convert again")
        return _Found(ledger.problems, ledger.n_problems, 0, 0)
    n_bytes = file.stat().st_size
    if n_bytes != entry["bytes"]:
        ledger.add(entry["file"], f"it has {n_bytes} bytes, dataset.json says {entry['bytes']}")
    elif sha256_file(file) != entry["sha256"]:
        ledger.add(entry["file"], "it has changed since it was written: its SHA-256 is not the one in dataset.json")
    try:
        shard = read_shard(file)
    except CoreclipError as error:
        ledger.add(entry["file"], str(error))
        return _Found(ledger.problems, ledger.n_problems, n_bytes, 0)
    with shard, _no_pixel_limit():
        decoded = _check_rows(dataset, shard, number, to_decode, ledger)
    return _Found(ledger.problems, ledger.n_problems, n_bytes, decoded)


@contextlib.contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Let Pillow open what conversion has let in."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_rows(dataset: Dataset, shard: Shard, number: int, to_decode: np.ndarray, ledger: _Ledger) -> int:
    entry = dataset.info["shards"][number]
    first = sum(shard["rows"] for shard in dataset.info["shards"][:number])
    shape = (shard.captions_per_row, shard.context)
    expected = (dataset.captions_per_row, dataset.context)
    labelled = "label" in dataset.info["fields"]
    if shard.rows != entry["rows"] or shape != expected or (shard.label is not None) != labelled:
        ledger.add(
            entry["file"],
            f"it has {shard.rows} rows, token arrays of {shape} and {'' if shard.label is not None else 'no '}labels, "
            f"dataset.json says {entry['rows']}, {expected} and {'' if labelled else 'no '}labels: it is another data set's",
        )
        return 0
    tokenizer = _loaded(lambda: dataset.tokenizer())
    reader = _loaded(lambda: PairsReader(dataset))
    decoded = 0
    try:
        for at in range(0, shard.rows, _CHUNK):
            rows = np.arange(at, min(at + _CHUNK, shard.rows))
            table = None
            if reader is not None:
                try:
                    table = reader.read(first + at, first + at + len(rows))
                except CoreclipError as error:
                    ledger.add("pairs.parquet", str(error))
                    reader = None
            captions = _check_captions(dataset, shard, number, rows, first, tokenizer, ledger)
            if table is not None:
                _check_against_table(dataset, shard, number, rows, first, table, captions, ledger)
            _check_headers(shard, entry["file"], rows, first, ledger)
            wanted = to_decode[np.searchsorted(to_decode, at) : np.searchsorted(to_decode, at + len(rows))]
            _check_images(dataset, shard, entry["file"], wanted, at, first, table, ledger)
            decoded += len(wanted)
    finally:
        if reader is not None:
            reader.__exit__(None, None, None)
    return decoded


def _loaded(load: Any) -> Any:
    """Return what ``load`` returns, or None where that is damaged, which :func:`_check_tables` reports."""
    try:
        return load()
    except CoreclipError:
        return None


def _check_captions(
    dataset: Dataset, shard: Shard, number: int, rows: np.ndarray, first: int, tokenizer: Any, ledger: _Ledger
) -> list[list[str] | None]:
    """Check that captions can be read and that the tokens are theirs; return them, None for those that can't."""
    file = dataset.info["shards"][number]["file"]
    captions: list[list[str] | None] = []
    for row in rows.tolist():
        try:
            captions.append(shard.captions(row))
        except CoreclipError:
            captions.append(None)
            ledger.add(file, "its captions are not a JSON list of texts", first + row)
    if tokenizer is None:
        return captions
    m, context = shard.captions_per_row, shard.context
    expected = np.zeros((len(rows), m, context), np.int64)
    places = [(i, j) for i, texts in enumerate(captions) for j in range(min(m, len(texts or ())))]
    if places:
        i, j = np.array(places).T
        expected[i, j] = tokenizer.encode([(captions[a] or [])[b] for a, b in places], context)
    wrong = (shard.tokens(rows) != expected).any(axis=(1, 2))
    for place in np.flatnonzero(wrong).tolist():
        if captions[place] is not None:
            ledger.add(file, "its tokens are not those of its captions", first + int(rows[place]))
    return captions


def _check_against_table(
    dataset: Dataset,
    shard: Shard,
    number: int,
    rows: np.ndarray,
    first: int,
    table: "pa.Table",
    captions: list[list[str] | None],
    ledger: _Ledger,
) -> None:
    readable = np.array([texts is not None for texts in captions])
    kept = np.flatnonzero(readable)
    texts = [texts for texts in captions if texts is not None]
    for place, problem in disagreements(shard, number, rows[kept], table.take(kept), texts):
        ledger.add(dataset.info["shards"][number]["file"], problem, first + int(rows[kept[place]]))


def _check_headers(shard: Shard, file: str, rows: np.ndarray, first: int, ledger: _Ledger) -> None:
    """Hold the size and the kind in each JPEG's header against what a shard may hold."""
    for row in rows[np.array(MODES)[shard.modes[rows]] == "jpg"].tolist():
        width, height = int(shard.widths[row]), int(shard.heights[row])
        stored = shard.image_bytes(row)
        try:
            header = prepare_image(stored, check="header", max_pixels=max(width * height, _MAX_PIXELS))
        except ImageRejected as reason:
            ledger.add(file, f"its image is no JPEG that can be read: {reason}", first + row)
            continue
        if (header.width, header.height) != (width, height):
            text = f"its JPEG has {header.width} x {header.height} pixels, the shard says {width} x {height}"
            ledger.add(file, text, first + row)
        elif header.data != stored:
            ledger.add(file, "its JPEG is of a kind that the stock decoder does not read", first + row)


def _check_images(
    dataset: Dataset,
    shard: Shard,
    file: str,
    rows: np.ndarray,
    at: int,
    first: int,
    table: "pa.Table | None",
    ledger: _Ledger,
) -> None:
    """Decode images as strictly as ``convert`` does."""
    unchecked = conversion(dataset.info)["options"].get("check") == "header"  # then warnings were not looked for
    for row in rows.tolist():
        if MODES[shard.modes[row]] == "raw":
            continue  # every value is a pixel
        stored = shard.image_bytes(row)
        noted = "" if table is None else str(table.column("warning")[row - at].as_py() or "")
        width, height = int(shard.widths[row]), int(shard.heights[row])
        try:
            warning = prepare_image(stored, max_pixels=max(width * height, _MAX_PIXELS)).warning
        except ImageRejected as reason:
            ledger.add(file, f"its image can't be decoded: {reason}", first + row)
            continue
        if warning and not noted and not unchecked and table is not None:
            ledger.add(file, f"decoding its image warns ({warning}), which was not so when it was stored", first + row)
