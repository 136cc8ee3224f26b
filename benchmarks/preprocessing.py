"""How far evaluation preprocessing is from Pillow's: shortest side by bicubic resize, centre crop, of every photograph.

Pillow decodes at full size, converts to RGB, resizes with its antialiased bicubic and crops, as torchvision's ``Resize``
and ``CenterCrop`` do. Differences are of uint8 values; the PSNR over all photographs is that of their pooled squared
errors, the worst photograph's its own.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from photographs import describe, input_name, one_shard, photo_files
from PIL import Image
from side_by_side import arguments, write_result

from coreclip.pipeline import make_loader


def pillow_preprocessed(path: Path, size: int) -> np.ndarray:
    """Return uint8 (size, size, 3)."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    shortest = min(rgb.size)
    width, height = (size if side == shortest else int(size * side / shortest) for side in rgb.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size)))


def main() -> None:
    options = arguments(__doc__ or "", photos="", n=200, width=500, size=224)
    workers = len(os.sched_getaffinity(0))
    means, squares, largest = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        photos = photo_files(options, Path(temporary))
        dataset = one_shard(photos, Path(temporary), workers=workers)
        files = {path.name: path for path in photos}
        keys = dataset.keys
        for batch in make_loader(dataset, batch_size=64, image_size=options.size, train=False, workers=workers):
            for index, image in zip(batch.index.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
                reference = pillow_preprocessed(files[Path(keys[index]).name], options.size)
                difference = np.abs(image.astype(np.int32) - reference)
                means.append(difference.mean())
                squares.append((difference**2).mean())
                largest.append(difference.max())
        summary = describe(photos)
    body = "\n".join(
        [
            "| | all photographs | the worst one |",
            "|---|---|---|",
            f"| mean absolute difference, of 255 | {np.mean(means):.3f} | {max(means):.3f} |",
            f"| PSNR, dB | {psnr(np.mean(squares)):.2f} | {psnr(max(squares)):.2f} |",
            f"| largest difference, of 255 | {np.median(largest):.0f} (median) | {max(largest)} |",
            "",
            f"{summary}, to {options.size} pixels.",
        ]
    )
    write_result(
        f"preprocessing_{options.size}_{input_name(options)}", "Evaluation preprocessing against Pillow's", body,
        "coreclip", "pillow", "numba",
    )  # fmt: skip


def psnr(mean_square: float) -> float:
    return 10 * np.log10(255**2 / mean_square) if mean_square else np.inf


if __name__ == "__main__":
    main()
