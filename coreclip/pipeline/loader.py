"""Batches of a data set: shuffled, decoded, cropped and tokenised on threads, a few batches ahead of the consumer.

A batch is cut into slices of equal cost, each decoded by one compiled call outside the interpreter's lock. There is no
producer thread: the consumer's ``next`` hands the following batches to a pool that lives as long as the iteration, so a
``break``, an exception or the interpreter's exit leaves nothing behind. What a batch holds is a pure function of
(seed, epoch, index). Left out: several ranks, augmentation beyond CLIP's random crop.
"""

import hashlib
import math
import operator
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.crops import centre_boxes, random_boxes
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.decode import EXACT_MARGIN, TRAINING_MARGIN, load_decoder
from coreclip.pipeline.feeds import DecoderShelf, Images, captions_of, resident_images, start_decoding, stored_images
from coreclip.pipeline.order import CAPTION_STREAM, batch_slices, epoch_order
from coreclip.pipeline.readahead import ReadAhead
from coreclip.randomness import hash64

if TYPE_CHECKING:
    import torch

    from coreclip.pipeline.tokenizer import Tokenizer

_RESIDENT_ROOM = 8 / 7  # resident images of a training loader are this much larger, so that crops have room (256 : 224)


@dataclass(eq=False)
class Batch:
    """Some pairs, ready for the model; every array is the batch's own.

    Attributes
    ----------
    images : uint8 torch (b, 3, size, size), channels last in memory
    tokens : int64 torch (b, context)
    index : int64 torch (b,)
        Which pairs of the data set.
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


class Loader:
    """An iterable of :class:`Batch`; made by :func:`make_loader`.

    Each ``iter()`` starts the following epoch at its beginning, also when the one before it was left early; only after
    :meth:`load_state_dict` does it go on within an epoch.

    Attributes
    ----------
    dataset : Dataset
    batch_size, image_size, workers : int
    n_samples : int
        Pairs that an epoch visits.
    epoch : int
        The epoch under way, or, between epochs, the next one.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        image_size: int,
        train: bool,
        crop_scale: tuple[float, float],
        subset: Any,
        workers: int,
        seed: int,
        tokenizer: "Tokenizer | None",
        drop_last: bool,
        prefetch: int,
        resident: bool,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.image_size = image_size
        self.workers = workers
        self.epoch = 0
        self._train = train
        self._crop_scale = crop_scale
        self._seed = seed
        self._drop_last = drop_last
        self._prefetch = prefetch
        self._resident = resident
        self._run: object | None = None  # the iteration that moves the position
        self._position = 0
        load_decoder()
        self._shards = dataset.open_shards()
        self._stored = stored_images(self._shards)
        self._copy: Images | None = None
        self._captions = captions_of(dataset, self._shards, tokenizer)
        self._decoders = DecoderShelf()
        self.set_subset(subset)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(batch_slices(self.n_samples, self.batch_size, drop_last=self._drop_last))

    def __iter__(self) -> Iterator[Batch]:
        if self._run is not None:
            self.set_epoch(self.epoch + 1)
        self._run = run = object()
        order = epoch_order(self.n_samples, seed=self._seed, epoch=self.epoch, train=self._train)
        slices = batch_slices(self.n_samples, self.batch_size, start=self._position, drop_last=self._drop_last)
        return self._iterate(run, self.epoch, order, slices)

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``iter()`` start epoch ``epoch`` at its beginning."""
        self.epoch = _checked_int("epoch", epoch, 0, 2**63 - 1)
        self._position = 0
        self._run = None

    def set_subset(self, subset: Any) -> None:
        """Visit other pairs from the next ``iter()`` on; an epoch under way counts as over. Nothing is compiled anew.

        Parameters
        ----------
        subset : None, int (k,), or an object with ``indices`` and ``weights``
            As in :func:`make_loader`.
        """
        indices, weights = _checked_subset(subset, self.dataset)
        if self._drop_last and len(indices) < self.batch_size:
            raise CoreclipError(
                f"drop_last=True leaves no batch of {self.batch_size} of {len(indices)} pairs; use a smaller batch_size"
            )
        if self._run is not None:
            self.set_epoch(self.epoch + 1)
        self._indices, self._weights, self.n_samples = indices, weights, len(indices)
        digest = hashlib.sha256(indices.data)
        digest.update(weights.data)
        self._digest = digest.hexdigest()
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, after the batch that was delivered last; of JSON's types."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self._seed,
            "train": self._train,
            "subset": self._digest,
            "fingerprint": self.dataset.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the batch size, the workers and the prefetch may be others.

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
        for name in ("seed", "train", "subset", "fingerprint"):
            if state[name] != own[name]:
                raise CoreclipError(
                    f"the loader's state has {name} {state[name]!r}, this loader {own[name]!r}; make the loader as before"
                )
        position = _checked_int("position", state["position"], 0, self.n_samples - 1)
        self.set_epoch(state["epoch"])
        self._position = position

    def _iterate(self, run: object, epoch: int, order: np.ndarray, slices: list[slice]) -> Iterator[Batch]:
        indices, weights = self._indices, self._weights
        pending: deque[tuple[Batch, list[Future[None]], int]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="coreclip-decode")
        ahead = ReadAhead(self._shards, () if self._resident else (indices[order[part]] for part in slices))
        try:
            images = self._resident_copy(pool, np.unique(indices)) if self._resident else self._stored
            for part in [*slices, *[None] * self._prefetch]:
                if part is not None:
                    ahead.advance()
                    chosen = order[part]
                    pending.append((*self._start(pool, images, epoch, indices[chosen], weights[chosen]), part.stop))
                if pending and (part is None or len(pending) > self._prefetch):
                    batch, futures, position = pending.popleft()
                    for future in futures:
                        future.result()
                    batch.weight[~batch.valid] = 0
                    self._move(run, position, is_last=position == slices[-1].stop)
                    yield batch
        finally:
            ahead.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _move(self, run: object, position: int, *, is_last: bool) -> None:
        if run is not self._run:
            return  # an older iteration that is still drawn from
        if is_last:
            self.set_epoch(self.epoch + 1)
        else:
            self._position = position

    def _start(
        self, pool: ThreadPoolExecutor, images: Images, epoch: int, index: np.ndarray, weight: np.ndarray
    ) -> tuple[Batch, list["Future[None]"]]:
        """Make a batch's arrays and start to fill in its images."""
        import torch

        n, side = len(index), self.image_size
        pixels = torch.empty((n, side, side, 3), dtype=torch.uint8)
        tokens = torch.empty((n, self.dataset.context), dtype=torch.int64)
        valid, caption = torch.empty(n, dtype=torch.bool), torch.empty(n, dtype=torch.int64)
        rows = images.rows(index)
        width, height = images.width[rows], images.height[rows]
        if self._train:
            boxes = random_boxes(width, height, index, self._seed, epoch, *self._crop_scale)
            draws, margin = hash64(self._seed, epoch, index, CAPTION_STREAM), TRAINING_MARGIN
        else:
            boxes = centre_boxes(width, height, side)
            draws, margin = np.zeros(n, np.uint64), EXACT_MARGIN
        futures = start_decoding(
            pool, self._decoders, images, rows, boxes, margin, pixels.numpy(), valid.numpy(), self.workers
        )
        self._captions.put(index, draws, tokens.numpy(), caption.numpy())
        batch = Batch(
            images=pixels.permute(0, 3, 1, 2), tokens=tokens, index=torch.from_numpy(index.copy()),
            weight=torch.from_numpy(weight.astype(np.float32)), valid=valid, caption=caption,
        )  # fmt: skip
        return batch, futures

    def _resident_copy(self, pool: ThreadPoolExecutor, indices: np.ndarray) -> Images:
        if self._copy is None or self._copy.indices is None or not np.array_equal(self._copy.indices, indices):
            self._copy = None  # the old one goes before the new one comes
            side = math.ceil(self.image_size * _RESIDENT_ROOM) if self._train else self.image_size
            self._copy = resident_images(
                self._stored, indices, side, centre_boxes, EXACT_MARGIN, pool, self._decoders, self.workers
            )
        return self._copy


def make_loader(
    dataset: Dataset,
    *,
    batch_size: int = 256,
    image_size: int = 224,
    train: bool = True,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    subset: Any = None,
    workers: int = 2,
    seed: int = 0,
    tokenizer: "Tokenizer | None" = None,
    drop_last: bool = False,
    prefetch: int = 2,
    resident: bool = False,
) -> Loader:
    """Make an iterable of batches of a data set.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
        Pairs in a batch; the last one of an epoch can be smaller.
    image_size : int
        Side of the images, pixels.
    train : bool
        True: shuffled, random crops, one caption of each pair at random. False: in the subset's order (else by
        index), CLIP's preprocessing (shortest side to ``image_size``, bicubic, centre crop), the first caption.
    crop_scale : (float, float)
        Range of a random crop's area, as a fraction of the image's.
    subset : None, int (k,), or an object with ``indices`` int (k,) and ``weights`` float (k,)
        The pairs to visit, and what becomes of them in ``batch.weight``. A pair can come more than once.
    workers : int
        Decoding threads.
    seed : int
        Order, crops and captions are functions of (seed, epoch, index).
    tokenizer : Tokenizer or None
        None takes the data set's own; with another one all captions are encoded now.
    drop_last : bool
        Leave out an epoch's last batch where it would be smaller.
    prefetch : int
        Batches that are decoded ahead of the consumer.
    resident : bool
        Decode at the first epoch only and keep the images in memory: the centre square, for ``train`` with a margin of
        a seventh, which random crops are then taken from.

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
    for name, flag in (("train", train), ("drop_last", drop_last), ("resident", resident)):
        if not isinstance(flag, (bool, np.bool_)):
            raise CoreclipError(f"{name} = {flag!r} is not allowed: it must be True or False")
    if tokenizer is not None and not (hasattr(tokenizer, "encode") and hasattr(tokenizer, "sha256")):
        raise CoreclipError(f"tokenizer = {tokenizer!r} is not a Tokenizer; load one with Tokenizer.load(path)")
    return Loader(
        dataset,
        batch_size=_checked_int("batch_size", batch_size, 1, 1 << 20),
        image_size=_checked_int("image_size", image_size, 8, 4096),
        train=bool(train),
        crop_scale=_checked_scale(crop_scale),
        subset=subset,
        workers=_checked_int("workers", workers, 1, 256),
        seed=_checked_int("seed", seed, 0, 2**63 - 1),
        tokenizer=tokenizer,
        drop_last=bool(drop_last),
        prefetch=_checked_int("prefetch", prefetch, 0, 256),
        resident=bool(resident),
    )


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


def _checked_subset(subset: Any, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices int64 (k,) and weights float64 (k,) of what ``make_loader`` takes as a subset."""
    if subset is None:
        return np.arange(dataset.n), np.ones(dataset.n)
    fingerprint = getattr(subset, "fingerprint", None)
    if fingerprint is not None and fingerprint != dataset.fingerprint:
        raise CoreclipError(
            f"the subset was chosen from data set {fingerprint}, {dataset.path} is {dataset.fingerprint}; "
            "choose one from this data set"
        )
    indices = np.asarray(getattr(subset, "indices", subset))
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
        raise CoreclipError(
            f"subset of type {indices.dtype} and shape {indices.shape} is not allowed: it must be a non-empty list of "
            "integer indices; turn a mask into them with numpy.flatnonzero(mask)"
        )
    outside = (indices < 0) | (indices >= dataset.n)
    if outside.any():
        raise CoreclipError(
            f"subset has the index {indices[outside][0]}, which is not in {dataset.path}: it must be 0 to {dataset.n - 1}"
        )
    weights = np.asarray(getattr(subset, "weights", np.ones(len(indices))))
    allowed = weights.shape == indices.shape and weights.dtype.kind in "iuf"
    if not allowed or not np.isfinite(weights).all() or (weights < 0).any():
        raise CoreclipError(
            f"the subset's weights, of type {weights.dtype} and shape {weights.shape}, are not allowed: they must be "
            f"{len(indices)} finite numbers of at least 0, one for each index"
        )
    return indices.astype(np.int64), weights.astype(np.float64)
