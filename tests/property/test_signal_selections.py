"""Scores and quotas of the selections by training signals, against plain loops over random data."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.selection import (
    METHODS,
    ccs,
    ccs_budgets,
    difficulty_scores,
    el2n_scores,
    entropy_scores,
    forgetting_events,
    grand_scores,
    least_confidence_scores,
    margin_scores,
    select,
    stratified,
    tracin_self_influence,
    vog_scores,
)
from coreclip.selection.clusters import apportion
from coreclip.selection.difficulty import DIFFICULTIES
from coreclip.selection.signals import mean_over_passes

SETTINGS = settings(deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)


def forgetting_by_loops(column):
    seen = [value for value in column if value != -1]
    if not seen:
        return math.nan
    if 1 not in seen:
        return math.inf
    return sum(1 for now, then in itertools.pairwise(seen) if now == 1 and then == 0)


def vog_by_loops(gradients, labels):
    n_checkpoints, n, n_pixels = gradients.shape
    raw = []
    for i in range(n):
        deviations = []
        for pixel in range(n_pixels):
            values = [float(gradients[t, i, pixel]) for t in range(n_checkpoints)]
            deviations.append(statistics.pstdev(values))
        raw.append(sum(deviations) / n_pixels)
    result = []
    for i in range(n):
        same = [raw[j] for j in range(n) if labels[j] == labels[i]]
        spread = statistics.pstdev(same)
        result.append((raw[i] - statistics.fmean(same)) / spread if spread else 0.0)
    return result


def budgets_by_loops(sizes, k):
    """Take the smallest stratum that is left, as in Zheng et al.'s Algorithm 1."""
    left, rest, budgets = set(range(len(sizes))), k, [0] * len(sizes)
    while left:
        smallest = min(left, key=lambda stratum: (sizes[stratum], stratum))
        budgets[smallest] = min(sizes[smallest], rest // len(left))
        rest -= budgets[smallest]
        left.remove(smallest)
    return budgets


@given(SEEDS, st.integers(1, 8), st.integers(1, 30))
@SETTINGS
def test_forgetting_is_what_loops_count(seed, passes, n):
    correct = np.random.default_rng(seed).integers(-1, 2, (passes, n)).astype(np.int8)
    np.testing.assert_array_equal(forgetting_events(correct), [forgetting_by_loops(column) for column in correct.T])


@given(SEEDS, st.integers(2, 5), st.integers(1, 12))
@SETTINGS
def test_vog_is_what_loops_compute(seed, checkpoints, n):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(checkpoints, n, 6)).astype(np.float32)
    labels = rng.integers(0, 3, n)
    np.testing.assert_allclose(vog_scores(gradients, labels), vog_by_loops(gradients, labels), atol=1e-9)
    np.testing.assert_array_equal(
        vog_scores(gradients.reshape(checkpoints, n, 1, 2, 3), labels), vog_scores(gradients, labels)
    )


@given(SEEDS, st.integers(1, 10))
@SETTINGS
def test_budgets_are_those_of_the_published_loop(seed, n_strata):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 20, n_strata)
    k = int(rng.integers(0, sizes.sum() + 1))
    budgets = ccs_budgets(sizes, k)
    assert budgets.tolist() == budgets_by_loops(sizes.tolist(), k)
    assert budgets.sum() == k
    assert (budgets <= sizes).all()
    # Even: only a stratum that is taken whole has fewer than another, by more than one.
    assert (budgets[budgets < sizes] >= budgets.max() - 1).all()


@given(SEEDS, st.integers(2, 60), st.integers(1, 9), st.floats(0, 0.9))
@SETTINGS
def test_ccs_draws_its_budgets_from_bins_of_equal_width(seed, n, bins, beta):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 40, n) / 8
    scores[rng.random(n) < 0.2] = np.nan
    scores[0] = 1.0
    known = [i for i in range(n) if not math.isnan(scores[i])]
    easiest = sorted(known, key=lambda i: (scores[i], i))[: len(known) - math.floor(beta * len(known) + 0.5)]
    if not easiest:
        return
    k = int(rng.integers(1, len(easiest) + 1))
    low, high = min(scores[easiest]), max(scores[easiest])
    bin_of = {i: min(int((scores[i] - low) / (high - low) * bins), bins - 1) if high > low else 0 for i in easiest}
    present = sorted(set(bin_of.values()))
    sizes = [sum(bin_of[i] == b for i in easiest) for b in present]
    subset = ccs(k, signals={"el2n": scores[None]}, beta=beta, bins=bins, seed=seed)
    drawn = subset.indices.tolist()
    assert set(drawn) <= set(easiest)
    assert [sum(bin_of[i] == b for i in drawn) for b in present] == budgets_by_loops(sizes, k)


@given(SEEDS, st.integers(1, 60), st.integers(1, 5))
@SETTINGS
def test_stratified_quotas_are_in_proportion(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n) * 7
    k = int(rng.integers(1, n + 1))
    subset = stratified(n, k, labels=labels, seed=seed)
    present, sizes = np.unique(labels, return_counts=True)
    drawn = [int((labels[subset.indices] == label).sum()) for label in present]
    assert drawn == apportion(sizes, k).tolist()
    assert len(set(subset.indices.tolist())) == k


@given(SEEDS, st.integers(1, 6), st.integers(1, 8), st.booleans())
@SETTINGS
def test_means_over_passes_are_what_loops_compute(seed, n_passes, asked, last):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n_passes, 7)).astype(np.float32)
    signal[rng.random(signal.shape) < 0.4] = np.nan
    expected = []
    for column in signal.T.astype(float):
        values = (
            [v for v in column if not math.isnan(v)][-asked:]
            if last
            else [v for v in column[:asked] if not math.isnan(v)]
        )
        expected.append(sum(values) / len(values) if values else math.nan)
    np.testing.assert_allclose(mean_over_passes(signal, asked, last=last), expected, rtol=1e-12)


def array_scores(rng, n):
    """Return functions of an order of n pairs, one for each score of plain arrays."""
    probabilities = rng.dirichlet(np.ones(5), (3, n))
    labels = rng.integers(0, 5, n)
    gradients, squared = rng.normal(size=(4, n, 3)), rng.random((4, n))
    correct = rng.integers(-1, 2, (5, n)).astype(np.int8)
    return {
        "el2n": lambda order: el2n_scores(probabilities[:, order], labels[order]),
        "vog": lambda order: vog_scores(gradients[:, order], labels[order] % 2),
        "grand": lambda order: grand_scores(squared[:, order]),
        "tracin": lambda order: tracin_self_influence(squared[:, order], [0.3, 0.2, 0.1, 0.1]),
        "forgetting": lambda order: forgetting_events(correct[:, order]),
        "least-confidence": lambda order: least_confidence_scores(probabilities[0, order]),
        "margin": lambda order: margin_scores(probabilities[0, order]),
        "entropy": lambda order: entropy_scores(probabilities[0, order]),
    }


@given(SEEDS, st.integers(1, 30))
@SETTINGS
def test_scores_follow_the_pairs_when_they_are_reordered(seed, n):
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    for name, score in array_scores(rng, n).items():
        np.testing.assert_array_equal(score(order), score(np.arange(n))[order], err_msg=name)


def make_signals(rng, n):
    per_pass = ("loss", "margin", "confidence", "entropy", "probability_margin", "el2n", "grand")
    signals = {name: rng.random((12, n)).astype(np.float32) for name in per_pass}
    for signal in signals.values():
        signal[rng.random(signal.shape) < 0.1] = np.nan
    signals |= {name: rng.normal(size=n).astype(np.float32) for name in ("vog", "tracin")}
    return signals | {"correct": rng.integers(-1, 2, (12, n)).astype(np.int8)}


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_difficulties_follow_the_pairs_when_they_are_reordered(name):
    rng = np.random.default_rng(0)
    signals, order = make_signals(rng, 50), rng.permutation(50)
    moved = {key: signal[..., order] for key, signal in signals.items()}
    np.testing.assert_array_equal(difficulty_scores(moved, name)[0], difficulty_scores(signals, name)[0][order])


@pytest.mark.parametrize(
    "name",
    ["el2n", "grand", "forgetting", "vog", "tracin", "easy", "hard", "least-confidence", "margin", "entropy"],
)
def test_selections_follow_the_pairs_and_keep_the_declared_end(name):
    rng = np.random.default_rng(1)
    signals, order, labels = make_signals(rng, 50), rng.permutation(50), np.arange(50) % 3
    one = select(None, 50, method=name, k=20, signals=signals, labels=labels)
    moved = {key: signal[..., order] for key, signal in signals.items()}
    other = select(None, 50, method=name, k=20, signals=moved, labels=labels[order])
    assert one.gains.tolist() == other.gains.tolist()
    without_ties = one.gains > one.gains[-1] if METHODS[name].higher_is_better else one.gains < one.gains[-1]
    assert set(one.indices[without_ties]) == set(order[other.indices[without_ties]])
    steps = np.diff(one.gains)
    assert (steps <= 0).all() if METHODS[name].higher_is_better else (steps >= 0).all()
