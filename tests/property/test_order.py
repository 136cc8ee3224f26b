"""Epoch order, batches and crops as pure functions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.crops import hash64_of, random_boxes
from coreclip.pipeline.feeds import equal_parts
from coreclip.pipeline.order import (
    batch_slices,
    epoch_order,
    occurrence_keys,
    quasi_random_order,
    rank_share,
    storage_blocks,
)
from coreclip.randomness import hash64

seeds = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), seeds, st.integers(0, 1000))
def test_order_visits_each_position_once(n, seed, epoch):
    order = epoch_order(n, seed=seed, epoch=epoch, order="random")
    assert (np.sort(order) == np.arange(n)).all()
    assert (order == epoch_order(n, seed=seed, epoch=epoch, order="random")).all()
    assert (epoch_order(n, seed=seed, epoch=epoch, order="sequential") == np.arange(n)).all()


def test_epochs_and_seeds_have_their_own_order():
    orders = [epoch_order(100, seed=s, epoch=e, order="random").tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 9


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 50), st.data(), st.booleans())
def test_batches_cover_what_is_left(n, batch_size, data, drop_last):
    start = data.draw(st.integers(0, n))
    slices = batch_slices(n, batch_size, start=start, drop_last=drop_last)
    visited = [i for part in slices for i in range(part.start, part.stop)]
    left = n - start
    assert visited == list(range(start, start + (left - left % batch_size if drop_last else left)))
    assert all(part.stop - part.start == batch_size for part in slices[: None if drop_last else -1])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_parts_cover_and_none_is_empty(costs, parts):
    slices = equal_parts(np.array(costs, np.float64), parts)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(len(costs)))
    assert all(part.stop > part.start for part in slices)
    assert len(slices) <= parts
    assert max(sum(costs[part]) for part in slices) <= sum(costs) / parts + 2 * max(costs)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(0, 2**31), st.integers(0, 2**62), st.integers(0, 100))
def test_compiled_hash_is_the_vectorised_one(seed, epoch, index, stream):
    assert int(hash64_of(seed, epoch, index, stream)) == int(hash64(seed, epoch, np.array([index]), stream)[0])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2000), st.integers(1, 2000), seeds, st.floats(0.05, 1.0))
def test_crops_are_inside_and_of_the_asked_area(width, height, seed, low):
    index = np.arange(20)
    size = np.full(20, width, np.int32), np.full(20, height, np.int32)
    boxes = random_boxes(*size, index, seed, 3, low, 1.0)
    left, top, right, bottom = boxes.T
    assert (boxes == np.rint(boxes)).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    assert (right > left).all()
    assert (bottom > top).all()
    assert (boxes == random_boxes(*size, index, seed, 3, low, 1.0)).all()


def test_crops_fill_the_ranges_of_area_and_aspect():
    size = np.full(4000, 500, np.int32)
    left, top, right, bottom = random_boxes(size, size, np.arange(4000), 0, 0, 0.2, 0.6).T
    area, aspect = (right - left) * (bottom - top) / 250_000, np.log((right - left) / (bottom - top))
    np.testing.assert_allclose(np.quantile(area, [0, 0.5, 1]), [0.2, 0.4, 0.6], atol=0.02)
    np.testing.assert_allclose(np.quantile(aspect, [0, 0.5, 1]), [-0.2877, 0, 0.2877], atol=0.02)
    np.testing.assert_allclose(np.mean(left / (500 - right + left)), 0.5, atol=0.02)


def test_crop_of_an_extreme_image_is_its_centre():
    boxes = random_boxes(np.array([300], np.int32), np.array([30], np.int32), np.array([0]), 0, 0, 0.9, 1.0)
    assert boxes[0].tolist() == [130, 0, 170, 30]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), seeds, st.integers(0, 100), st.integers(1, 9))
def test_quasi_random_order_mixes_few_blocks_at_a_time(blocks, seed, epoch, window):
    blocks = np.array(blocks, np.int64)
    order, starts = quasi_random_order(blocks, seed=seed, epoch=epoch, window=window)
    assert (np.sort(order) == np.arange(len(blocks))).all()
    assert (order == quasi_random_order(blocks, seed=seed, epoch=epoch, window=window)[0]).all()
    parts = np.split(blocks[order], starts[1:])
    assert starts[0] == 0
    assert all(1 <= len(np.unique(part)) <= window for part in parts)
    assert sum(len(np.unique(part)) for part in parts) == len(np.unique(blocks))  # no block in two windows


def test_quasi_random_orders_differ_and_mix():
    blocks = np.repeat(np.arange(50), 20)
    orders = [quasi_random_order(blocks, seed=s, epoch=e, window=10)[0] for s in range(2) for e in range(2)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    for order in orders:
        assert len(np.unique(blocks[order[:64]])) == 10
        assert (np.abs(np.diff(order[:200])) > 1).mean() > 0.9
    assert len({blocks[order[:200]].min() for order in orders}) > 1


def test_blocks_are_of_one_shard_and_of_its_neighbours():
    shard = np.array([0, 0, 0, 1, 1, 2], np.int32)
    address = np.array([100, 2**21 + 99, 2**21 + 100, 5, 2**23, 7], np.uint64)
    assert storage_blocks(shard, address).tolist() == [0, 0, 1, 2, 5, 6]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=100))
def test_each_occurrence_has_its_own_key_and_the_first_has_the_index(indices):
    indices = np.array(indices, np.int64)
    keys = occurrence_keys(indices)
    assert len(np.unique(keys)) == len(keys)
    _, first = np.unique(indices, return_index=True)
    assert (keys[first] == indices[first]).all()
    assert (keys >= 0).all()
    shorter = occurrence_keys(indices[: len(indices) // 2])
    assert (keys[: len(shorter)] == shorter).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 100), st.integers(1, 7), st.integers(1, 9))
def test_shares_are_disjoint_cover_and_are_of_equal_length_with_their_padding(n, world_size, start):
    shares = [rank_share(slice(start, start + n), rank, world_size) for rank in range(world_size)]
    assert [i for share, _ in shares for i in range(share.start, share.stop)] == list(range(start, start + n))
    assert {share.stop - share.start + padding for share, padding in shares} == {-(-n // world_size)}
    assert all(padding in (0, 1) for _, padding in shares)
