"""Photographs to measure with, and data sets of them.

``--photos FOLDER`` of the benchmarks takes JPEG files that are there. Without it photographs are drawn with what makes
real ones cost what they cost: a spectrum that falls with the frequency, occluding edges, the noise of a sensor, JPEG of
quality 90 with halved colour planes. At 500 x 375 pixels they take about 100 KB, at 2048 x 1536 about 1 MB, at
6000 x 4000 about 8 MB. A few scenes are drawn; each photograph is another crop, mirroring and exposure of one, encoded
by itself. The same seed gives the same bytes.
"""

import argparse
import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from coreclip.pipeline import Dataset, convert

SCENES = 8
_ROOM = 1.15  # a scene's side, of a photograph's
_EXPOSURES = (0.85, 1.15)


def encode_photographs(n: int, width: int, height: int, *, seed: int = 0) -> Iterator[bytes]:
    """Yield n JPEG files of ``width`` by ``height`` pixels, encoded on all cores."""
    work = partial(_photograph, width=width, height=height, seed=seed)
    chunk = max(1, min(64, n // 16, (1 << 24) // (width * height)))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(work, range(n), chunksize=chunk)


def _photograph(number: int, width: int, height: int, seed: int) -> bytes:
    rng = np.random.default_rng((seed, number))
    scenes = SCENES if width * height < 4_000_000 else 2
    scene = _scene(int(rng.integers(scenes)), int(width * _ROOM), int(height * _ROOM), seed)
    top, left = rng.integers(scene.shape[0] - height + 1), rng.integers(scene.shape[1] - width + 1)
    exposure = np.clip(np.arange(256) * rng.uniform(*_EXPOSURES), 0, 255).astype(np.uint8)
    pixels = exposure[scene[top : top + height, left : left + width]]
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :: rng.choice((-1, 1))]).save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()


@cache
def _scene(number: int, width: int, height: int, seed: int) -> np.ndarray:
    """Return a picture, uint8 (height, width, 3)."""
    rng = np.random.default_rng((seed, number, 1))
    colours = Image.new("RGB", (width, height), (112, 120, 128))
    draw = ImageDraw.Draw(colours)
    for radius in min(width, height) * 0.35 * rng.power(0.6, 120):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        colour = np.clip(rng.uniform(40, 215) + rng.normal(0, 14, 3), 0, 255).astype(int)
        draw.ellipse((x - radius, y - radius * 0.8, x + radius, y + radius * 0.8), fill=tuple(colour.tolist()))
    grey = _pink_noise(rng, height, width)
    # Small pictures of the web are shrunk ones: more detail and less noise for each of their pixels.
    sharpness, noise = (40, 7.0) if width < 1000 else (20, 3.0)
    pixels = np.asarray(colours, np.float32) + (sharpness * grey)[..., None]
    pixels += noise * rng.standard_normal((height, width, 1), np.float32)
    pixels += 0.5 * noise * rng.standard_normal((height, width, 3), np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _pink_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return float32 (height, width) of unit deviation whose amplitudes fall with the frequency, as in natural scenes."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    waves = np.fft.irfft2(spectrum / frequency, (height, width))
    return (waves / waves.std()).astype(np.float32)


def draw_folder(folder: Path, n: int, width: int, height: int, *, seed: int = 0) -> None:
    """Write n photographs as ``folder/00000.jpg``, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(encode_photographs(n, width, height, seed=seed)):
        (folder / f"{number:06d}.jpg").write_bytes(data)


def caption_of(number: int) -> str:
    """Return a caption that no other photograph has."""
    return f"photograph {number} of a scene with {number % 7} discs and {number % 11} shades"


def write_tars(photos: list[Path], folder: Path, *, per_tar: int) -> None:
    """Write JPEG files and their captions as WebDataset shards ``folder/00000.tar``, ..."""
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, len(photos), per_tar)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number, photo in enumerate(itertools.islice(photos, first, first + per_tar), start=first):
                for name, data in (
                    (f"{number:06d}.jpg", photo.read_bytes()),
                    (f"{number:06d}.txt", caption_of(number).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def photo_files(options: argparse.Namespace, scratch: Path) -> list[Path]:
    """Return the JPEG files of ``options.photos``, or else draw ``options.n`` of ``options.width`` pixels in 4:3."""
    folder = Path(options.photos) if options.photos else scratch / "photos"
    if not options.photos:
        draw_folder(folder, options.n, options.width, options.width * 3 // 4)
    return sorted(folder.glob("*.jpg"))


def input_name(options: argparse.Namespace) -> str:
    """Return how results call the photographs of :func:`photo_files`."""
    return Path(options.photos).name if options.photos else f"drawn{options.width}"


def describe(photos: list[Path]) -> str:
    """Return number, sides and bytes of some JPEG files in a line."""
    sides = []
    for photo in photos:
        with Image.open(photo) as image:
            sides.append(image.size)
    width, height = np.median(sides, axis=0)
    n_bytes = sum(photo.stat().st_size for photo in photos)
    return f"{len(photos):,} photographs of {width:.0f} x {height:.0f} pixels (median), {n_bytes / len(photos) / 1e3:.0f} KB on average"


def one_shard(photos: list[Path], scratch: Path, *, workers: int) -> Dataset:
    """Convert JPEG files, bytes untouched, to a data set of one shard, as stock FFCV reads one file only."""
    captions = scratch / "captions.csv"
    largest_first = sorted(photos, key=lambda photo: -photo.stat().st_size)  # a shard's first row decides on its pages
    rows = [f"{photo.resolve()},{caption_of(number)}\n" for number, photo in enumerate(largest_first)]
    captions.write_text("image,caption\n" + "".join(rows))
    convert([photos[0].parent], scratch / "data", captions=captions, workers=workers, shard_bytes=1 << 36)
    dataset = Dataset(scratch / "data")
    if dataset.n != len(photos) or len(dataset.info["shards"]) != 1:
        raise SystemExit(f"{len(photos)} photographs became {dataset.n} pairs in {len(dataset.info['shards'])} shards")
    return dataset
