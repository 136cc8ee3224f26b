"""Where a loader's pixels and tokens come from: the mapped shards, copies in memory, another tokenizer's captions.

Left out: the order of the pairs and the batches, which are the loader's.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.augment import augment_images
from coreclip.pipeline.dataset import Dataset, ShardSet
from coreclip.pipeline.decode import (
    JPEG,
    RAW,
    Decoder,
    dct_denominators,
    decode_images,
    gather_tokens,
    scratch_bytes,
    touch_pages,
)
from coreclip.watch import Watch, no_stage

if TYPE_CHECKING:
    from coreclip.pipeline.tokenizer import Tokenizer

# Costs that a batch is divided by, in units of one output pixel: measured, a JPEG byte takes 14 ns, a pixel 5 ns.
_JPEG_BYTE_COST, _RAW_BYTE_COST = 3.0, 0.1
_CACHE_BYTES = 1 << 20


@dataclass(eq=False)
class Images:
    """Where stored images lie in this process's memory.

    Attributes
    ----------
    address, n_bytes : uint64 (m,)
    mode : uint8 (m,)
    width, height : int32 (m,)
    tolerated : bool (m,)
        As in :class:`coreclip.pipeline.dataset.ShardSet`.
    indices : int64 (m,) or None
        Which pairs the rows are, ascending; None where row i is pair i.
    owner : object
        Keeps the memory alive.
    """

    address: np.ndarray
    n_bytes: np.ndarray
    mode: np.ndarray
    width: np.ndarray
    height: np.ndarray
    tolerated: np.ndarray
    indices: np.ndarray | None
    owner: object

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Return the rows of pairs, int64 (b,)."""
        return index if self.indices is None else np.searchsorted(self.indices, index)


@dataclass(eq=False)
class Changes:
    """How a batch's images are augmented.

    Attributes
    ----------
    keys : int64 (b,)
        Of the random numbers, with ``seed`` and ``epoch``.
    settings : (float64 (6,), float64 (3,))
        See :meth:`coreclip.pipeline.augment.Augment.settings`.
    """

    keys: np.ndarray
    seed: int
    epoch: int
    settings: tuple[np.ndarray, np.ndarray]


def stored_images(shards: ShardSet) -> Images:
    """Return all images of a data set, as they are stored."""
    return Images(
        address=shards.image_address, n_bytes=shards.image_size, mode=shards.mode, width=shards.width,
        height=shards.height, tolerated=shards.tolerated, indices=None, owner=shards,
    )  # fmt: skip


def resident_images(
    stored: Images,
    indices: np.ndarray,
    side: int,
    boxes: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    margin: float,
    pool: ThreadPoolExecutor,
    decoders: "DecoderShelf",
    parts: int,
) -> Images:
    """Decode pairs once and keep them as raw pixels.

    Parameters
    ----------
    stored : Images
    indices : int64 (m,)
        Pairs, ascending, each once.
    side : int
        Of the square images that are kept, pixels.
    boxes : function
        ``boxes(width, height, side)`` gives the part that is kept.
    margin, pool, decoders, parts
        As in :func:`start_decoding`.

    Returns
    -------
    Images
        In mode raw; an image that can't be decoded has no bytes, and is invalid whenever it is asked for.

    Raises
    ------
    CoreclipError
        Where the pixels need more memory than the machine has free.
    """
    needed, free = len(indices) * side * side * 3, _free_memory()
    if needed > 0.8 * free:
        raise CoreclipError(
            f"resident=True needs {needed / 2**30:.1f} GiB for {len(indices)} images of {side} pixels and "
            f"{free / 2**30:.1f} GiB are free; use resident=False, a smaller image_size or a smaller subset"
        )
    pixels, valid = np.empty((len(indices), side, side, 3), np.uint8), np.zeros(len(indices), bool)
    for first in range(0, len(indices), 1024):
        part = slice(first, first + 1024)
        rows = indices[part]
        kept = boxes(stored.width[rows], stored.height[rows], side)
        for future in start_decoding(pool, decoders, stored, rows, kept, margin, pixels[part], valid[part], parts):
            future.result()
    size = np.uint64(side * side * 3)
    return Images(
        address=np.uint64(pixels.ctypes.data) + np.arange(len(indices), dtype=np.uint64) * size,
        n_bytes=np.where(valid, size, np.uint64(0)), mode=np.full(len(indices), RAW, np.uint8),
        width=np.full(len(indices), side, np.int32), height=np.full(len(indices), side, np.int32),
        tolerated=np.zeros(len(indices), bool), indices=indices, owner=pixels,
    )  # fmt: skip


def _free_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return kilobytes * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class DecoderShelf:
    """Decoders that tasks borrow, so that there are only as many as tasks at a time, kept between epochs."""

    def __init__(self) -> None:
        self._free: list[Decoder] = []

    def take(self) -> Decoder:
        """Return a free decoder, or a new one."""
        try:
            return self._free.pop()
        except IndexError:
            return Decoder()

    def give_back(self, decoder: Decoder) -> None:
        """Make a decoder free for others."""
        self._free.append(decoder)


def start_decoding(
    pool: ThreadPoolExecutor,
    decoders: DecoderShelf,
    images: Images,
    rows: np.ndarray,
    boxes: np.ndarray,
    margin: float,
    out: np.ndarray,
    valid: np.ndarray,
    parts: int,
    changes: Changes | None = None,
    then: Callable[[], None] | None = None,
    watch: Watch | None = None,
) -> list["Future[None]"]:
    """Start to decode, crop and resize images on the pool's threads, in slices of about equal cost.

    Parameters
    ----------
    pool, decoders
        Threads, and what they work with.
    images : Images
    rows : int64 (b,)
        Of ``images``.
    boxes : float64 (b, 4)
        Crops: left, top, right, bottom, pixels; mirrored where right is below left.
    margin : float
        See :func:`coreclip.pipeline.decode.dct_denominators`.
    out : uint8 (b, side, side, 3)
        Written by the time all futures are done; zeros where ``valid`` is False.
    valid : bool (b,)
        Written too.
    parts : int
        Slices.
    changes : Changes or None
        What is done to each image on the way.
    then : function or None
        Called by the thread that is the last to end its slice, where none has failed.
    watch : Watch or None
        Is told the stages read, decode and augment, on the pool's threads.

    Returns
    -------
    list of futures
    """
    side = out.shape[1]
    mode, n_bytes = images.mode[rows], images.n_bytes[rows]
    denominator = dct_denominators(mode, boxes, side, margin)

    cost = n_bytes * np.where(mode == JPEG, _JPEG_BYTE_COST, _RAW_BYTE_COST) + side * side
    slices = equal_parts(cost, parts)
    lock, left = threading.Lock(), len(slices)

    def decode(part: slice) -> None:
        nonlocal left
        some = rows[part]
        width, height = images.width[some].astype(np.int64), images.height[some].astype(np.int64)
        decoder = decoders.take()
        decoder.reserve(scratch_bytes(width, height, denominator[part]))
        arrays = (
            images.address[some], n_bytes[part], mode[part], width, height, images.tolerated[some], boxes[part],
            denominator[part], out[part], valid[part],
        )  # fmt: skip
        if watch is not None:
            with watch.stage("read"):  # else the pages come while they are decoded
                touch_pages(arrays[0], arrays[1])
        stage = no_stage if watch is None else watch.stage
        for few in [slice(None)] if changes is None else cache_slices(len(some), side):
            with stage("decode"):
                decode_images(decoder.scratch, *(array[few] for array in arrays))
            if changes is not None:
                keys = changes.keys[part][few]
                with stage("augment"):
                    augment_images(
                        arrays[-2][few], arrays[-1][few], keys, changes.seed, changes.epoch, *changes.settings
                    )
        decoders.give_back(decoder)
        with lock:
            left -= 1
            is_last = left == 0
        if is_last and then is not None:
            then()

    if then is not None and not slices:
        then()
    return [pool.submit(decode, part) for part in slices]


def cache_slices(n: int, side: int) -> list[slice]:
    """Cut ``n`` images of ``side`` pixels into runs that stay in a core's cache between two kernels."""
    step = max(1, _CACHE_BYTES // (3 * side * side))
    return [slice(first, first + step) for first in range(0, n, step)]


def equal_parts(cost: np.ndarray, parts: int) -> list[slice]:
    """Cut a sequence of costs, float64 (b,), into at most ``parts`` runs of about equal sums; none is empty."""
    total = np.cumsum(cost)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts, side="left") + 1 if len(cost) else []
    edges = np.unique([0, *cuts, len(cost)])
    return [slice(int(first), int(last)) for first, last in itertools.pairwise(edges)]


class Captions(Protocol):
    """A source of tokens."""

    @property
    def context(self) -> int:
        """Tokens of a row."""
        ...

    def put(self, index: np.ndarray, draws: np.ndarray, tokens: np.ndarray, caption: np.ndarray) -> None:
        """Write the tokens (int64 (b, context)) of one caption of each pair, and which it is (int64 (b,)).

        Caption ``draws % captions present`` (uint64 (b,)) is taken.
        """


@dataclass(eq=False)
class StoredCaptions:
    """The shards' own tokens, int64 (b, context) of a batch."""

    shards: ShardSet
    context: int

    def put(self, index: np.ndarray, draws: np.ndarray, tokens: np.ndarray, caption: np.ndarray) -> None:
        """See :class:`Captions`."""
        gather_tokens(self.shards.token_address[index], draws, self.shards.captions_per_row, tokens, caption)


@dataclass(eq=False)
class EncodedCaptions:
    """Captions that another tokenizer has encoded.

    Attributes
    ----------
    tokens : int32 (captions, context)
    offsets : int64 (n + 1,)
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def context(self) -> int:
        """See :class:`Captions`."""
        return self.tokens.shape[1]

    def put(self, index: np.ndarray, draws: np.ndarray, tokens: np.ndarray, caption: np.ndarray) -> None:
        """See :class:`Captions`."""
        present = np.maximum(self.offsets[index + 1] - self.offsets[index], 1).astype(np.uint64)
        caption[:] = (draws % present).astype(np.int64)
        tokens[:] = self.tokens[self.offsets[index] + caption]


def captions_of(
    dataset: Dataset, shards: ShardSet, tokenizer: "Tokenizer | None", context: int | None = None
) -> Captions:
    """Return the stored tokens, or, for another tokenizer than theirs, all captions encoded with it, ``context`` tokens long."""
    if tokenizer is None or tokenizer.sha256 == dataset.tokenizer_sha256:
        return StoredCaptions(shards, dataset.context)
    texts, offsets = dataset.all_captions()
    return EncodedCaptions(np.asarray(tokenizer.encode(texts, context or dataset.context), np.int32), offsets)
