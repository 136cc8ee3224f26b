"""OpenCV's INTER_AREA on RGB pixels, one thread, as FFCV's stock decoder calls it on a crop."""

from collections.abc import Callable

import cv2
import numpy as np
from serving import serve


def prepare(width: int, height: int, size: int, repeats: int, filter_name: str) -> Callable[[], int]:
    cv2.setNumThreads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    interpolation = getattr(cv2, filter_name)

    def run() -> int:
        for _ in range(repeats):
            cv2.resize(pixels, (size, size), interpolation=interpolation)
        return repeats

    return run


if __name__ == "__main__":
    serve(prepare, "opencv-python")
