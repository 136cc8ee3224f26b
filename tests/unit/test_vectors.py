"""The explicit vector code against numpy."""

import numpy as np
import pytest
from numba import njit

from coreclip.pipeline.vectors import BYTE_TILE, FLOAT_TILE, WIDTH, put_bytes, transpose_tile, weighted_sum


@njit
def turn(source, at, stride, target, to, target_stride):
    transpose_tile(source, at, stride, target, to, target_stride)


@njit
def add_up(block, start, weights, first, taps, out, to):
    weighted_sum(block, start, weights, first, taps, out, to)


@njit
def to_bytes(numbers, at, weights, row, out, to):
    put_bytes(numbers, at, weights, row, out, to)


@pytest.mark.parametrize(("dtype", "side"), [(np.float32, FLOAT_TILE), (np.uint8, BYTE_TILE)])
def test_a_tile_is_turned_over_and_nothing_else_changes(dtype, side):
    rng = np.random.default_rng(0)
    source, target = (rng.integers(0, 256, shape).astype(dtype) for shape in ((40, 37), (31, 50)))
    expected = target.copy()
    expected[3 : 3 + side, 5 : 5 + side] = source[2 : 2 + side, 7 : 7 + side].T
    turn(source, 2 * 37 + 7, 37, target, 3 * 50 + 5, 50)
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("taps", [1, 4, 13])
def test_rows_are_added_with_their_weights(taps):
    rng = np.random.default_rng(taps)
    block, weights = rng.normal(size=(30, WIDTH)).astype(np.float32), rng.normal(size=(5, taps)).astype(np.float32)
    out = np.zeros((3, WIDTH), np.float32)
    add_up(block, 6 * WIDTH, weights, 2 * taps, taps, out, WIDTH)
    assert np.allclose(out[1], weights[2] @ block[6 : 6 + taps], rtol=1e-5, atol=1e-5)
    assert not out[[0, 2]].any()


def test_sums_are_clipped_and_cut_to_bytes():
    rng = np.random.default_rng(1)
    numbers = rng.uniform(-100, 355, (3, 4, WIDTH)).astype(np.float32)
    weights = np.array([[9, 9, 9, 9], [1, 0.5, -0.25, 0.5]], np.float32)
    out = np.zeros((5, WIDTH), np.uint8)
    to_bytes(numbers, 2 * WIDTH, weights, 1, out, 3 * WIDTH)
    expected = np.tensordot(weights[1, :3], numbers[:, 2], 1) + weights[1, 3]
    assert np.abs(out[3] - np.clip(expected, 0, 255)).max() <= 1
    assert (out[3] == np.floor(np.clip(expected, 0, 255))).mean() > 0.9
    assert {0, 255} <= set(out[3].tolist())
    assert not out[[0, 1, 2, 4]].any()
