"""Difficult, rare, damaged and hostile image files: what Pillow decodes strictly becomes a pair, every other a reject.

Pillow is the judge, in every test the same one (:func:`strict_pixels`). What is stored must then show the judge's pixels
through Pillow and through the compiled decoder of the loader. The one freedom: a JPEG that libjpeg itself calls damaged,
which Pillow does not look at, may be a reject.
"""

import ctypes
import io
import math
import re
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coreclip.pipeline import Dataset, convert
from coreclip.pipeline.decode import JPEG, RAW, Decoder, decode_images, load_decoder, scratch_bytes
from coreclip.pipeline.images import ImageRejected, PreparedImage, prepare_image
from tests.helpers import make_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's JPEG reader hands MPO files on
MAX_PIXELS = 179_000_000
LONGEST_SIDE = 65_500  # that libjpeg writes or reads; FFCV's fields hold 65,535
WIDTH, HEIGHT = 128, 96
PICTURE = make_pixels(3, WIDTH, HEIGHT)
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
DAMAGE = re.compile(r"cut short or damaged: .*(premature end|Huffman|RST|arithmetic|progression)", re.IGNORECASE)


def strict_pixels(data: bytes) -> np.ndarray | None:
    """Return the upright RGB pixels on white, uint8 (h, w, 3), as Pillow decodes a file strictly; None where it does not.

    Floating-point pixels have no range that a picture could be made of: None.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS or max(image.size) > LONGEST_SIDE:
                    return None
                image.load()
                turn = TURNS.get(orientation_of(image), TURNS[1])
                return turn(on_white(image))
        except Exception:  # whatever it is that Pillow raises, it is its No
            return None


def orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged Exif is no reason to lose an image
        return 1


def on_white(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("no range")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(float).clip(0, 65535) / 65535 * 255
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(float) - b.astype(float)) ** 2).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf


def stored_pixels(prepared: PreparedImage) -> np.ndarray:
    if prepared.mode == "raw":
        return np.frombuffer(prepared.data, np.uint8).reshape(prepared.height, prepared.width, 3)
    with Image.open(io.BytesIO(prepared.data), formats=("JPEG",)) as image:
        assert image.size == (prepared.width, prepared.height)
        assert orientation_of(image) not in TURNS or not prepared.transcoded or orientation_of(image) == 1
        return np.asarray(image.convert("RGB"))


def loader_pixels(prepared: PreparedImage, decoder: Decoder, side: int) -> np.ndarray | None:
    """Return what the loader's decoder makes of the whole image, resized to uint8 (side, side, 3); None where invalid."""
    size = np.array([[prepared.width], [prepared.height]])
    stored = np.frombuffer(prepared.data, np.uint8)
    images, valid = np.empty((1, side, side, 3), np.uint8), np.zeros(1, bool)
    one = np.ones(1, np.int64)
    decoder.reserve(scratch_bytes(size[0], size[1], one))
    decode_images(
        decoder.scratch, np.array([stored.ctypes.data], np.uint64), np.array([stored.size], np.uint64),
        np.array([JPEG if prepared.mode == "jpg" else RAW], np.uint8), size[0], size[1], np.array([prepared.warning != ""]),
        np.array([[0.0, 0.0, prepared.width, prepared.height]]), one, images, valid,
    )  # fmt: skip
    return images[0] if valid[0] else None


@pytest.fixture(scope="module", autouse=True)
def no_limit_of_pillows() -> Iterator[None]:
    """As in a worker of the conversion: the limit of pixels is coreclip's alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        yield


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    load_decoder()
    return Decoder()


def judge(data: bytes, decoder: Decoder, *, at_least: float = 35.0) -> PreparedImage | None:
    """Hold :func:`prepare_image` against the rule; return what it has made, None for a reject.

    ``at_least`` is the PSNR in dB of what is stored anew.
    """
    expected = strict_pixels(data)
    try:
        prepared = prepare_image(data)
    except ImageRejected as rejected:
        reason = str(rejected)
        assert len(reason) > 10
        assert expected is None or DAMAGE.search(reason), f"Pillow decodes it, and it was refused: {reason}"
        return None
    assert expected is not None, f"Pillow refuses it, and it was stored (warning {prepared.warning!r})"
    stored = stored_pixels(prepared)
    assert stored.shape == expected.shape
    if not prepared.transcoded:
        assert prepared.data == data
        assert np.array_equal(stored, expected)
    elif prepared.mode == "raw":
        assert np.abs(stored.astype(int) - expected).max() <= 1
    else:
        assert psnr(stored, expected) >= at_least
    seen = loader_pixels(prepared, decoder, 64)
    assert seen is not None, f"the loader's decoder refuses what was stored (warning {prepared.warning!r})"
    resized = np.asarray(Image.fromarray(stored).resize((64, 64), Image.Resampling.BICUBIC))
    assert psnr(seen, resized) >= min(30.0, at_least)  # the decoders fill in chroma pixels differently
    return prepared


def encode(mode: str = "RGB", kind: str = "JPEG", *, pixels: np.ndarray = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_alpha(kind: str, mode: str = "RGBA", **options: Any) -> bytes:
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
    image = Image.fromarray(PICTURE)
    image.putalpha(Image.fromarray(alpha))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def animated(kind: str, **options: Any) -> bytes:
    frames = [Image.fromarray(np.roll(PICTURE, 40 * i, axis=1)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


def rotated(orientation: int, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode("RGB", kind, exif=exif, **options)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG file of rows that begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_16_rgb() -> bytes:
    rows = (PICTURE.astype(">u2") * 257).reshape(HEIGHT, -1)
    return png(WIDTH, HEIGHT, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment of a JPEG up to the start of its scan."""
    at = 2
    while True:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield jpeg[at + 1], at, end
        if jpeg[at + 1] == 0xDA:
            return
        at = end


def without(jpeg: bytes, marker: int) -> bytes:
    """Return a JPEG without its segments of one kind."""
    for kind, start, end in reversed(list(segments(jpeg))):
        if kind == marker:
            jpeg = jpeg[:start] + jpeg[end:]
    return jpeg


def scan_start(jpeg: bytes) -> int:
    return list(segments(jpeg))[-1][2]


def patched(jpeg: bytes, marker: int, offset: int, content: bytes) -> bytes:
    """Return a JPEG with bytes overwritten behind the length of its first segment of one kind."""
    at = next(start for kind, start, _ in segments(jpeg) if kind == marker) + 4 + offset
    return jpeg[:at] + content + jpeg[at + len(content) :]


def turbo(subsampling: int, **environment: str) -> bytes:
    """Return the picture as TurboJPEG encodes it; ``TJ_ARITHMETIC`` and ``TJ_PROGRESSIVE`` are its own switches."""
    library = load_decoder()
    library.tjInitCompress.restype = ctypes.c_void_p
    library.tjCompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.tjFree.argtypes = library.tjDestroy.argtypes = [ctypes.c_void_p]
    handle = library.tjInitCompress()
    out, n_bytes = ctypes.c_void_p(), ctypes.c_ulong()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        code = library.tjCompress2(
            handle, PICTURE.tobytes(), WIDTH, 0, HEIGHT, 0, ctypes.byref(out), ctypes.byref(n_bytes), subsampling, 90, 0
        )
    library.tjDestroy(handle)
    assert code == 0
    data = ctypes.string_at(out.value, n_bytes.value)
    library.tjFree(out)
    return data


def one_grey_unit(across: int, down: int, *, bits: int = 8, marker: int = 0xC0) -> bytes:
    """Return a JPEG of one unit of grey blocks whose luma has ``across`` x ``down`` blocks to one of each chroma."""
    standard = encode()
    tables = b"".join(standard[start:end] for kind, start, end in segments(standard) if kind in (0xDB, 0xC4))
    frame = struct.pack(">BHHB", bits, 8 * down, 8 * across, 3) + bytes(
        [1, across << 4 | down, 0, 2, 0x11, 1, 3, 0x11, 1]
    )
    scan = bytes([3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0])
    # DC difference 0 and end of block: 00 1010 in the luma tables, 00 00 in the chroma ones; filled up with ones.
    code = "001010" * (across * down) + "0000" * 2
    code += "1" * (-len(code) % 8)
    entropy = int(code, 2).to_bytes(len(code) // 8, "big")
    parts = [(marker, frame), (0xDA, scan)]
    heads = [bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in parts]
    return b"\xff\xd8" + tables + heads[0] + heads[1] + entropy + b"\xff\xd9"


def swapped_restarts(jpeg: bytes) -> bytes:
    start = scan_start(jpeg)
    swapped = jpeg[start:].replace(b"\xff\xd1", b"\xff\xd9?").replace(b"\xff\xd2", b"\xff\xd1")
    return jpeg[:start] + swapped.replace(b"\xff\xd9?", b"\xff\xd2")


def inserted(jpeg: bytes, at: int, extra: bytes) -> bytes:
    at = at if at >= 0 else len(jpeg) + at
    return jpeg[:at] + extra + jpeg[at:]


def ordinary_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    return exif.tobytes()


PAIRS: dict[str, Callable[[], bytes]] = {
    "baseline": encode,
    "baseline-optimised": lambda: encode(optimize=True),
    "quality-1": lambda: encode(quality=1),
    "quality-100": lambda: encode(quality=100),
    "grey": lambda: encode("L"),
    "subsampling-444": lambda: turbo(0),
    "subsampling-422": lambda: turbo(1),
    "subsampling-420": lambda: turbo(2),
    "subsampling-440": lambda: turbo(4),
    "subsampling-411": lambda: turbo(5),
    "subsampling-410": lambda: one_grey_unit(4, 2),
    "subsampling-odd": lambda: one_grey_unit(3, 1),
    "progressive": lambda: encode(progressive=True),
    "progressive-grey": lambda: encode("L", progressive=True),
    "arithmetic": lambda: turbo(2, TJ_ARITHMETIC="1"),
    "arithmetic-progressive": lambda: turbo(0, TJ_ARITHMETIC="1", TJ_PROGRESSIVE="1"),
    "cmyk": lambda: encode("CMYK"),
    "ycck": lambda: patched(encode("CMYK", quality=95), 0xEE, 11, b"\x02"),
    "rgb-jpeg": lambda: encode(keep_rgb=True),
    "restarts": lambda: encode(restart_marker_blocks=3),
    "without-huffman-tables": lambda: without(encode(), 0xC4),
    "trailing-garbage": lambda: encode() + b"\0garbage\xff\xd8\xff" * 30,
    "two-jpegs": lambda: encode() + encode(pixels=PICTURE[::-1]),
    "mpo": lambda: animated("MPO"),
    "stray-bytes-in-header": lambda: inserted(encode(), 20, b"stray bytes"),
    "grey-stray-bytes-in-header": lambda: inserted(encode("L"), 20, b"stray bytes"),
    "stray-bytes-before-end": lambda: inserted(encode(), -2, b"stray"),
    "fill-bytes-before-markers": lambda: inserted(encode(), 2, b"\xff" * 9),
    "without-jfif": lambda: without(encode(), 0xE0),
    "exif-ordinary": lambda: encode(exif=ordinary_exif()),
    "exif-garbage": lambda: encode(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40),
    "exif-loop": lambda: encode(exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0"),
    "exif-empty": lambda: encode(exif=b"Exif\0\0"),
    "icc-garbage": lambda: encode(icc_profile=b"no profile" * 9),
    "comment": lambda: encode(comment=b"\xff" * 60000),
    "png": lambda: encode("RGB", "PNG"),
    "png-interlaced-palette": lambda: encode("P", "PNG"),
    "png-grey": lambda: encode("L", "PNG"),
    "png-1-bit": lambda: encode("1", "PNG", pixels=np.repeat(PICTURE // 90 * 90, 1, 0)[:32, :32]),
    "png-rgba": lambda: with_alpha("PNG"),
    "png-la": lambda: with_alpha("PNG", "LA"),
    "png-palette-trns": lambda: encode("P", "PNG", transparency=bytes(range(0, 250, 2))),
    "png-rgb-trns": lambda: encode("RGB", "PNG", transparency=tuple(map(int, PICTURE[0, 0]))),
    "png-grey-trns": lambda: encode("L", "PNG", transparency=128),
    "png-16-grey": lambda: encode_grey_16("PNG"),
    "png-16-rgb": png_16_rgb,
    "apng": lambda: animated("PNG"),
    "apng-default-image": lambda: animated("PNG", default_image=True),
    "gif": lambda: encode("P", "GIF"),
    "gif-animated": lambda: animated("GIF"),
    "webp": lambda: encode("RGB", "WEBP", quality=95),
    "webp-lossless": lambda: encode("RGB", "WEBP", lossless=True),
    "webp-alpha": lambda: with_alpha("WEBP", quality=95),
    "webp-animated": lambda: animated("WEBP", quality=95),
    "bmp": lambda: encode("RGB", "BMP"),
    "bmp-grey": lambda: encode("L", "BMP"),
    "bmp-palette": lambda: encode("P", "BMP"),
    "bmp-1-bit": lambda: encode("1", "BMP", pixels=PICTURE[:32, :32]),
    "tiff": lambda: encode("RGB", "TIFF"),
    "tiff-lzw": lambda: encode("RGB", "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda: encode("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "tiff-packbits": lambda: encode("RGB", "TIFF", compression="packbits"),
    "tiff-jpeg": lambda: encode("RGB", "TIFF", compression="jpeg"),
    "tiff-cmyk": lambda: encode("CMYK", "TIFF"),
    "tiff-rgba": lambda: with_alpha("TIFF"),
    "tiff-fax": lambda: encode("1", "TIFF", compression="group4", pixels=PICTURE[:32, :32]),
    "tiff-16-grey": lambda: encode_grey_16("TIFF"),
    "tiff-pages": lambda: animated("TIFF"),
    "tiff-turned": lambda: rotated(6, "TIFF"),
    "tiff-big": lambda: encode("RGB", "TIFF", big_tiff=True),
    "one-pixel-jpeg": lambda: encode(pixels=PICTURE[:1, :1]),
    "one-pixel-png": lambda: encode("RGB", "PNG", pixels=PICTURE[:1, :1]),
    "one-pixel-gif": lambda: encode("P", "GIF", pixels=PICTURE[:1, :1]),
    "long-jpeg": lambda: encode(pixels=np.full((1, LONGEST_SIDE, 3), 90, np.uint8)),
    "long-png": lambda: encode("RGB", "PNG", pixels=np.full((1, LONGEST_SIDE, 3), 90, np.uint8)),
    "tall-png": lambda: encode("L", "PNG", pixels=np.full((LONGEST_SIDE, 1, 3), 90, np.uint8)),
}

REJECTS: dict[str, Callable[[], bytes]] = {
    "empty": bytes,
    "one-byte": lambda: b"\xff",
    "soi-alone": lambda: b"\xff\xd8",
    "soi-eoi": lambda: b"\xff\xd8\xff\xd9",
    "text": lambda: b"<html>404 Not Found</html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "ppm": lambda: b"P6 2 2 255\n" + bytes(12),
    "ico": lambda: encode("RGBA", "ICO"),
    "pdf": lambda: encode("RGB", "PDF"),
    "12-bit-jpeg": lambda: one_grey_unit(1, 1, bits=12, marker=0xC1),
    "no-frame": lambda: without(encode(), 0xC0),
    "no-components": lambda: patched(encode(), 0xC0, 5, b"\0"),
    "zero-width": lambda: patched(encode(), 0xC0, 3, b"\0\0"),
    "zero-height": lambda: patched(encode(), 0xC0, 1, b"\0\0"),
    "jpeg-claims-65500": lambda: patched(encode(), 0xC0, 1, struct.pack(">HH", 65500, 65500)),
    "bytes-before-start": lambda: b"\0\0" + encode(),
    "newline-before-start": lambda: b"\n" + encode(),
    "bytes-behind-start": lambda: inserted(encode(), 2, b"stray"),
    "without-quantisation-tables": lambda: without(encode(), 0xDB),
    "png-bomb": lambda: png(50_000, 50_000, 1, 0, bytes(6251) * 40),
    "png-claims-too-much": lambda: png(9_000, 9_000, 8, 2, bytes(300)),
    "png-zero-width": lambda: png(0, 9, 8, 2, bytes(9)),
    "png-without-data": lambda: encode("RGB", "PNG")[:33] + png_chunk(b"IEND", b""),
    "png-broken-crc": lambda: encode("RGB", "PNG")[:29] + b"\0\0\0\0" + encode("RGB", "PNG")[33:],
    "png-text-bomb": lambda: (
        encode("RGB", "PNG")[:33]
        + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20)))
        + encode("RGB", "PNG")[33:]
    ),
    "gif-bomb": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + encode("P", "GIF")[10:],
    "webp-cut": lambda: encode("RGB", "WEBP")[:-30],
    "bmp-cut": lambda: encode("RGB", "BMP")[:-30],
    "bmp-claims-too-much": lambda: (
        encode("RGB", "BMP")[:18] + struct.pack("<ii", 60000, 60000) + encode("RGB", "BMP")[26:]
    ),
    "tiff-cut": lambda: encode("RGB", "TIFF")[:-9000],
    "tiff-header-alone": lambda: b"II*\0\x08\0\0\0",
    "tiff-float": lambda: encode("F", "TIFF", pixels=PICTURE),
    "wider-than-a-jpeg": lambda: encode("L", "PNG", pixels=np.full((1, 65501, 3), 9, np.uint8)),
    "taller-than-a-jpeg": lambda: encode("RGB", "PNG", pixels=np.full((65535, 1, 3), 9, np.uint8)),
    "wider-than-a-field": lambda: encode("L", "PNG", pixels=np.full((1, 65536, 3), 9, np.uint8)),
}


def encode_grey_16(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("name", PAIRS)
def test_what_pillow_decodes_becomes_a_pair(name: str, decoder: Decoder) -> None:
    data = PAIRS[name]()
    assert strict_pixels(data) is not None
    # A palette's and a bilevel picture's dithering, and YCCK made of CMYK's numbers, are noise to a JPEG.
    rough = ("palette", "gif", "1-bit", "ycck", "apng", "fax", "trns")
    assert judge(data, decoder, at_least=28 if any(word in name for word in rough) else 35)


@pytest.mark.parametrize("name", REJECTS)
def test_what_pillow_refuses_is_a_reject(name: str, decoder: Decoder) -> None:
    data = REJECTS[name]()
    assert strict_pixels(data) is None
    judge(encode(optimize=True), decoder)  # what a decoder keeps of an image before must not help a broken one
    assert judge(data, decoder) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_turned_upright(orientation: int, kind: str, decoder: Decoder) -> None:
    data = rotated(orientation, kind, **({} if kind == "PNG" else {"quality": 95}))
    prepared = judge(data, decoder, at_least=38)
    assert prepared is not None
    assert psnr(stored_pixels(prepared), TURNS[orientation](PICTURE)) > 33
    assert prepared.transcoded is (kind != "JPEG" or orientation != 1)


@pytest.mark.parametrize("side", [16, 37, 61, 128])
@pytest.mark.parametrize("orientation", [3, 5, 6, 7])
def test_turned_jpegs_of_any_size_keep_their_borders(orientation: int, side: int, decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for subsampling in (0, 2):
        data = encode(pixels=PICTURE[: side - 3, :side], exif=exif, quality=95, subsampling=subsampling)
        prepared = judge(data, decoder, at_least=38)
        assert prepared is not None
        borders = [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]]
        expected, stored = strict_pixels(data), stored_pixels(prepared)
        assert expected is not None
        assert min(psnr(stored[border], expected[border]) for border in borders) > 30


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_frames_of_every_kind_follow_pillow(marker: int, decoder: Decoder) -> None:
    judge(one_grey_unit(2, 2, marker=marker), decoder)


def test_an_image_does_not_lend_its_tables_to_the_next(decoder: Decoder) -> None:
    """libjpeg keeps the tables of a decompressor: a file without them is decoded with those of the file before it."""
    lender, borrower = encode(optimize=True, quality=30), without(encode(), 0xC4)
    expected = strict_pixels(borrower)  # with the standard tables that such a file (a frame of Motion JPEG) counts on
    assert expected is not None
    for _ in range(2):
        assert judge(lender, decoder) is not None
        prepared = judge(borrower, decoder)
        assert prepared is not None
        assert psnr(stored_pixels(prepared), expected) > 35


def test_the_pixels_of_damaged_restarts_are_pillows_or_none(decoder: Decoder) -> None:
    for blocks in (1, 3, 7):
        judge(swapped_restarts(encode(restart_marker_blocks=blocks)), decoder, at_least=25)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("WEBP", "RGB"), ("GIF", "P")]
)
def test_files_cut_at_any_place_follow_pillow(kind: str, mode: str, decoder: Decoder) -> None:
    data = encode(mode, kind)
    generator = np.random.default_rng(0)
    for length in {*range(1, 30), len(data) - 2, len(data) - 1, *generator.integers(30, len(data), 40).tolist()}:
        judge(data[:length], decoder, at_least=25)


@pytest.mark.parametrize("header", [(200, 96), (128, 200), (64, 96), (128, 40), (96, 128)])
def test_jpegs_that_lie_about_their_size_follow_pillow(header: tuple[int, int], decoder: Decoder) -> None:
    for data in (encode(), encode("L"), encode(progressive=True)):
        judge(
            patched(data, 0xC0 if data[:300].count(b"\xff\xc0") else 0xC2, 1, struct.pack(">HH", *header)),
            decoder,
            at_least=20,
        )


def test_a_bomb_is_refused_before_its_pixels_are_made() -> None:
    with pytest.raises(ImageRejected, match="50000 x 50000 pixels are more than the limit of 179000000"):
        prepare_image(REJECTS["png-bomb"]())
    bomb = patched(encode(), 0xC0, 1, struct.pack(">HH", 65500, 65500))
    for check in ("decode", "header"):
        with pytest.raises(ImageRejected, match="65500 x 65500 pixels are more than the limit"):
            prepare_image(bomb, check=check)


def test_a_hundred_megapixels_are_an_ordinary_pair() -> None:
    file = io.BytesIO()
    Image.new("L", (10_000, 10_000), 77).save(file, "JPEG", quality=50)
    assert prepare_image(file.getvalue()) == PreparedImage(file.getvalue(), "jpg", 10_000, 10_000)
    rows = (b"\0" + b"\xff" * 1250) * 10_000
    shrunk = prepare_image(png(10_000, 10_000, 1, 0, rows), max_side=100)
    assert (shrunk.width, shrunk.height) == (100, 100)
    assert stored_pixels(shrunk).min() > 250
    with pytest.raises(ImageRejected, match="10000 x 10000 pixels are more than the limit of 99999999"):
        prepare_image(file.getvalue(), max_pixels=99_999_999)


@pytest.mark.parametrize("name", ["wider-than-a-jpeg", "taller-than-a-jpeg", "wider-than-a-field"])
def test_a_side_that_can_not_be_stored_is_refused_or_shrunk(name: str) -> None:
    data = REJECTS[name]()
    with pytest.raises(ImageRejected, match=r"a side of 655\d\d pixels can't be stored .*; set --max-side"):
        prepare_image(data)
    shrunk = prepare_image(data, max_side=1000)
    assert max(shrunk.width, shrunk.height) == 1000


def test_a_whole_conversion_of_them_keeps_every_pair_right(tmp_path: Path) -> None:
    """All of them with the same wrong extension in one archive, each with a caption of its own."""
    files = {name: made() for name, made in (PAIRS | REJECTS).items()}
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for name, data in files.items():
            for extension, content in (("jpg", data), ("txt", f"a picture called {name}".encode())):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    report = convert([tmp_path / "all.tar"], tmp_path / "data", workers=1, vocab_size=300)
    dataset = Dataset(tmp_path / "data")
    rejects = pd.read_parquet(tmp_path / "data" / "rejects.parquet")
    assert (sorted(dataset.keys), sorted(rejects["key"])) == (sorted(PAIRS), sorted(REJECTS))
    assert (report.pairs, report.rejected) == (len(PAIRS), len(REJECTS))
    for index, name in enumerate(dataset.keys):
        assert dataset.captions(index) == [f"a picture called {name}"]
        expected = strict_pixels(files[name])
        assert expected is not None
        assert psnr(dataset.image(index), expected) > 25, name


BASES = {
    "jpeg": encode(),
    "jpeg-444": encode(subsampling=0, quality=95),
    "jpeg-grey": encode("L"),
    "jpeg-restarts": encode(restart_marker_blocks=4),
    "jpeg-progressive": encode(progressive=True),
    "jpeg-turned": rotated(6),
    "png": encode("RGB", "PNG"),
    "png-rgba": with_alpha("PNG"),
    "webp": encode("RGB", "WEBP"),
    "webp-lossless": encode("RGB", "WEBP", lossless=True),
    "gif": encode("P", "GIF"),
}


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes changed, removed, put in or cut off; half of the changes near its start."""
    data = bytearray(BASES[draw(st.sampled_from(sorted(BASES)))])
    for _ in range(draw(st.integers(1, 4))):
        reach = draw(st.sampled_from([min(700, len(data)), len(data)]))
        at = draw(st.integers(0, max(0, reach - 1)))
        what = draw(st.sampled_from(["set", "set", "set", "remove", "insert", "cut"]))
        if what == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif what == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif at > 20:
            del data[at:]
    return bytes(data)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=corrupted())
def test_corrupted_files_follow_pillow(decoder: Decoder, data: bytes) -> None:
    judge(data, decoder, at_least=15)
