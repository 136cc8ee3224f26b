"""Resizing and the evaluation's preprocessing against Pillow's, the ones CLIP was trained with."""

import io

import numpy as np
import pytest
from PIL import Image

from coreclip.pipeline.crops import centre_boxes
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.loader import make_loader
from coreclip.pipeline.resize import resize_planes
from tests.helpers import encode_jpeg, make_dataset


def clip_preprocessing(image: Image.Image, side: int) -> np.ndarray:
    """Shortest side to ``side``, bicubic, centre crop: as torchvision's Resize and CenterCrop round."""
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    return np.asarray(image.crop((left, top, left + side, top + side)), np.float64)


def photograph(seed: int, width: int, height: int) -> np.ndarray:
    """Return noise with the spectrum and the colours of photographs, and an edge, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])[:, :, None] + 0.005
    spectrum = np.fft.fft2(rng.normal(size=(height, width, 3)), axes=(0, 1)) / frequency**1.2
    noise = np.fft.ifft2(spectrum, axes=(0, 1)).real
    picture = 128 + 45 * noise[:, :, :1] / noise.std() + 12 * noise / noise.std()
    picture[height // 3 : height // 2, width // 4 : width // 2] += (60, 40, -20)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(37, 53), (224, 300), (16, 16), (9, 120), (500, 20)])
@pytest.mark.parametrize("side", [16, 61])
def test_resize_is_pillows_within_its_rounding(size, side):
    pixels = photograph(0, *size)
    box = (0.3, 0.0, size[0] - 1.25, float(size[1]))
    planes = [np.ascontiguousarray(pixels[:, :, c]) for c in range(3)]
    out = np.zeros((side, side, 3), np.uint8)
    resize_planes(*planes, size, 1.0, (1, 1), False, np.array(box), out)
    reference = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box=box)
    difference = np.abs(out - np.asarray(reference, np.float64))
    assert difference.mean() < 0.3
    assert np.quantile(difference, 0.999) <= 2  # Pillow rounds, and clips, after each of its two passes


def test_centre_boxes_round_as_torchvision():
    rng = np.random.default_rng(1)
    width, height = rng.integers(8, 700, (2, 200)).astype(np.int32)
    for side in (31, 32, 224):
        for box, w, h in zip(centre_boxes(width, height, side), width.tolist(), height.tolist(), strict=True):
            sizes = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
            offsets = [round((resized - side) / 2.0) for resized in sizes]
            scales = np.array([w / sizes[0], h / sizes[1]])
            np.testing.assert_allclose(box[:2], offsets * scales)
            np.testing.assert_allclose(box[2:] - box[:2], side * scales)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    images = {i: encode_jpeg(photograph(i, 400, 300), subsampling=("4:2:0", "4:4:4")[i % 2]) for i in range(6)}
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 6, size=(400, 300), images=images)


@pytest.mark.parametrize("side", [224, 112, 64, 48])
def test_evaluation_batches_are_clips(photographs, side):
    for batch in make_loader(photographs, train=False, image_size=side):
        for index, image in zip(batch.index.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
            reference = clip_preprocessing(Image.open(io.BytesIO(photographs.image_bytes(index))), side)
            difference = image - reference
            assert np.abs(difference).mean() <= 1
            assert 10 * np.log10(255**2 / np.square(difference).mean()) >= 38
