"""FFCV's own loader over one shard, for comparison and for code that already uses FFCV.

Its known defects come with it: a failed decode delivers an older image, batches alias a ring of buffers, an exception
in a pipeline hangs, and a shard is all that it sees. ``make_loader`` has none of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.beton import read_shard
from coreclip.pipeline.dataset import Dataset

if TYPE_CHECKING:
    from ffcv.loader import Loader


def make_ffcv_loader(
    dataset: Dataset,
    shard: int = 0,
    *,
    batch_size: int = 256,
    image_size: int = 224,
    train: bool = True,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    rows: Sequence[int] | np.ndarray | None = None,
    workers: int = 2,
    seed: int = 0,
    drop_last: bool = False,
) -> "Loader":
    """Return a stock ``ffcv.loader.Loader`` over one shard. Importing FFCV takes 5 to 7 s.

    Parameters
    ----------
    dataset : Dataset
    shard : int
        Number of the shard.
    batch_size : int
    image_size : int
        Side of the square images, pixels.
    train : bool
        True: random order and a random resized crop. False: stored order and a centre crop.
    crop_scale : (float, float)
        Range of the random crop's area, as a fraction of the image's.
    rows : int (k,) or None
        Rows of the shard to visit (FFCV would take rows that are not there without a word), None for all.
    workers : int
        Threads.
    seed : int
        Of the order; FFCV's crops can't be seeded.
    drop_last : bool
        Whether a short last batch is left out.

    Returns
    -------
    ffcv.loader.Loader
        Its batches are tuples ``(images, tokens, index)`` of torch tensors that the next batches overwrite: uint8
        (b, 3, image_size, image_size), uint16 (b, captions_per_row, context), int64 (b, 1).

    Raises
    ------
    CoreclipError
        For an argument out of range.
    """
    path = dataset.shard_path(shard)
    with read_shard(path) as opened:
        n_rows = opened.rows
    chosen = np.arange(n_rows) if rows is None else np.asarray(rows)
    _check_arguments(batch_size, image_size, crop_scale, workers, chosen, n_rows)

    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage

    side = (image_size, image_size)
    crop = (
        RandomResizedCropRGBImageDecoder(side, scale=crop_scale)
        if train
        else CenterCropRGBImageDecoder(side, ratio=1.0)
    )
    pipelines: dict[str, Any] = {
        "image": [crop, ToTensor(), ToTorchImage(convert_back_int16=False)],
        "tokens": [NDArrayDecoder(), ToTensor()],
        "index": [IntDecoder(), ToTensor()],
        "captions": None,
        "label": None,
    }
    if "label" not in dataset.info["fields"]:
        del pipelines["label"]
    return Loader(
        str(path),
        batch_size=batch_size,
        num_workers=workers,
        os_cache=True,
        order=OrderOption.RANDOM if train else OrderOption.SEQUENTIAL,
        seed=seed,
        indices=chosen.astype(np.uint64),
        pipelines=pipelines,
        drop_last=drop_last,
    )


def _check_arguments(
    batch_size: int, image_size: int, crop_scale: tuple[float, float], workers: int, rows: np.ndarray, n_rows: int
) -> None:
    low, high = crop_scale
    rules = (
        (batch_size >= 1, "batch_size", batch_size, "1 or more"),
        (1 <= image_size <= 8192, "image_size", image_size, "1 to 8192 pixels"),
        (0 < low <= high <= 1, "crop_scale", crop_scale, "0 < low <= high <= 1"),
        (1 <= workers <= 256, "workers", workers, "1 to 256"),
        (rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu", "rows", rows, "a list of integers, not empty"),
    )
    for holds, name, value, rule in rules:
        if not holds:
            raise CoreclipError(f"{name} = {value!r} is not allowed: {rule}")
    outside = rows[(rows < 0) | (rows >= n_rows)]
    if outside.size:
        raise CoreclipError(f"row {outside[0]} is not in the shard: rows must be 0 to {n_rows - 1}")
