"""Colours against Pillow's ImageEnhance, conversions and HSV, which torchvision's transforms call."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from coreclip.pipeline.augment import (
    Augment,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    augment_image,
    cut_out,
    turn_hue,
)
from coreclip.pipeline.streams import JITTER, JITTER_ORDER
from coreclip.randomness import hash64, uniform

FACTORS = (0.0, 0.31, 1.0, 1.4, 3.7)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)


def changed(function, picture, *arguments):
    out = picture.copy()
    function(out, *arguments)
    return out


def recoloured(function, picture, *arguments):
    planes = np.ascontiguousarray(picture.reshape(-1, 3).T)
    function(planes, *arguments)
    return planes.T.reshape(picture.shape)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_saturation_are_pillows_to_the_byte(picture, ours, pillows, factor):
    reference = np.asarray(pillows(Image.fromarray(picture)).enhance(factor))
    assert (recoloured(ours, picture, factor) == reference).all()


def test_grey_is_pillows_to_the_byte(picture):
    out = picture.copy()
    augment_image(out, 0, 0, 0, *Augment(grey=1.0).settings())
    assert (out == np.asarray(Image.fromarray(picture).convert("L"))[:, :, None]).all()


def pillow_hue(image: Image.Image, turn: float) -> Image.Image:
    """``torchvision.transforms.functional.adjust_hue`` of a Pillow image."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, np.int64) + int(turn * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.1, 0.5])
def test_hue_is_pillows_within_its_rounding_to_bytes(picture, turn):
    reference = np.asarray(pillow_hue(Image.fromarray(picture), turn), np.int64)
    difference = np.abs(recoloured(turn_hue, picture, int(turn * 255) / 255) - reference)
    assert difference.mean() < 2  # one step of its hue moves a channel by up to 6 of 255
    assert difference.max() <= 12


def test_turning_the_hue_by_a_third_rotates_the_channels(picture):
    third = recoloured(turn_hue, picture, 1 / 3).astype(np.int64)
    assert np.abs(third - np.roll(picture, 1, axis=2)).max() <= 1
    assert (recoloured(turn_hue, picture, 0.0) == picture).all()


def test_jitter_applies_the_drawn_factors_in_the_drawn_order(picture):
    amounts = (0.4, 0.8, 1.5, 0.0)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    settings = Augment(jitter=amounts).settings()
    orders = set()
    for key in range(30):
        draw, left, order = int(hash64(7, 3, np.array([key]), JITTER_ORDER)[0]) % 24, list(range(4)), []
        for n in range(4, 0, -1):
            order.append(left.pop(draw % n))
            draw //= n
        orders.add(tuple(order))
        image = Image.fromarray(picture)
        for which in order:
            if amounts[which]:
                low, high = max(0.0, 1 - amounts[which]), 1 + amounts[which]
                factor = low + (high - low) * uniform(7, 3, np.array([key]), JITTER + which)[0]
                image = enhancers[which](image).enhance(factor)
        assert (changed(augment_image, picture, key, 7, 3, *settings) == np.asarray(image)).all()
    assert len(orders) > 12


def test_the_square_is_filled_with_the_mean_or_a_colour(picture):
    mean = np.rint(picture.mean((0, 1)))
    for fill, colour in ((np.full(3, np.nan), mean), (np.array([1.0, 2.0, 3.0]), [1, 2, 3])):
        out = changed(cut_out, picture, 10, 5, 20, 9, fill)
        assert (out[5:14, 10:30] == colour).all()
        expected = picture.copy()
        expected[5:14, 10:30] = colour
        assert (out == expected).all()


def test_squares_are_inside_everywhere_and_of_the_asked_size():
    seen = np.zeros((20, 30), np.int64)
    settings = Augment(cutout=0.25, fill=(0, 0, 0)).settings()
    for key in range(4000):
        image = np.full((20, 30, 3), 9, np.uint8)
        augment_image(image, key, 0, 0, *settings)
        hole = (image == 0).all(2)
        assert hole.sum() == 5 * 8
        assert np.ptp(np.flatnonzero(hole.any(1))) + 1 == 5
        seen += hole
    assert (seen > 0).all()
