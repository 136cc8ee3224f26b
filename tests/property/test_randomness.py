"""Random numbers are pure, well spread functions of (seed, epoch, index, stream)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.randomness import hash64, mix64, permutation, uniform

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10_000)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 500), seeds, epochs)
def test_a_permutation_holds_every_index_once(n, seed, epoch):
    assert np.array_equal(np.sort(permutation(n, seed, epoch)), np.arange(n))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 500) | st.integers(65_000, 140_000), seeds, epochs, st.integers(0, 2**40))
def test_a_permutation_is_the_order_of_the_indices_numbers(n, seed, epoch, stream):
    order = permutation(n, seed, epoch, stream)
    assert order.dtype == np.int64
    assert np.array_equal(order, np.argsort(hash64(seed, epoch, np.arange(n), stream), kind="stable"))


@settings(deadline=None, max_examples=50)
@given(seeds, epochs, st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_number_depends_on_its_own_index_alone(seed, epoch, indices):
    together = hash64(seed, epoch, np.array(indices))
    alone = [hash64(seed, epoch, np.array([index]))[0] for index in indices]
    assert np.array_equal(together, np.array(alone, dtype=np.uint64))


@settings(deadline=None, max_examples=20)
@given(seeds, epochs)
def test_seed_epoch_and_stream_each_change_the_numbers(seed, epoch):
    index = np.arange(64)
    base = hash64(seed, epoch, index)
    for other in (hash64(seed + 1, epoch, index), hash64(seed, epoch + 1, index), hash64(seed, epoch, index, stream=1)):
        assert not np.any(base == other)


def test_uniform_numbers_fill_the_interval_evenly():
    counts = np.histogram(uniform(3, 1, np.arange(100_000)), bins=20, range=(0, 1))[0]
    assert counts.sum() == 100_000
    assert np.all(np.abs(counts - 5000) < 5 * np.sqrt(5000))


def test_mix64_is_splitmix64():
    # First outputs of the published generator seeded with 1234567, whose state steps by the golden gamma.
    state = (1234567 + 0x9E3779B97F4A7C15 * np.arange(1, 4, dtype=object)) % 2**64
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix64(state.astype(np.uint64)).tolist() == expected
