"""torch's DataLoader over JPEG files with Pillow: torchvision's random resized crop, Pillow's bicubic resize.

The files are held in memory, as the others' are in the page cache; the worker processes live on from epoch to epoch.
"""

import io
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from serving import serve


class Crops(torch.utils.data.Dataset):
    def __init__(self, jpegs: list[bytes], size: int, low: float) -> None:
        self.jpegs, self.size, self.low = jpegs, size, low

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(io.BytesIO(self.jpegs[index])) as image:
            rgb = image.convert("RGB")
        box = random_box(rgb.width, rgb.height, self.low)
        return np.array(rgb.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


def random_box(width: int, height: int, low: float) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a crop, as ``RandomResizedCrop.get_params`` of torchvision draws it."""
    for _ in range(10):
        area = width * height * random.uniform(low, 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def prepare(photos: str, size: int, low: float, threads: int, batch_size: int, epochs: int) -> Callable[[], int]:
    jpegs = [path.read_bytes() for path in sorted(Path(photos).glob("*.jpg"))]
    loader = torch.utils.data.DataLoader(
        Crops(jpegs, size, low), batch_size=batch_size, shuffle=True, num_workers=threads, persistent_workers=True
    )
    return lambda: sum(len(images) for _ in range(epochs) for images in loader)


if __name__ == "__main__":
    serve(prepare, "torch", "pillow")
