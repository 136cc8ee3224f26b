"""Decoding kernels: what they accept, and that what they refuse leaves zeros."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline import decode
from coreclip.pipeline.crops import centre_boxes
from tests.helpers import encode_jpeg, make_pixels


def run(files, *, sizes=None, mode=None, tolerated=None, denominator=1, side=16, poison=0):
    """Decode ``files`` one after the other with one decoder."""
    stored = [np.frombuffer(file, np.uint8) for file in files]
    width, height = (np.array(v, np.int32) for v in zip(*(sizes or [(48, 32)] * len(files)), strict=True))
    n = len(files)
    boxes, denominators = centre_boxes(width, height, side), np.full(n, denominator)
    decoder = decode.Decoder()
    decoder.reserve(decode.scratch_bytes(width, height, denominators))
    decoder.scratch[:] = poison
    images, valid = np.full((n, side, side, 3), 77, np.uint8), np.zeros(n, bool)
    decode.decode_images(
        decoder.scratch, np.array([s.ctypes.data for s in stored], np.uint64),
        np.array([s.size for s in stored], np.uint64), np.array(mode or [0] * n, np.uint8), width.astype(np.int64), height.astype(np.int64),
        np.array(tolerated or [False] * n), boxes, denominators, images, valid,
    )  # fmt: skip
    return images, valid


def expected(pixels, side=16):
    height, width = pixels.shape[:2]
    box = tuple(centre_boxes(np.array([width], np.int32), np.array([height], np.int32), side)[0])
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box=box), np.int64)


def decoded(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(48, 32), (47, 33), (17, 51)])
def test_jpegs_are_pillows(subsampling, size):
    file = encode_jpeg(make_pixels(3, *size), subsampling=subsampling)
    images, valid = run([file], sizes=[size])
    assert valid.all()
    assert np.abs(images[0] - expected(decoded(file))).mean() < 0.5


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"restart_marker_rows": 1}])
def test_unusual_jpegs_are_decoded(options):
    file = encode_jpeg(make_pixels(1), subsampling="4:4:4", **options)
    images, valid = run([file])
    assert valid.all()
    assert np.abs(images[0] - expected(decoded(file))).mean() < 0.5


def test_grey_jpeg_becomes_grey_rgb():
    file = encode_jpeg(make_pixels(1)[:, :, 0])
    images, valid = run([file])
    assert valid.all()
    assert (images[0, :, :, 0] == images[0, :, :, 2]).all()
    assert np.abs(images[0] - expected(decoded(file))).max() <= 2


def test_raw_pixels_are_resized_alike():
    pixels = make_pixels(5)
    images, valid = run([pixels.tobytes()], mode=[1])
    assert valid.all()
    assert np.abs(images[0] - expected(pixels)).max() <= 1


@pytest.mark.parametrize("denominator", [2, 4])
def test_shrinking_in_the_dct_keeps_the_picture(denominator):
    file = encode_jpeg(make_pixels(0, 256, 192), subsampling="4:4:4")
    images, valid = run([file], sizes=[(256, 192)], denominator=denominator)
    assert valid.all()
    assert np.abs(images[0] - expected(decoded(file))).mean() < 2


def broken_files():
    good = encode_jpeg(make_pixels(2))
    cmyk = io.BytesIO()
    Image.fromarray(make_pixels(2)).convert("CMYK").save(cmyk, "JPEG")
    return {
        "garbage": b"\xff\xd8garbage" * 30,
        "no jpeg": b"hello, this is no picture",
        "truncated": good[: len(good) // 2],
        "header only": good[:20],
        "other dimensions": encode_jpeg(make_pixels(2, 32, 48)),
        "larger than stored": encode_jpeg(make_pixels(2, 480, 320)),
        "cmyk": cmyk.getvalue(),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_image_is_zeroed_and_its_neighbours_are_right(name):
    good = [encode_jpeg(make_pixels(i)) for i in (7, 8)]
    images, valid = run([good[0], broken_files()[name], good[1]])
    assert valid.tolist() == [True, False, True]
    assert not images[1].any()
    for file, image in zip(good, images[[0, 2]], strict=True):
        assert np.abs(image - expected(decoded(file))).mean() < 0.5


def test_raw_pixels_of_another_size_are_refused():
    images, valid = run([b"\x05" * 100], mode=[1])
    assert not valid[0]
    assert not images.any()


def with_stray_bytes(file):
    at = file.index(b"\xff\xda")  # before the start of the scan
    return file[:at] + b"\0\0\0\0" + file[at:]


def test_warnings_pass_only_where_conversion_tolerated_them():
    file = with_stray_bytes(encode_jpeg(make_pixels(4)))
    images, valid = run([file, file], tolerated=[False, True])
    assert valid.tolist() == [False, True]
    assert np.abs(images[1] - expected(decoded(encode_jpeg(make_pixels(4))))).mean() < 0.5


def test_tolerated_image_never_shows_what_was_decoded_before():
    file = encode_jpeg(make_pixels(4))
    cut = file[: len(file) * 2 // 3]
    first, _ = run([cut], tolerated=[True], poison=0)
    second, _ = run([encode_jpeg(make_pixels(9)), cut], tolerated=[True, True], poison=200)
    assert (first[0] == second[1]).all()


def test_dct_shrinks_only_as_far_as_the_margin_allows():
    boxes = np.array([[0, 0, side, side + 50] for side in (95.0, 96.0, 191.0, 192.0, 10_000.0, 10_000.0)])
    mode = np.array([0, 0, 0, 0, 0, 1], np.uint8)
    assert decode.dct_denominators(mode, boxes, 16, 3.0).tolist() == [1, 2, 2, 4, 8, 1]


def test_tokens_of_the_drawn_caption_among_those_present():
    stored = np.zeros((3, 4, 5), np.uint16)
    stored[0, :4, 0], stored[1, :1, 0], stored[2, :3, 0] = 1, 1, 1
    stored[:, :, 1] = np.arange(4)
    address = stored.ctypes.data + np.arange(3, dtype=np.uint64) * np.uint64(stored[0].nbytes)
    tokens, caption = np.zeros((3, 5), np.int64), np.zeros(3, np.int64)
    decode.gather_tokens(address, np.array([7, 7, 7], np.uint64), 4, tokens, caption)
    assert caption.tolist() == [3, 0, 1]
    assert (tokens == stored[np.arange(3), caption]).all()


def test_missing_decoder_is_reported(monkeypatch):
    decode.load_decoder.cache_clear()
    monkeypatch.delitem(sys.modules, "ffcv", raising=False)  # where another test imported it, its place is known
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(CoreclipError, match=r"_libffcv\*\.so.*install ffcv anew"):
        decode.load_decoder()


def test_damaged_decoder_is_reported(monkeypatch, tmp_path):
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv" / "__init__.py").touch()
    (tmp_path / "ffcv" / "_libffcv.so").write_bytes(b"no library")
    decode.load_decoder.cache_clear()
    monkeypatch.delitem(sys.modules, "ffcv", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CoreclipError, match=r"_libffcv\.so can't be loaded.*install ffcv anew"):
        decode.load_decoder()


def test_library_without_turbojpeg_is_reported(monkeypatch):
    decode.load_decoder.cache_clear()
    monkeypatch.setattr(decode, "_SYMBOLS", ("tjNoSuchFunction",))
    with pytest.raises(CoreclipError, match="brings no tjNoSuchFunction; install ffcv anew"):
        decode.load_decoder()


_SECOND_PROCESS = """
import sys, time
import numpy as np
from numba.core import event
from coreclip.pipeline import decode
from coreclip.pipeline.crops import centre_boxes
data = np.fromfile(sys.argv[1], np.uint8)
size = np.array([48]), np.array([32])
boxes, one = centre_boxes(*(side.astype(np.int32) for side in size), 16), np.ones(1, np.int64)
with event.install_recorder("numba:compile") as compiled:
    decoder = decode.Decoder()
    decoder.reserve(decode.scratch_bytes(*size, one))
    images, valid = np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, bool)
    decode.decode_images(decoder.scratch, np.array([data.ctypes.data], np.uint64),
        np.array([data.size], np.uint64), np.zeros(1, np.uint8), *size, np.zeros(1, bool), boxes, one, images, valid)
assert valid.all() and images.any() and "ffcv" not in sys.modules
print(len(compiled.buffer))
"""


def test_second_process_loads_the_compiled_kernels(tmp_path):
    file = tmp_path / "image.jpg"
    file.write_bytes(encode_jpeg(make_pixels(0)))
    run([file.read_bytes()])  # compiled by now
    done = subprocess.run(
        [sys.executable, "-c", _SECOND_PROCESS, str(file)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "0"
