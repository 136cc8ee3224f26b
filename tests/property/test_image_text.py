"""What the image-text selections promise, on random data."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import Features, clipcov, density, negclip_scores, parse_uids
from coreclip.selection.prune import project, share_out
from coreclip.selection.uids import sort_uids, uid_keys

SETTINGS = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def random_pairs(seed, n, d=5):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    image[rng.random(n) < 0.2] = image[0]
    return Features.from_arrays(image, rng.normal(size=(n, d)))


@given(SEEDS, st.integers(1, 40), st.floats(1e-4, 100), st.integers(2, 50), st.integers(1, 3))
@SETTINGS
def test_contrastive_scores_are_finite_and_at_most_0_at_every_temperature(seed, n, temperature, batch, repetitions):
    scores = negclip_scores(
        random_pairs(seed, n), temperature=temperature, batch_size=batch, repetitions=repetitions, seed=seed
    )
    assert np.isfinite(scores).all()
    assert (scores <= 0).all()
    # A logit is at least -1 / tau, a sum of b terms at most b e^(1 / tau).
    assert scores.min() >= -(2 + temperature * np.log(n)) - 1e-4 * max(temperature, 1)


@st.composite
def boxes(draw):
    c = draw(st.integers(1, 5))
    upper = np.array(draw(st.lists(st.integers(0, 6), min_size=c, max_size=c)))
    lower = np.minimum(upper, np.array(draw(st.lists(st.integers(0, 2), min_size=c, max_size=c))))
    total = draw(st.integers(int(lower.sum()), int(upper.sum())))
    target = np.array(draw(st.lists(st.floats(-3, 9), min_size=c, max_size=c)))
    return target, lower, upper, total


@given(boxes())
@settings(deadline=None, max_examples=100)
def test_the_projection_meets_the_conditions_of_optimality(box):
    target, lower, upper, total = box
    point = project(target, lower, upper, total)
    assert point.sum() == pytest.approx(total, abs=1e-9)
    assert (point >= lower).all()
    assert (point <= upper).all()
    # What could rise has been shifted at least as far as what could sink: no exchange between two brings it nearer.
    shift = point - target
    could_rise, could_sink = shift[point < upper - 1e-9], shift[point > lower + 1e-9]
    if len(could_rise) and len(could_sink):
        assert could_rise.min() >= could_sink.max() - 1e-9


@given(boxes())
@settings(deadline=None, max_examples=100)
def test_no_whole_numbers_are_nearer_to_the_target(box):
    target, lower, upper, total = box
    shares = share_out(target, lower, upper, total)
    assert shares.sum() == total
    assert ((lower <= shares) & (shares <= upper)).all()
    every = itertools.product(*(range(low, high + 1) for low, high in zip(lower, upper, strict=True)))
    best = min(((np.array(x) - target) ** 2).sum() for x in every if sum(x) == total)
    assert ((shares - target) ** 2).sum() == pytest.approx(best, abs=1e-6)


@given(SEEDS, st.integers(2, 60), st.integers(0, 3))
@SETTINGS
def test_density_keeps_exactly_k_distinct_pairs(seed, n, minimum):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, n + 1))
    subset = density(random_pairs(seed, n), k, eps=None, minimum=min(minimum, k), seed=seed % 100)
    assert subset.k == k


@given(SEEDS, st.integers(1, 40), st.integers(1, 4))
@SETTINGS
def test_clipcov_does_not_depend_on_the_names_of_the_classes(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    features, labels = random_pairs(seed, n), rng.integers(0, n_classes, n)
    k = int(rng.integers(1, n + 1))
    one, other = clipcov(features, k, labels=labels), clipcov(features, k, labels=labels * 7 + 3)
    assert one.indices.tolist() == other.indices.tolist()
    assert one.k == k


@given(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=20))
@SETTINGS
def test_uids_keep_their_value_and_order(numbers):
    uids = parse_uids(np.array([f"{number:032x}" for number in numbers], object))
    back = [(int(high) << 64) + int(low) for high, low in sort_uids(uids)]
    assert back == sorted(numbers)
    assert uids[np.argsort(uid_keys(uids), kind="stable")].tolist() == sort_uids(uids).tolist()
