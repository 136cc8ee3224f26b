"""Which images keep their bytes, which are stored anew, which are refused, and that the stock decoder takes the rest."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from coreclip.pipeline.images import ImageRejected, PreparedImage, prepare_grey, prepare_image

GRADIENT = np.stack([*np.meshgrid(np.arange(120), np.arange(80)), np.full((80, 120), 60)], axis=2).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(prepared: PreparedImage) -> np.ndarray:
    if prepared.mode == "raw":
        return np.frombuffer(prepared.data, np.uint8).reshape(prepared.height, prepared.width, 3).astype(int)
    with Image.open(io.BytesIO(prepared.data)) as image:
        assert image.size == (prepared.width, prepared.height)
        assert not image.info.get("progressive")
        return np.asarray(image.convert("RGB")).astype(int)


def insert_before_end(jpeg: bytes, extra: bytes) -> bytes:
    return jpeg[:-2] + extra + jpeg[-2:]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_baseline_jpeg_keeps_its_bytes(mode, subsampling):
    data = encode(Image.fromarray(GRADIENT).convert(mode), subsampling=subsampling)
    prepared = prepare_image(data)
    assert prepared == PreparedImage(data, "jpg", 120, 80)


def test_bytes_behind_the_end_of_a_jpeg_are_kept():
    data = encode(GRADIENT) + b"some maker's note"
    assert prepare_image(data) == PreparedImage(data, "jpg", 120, 80)


def test_a_harmless_warning_is_recorded_and_the_bytes_kept():
    data = insert_before_end(encode(GRADIENT), b"stray")
    prepared = prepare_image(data)
    assert prepared.data == data
    assert "extraneous bytes" in prepared.warning
    assert prepare_image(data, check="header").warning == ""


@pytest.mark.parametrize("cut", [3, 50, 400])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_is_cut_short_is_refused(cut, end):
    with pytest.raises(ImageRejected, match=r"cut short or damaged: .*[Pp]remature end"):
        prepare_image(encode(NOISE)[:-cut] + end)


@pytest.mark.parametrize("length", [2, 3, 20, 160])
def test_a_jpeg_without_its_frame_header_is_refused(length):
    with pytest.raises(ImageRejected, match="JPEG"):
        prepare_image(encode(NOISE)[:length])


def test_a_progressive_jpeg_becomes_a_baseline_one():
    prepared = prepare_image(encode(GRADIENT, progressive=True))
    assert prepared.transcoded
    assert np.abs(decode(prepared) - GRADIENT).mean() < 3


def test_a_cmyk_jpeg_becomes_rgb():
    prepared = prepare_image(encode(Image.fromarray(GRADIENT).convert("CMYK"), quality=95))
    assert prepared.transcoded
    assert np.abs(decode(prepared) - GRADIENT).mean() < 4


def test_an_rgb_jpeg_is_stored_as_ycbcr():
    prepared = prepare_image(encode(GRADIENT, keep_rgb=True, quality=95))
    assert prepared.transcoded
    assert np.abs(decode(prepared) - GRADIENT).mean() < 3


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
        (2, lambda a: a[:, ::-1]),
    ],
)
def test_exif_orientation_is_baked_in(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    prepared = prepare_image(encode(GRADIENT, exif=exif, quality=95))
    expected = turn(GRADIENT)
    assert (prepared.height, prepared.width) == expected.shape[:2]
    assert np.abs(decode(prepared) - expected).mean() < 3


def test_damaged_exif_does_not_cost_the_image():
    data = encode(GRADIENT, exif=b"Exif\0\0II*\0garbage that is no table of tags")
    assert prepare_image(data).data == data


def test_transparent_pixels_lie_on_white():
    pixels = np.zeros((80, 120, 4), np.uint8)
    pixels[:40, :, 3] = 255  # opaque black above, nothing below
    got = decode(prepare_image(encode(pixels, "PNG")))
    assert got[:36].max() < 10
    assert got[44:].min() > 245


def test_a_palette_with_transparency_lies_on_white():
    image = Image.new("P", (64, 64), 0)
    image.putpalette([200, 0, 0] + [0, 0, 200] * 255)
    got = decode(prepare_image(encode(image, "PNG", transparency=0)))
    assert got.min() > 245


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 80 * 120).reshape(80, 120).astype(np.uint16)
    got = decode(prepare_image(encode(ramp, "PNG")))
    assert np.abs(got[..., 0] - (ramp >> 8)).max() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_formats_are_stored_as_jpeg_whatever_their_name(kind):
    flat = np.full((80, 120, 3), (30, 120, 210), np.uint8)
    prepared = prepare_image(encode(flat, kind))
    assert (prepared.mode, prepared.transcoded) == ("jpg", True)
    assert np.abs(decode(prepared) - flat).max() <= 4


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    got = decode(prepare_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert np.abs(got - [254, 0, 0]).max() < 5


def test_small_images_are_stored_without_loss():
    pixels = NOISE[:32, :32]
    prepared = prepare_image(encode(pixels, "PNG"))
    assert prepared.mode == "raw"
    assert np.array_equal(decode(prepared), pixels)


def test_max_side_shrinks_only_what_is_larger():
    data = encode(GRADIENT, quality=95)
    assert prepare_image(data, max_side=120).data == data
    shrunk = prepare_image(data, max_side=60)
    assert (shrunk.width, shrunk.height) == (60, 40)
    expected = GRADIENT.reshape(40, 2, 60, 2, 3).mean(axis=(1, 3))
    assert np.abs(decode(shrunk) - expected).mean() < 3


def test_a_long_thin_image_keeps_at_least_one_pixel():
    thin = prepare_image(encode(np.zeros((1, 3000, 3), np.uint8), "PNG"), max_side=100)
    assert (thin.width, thin.height) == (100, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_pixel_limit_holds_before_decoding(kind):
    data = encode(GRADIENT, kind)
    with pytest.raises(ImageRejected, match="120 x 80 pixels are more than the limit of 9599"):
        prepare_image(data, max_pixels=9599)
    prepare_image(data, max_pixels=9600)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"this is no image", "not an image of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image of a known kind"),
        (encode(NOISE, "PNG")[:-500], "can't be decoded"),
        (encode(NOISE, "WEBP")[:-500], "decoded|known kind"),
        (encode(np.zeros((8, 8), np.float32), "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_a_reason(data, reason):
    with pytest.raises(ImageRejected, match=reason):
        prepare_image(data)


def test_the_header_check_trusts_a_jpeg_but_not_its_header():
    cut = encode(NOISE)[:-400]
    assert prepare_image(cut, check="header").data == cut
    with pytest.raises(ImageRejected, match="JPEG"):
        prepare_image(cut[:100], check="header")


def test_grey_pixels_are_stored_as_rgb():
    grey = NOISE[:28, :28, 0]
    prepared = prepare_grey(grey.tobytes(), 28, 28, max_side=None, quality=95)
    assert np.array_equal(decode(prepared), np.repeat(grey[..., None], 3, axis=2))
    with pytest.raises(ImageRejected, match="783 of 784"):
        prepare_grey(grey.tobytes()[1:], 28, 28, max_side=None, quality=95)


def oriented(pixels: np.ndarray, orientation: int, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, exif=exif, **options)


def upright(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_progressive_jpeg_keeps_every_pixel(mode, subsampling):
    data = encode(Image.fromarray(NOISE).convert(mode), progressive=True, subsampling=subsampling)
    prepared = prepare_image(data)
    assert prepared.transcoded
    assert np.array_equal(decode(prepared), upright(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_jpeg_is_turned_upright_by_its_coefficients(orientation, progressive):
    pixels = NOISE[:, :112]  # whole blocks each way, so that every turn is possible
    data = oriented(pixels, orientation, quality=90, subsampling=0, progressive=progressive)
    prepared = prepare_image(data)
    assert np.abs(decode(prepared) - upright(data)).max() <= 3, "the transform's own rounding"
    assert prepare_image(prepared.data).data == prepared.data, "its EXIF data are gone: it is not turned twice"


@pytest.mark.parametrize("orientation", [2, 3, 4, 6, 7, 8])
def test_a_turn_that_would_lose_a_border_is_made_on_pixels(orientation):
    data = oriented(GRADIENT[:75, :113], orientation, quality=95, subsampling=2)
    prepared = prepare_image(data)
    assert decode(prepared).shape == upright(data).shape
    assert np.abs(decode(prepared) - upright(data)).mean() < 2
    assert prepared.transcoded


def test_max_side_holds_for_a_progressive_jpeg_too():
    prepared = prepare_image(encode(GRADIENT, progressive=True), max_side=60)
    assert (prepared.width, prepared.height) == (60, 40)
    decode(prepared)
