"""Turn the bytes of an image into bytes that FFCV's stock decoder is known to decode.

A baseline JPEG, grey or YCbCr, upright and small enough, keeps its bytes. One that is progressive or lies on its side
keeps its coefficients, where libjpeg can turn them without loss (jpegtran's ``-perfect``). Everything else that Pillow
reads strictly is turned upright, laid on white, converted to RGB and stored anew: as it is up to 32 x 32 pixels, else as
a 4:4:4 JPEG. Colour profiles are ignored, and of an animation the first frame is taken.
"""

import ctypes
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from coreclip.pipeline.ffcv_library import find_ffcv_library

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no others: Pillow's EPS reader runs a program
_RAW_PIXELS = 32 * 32
_LARGEST_SIDE = 65500  # of a JPEG by libjpeg's rule
_NO_SEGMENT = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_HUFFMAN = {0xC0, 0xC1}
_TRANSFORMABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # sequential and progressive, Huffman and arithmetic coding
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# From turbojpeg.h: what turns each EXIF orientation upright, and how.
_TRANSFORM_OF = {1: 0, 2: 1, 3: 6, 4: 2, 5: 3, 6: 5, 7: 4, 8: 7}
_PERFECT, _COPY_NO_MARKERS = 1, 64
_LIMIT_SCANS = 32768
_WARNING = 0
# libjpeg's warnings (jerror.h), all of which TurboJPEG reports as -1, that leave pixels undefined; the others are harmless.
_DAMAGE = re.compile(r"premature end|bad Huffman code|instead of RST|bad arithmetic code|progression", re.IGNORECASE)
_HARMLESS = re.compile(r"extraneous bytes|Invalid SOS parameters|JFIF revision|color transform code|ICC", re.IGNORECASE)


class ImageRejected(Exception):
    """An image that can't be stored; its text is the reason for the ledger."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as it will be stored.

    Attributes
    ----------
    data : bytes
        A JPEG file, or uint8 (height, width, 3) where ``mode`` is ``"raw"``.
    mode : {"jpg", "raw"}
    width, height : int
        Pixels; of a JPEG, what its own header says.
    warning : str
        What the stock decoder warns of when it decodes these bytes (it then returns -1 with whole pixels); mostly "".
    transcoded : bool
        Whether ``data`` differs from the source's bytes.
    """

    data: bytes
    mode: str
    width: int
    height: int
    warning: str = ""
    transcoded: bool = False


@dataclass(slots=True)
class _JpegHeader:
    frame: int
    bits: int
    height: int
    width: int
    components: tuple[int, ...]
    jfif: bool = False
    adobe_transform: int | None = None
    orientation: int = 1
    tables: set[int] = field(default_factory=set)  # numbers of the quantisation tables that its components need
    brings_its_tables: bool = False  # else a decoder may decode it with those of an earlier file


def prepare_image(
    data: bytes,
    *,
    max_side: int | None = None,
    check: str = "decode",
    max_pixels: int = 179_000_000,
    quality: int = 95,
    raw: bool = False,
    is_clean: Callable[[bytes], bool] | None = None,
) -> PreparedImage:
    """Check an encoded image and return what to store for it.

    Parameters
    ----------
    data : bytes
        A whole image file; its content decides on its kind, not its name.
    max_side : int, optional
        Pixels; a longer side is shrunk to it.
    check : {"decode", "header"}
        ``"header"`` takes a JPEG's word for the pixels behind its header.
    max_pixels : int
        More are refused before any of them is decoded.
    quality : int
        Of JPEGs that are stored anew, 1..95.
    raw : bool
        Store pixels in place of JPEGs.
    is_clean : callable, optional
        Says of a JPEG that the stock decoder would have no complaint, see :class:`coreclip.pipeline.entropy.ScanChecker`;
        it then is not asked.

    Raises
    ------
    ImageRejected
        With the reason.
    """
    if not data:
        raise ImageRejected("the image is empty (0 bytes)")
    warning: str | None = None
    if data[:2] == b"\xff\xd8":
        if data[2:3] not in (b"\xff", b""):
            raise ImageRejected("the JPEG is damaged: no marker follows its first two bytes")
        header = _parse_jpeg(data)
        _check_size(header.width, header.height, max_pixels)
        if check == "decode" and header.brings_its_tables:
            warning = "" if is_clean is not None and is_clean(data) else _check_jpeg(data, header)
        if warning:
            _decode(data, None, max_pixels)  # what Pillow refuses too is no harmless warning
        fits = not raw and (max_side is None or max(header.width, header.height) <= max_side)
        if (
            fits
            and header.brings_its_tables
            and _has_stock_colours(header)
            and (warning is not None or check == "header")
        ):
            if header.frame in _SEQUENTIAL_HUFFMAN and header.orientation not in _UPRIGHT:
                return PreparedImage(data, "jpg", header.width, header.height, warning or "")
            if (turned := _transform(data, header)) is not None:
                return turned
    return _store(_decode(data, max_side, max_pixels), max_side, quality, raw)


def prepare_grey(
    pixels: bytes, height: int, width: int, *, max_side: int | None, quality: int, raw: bool = False
) -> PreparedImage:
    """Return what to store for unencoded grey pixels, uint8 (height, width)."""
    if len(pixels) != height * width:
        raise ImageRejected(f"{len(pixels)} of {height * width} pixels are there")
    _check_size(width, height, _LARGEST_SIDE**2)
    grey = Image.fromarray(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width))
    return _store(grey, max_side, quality, raw)


def prepare_pixels(
    pixels: bytes, height: int, width: int, channels: int, *, max_side: int | None, quality: int, raw: bool = False
) -> PreparedImage:
    """Return what to store for unencoded pixels: grey, uint8 (height, width), or RGB, uint8 (height, width, 3)."""
    if channels == 1:
        return prepare_grey(pixels, height, width, max_side=max_side, quality=quality, raw=raw)
    if len(pixels) != height * width * 3:
        raise ImageRejected(f"{len(pixels)} of {height * width * 3} bytes of pixels are there")
    _check_size(width, height, _LARGEST_SIDE**2)
    colours = Image.fromarray(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3))
    return _store(colours, max_side, quality, raw)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width == 0 or height == 0:
        raise ImageRejected(f"the image has {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageRejected(f"{width} x {height} pixels are more than the limit of {max_pixels}")


def _parse_jpeg(data: bytes) -> _JpegHeader:
    """Read the markers up to the first scan's, skipping stray bytes between them as libjpeg does."""
    header = _JpegHeader(0, 0, 0, 0, ())
    quantisation: set[int] = set()
    huffman: set[int] = set()
    for marker, segment in _segments(data):
        if marker in _START_OF_FRAME and not header.frame:
            _parse_frame(header, marker, segment)
        elif marker == 0xDA:
            header.brings_its_tables = _has_tables(header, segment, quantisation, huffman)
        elif marker == 0xDB:
            quantisation |= _table_numbers(segment, _quantisation_bytes)
        elif marker == 0xC4:
            huffman |= _table_numbers(segment, _huffman_bytes)
        elif marker == 0xE0 and segment[:5] == b"JFIF\0":
            header.jfif = True
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            header.adobe_transform = segment[11]
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0":
            header.orientation = _orientation(Image.Exif(), segment)
    if not header.frame:
        raise ImageRejected("the JPEG has no frame header: it is cut short or damaged")
    return header


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each marker of a JPEG that has a segment, with it, up to the first scan's or the end of the image."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = data[at] if at < len(data) else 0
        if marker == 0 or marker in _NO_SEGMENT:
            at += 1
            continue
        if marker == 0xD9:
            return
        segment = data[at + 3 : at + 1 + int.from_bytes(data[at + 1 : at + 3], "big")]
        yield marker, segment
        if marker == 0xDA:
            return
        at += 3 + len(segment)


def _quantisation_bytes(segment: bytes, at: int) -> int:
    return 129 if segment[at] >> 4 else 65


def _huffman_bytes(segment: bytes, at: int) -> int:
    return 17 + sum(segment[at + 1 : at + 17])


def _table_numbers(segment: bytes, n_bytes: Callable[[bytes, int], int]) -> set[int]:
    """Return class and number of each table of a segment; ``n_bytes`` says how long the one at a place is."""
    numbers = set()
    at = 0
    while at < len(segment):
        numbers.add(segment[at])
        at += n_bytes(segment, at)
    return numbers


def _has_tables(header: _JpegHeader, scan: bytes, quantisation: set[int], huffman: set[int]) -> bool:
    if not header.tables <= {number & 15 for number in quantisation}:
        return False
    if header.frame not in _SEQUENTIAL_HUFFMAN:
        return True  # each progressive scan brings its own, and arithmetic coding needs none
    used = scan[2 : 2 + 2 * scan[0] : 2] if scan else b""
    return len(used) > 0 and all(number >> 4 in huffman and 16 | number & 15 in huffman for number in used)


def _parse_frame(header: _JpegHeader, marker: int, segment: bytes) -> None:
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise ImageRejected("the JPEG is cut short within its frame header")
    header.frame = marker
    header.bits, header.height, header.width, n = struct.unpack(">BHHB", segment[:6])
    header.components = tuple(segment[6 : 6 + 3 * n : 3])
    header.tables = set(segment[8 : 6 + 3 * n : 3])


def _orientation(exif: Image.Exif, payload: bytes | None = None) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if payload is not None:
                exif.load(payload)
            return int(exif.get(0x0112, 1))
    except Exception:  # Pillow's Exif parser raises what it likes on damaged tags, which are no reason to lose an image
        return 1


def _has_stock_colours(header: _JpegHeader) -> bool:
    """Whether FFCV's decoder shows the JPEG's colours as they are: 8 bits, grey or YCbCr (by libjpeg's rules)."""
    if header.bits != 8:
        return False
    if len(header.components) == 3 and not header.jfif:
        if header.adobe_transform is not None:
            return header.adobe_transform == 1
        return header.components != tuple(b"RGB")
    return len(header.components) in (1, 3)


def _check_jpeg(data: bytes, header: _JpegHeader) -> str | None:
    """Decode strictly with the stock decoder: "" is fine, other text a harmless warning, None "not for this decoder"."""
    message = _stock_decode(data, header.height, header.width)
    if not message or _HARMLESS.search(message):
        return message
    if _DAMAGE.search(message):
        raise ImageRejected(f"the JPEG is cut short or damaged: {message}")
    return None


def _transform(data: bytes, header: _JpegHeader) -> PreparedImage | None:
    """Make a JPEG baseline and upright by its coefficients alone; None where that would lose a pixel."""
    orientation = header.orientation if header.orientation in _UPRIGHT else 1
    if header.frame not in _TRANSFORMABLE:
        return None
    library = _stock_library()
    how = _Transform(op=_TRANSFORM_OF[orientation], options=_PERFECT | _COPY_NO_MARKERS)
    result, n_bytes = ctypes.c_void_p(), ctypes.c_ulong()
    handle = library.tjInitTransform()
    try:
        code = library.tjTransform(
            handle, data, len(data), 1, ctypes.byref(result), ctypes.byref(n_bytes), ctypes.byref(how), _LIMIT_SCANS
        )
        message = library.tjGetErrorStr2(handle).decode("utf-8", "replace") if code else ""
        if _DAMAGE.search(message):
            raise ImageRejected(f"the JPEG is cut short or damaged: {message}")
        if code and library.tjGetErrorCode(handle) != _WARNING:
            return None
        stored = ctypes.string_at(result, n_bytes.value)
    finally:
        library.tjFree(result)
        library.tjDestroy(handle)
    turned = _parse_jpeg(stored)
    if turned.frame not in _SEQUENTIAL_HUFFMAN or not _has_stock_colours(turned):
        return None
    return PreparedImage(stored, "jpg", turned.width, turned.height, transcoded=True)


class _Transform(ctypes.Structure):
    """TurboJPEG's ``tjtransform``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("x", "y", "w", "h", "op", "options")),
        ("data", ctypes.c_void_p),
        ("custom_filter", ctypes.c_void_p),
    )


def _stock_decode(data: bytes, height: int, width: int) -> str:
    """Decode at 1/8 with FFCV's TurboJPEG, which reads every bit of the file; return its complaint, "" for none."""
    library = _stock_library()
    pixels = np.empty((-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    handle = library.tjInitDecompress()  # a new one: it would keep an earlier file's tables
    try:
        code = library.tjDecompress2(
            handle, data, len(data), pixels.ctypes.data, pixels.shape[1], 0, pixels.shape[0], 0, 0
        )  # fmt: skip
        return "" if code == 0 else library.tjGetErrorStr2(handle).decode("utf-8", "replace")
    finally:
        library.tjDestroy(handle)


@cache
def _stock_library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(find_ffcv_library()))
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    library.tjInitDecompress.restype = ctypes.c_void_p
    library.tjDecompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p, *[ctypes.c_int] * 5,
    ]  # fmt: skip
    library.tjInitTransform.restype = ctypes.c_void_p
    library.tjTransform.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int, *[ctypes.c_void_p] * 3, ctypes.c_int,
    ]  # fmt: skip
    for name in ("tjGetErrorStr2", "tjGetErrorCode", "tjDestroy", "tjFree"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library


def _decode(data: bytes, max_side: int | None, max_pixels: int) -> Image.Image:
    """Decode with Pillow, which refuses files that are cut short; return upright RGB or grey pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own pixel limit warns, ours has decided
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(*image.size, max_pixels)
                if max_side is not None:
                    image.draft(None, (2 * max_side, 2 * max_side))  # a JPEG is decoded at a smaller scale
                image.load()
                return _to_rgb(_turn_upright(image))
        except (ImageRejected, MemoryError):
            raise
        except Image.UnidentifiedImageError:
            raise ImageRejected(f"not an image of a known kind (it starts with {data[:4].hex()})") from None
        except Exception as error:  # Pillow's plugins raise what they like on hostile bytes; one of them is one reject
            raise ImageRejected(f"the image can't be decoded: {error or type(error).__name__}") from None


def _turn_upright(image: Image.Image) -> Image.Image:
    how = _UPRIGHT.get(_orientation(image.getexif()))
    return image.transpose(how) if how is not None else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageRejected("its pixels are floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits; Pillow's convert would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def _store(image: Image.Image, max_side: int | None, quality: int, raw: bool) -> PreparedImage:
    longest = max(image.size)
    if max_side is not None and longest > max_side:
        width, height = (max(1, round(side * max_side / longest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if max(image.size) > _LARGEST_SIDE:
        raise ImageRejected(f"a side of {max(image.size)} pixels can't be stored ({_LARGEST_SIDE} can); set --max-side")
    rgb = image.convert("RGB")
    if raw or rgb.width * rgb.height <= _RAW_PIXELS:
        return PreparedImage(rgb.tobytes(), "raw", rgb.width, rgb.height, transcoded=True)
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=quality, subsampling=0, comment=b"", icc_profile=None)
    return PreparedImage(file.getvalue(), "jpg", rgb.width, rgb.height, transcoded=True)
