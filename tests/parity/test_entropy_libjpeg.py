"""What the quick check calls clean, libjpeg decodes without a complaint; and it calls nearly everything clean that is."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coreclip.pipeline.entropy import ScanChecker
from coreclip.pipeline.images import ImageRejected, _parse_jpeg, _stock_decode

CHECKER = ScanChecker()


def picture(seed: int, width: int, height: int, noise: float) -> Image.Image:
    rng = np.random.default_rng(seed)
    slopes = np.add.outer(np.arange(height) * rng.uniform(-4, 4), np.arange(width) * rng.uniform(-4, 4))
    pixels = 128 + slopes[..., None] * rng.uniform(0, 1, 3) + noise * rng.standard_normal((height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def complaint(data: bytes) -> str:
    """Return what libjpeg says of a file, whatever it is."""
    try:
        header = _parse_jpeg(data)
    except ImageRejected as rejected:
        return str(rejected)
    if not 0 < header.width * header.height < 1 << 24:
        return "no size"
    return _stock_decode(data, header.height, header.width)


@settings(deadline=None, max_examples=250)
@given(
    seed=st.integers(0, 1 << 30),
    sides=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    noise=st.sampled_from([0, 3, 30, 120]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    mode=st.sampled_from(["RGB", "L"]),
    optimize=st.booleans(),
    restarts=st.sampled_from([0, 1, 3, 7]),
)
def test_a_clean_file_is_called_clean(seed, sides, noise, quality, subsampling, mode, optimize, restarts):
    image = picture(seed, *sides, noise).convert(mode)
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    data = encode(image, quality=quality, optimize=optimize, restart_marker_blocks=restarts, **options)
    assert complaint(data) == ""
    assert CHECKER.is_clean(data)


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """Return the file with some bytes changed, put in, left out, copied within it, or with its end cut off."""
    place = int(rng.integers(2, len(data)))
    few = int(rng.integers(1, 4))
    random = rng.integers(0, 256, few, np.uint8).tobytes()
    markers = bytes([0xFF, int(rng.choice([0x00, 0xD0, 0xD3, 0xD9, 0xFF, 0xC4, 0xDA, 0x01]))])
    other = int(rng.integers(2, len(data)))
    return [
        data[:place] + random + data[place + few :],
        data[:place] + random + data[place:],
        data[:place] + data[place + few :],
        data[:place] + markers + data[place + 2 :],
        data[:place] + markers + data[place:],
        data[:place],
        data[:place] + data[min(place, other) : min(place, other) + 40] + data[place:],
        data[:-2] + random + data[-2:],
        data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :],
    ][int(rng.integers(9))]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("restarts", [0, 2])
def test_what_is_called_clean_is_clean_however_it_was_damaged(mode, optimize, restarts):
    rng = np.random.default_rng([ord(mode[0]), optimize, restarts])
    called_clean = 0
    for number in range(1500):
        image = picture(number % 40, 33 + number % 5, 47, 40.0).convert(mode)
        data = damage(rng, encode(image, quality=60 + number % 40, optimize=optimize, restart_marker_blocks=restarts))
        if CHECKER.is_clean(data):
            called_clean += 1
            assert complaint(data) == ""
    assert 0 < called_clean < 750  # a flipped bit of a magnitude is no damage that anyone could see


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_called_clean_is_clean_with_any_byte_of_its_headers_changed(mode):
    data = encode(picture(3, 35, 41, 30.0).convert(mode), optimize=True)
    called_clean = 0
    for place in range(2, data.index(b"\xff\xda") + 14):
        for value in {0, 1, 3, 4, 0x10, 0x13, 0x41, 0x7F, 0xFF, data[place] ^ 1, data[place] ^ 0x80} - {data[place]}:
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            if CHECKER.is_clean(changed):
                called_clean += 1
                assert complaint(changed) == "", (place, value)
    assert called_clean > 300  # quantisation tables, the version of JFIF, ...


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": True, "optimize": True}])
def test_what_is_not_baseline_is_left_to_libjpeg(options):
    assert not CHECKER.is_clean(encode(picture(1, 64, 64, 20.0), **options))
    assert not CHECKER.is_clean(encode(picture(1, 64, 64, 20.0).convert("CMYK")))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n" + bytes(40), bytes(300)])
def test_what_is_no_jpeg_is_not_clean(data):
    assert not CHECKER.is_clean(data)


def test_bytes_behind_the_end_do_no_harm():
    assert CHECKER.is_clean(encode(picture(2, 40, 40, 20.0)) + b"trailer \xff\xd8 of a camera")
