"""Drawing by weight: whatever the weights, each position's number is its expected one, rounded down or up, and right on average."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.order import drawn_by_weight

WEIGHTS = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=40).filter(lambda w: max(w) > 1e-6)
SEEDS = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(weights=WEIGHTS, seed=SEEDS, epoch=st.integers(0, 1000))
def test_numbers_are_the_expected_ones_rounded_down_or_up(weights, seed, epoch):
    weights = np.array(weights)
    drawn = drawn_by_weight(weights, seed=seed, epoch=epoch)
    assert len(drawn) == len(weights)
    assert (np.diff(drawn) >= 0).all()
    counts = np.bincount(drawn, minlength=len(weights))
    expected = len(weights) * weights / weights.sum()
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()
    assert np.array_equal(drawn, drawn_by_weight(weights, seed=seed, epoch=epoch))


@settings(deadline=None, max_examples=15)
@given(weights=st.lists(st.floats(0.01, 5), min_size=2, max_size=12), seed=SEEDS)
def test_numbers_over_many_epochs_are_in_proportion_to_the_weights(weights, seed):
    weights, epochs = np.array(weights), 800
    k = len(weights)
    counts = sum(np.bincount(drawn_by_weight(weights, seed=seed, epoch=e), minlength=k) for e in range(epochs))
    # A number is one of two neighbours, so its standard deviation is a half at most: five of the mean's.
    assert np.abs(counts / epochs - k * weights / weights.sum()).max() < 5 * 0.5 / np.sqrt(epochs)


@settings(deadline=None)
@given(k=st.integers(1, 300), weight=st.floats(1e-6, 1e6), seed=SEEDS, epoch=st.integers(0, 100))
def test_equal_weights_draw_each_once(k, weight, seed, epoch):
    assert np.array_equal(drawn_by_weight(np.full(k, weight), seed=seed, epoch=epoch), np.arange(k))


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_whoever_is_drawn_beside_whom_changes(seed):
    """Two pairs that are there three times in four each: neither always nor never together, as neighbours of a fixed order would be."""
    weights = np.full(8, 0.75)
    weights[:4] = 1.25
    together = np.mean([np.isin([4, 5], drawn_by_weight(weights, seed=seed, epoch=e)).all() for e in range(600)])
    assert 0.35 < together < 0.75
