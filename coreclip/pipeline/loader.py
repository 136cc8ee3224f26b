"""Batches of a data set: shuffled, decoded, cropped, augmented and tokenised on threads, a few batches ahead of the consumer.

A batch is cut into slices of equal cost, each decoded by one compiled call outside the interpreter's lock. There is no
producer thread: the consumer's ``next`` hands the following batches to a pool that lives as long as the iteration, so a
``break``, an exception or the interpreter's exit leaves nothing behind. What a batch holds is a pure function of
(seed, epoch, index), whatever the batch size, the threads and the ranks. Left out: copies to a GPU, which are the
trainer's but for images that are resident there.
"""

import hashlib
import math
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline import streams
from coreclip.pipeline.augment import Augment
from coreclip.pipeline.crops import centre_boxes, mirror_boxes, random_boxes
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.decode import EXACT_MARGIN, TRAINING_MARGIN, dct_denominators, load_decoder
from coreclip.pipeline.feeds import (
    Changes,
    DecoderShelf,
    Images,
    captions_of,
    resident_images,
    start_decoding,
    stored_images,
)
from coreclip.pipeline.order import (
    ORDERS,
    batch_slices,
    drawn_by_weight,
    epoch_order,
    occurrence_keys,
    quasi_random_order,
    rank_share,
    storage_blocks,
)
from coreclip.pipeline.readahead import ReadAhead
from coreclip.pipeline.subsets import checked_subset
from coreclip.randomness import hash64
from coreclip.spread import spread_evenly
from coreclip.watch import Watch, no_stage

if TYPE_CHECKING:
    import torch

    from coreclip.pipeline.operations import Operations
    from coreclip.pipeline.resident import DevicePixels
    from coreclip.pipeline.tokenizer import Tokenizer

_RESIDENT_ROOM = 8 / 7  # resident images of a training loader are this much larger, so that crops have room (256 : 224)


@dataclass(eq=False)
class Batch:
    """Some pairs, ready for the model; every array is the batch's own.

    Attributes
    ----------
    images : uint8 torch (b, 3, size, size), channels last in memory
        On the CPU, or where ``resident="device"`` keeps them; of another type where an operation makes one.
    tokens : int64 torch (b, context)
    index : int64 torch (b,)
        Which pairs of the data set; -1 where a row is only there to make the ranks' last batches equally long.
    weight : float32 torch (b,)
        The subset's, 1 without one; 0 where ``valid`` is False.
    valid : bool torch (b,)
        False where an image could not be decoded; its pixels are zeros.
    caption : int64 torch (b,)
        Which of the pair's captions ``tokens`` holds.
    """

    images: "torch.Tensor"
    tokens: "torch.Tensor"
    index: "torch.Tensor"
    weight: "torch.Tensor"
    valid: "torch.Tensor"
    caption: "torch.Tensor"

    def __len__(self) -> int:
        return len(self.index)

    def check_decoded(self, dataset: Dataset) -> None:
        """Refuse the batch where an image of the data set that it is of did not decode.

        Raises
        ------
        CoreclipError
            Naming the first such pairs.
        """
        if not self.valid.all():
            broken = self.index[~self.valid].tolist()
            raise CoreclipError(
                f"the images of the pairs {broken[:8]} of {dataset.path} can't be decoded; the file has changed since it was "
                "converted; run the same convert command again: it checks every file"
            )


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What :func:`make_loader` has checked; the names are its arguments'."""

    batch_size: int
    image_size: int
    train: bool
    crop_scale: tuple[float, float]
    crop: str
    augment: Augment
    workers: int
    seed: int
    order: str
    window: int
    rank: int
    world_size: int
    drop_last: bool
    prefetch: int
    resident: bool
    draws: bool
    pin_memory: bool
    watch: Watch | None
    device: Any  # torch's, or None where resident images stay with the decoder


@dataclass(eq=False)
class _Ahead:
    """A batch that is being decoded."""

    epoch: "_Epoch"
    part: slice
    image_size: int
    is_ready: Callable[[], bool]
    finish: Callable[[], Batch]


@dataclass(eq=False)
class _Epoch:
    """What an iteration visits; a later :meth:`Loader.set_subset` does not touch it."""

    number: int
    run: "_Run"  # whose pairs those below are, or are drawn from
    indices: np.ndarray
    weights: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    windows: np.ndarray  # where each begins whose images are read ahead together; none where batches are
    slices: list[slice]  # positions of each batch; in training of all ranks together


@dataclass(frozen=True, eq=False)
class _Run:
    """An iteration over one epoch, or over all that follow too; a later :meth:`Loader.set_subset` does not touch its pairs."""

    endless: bool
    indices: np.ndarray
    weights: np.ndarray
    keys: np.ndarray
    epoch: int  # in which it begins, at this position
    position: int
    first: int
    last: int  # of this rank's positions, the one behind


class Loader:
    """An iterable of :class:`Batch`; made by :func:`make_loader`.

    Each ``iter()`` starts the following epoch at its beginning, also when the one before it was left early; only after
    :meth:`load_state_dict` does it go on within an epoch. :meth:`endless` goes on into the epochs that follow.

    Attributes
    ----------
    dataset : Dataset
    batch_size, workers : int
    image_size : int
        As :meth:`set_image_size` left it.
    n_samples : int
        Pairs that an epoch visits, on all ranks together.
    epoch : int
        The epoch under way, or, between epochs, the next one.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: _Settings,
        *,
        subset: Any,
        tokenizer: "Tokenizer | None",
        context: int | None,
        operations: "Operations | None",
    ) -> None:
        self.dataset = dataset
        self.batch_size = settings.batch_size
        self.image_size = settings.image_size
        self.workers = settings.workers
        self.epoch = 0
        self._settings = settings
        self._operations = operations
        self._run: _Run | None = None  # the iteration that moves the position
        self._position = 0
        load_decoder()
        self._shards = dataset.open_shards()
        self._stored = stored_images(self._shards)
        self._blocks: np.ndarray | None = None  # of all pairs, where the order asks for them
        self._copy: Images | None = None
        self._pixels: DevicePixels | None = None  # the copy's, where a device has them
        self._captions = captions_of(dataset, self._shards, tokenizer, context)
        self._decoders = DecoderShelf()
        self.set_subset(subset)

    def __len__(self) -> int:
        """Batches in a whole epoch; in training the same on all ranks."""
        return len(self._slices(self._first, self._last))

    def __iter__(self) -> Iterator[Batch]:
        run = self._begin(endless=False)
        return self._iterate(run, iter([self._epoch_of(run, run.epoch)]))

    def endless(self) -> Iterator[Batch]:
        """Return the batches of the epoch that an ``iter()`` would start, and of all that follow.

        Those of the next epoch are decoded while the last ones of this are used, where an ``iter()`` for each epoch begins with an
        empty queue. The batches and the states are the same. :meth:`set_subset` holds from the next ``iter()`` or ``endless()`` on.
        """
        run = self._begin(endless=True)
        numbers = count(run.epoch) if len(self) else ()
        return self._iterate(run, (self._epoch_of(run, number) for number in numbers))

    def _begin(self, *, endless: bool) -> _Run:
        """Return a new iteration, which is the one that moves the position from now on."""
        before = self._run
        if before is not None and not (before.endless and self._position == self._first):
            self.set_epoch(self.epoch + 1)
        pairs = (self._indices, self._weights, self._keys)
        self._run = _Run(endless, *pairs, self.epoch, self._position, self._first, self._last)
        return self._run

    def _epoch_of(self, run: _Run, number: int) -> _Epoch:
        indices, weights, keys = run.indices, run.weights, run.keys
        if self._settings.draws:
            indices = indices[drawn_by_weight(weights, seed=self._settings.seed, epoch=number)]
            weights, keys = np.ones(len(indices)), occurrence_keys(indices)
        order, windows = self._order(indices, number)
        slices = self._slices(run.position if number == run.epoch else run.first, run.last)
        return _Epoch(number, run, indices, weights, keys, order, windows, slices)

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``iter()`` start epoch ``epoch`` at its beginning."""
        self.epoch = _checked_int("epoch", epoch, 0, 2**63 - 1)
        self._position = self._first
        self._run = None

    def set_subset(self, subset: Any) -> None:
        """Visit other pairs from the next ``iter()`` on; an epoch under way counts as over. Nothing is compiled anew.

        Parameters
        ----------
        subset : None, int (k,), or an object with ``indices`` and ``weights``
            As in :func:`make_loader`.
        """
        indices, weights = checked_subset(subset, self.dataset)
        settings = self._settings
        n, ranks = len(indices), settings.world_size
        fewest = n if settings.train else n // ranks
        if settings.drop_last and fewest < self._stride:
            where = f" on {ranks} ranks" if ranks > 1 else ""
            raise CoreclipError(
                f"drop_last=True leaves no batch of {self.batch_size}{where} of {n} pairs; use a smaller batch_size"
            )
        if settings.draws and not weights.any():
            raise CoreclipError("the subset's weights are all 0: none of its pairs can be drawn; use another subset")
        if self._run is not None:
            self.set_epoch(self.epoch + 1)
        self._indices, self._weights, self.n_samples = indices, weights, n
        self._keys = indices if subset is None else occurrence_keys(indices)
        # In evaluation a rank visits a run of its own, in training a part of each batch.
        self._first, self._last = (
            (0, n) if settings.train else (n * settings.rank // ranks, n * (settings.rank + 1) // ranks)
        )
        digest = hashlib.sha256(indices.data)
        digest.update(weights.data)
        self._digest = digest.hexdigest()
        self._position = self._first

    def decoding_sample(self, n: int) -> tuple[Images, np.ndarray, np.ndarray, np.ndarray]:
        """Return images that the loader decodes, evenly spread over its pairs: for measuring what decoding takes.

        Returns
        -------
        images : Images
        rows : int64 (m,)
            Of ``images``; at most ``n``.
        boxes : float64 (m, 4)
            Crops, as in the epoch under way.
        denominators : int64 (m,)
            By how much the inverse DCT shrinks each.
        """
        images = self._stored if self._copy is None else self._copy
        at = spread_evenly(len(self._indices), n)
        rows = images.rows(self._indices[at])
        boxes = self._boxes(images.width[rows], images.height[rows], self.epoch, self._keys[at])
        margin = TRAINING_MARGIN if self._settings.train else EXACT_MARGIN
        return images, rows, boxes, dct_denominators(images.mode[rows], boxes, self.image_size, margin)

    def forget_pages(self) -> None:
        """Have the system give up what it keeps of the shards in memory, so that the next batches come from the disk.

        For measuring; between two iterations. Other processes that have the files mapped keep what they use.
        """
        self._shards.forget_pages()

    def set_image_size(self, image_size: int) -> None:
        """Deliver images of another size from the next batch on, also within an epoch.

        Order, crops, changes and captions stay what they are. Batches that are decoded ahead are decoded anew, so that what
        is delivered does not depend on ``prefetch``. The size is no part of :meth:`state_dict`.

        Parameters
        ----------
        image_size : int
            Side, pixels. With ``resident`` at most the one that the loader was made with.

        Raises
        ------
        CoreclipError
            For a size out of its range, and for operations and resident images that are made for one size.
        """
        settings = self._settings
        most = settings.image_size if settings.resident else 4096
        size = _checked_int("image_size", image_size, 8, most)
        shows_as_is = settings.device is not None and not (settings.train and settings.crop == "resized")
        if size != self.image_size and (self._operations is not None or shows_as_is):
            raise CoreclipError(
                f'image_size = {size} after {self.image_size} is not possible with operations, or with resident="device" '
                "without resized crops, which are made for one size; make another loader"
            )
        self.image_size = size

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, after the batch that was delivered last; of JSON's types.

        In training the position is that of all ranks together, and their states are equal.
        """
        settings = self._settings
        window = f" of {settings.window} blocks" if settings.order == "quasi_random" else ""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": settings.seed,
            "train": settings.train,
            "order": settings.order + window + (", drawn by weight" if settings.draws else ""),
            "share": [0, 1] if settings.train else [settings.rank, settings.world_size],
            "subset": self._digest,
            "fingerprint": self.dataset.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        The batch size, the workers, the prefetch and, in training, the number of ranks may be others.

        Raises
        ------
        CoreclipError
            Where the loader would deliver other pairs than the one that the state is of.
        """
        own = self.state_dict()
        if not isinstance(state, dict) or set(state) != set(own):
            raise CoreclipError(
                f"the loader's state must have the keys {', '.join(own)}; pass what state_dict() returned"
            )
        for name in ("seed", "train", "order", "share", "subset", "fingerprint"):
            if state[name] != own[name]:
                raise CoreclipError(
                    f"the loader's state has {name} {state[name]!r}, this loader {own[name]!r}; make the loader as before"
                )
        position = _checked_int("position", state["position"], self._first, max(self._last - 1, self._first))
        self.set_epoch(state["epoch"])
        self._position = position

    @property
    def _stride(self) -> int:
        """Positions that a batch moves on by."""
        return self.batch_size * (self._settings.world_size if self._settings.train else 1)

    def _slices(self, start: int, last: int) -> list[slice]:
        return batch_slices(last, self._stride, start=start, drop_last=self._settings.drop_last)

    def _order(self, indices: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's order int64 (n_samples,), and where its windows begin, int64 (windows,)."""
        settings = self._settings
        if settings.order != "quasi_random":
            order = epoch_order(len(indices), seed=settings.seed, epoch=epoch, order=settings.order)
            return order, np.zeros(0, np.int64)
        if self._blocks is None:
            self._blocks = storage_blocks(self._shards.shard, self._shards.image_address)
        blocks = self._blocks[indices]
        return quasi_random_order(blocks, seed=settings.seed, epoch=epoch, window=settings.window)

    def _iterate(self, run: _Run, epochs: Iterator[_Epoch]) -> Iterator[Batch]:
        settings = self._settings
        prefetch = settings.prefetch
        pending: deque[_Ahead] = deque()
        images, epoch = self._stored, None
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="coreclip-decode")
        try:
            with closing(self._parts(epochs)) as parts:
                for new in chain(parts, [None] * prefetch):
                    if pending and pending[0].image_size != self.image_size:
                        pending = deque(self._start(pool, images, old.epoch, old.part) for old in pending)
                    if new is not None:
                        if new[0] is not epoch:
                            epoch, images = new[0], self._images(pool, new[0])
                        pending.append(self._start(pool, images, *new))
                    if pending and (new is None or len(pending) > prefetch):
                        if settings.watch is not None:
                            settings.watch.gauge(
                                "batches ready", sum(ahead.is_ready() for ahead in list(pending)[:prefetch])
                            )
                        first = pending.popleft()
                        batch = first.finish()
                        self._move(run, first)
                        yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _parts(self, epochs: Iterator[_Epoch]) -> Generator[tuple[_Epoch, slice]]:
        """Yield the positions of each batch, when its rows have been asked for."""
        for epoch in epochs:
            # What was read for one epoch may be gone from memory in the next.
            with closing(ReadAhead(self._shards, () if self._settings.resident else self._wanted(epoch))) as ahead:
                for part in epoch.slices:
                    ahead.advance()
                    yield epoch, part

    def _move(self, run: _Run, delivered: _Ahead) -> None:
        if run is not self._run:
            return  # an older iteration that is still drawn from
        if delivered.part.stop < delivered.epoch.slices[-1].stop:
            self._position = delivered.part.stop
            return
        self.set_epoch(self.epoch + 1)
        self._run = run if run.endless else None

    def _share(self, part: slice) -> tuple[slice, int]:
        settings = self._settings
        return rank_share(part, settings.rank, settings.world_size) if settings.train else (part, 0)

    def _wanted(self, epoch: _Epoch) -> Iterator[np.ndarray]:
        """Yield the pairs to read for each batch, int64 (m,): its own, or those of windows that it or its next begins."""
        windows = epoch.windows
        for part in epoch.slices:
            if not len(windows):
                yield epoch.indices[epoch.order[self._share(part)[0]]]
                continue
            start = epoch.slices[0].start
            before = np.searchsorted(windows, part.start - 1, "right") + 1 if part.start > start else 0
            after = min(np.searchsorted(windows, part.stop - 1, "right") + 1, len(windows))
            positions = [self._own_positions(epoch, number) for number in range(before, after)]
            yield epoch.indices[epoch.order[np.concatenate([np.zeros(0, np.int64), *positions])]]

    def _own_positions(self, epoch: _Epoch, window: int) -> np.ndarray:
        """Return the positions of a window that this rank visits, int64 (m,)."""
        start = epoch.slices[0].start
        stop = epoch.windows[window + 1] if window + 1 < len(epoch.windows) else len(epoch.order)
        positions = np.arange(max(epoch.windows[window], start), min(stop, epoch.run.last))
        if not self._settings.train:
            return positions
        return positions[(positions - start) % self._stride // self.batch_size == self._settings.rank]

    def _start(self, pool: ThreadPoolExecutor, images: Images, epoch: _Epoch, part: slice) -> _Ahead:
        """Make a batch's arrays and start to fill in its images; what is returned waits for them at its end."""
        import torch

        settings = self._settings
        share, padding = self._share(part)
        at = epoch.order[share]
        index, keys = epoch.indices[at], epoch.keys[at]
        n, rows = len(index), len(index) + padding
        tokens = torch.empty((rows, self._captions.context), dtype=torch.int64)
        valid, caption = torch.empty(rows, dtype=torch.bool), torch.empty(rows, dtype=torch.int64)
        batch = Batch(
            images=tokens, tokens=tokens, index=torch.empty(rows, dtype=torch.int64),
            weight=torch.empty(rows, dtype=torch.float32), valid=valid, caption=caption,
        )  # fmt: skip
        batch.index.numpy()[:n], batch.weight.numpy()[:n] = index, epoch.weights[at]
        if padding:
            tokens[n:], valid[n:], caption[n:], batch.index[n:] = 0, False, 0, -1
        futures: list[Future[None]] = []
        if self._pixels is not None:
            batch.images = self._device_images(self._pixels, epoch.number, index, keys, padding)
            valid.numpy()[:n] = self._pixels.valid[images.rows(index)]
        else:
            pixels = self._pixels_of(rows)
            pixels[n:] = 0
            batch.images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            then = None if self._operations is None else self._operate(batch, pixels, epoch.number, part.start)
            futures = self._decode(pool, images, epoch.number, index, keys, pixels[:n], valid.numpy()[:n], then)
        draws = hash64(settings.seed, epoch.number, keys, streams.CAPTION) if settings.train else np.zeros(n, np.uint64)
        with no_stage("tokens") if settings.watch is None else settings.watch.stage("tokens"):
            self._captions.put(index, draws, tokens.numpy()[:n], caption.numpy()[:n])

        def is_ready() -> bool:
            return all(future.done() for future in futures)

        def finish() -> Batch:
            for future in futures:
                future.result()
            batch.weight[~batch.valid] = 0
            return batch

        return _Ahead(epoch, part, self.image_size, is_ready, finish)

    def _pixels_of(self, rows: int) -> np.ndarray:
        """Return memory for a batch's images, uint8 (rows, size, size, 3)."""
        shape = (rows, self.image_size, self.image_size, 3)
        if self._settings.pin_memory:
            import torch

            # torch keeps such memory for later batches.
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        # numpy asks for huge pages, torch does not, and the page faults of large batches take a tenth of all time.
        return np.empty(shape, np.uint8)

    def _decode(
        self,
        pool: ThreadPoolExecutor,
        images: Images,
        epoch: int,
        index: np.ndarray,
        keys: np.ndarray,
        pixels: np.ndarray,
        valid: np.ndarray,
        then: Callable[[], None] | None,
    ) -> list["Future[None]"]:
        settings, rows = self._settings, images.rows(index)
        boxes = self._boxes(images.width[rows], images.height[rows], epoch, keys)
        margin = TRAINING_MARGIN if settings.train else EXACT_MARGIN
        changes = None
        if settings.augment.changes_pixels:
            changes = Changes(keys, settings.seed, epoch, settings.augment.settings())
        return start_decoding(
            pool,
            self._decoders,
            images,
            rows,
            boxes,
            margin,
            pixels,
            valid,
            self.workers,
            changes,
            then,
            settings.watch,
        )

    def _boxes(self, width: np.ndarray, height: np.ndarray, epoch: int, keys: np.ndarray) -> np.ndarray:
        settings = self._settings
        if not settings.train:
            return centre_boxes(width, height, self.image_size)
        boxes = random_boxes(width, height, keys, settings.seed, epoch, *settings.crop_scale)
        if settings.augment.flip:
            mirror_boxes(boxes, keys, settings.seed, epoch, settings.augment.flip)
        return boxes

    def _operate(self, batch: Batch, pixels: np.ndarray, epoch: int, position: int) -> Callable[[], None]:
        """Return what applies FFCV's operations to a batch, once its images are there."""
        operations = self._operations
        assert operations is not None
        draw = int(hash64(self._settings.seed, epoch, np.array([position]), streams.OPERATIONS)[0])

        def operate() -> None:
            import torch

            changed = operations(pixels, batch.index.numpy(), draw % 2**32)
            changed[~batch.valid.numpy()] = 0
            batch.images = torch.from_numpy(changed).permute(0, 3, 1, 2)

        return operate

    def _device_images(
        self, pixels: "DevicePixels", epoch: int, index: np.ndarray, keys: np.ndarray, padding: int
    ) -> "torch.Tensor":
        import torch

        settings, rows = self._settings, pixels.images.rows(index)
        if not settings.train:
            images = pixels.exact(rows)
        elif settings.crop == "shift":
            images = pixels.shifted(rows, keys, settings.seed, epoch, settings.augment.flip)
        else:
            boxes = self._boxes(pixels.images.width[rows], pixels.images.height[rows], epoch, keys)
            images = pixels.resized(rows, boxes, self.image_size)
        return torch.cat([images, images.new_zeros((padding, *images.shape[1:]))]) if padding else images

    def _images(self, pool: ThreadPoolExecutor, epoch: _Epoch) -> Images:
        """Return what to decode: the stored images, or a copy of those of the epoch, which is made where it is another."""
        settings = self._settings
        if not settings.resident:
            return self._stored
        run = epoch.run
        visited = run.indices if settings.train else epoch.indices[epoch.order[run.first : run.last]]
        indices = np.unique(visited)
        # A copy of more pairs serves too: where pairs are chosen anew from time to time, nothing is decoded again.
        if self._copy is None or self._copy.indices is None or not np.isin(indices, self._copy.indices).all():
            self._copy = self._pixels = None  # the old one goes before the new one comes
            has_room = settings.train and settings.crop == "resized"
            side = math.ceil(settings.image_size * _RESIDENT_ROOM) if has_room else settings.image_size
            copy = resident_images(
                self._stored, indices, side, centre_boxes, EXACT_MARGIN, pool, self._decoders, self.workers
            )
            if settings.device is not None:
                from coreclip.pipeline.resident import DevicePixels

                self._pixels = DevicePixels(copy, settings.device)
            self._copy = copy
        return self._copy


def make_loader(
    dataset: Dataset,
    *,
    batch_size: int = 256,
    image_size: int = 224,
    train: bool = True,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    crop: str = "resized",
    augment: Augment | None = None,
    operations: Sequence[Any] = (),
    subset: Any = None,
    draws: bool = False,
    workers: int = 2,
    seed: int = 0,
    order: str | None = None,
    window: int = 64,
    rank: int = 0,
    world_size: int = 1,
    tokenizer: "Tokenizer | None" = None,
    context: int | None = None,
    drop_last: bool = False,
    prefetch: int = 2,
    resident: bool | str = False,
    device: Any = "cpu",
    pin_memory: bool = False,
    watch: Watch | None = None,
) -> Loader:
    """Make an iterable of batches of a data set.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
        Pairs in a batch, on each rank; the last one of an epoch can be smaller.
    image_size : int
        Side of the images, pixels.
    train : bool
        True: shuffled, random crops, one caption of each pair at random. False: in the subset's order (else by
        index), CLIP's preprocessing (shortest side to ``image_size``, bicubic, centre crop), the first caption.
    crop_scale : (float, float)
        Range of a random crop's area, as a fraction of the image's.
    crop : {"resized", "shift"}
        "shift", for ``resident="device"``: the centre square, moved by up to an eighth each way in place of the random
        resized crop, its border filled by reflection.
    augment : Augment or None
        What else is changed in training images.
    operations : sequence of ffcv Operation
        FFCV's compiled image transforms, e.g. ``[ffcv.transforms.Cutout(16)]``, applied to each batch in turn.
    subset : None, int (k,), or an object with ``indices`` int (k,) and ``weights`` float (k,)
        The pairs to visit, and what becomes of them in ``batch.weight``. A pair can come more than once, each time
        with a crop of its own.
    draws : bool
        For ``train``: True draws the pairs of each epoch, as many as the subset has, with expected numbers in proportion to
        their weights, and delivers a weight of 1; see :func:`coreclip.pipeline.order.drawn_by_weight`.
    workers : int
        Decoding threads.
    seed : int
        Order, crops, changes and captions are functions of (seed, epoch, index).
    order : {"random", "quasi_random", "sequential"} or None
        None shuffles for ``train`` and goes in order without. "quasi_random" is for data that memory does not hold: it
        shuffles blocks of 2 MiB of the shards and then the pairs of ``window`` blocks at a time, which are read ahead
        together, so that a disk reads long runs.
    window : int
        Blocks that "quasi_random" mixes. Twice their size is kept in the page cache (the default asks for 256 MiB); a
        batch never mixes more than the pairs of a window, so keep it to many times a batch.
    rank, world_size : int
        Which of how many processes this is; all must have the same arguments otherwise. In training each visits its
        part of the same batches, every pair comes once, and all have equally many batches of equal length: a last batch
        that can't be divided is filled up with rows whose ``index`` is -1, ``valid`` False and ``weight`` 0, or, with
        ``drop_last``, a last batch that is not whole on all ranks is left out. Without ``train`` each visits a run of
        the order, nothing is filled up, and the numbers of batches can differ.
    tokenizer : Tokenizer or None
        None takes the data set's own; with another one all captions are encoded now.
    context : int, optional
        Tokens of a caption that is encoded now; None for as many as are stored.
    drop_last : bool
        Leave out an epoch's last batch where it would be smaller.
    prefetch : int
        Batches that are decoded ahead of the consumer.
    resident : bool or "device"
        Decode at the first epoch only and keep the images in memory: the centre square, for ``train`` with a margin of
        a seventh, which random crops are then taken from. "device" keeps them as one tensor on ``device`` and crops
        them there; of ``augment`` it knows ``flip`` alone.
    device : str or torch.device
        Where ``resident="device"`` keeps them, and where ``batch.images`` then are.
    pin_memory : bool
        Whether images are decoded into memory that a GPU copies from by itself; needs one.
    watch : Watch, optional
        A profiler's recorder: is told the stages read, decode and augment on the decoding threads, tokens, and how many batches
        stand ready when one is asked for.

    Returns
    -------
    Loader

    Raises
    ------
    CoreclipError
        For an argument out of its range, a subset of another data set, a damaged shard.

    Examples
    --------
    >>> loader = make_loader(Dataset("flickr"), batch_size=64, image_size=112)  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     images, tokens = batch.images.float() / 255, batch.tokens
    """
    if not isinstance(dataset, Dataset):
        raise CoreclipError(f"dataset = {dataset!r} is not a Dataset; open a converted folder with Dataset(path)")
    for name, flag in (("train", train), ("drop_last", drop_last), ("draws", draws), ("pin_memory", pin_memory)):
        if not isinstance(flag, (bool, np.bool_)):
            raise CoreclipError(f"{name} = {flag!r} is not allowed: it must be True or False")
    if not isinstance(resident, (bool, np.bool_)) and resident != "device":
        raise CoreclipError(f'resident = {resident!r} is not allowed: it must be True, False or "device"')
    if tokenizer is not None and not (hasattr(tokenizer, "encode") and hasattr(tokenizer, "sha256")):
        raise CoreclipError(f"tokenizer = {tokenizer!r} is not a Tokenizer; load one with Tokenizer.load(path)")
    if order is not None and order not in ORDERS:
        raise CoreclipError(f"order = {order!r} is not allowed: it must be one of {', '.join(ORDERS)}")
    if context is not None:
        context = _checked_int("context", context, 4, 1024)
    world_size = _checked_int("world_size", world_size, 1, 1 << 20)
    settings = _Settings(
        batch_size=_checked_int("batch_size", batch_size, 1, 1 << 20),
        image_size=_checked_int("image_size", image_size, 8, 4096),
        train=bool(train),
        crop_scale=_checked_scale(crop_scale),
        crop=crop,
        augment=Augment() if augment is None else augment,
        workers=_checked_int("workers", workers, 1, 256),
        seed=_checked_int("seed", seed, 0, 2**63 - 1),
        order=order or ("random" if train else "sequential"),
        window=_checked_int("window", window, 1, 1 << 20),
        rank=_checked_int("rank", rank, 0, world_size - 1),
        world_size=world_size,
        drop_last=bool(drop_last),
        prefetch=_checked_int("prefetch", prefetch, 0, 256),
        resident=bool(resident),
        draws=bool(draws),
        pin_memory=bool(pin_memory),
        watch=watch,
        device=_checked_device(device) if resident == "device" else None,
    )
    _check_changes(settings, operations)
    if pin_memory:
        _check_pinning()
    compiled = None
    if len(operations):
        from coreclip.pipeline.operations import Operations

        compiled = Operations(operations, settings.image_size)
    return Loader(dataset, settings, subset=subset, tokenizer=tokenizer, context=context, operations=compiled)


def _check_changes(settings: _Settings, operations: Any) -> None:
    augment, on_device = settings.augment, settings.device is not None
    if not isinstance(augment, Augment):
        raise CoreclipError(f"augment = {augment!r} is not an Augment; pass e.g. Augment(flip=0.5)")
    if not isinstance(operations, (list, tuple)):
        raise CoreclipError(f"operations = {operations!r} is not allowed: it must be a list of FFCV operations")
    if (augment.flip or augment.changes_pixels) and not settings.train:
        raise CoreclipError("augment is for train=True only: evaluation sees the images as they are; leave it out")
    if settings.draws and not settings.train:
        raise CoreclipError("draws=True is for train=True only: evaluation visits every pair once; leave it out")
    if on_device and (augment.changes_pixels or len(operations)):
        raise CoreclipError(
            'resident="device" knows no jitter, grey, cutout or operations, which change images while they are decoded; '
            "use resident=True, or Augment(flip=...) alone"
        )
    if settings.crop not in ("resized", "shift"):
        raise CoreclipError(f"crop = {settings.crop!r} is not allowed: it must be one of resized, shift")
    if settings.crop == "shift" and not (on_device and settings.train):
        raise CoreclipError('crop="shift" needs train=True and resident="device"; use crop="resized"')


def _check_pinning() -> None:
    import torch

    if not torch.cuda.is_available():
        raise CoreclipError(f"pin_memory=True needs a GPU, and torch {torch.__version__} finds none here; leave it out")


def _checked_device(device: Any) -> Any:
    import torch

    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = str(error).partition("\n")[0]
        raise CoreclipError(f"device = {device!r} can't be used: {cause}; use e.g. cpu or cuda") from None
    return checked


def _checked_int(name: str, value: Any, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, (bool, np.bool_)) or not low <= number <= high:
        raise CoreclipError(f"{name} = {value!r} is not allowed: it must be an integer from {low} to {high}")
    return number


def _checked_scale(value: Any) -> tuple[float, float]:
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not 0 < low <= high <= 1:
        raise CoreclipError(f"crop_scale = {value!r} is not allowed: it must be two numbers with 0 < low <= high <= 1")
    return low, high
