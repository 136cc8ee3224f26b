"""NVIDIA DALI's CPU pipeline over JPEG files held in memory, with DALI's own filters.

``variant``: ``whole`` decodes every image whole and crops while it resizes; ``fused`` decodes the crop alone
(``decoders.image_random_crop``) and resizes it. The source ends with each epoch, so nothing is decoded ahead of a round.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from serving import serve

_ASPECTS = [3 / 4, 4 / 3]


def prepare(
    photos: str, size: int, low: float, threads: int, batch_size: int, epochs: int, variant: str
) -> Callable[[], int]:
    jpegs = [np.fromfile(path, np.uint8) for path in sorted(Path(photos).glob("*.jpg"))]
    rng = np.random.default_rng(0)

    def batches() -> Iterator[list[np.ndarray]]:
        order = rng.permutation(len(jpegs))
        for first in range(0, len(order), batch_size):
            yield [jpegs[index] for index in order[first : first + batch_size]]

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None)
    def pipeline():
        files = fn.external_source(source=batches, cycle="raise", dtype=types.UINT8, ndim=1, no_copy=True)
        if variant == "whole":
            images = fn.decoders.image(files, device="cpu")
            return fn.random_resized_crop(
                images, size=[size, size], random_area=[low, 1.0], random_aspect_ratio=_ASPECTS
            )
        crops = fn.decoders.image_random_crop(files, device="cpu", random_area=[low, 1.0], random_aspect_ratio=_ASPECTS)
        return fn.resize(crops, size=[size, size])

    pipe = pipeline()
    pipe.build()

    def run() -> int:
        return sum(epoch() for _ in range(epochs))

    def epoch() -> int:
        n = 0
        while True:
            try:
                (images,) = pipe.run()
            except StopIteration:
                pipe.reset()
                return n
            n += len(images)

    return run


if __name__ == "__main__":
    serve(prepare, "nvidia-dali-cuda120")
