"""Decode + random crop + resize to a square: our loader against FFCV's stock decoder and against Pillow in a DataLoader.

The same JPEG bytes, the same number of threads or workers, a warm cache. Without ``--photos`` the photographs are drawn.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from side_by_side import arguments, measure, table, write_result

from coreclip.pipeline import Dataset, convert, make_loader


def draw_photos(folder: Path, n: int) -> None:
    """Write n JPEGs of 500 x 375 with texture at every scale, about as large as photographs are."""
    rng = np.random.default_rng(0)
    for number in range(n):
        image = np.zeros((375, 500, 3))
        for side in (4, 16, 64, 256):
            layer = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
            image += np.asarray(layer.resize((500, 375), Image.Resampling.BICUBIC)) * (16 / side) ** 0.7
        image += rng.normal(0, 6, image.shape)
        Image.fromarray(np.uint8(np.clip(image / 4, 0, 255))).save(folder / f"{number:05d}.jpg", quality=90)


def main() -> None:
    options = arguments(__doc__ or "", photos="", n=600, size=224, threads=2, rounds=5, batch_size=64)
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(options.photos or temporary) if options.photos else Path(temporary) / "photos"
        if not options.photos:
            photos.mkdir()
            draw_photos(photos, options.n)
        names = sorted(photos.glob("*.jpg"))
        captions = Path(temporary) / "captions.csv"
        captions.write_text(
            "image,caption\n" + "".join(f"{name.resolve()},photo {i}\n" for i, name in enumerate(names))
        )
        convert([photos], Path(temporary) / "data", captions=captions, workers=options.threads)
        dataset = Dataset(Path(temporary) / "data")
        seconds = measure(contestants(dataset, options), rounds=options.rounds)
        body = table(seconds, items=dataset.n, unit="images", ours="coreclip")
    write_result(
        f"decode_{options.size}",
        f"Decode, crop (0.9 - 1.0) and resize to {options.size} pixels",
        body,
        "coreclip",
        "ffcv",
        "pillow",
        "torch",
    )


def contestants(dataset: Dataset, options):
    """Return a callable for each contestant that decodes the whole data set once."""
    import torch
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    ours = make_loader(dataset, batch_size=options.batch_size, image_size=options.size, workers=options.threads)
    decoder = RandomResizedCropRGBImageDecoder((options.size, options.size), scale=(0.9, 1.0))
    shards = sorted(dataset.path.glob("*.beton"))
    if len(shards) != 1:
        raise SystemExit("the stock loader reads one file; take fewer photographs")
    stock = Loader(
        str(shards[0]), batch_size=options.batch_size, num_workers=options.threads, order=OrderOption.RANDOM, os_cache=True,
        drop_last=False, pipelines={"image": [decoder], "captions": None, "tokens": None, "index": None},
    )  # fmt: skip
    jpegs = [dataset.image_bytes(index) for index in range(dataset.n)]
    pillow = torch.utils.data.DataLoader(
        PillowCrops(jpegs, options.size), batch_size=options.batch_size, shuffle=True, num_workers=options.threads
    )

    def consume(loader):
        for _ in loader:
            pass

    return {
        "coreclip": lambda: consume(ours),
        "ffcv stock Loader": lambda: consume(stock),
        "torch DataLoader + Pillow": lambda: consume(pillow),
    }


class PillowCrops:
    """The random-resized-crop of torchvision's recipe with Pillow's bicubic resize."""

    def __init__(self, jpegs: list[bytes], size: int) -> None:
        self.jpegs, self.size = jpegs, size

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(io.BytesIO(self.jpegs[index])) as image:
            rgb = image.convert("RGB")
        scale = np.sqrt(np.random.default_rng().uniform(0.9, 1.0))
        width, height = int(rgb.width * scale), int(rgb.height * scale)
        left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
        box = (left, top, left + width, top + height)
        return np.array(rgb.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


if __name__ == "__main__":
    main()
