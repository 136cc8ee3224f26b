"""Epoch order, batches and crops as pure functions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.crops import hash64_of, random_boxes
from coreclip.pipeline.feeds import equal_parts
from coreclip.pipeline.order import batch_slices, epoch_order
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
