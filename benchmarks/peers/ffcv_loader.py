"""FFCV's stock loader with its RandomResizedCrop decoder over the image field of one ``.beton`` file.

``task``: ``decode`` (rounds of whole epochs), ``first_batch`` (ready when the first batch is there), ``memory`` (ready
after the imports; the one round makes the loader and runs an epoch, or says what memory it could not get).
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch  # noqa: F401  (ffcv imports it in any case)
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from serving import serve

warnings.filterwarnings("ignore", "Pytorch currently doesn't support uint16")  # of a field that is not read


def make_loader(beton: str, size: int, low: float, threads: int, batch_size: int) -> Loader:
    decoder = RandomResizedCropRGBImageDecoder((size, size), scale=(low, 1.0))
    return Loader(
        beton, batch_size=batch_size, num_workers=threads, order=OrderOption.RANDOM, os_cache=True, drop_last=False,
        pipelines={"image": [decoder], "captions": None, "tokens": None, "index": None},
    )  # fmt: skip


def prepare(
    task: str, beton: str, size: int, low: float, threads: int, batch_size: int, epochs: int = 1
) -> Callable[[], Any]:
    def start() -> Loader:
        return make_loader(beton, size, low, threads, batch_size)

    if task == "first_batch":
        batches = iter(start())
        next(batches)
        return lambda: 1 + sum(1 for _ in batches)
    if task == "decode":
        loader = start()
        return lambda: sum(len(images) for _ in range(epochs) for (images,) in loader)

    def one_epoch() -> Any:
        try:
            return sum(len(images) for (images,) in start())
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
            return str(error)

    return one_epoch


if __name__ == "__main__":
    serve(prepare, "ffcv", "numba")
