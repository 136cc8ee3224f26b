"""Random pairs by strata: quotas, what is left out, and what is refused."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, ccs, ccs_budgets, classes, clip_scores, select, stratified

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def signal_of_ranks(n, seed=0):
    """Return difficulties 0..n-1 in random order, as the signal el2n of one pass."""
    return {"el2n": np.random.default_rng(seed).permutation(n)[None].astype(np.float32)}


def test_labels_are_drawn_in_proportion_and_prefixes_are_balanced():
    subset = stratified(100, 20, labels=LABELS)
    assert np.bincount(LABELS[subset.indices]).tolist() == [12, 6, 2]
    assert np.bincount(LABELS[subset.indices[:10]]).tolist() == [6, 3, 1]
    assert subset.parameters == {"strata_from": "labels", "strata": 3}


def test_every_pair_of_a_stratum_can_be_drawn_and_the_seed_decides():
    drawn = [stratified(100, 10, labels=LABELS, seed=seed).indices.tolist() for seed in range(200)]
    assert len({tuple(indices) for indices in drawn}) == 200
    assert drawn[3] == stratified(100, 10, labels=LABELS, seed=3).indices.tolist()
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    assert counts.min() >= 3  # 20 are expected of each
    assert counts.max() <= 45


def test_bins_of_a_signal_hold_equal_counts_and_are_drawn_in_proportion():
    signals = signal_of_ranks(100)
    subset = stratified(100, 20, labels=LABELS, signals=signals, signal="el2n", bins=4)
    assert np.bincount(signals["el2n"][0, subset.indices].astype(int) // 25).tolist() == [5, 5, 5, 5]
    assert subset.parameters == {"signal": "el2n", "passes": "first 1", "strata": 4}


def test_equal_scores_share_a_bin_and_pairs_without_a_score_are_a_stratum():
    loss = np.array([[1.0] * 50 + [2.0] * 20 + [np.inf] * 20 + [np.nan] * 10])
    subset = stratified(100, 10, signals={"loss": loss}, signal="loss", bins=9)
    drawn = loss[0, subset.indices]
    assert [np.sum(drawn == 1), np.sum(drawn == 2), np.sum(np.isinf(drawn)), np.isnan(drawn).sum()] == [5, 2, 2, 1]
    assert subset.parameters["strata"] == 4
    unseen = stratified(5, 2, signals={"loss": np.full((1, 5), np.nan)}, signal="loss")
    assert (unseen.k, unseen.parameters["strata"]) == (2, 1)


def test_ccs_leaves_the_hardest_out_and_covers_the_rest_evenly():
    signals = signal_of_ranks(100)
    subset = ccs(40, signals=signals, beta=0.2, bins=8)
    drawn = signals["el2n"][0, subset.indices]
    assert drawn.max() < 80
    assert np.bincount((drawn * 8 / 79).astype(int).clip(max=7)).tolist() == [5] * 8
    assert subset.parameters == {
        "signal": "el2n", "passes": "first 1", "beta": 0.2, "bins": 8, "left_out": 20, "strata": 8
    }  # fmt: skip


def test_ccs_takes_small_bins_whole():
    loss = np.array([[0.0, 0.01] + [0.99] * 20 + [1.0] * 20])
    subset = ccs(12, signals={"loss": loss}, signal="loss", beta=0, bins=2)
    assert {0, 1} <= set(subset.indices.tolist())


def test_ccs_keeps_the_lowest_indices_of_equally_hard_pairs():
    subset = ccs(9, signals={"el2n": np.ones((1, 10))}, beta=0.1)
    assert sorted(subset.indices) == list(range(9))


def test_infinite_scores_belong_to_the_bin_at_their_end():
    loss = np.array([[0, 1, 2, 3, np.inf, -np.inf, np.nan, 3, 0, np.inf]])
    subset = ccs(9, signals={"loss": loss}, signal="loss", beta=0, bins=4)
    assert subset.parameters["strata"] == 4
    assert 6 not in subset.indices
    # Of two bins, {-inf, 0, 0, 1} and {2, 3, 3, inf, inf}; without the latter's end there would be three.
    assert ccs(2, signals={"loss": loss}, signal="loss", beta=0, bins=2).parameters["strata"] == 2
    correct = np.array([[1, 0, 0, 1]], np.int8)
    subset = ccs(2, signals={"correct": correct}, signal="forgetting", beta=0)
    assert sorted(correct[0, subset.indices]) == [0, 1]
    assert subset.parameters["strata"] == 2
    assert ccs(2, signals={"correct": correct}, signal="forgetting", beta=0.5, bins=3).indices.tolist() in (
        [0, 3],
        [3, 0],
    )


def test_ccs_takes_clipscore_for_difficulty_where_there_are_no_signals():
    rng = np.random.default_rng(0)
    features = Features.from_arrays(rng.normal(size=(50, 4)), rng.normal(size=(50, 4)), info={"fingerprint": "abc"})
    subset = ccs(25, features=features, beta=0.5)
    assert sorted(subset.indices) == sorted(np.argsort(-clip_scores(features), kind="stable")[:25])
    assert (subset.parameters["signal"], subset.fingerprint) == ("clipscore", "abc")
    both = {"signals": signal_of_ranks(50), "features": features}
    assert ccs(25, **both).parameters["signal"] == "el2n"
    named = ccs(25, signal="clipscore", beta=0.5, **both)
    assert named.indices.tolist() == subset.indices.tolist()


def test_budgets_go_on_from_small_strata_to_large_ones():
    assert ccs_budgets([10, 1, 100, 3], 30).tolist() == [10, 1, 16, 3]
    assert ccs_budgets([5, 5, 5], 7).tolist() == [2, 2, 3]
    assert ccs_budgets([0, 5], 0).tolist() == [0, 0]


def test_half_of_the_classes_are_kept_whole():
    labels = np.random.default_rng(0).permutation(np.arange(60) % 6 * 10)
    subset = classes(labels)
    kept = np.unique(labels[subset.indices])
    assert len(kept) == 3
    assert sorted(subset.indices) == np.flatnonzero(np.isin(labels, kept)).tolist()
    assert subset.parameters == {"share": 0.5, "first": False, "classes": 3, "of_classes": 6}
    assert classes(labels, 7).indices.tolist() == subset.indices[:7].tolist()
    assert np.unique(labels[classes(labels, first=True, share=0.3).indices]).tolist() == [0, 10]
    assert len({tuple(np.unique(labels[classes(labels, seed=seed).indices])) for seed in range(30)}) > 10
    assert len(np.unique(labels[classes(labels, share=0.01).indices])) == 1


def test_fewer_pairs_of_the_classes_than_asked_for_are_noted():
    subset = select(None, 100, method="classes(share=0.4, first=true)", k=80, labels=LABELS)
    assert (subset.k, subset.parameters["note"][:39]) == (60, "60 pairs instead of the 80 asked for: t")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stratified(100, 5), "stratified needs strata, and the pairs have no labels and no signal is named"),
        (lambda: stratified(100, 0, labels=LABELS), "k = 0 of 100 pairs"),
        (lambda: stratified(100, 5, labels=LABELS[:9]), "must be one integer for each of 100 pairs"),
        (lambda: stratified(100, 5, labels=LABELS, bins=0), "bins = 0 is not allowed: at least 1"),
        (lambda: stratified(100, 5, signal="loss"), "stratified needs the signal 'loss'"),
        (lambda: stratified(99, 5, signal="el2n", signals=signal_of_ranks(100)), "signal el2n is of 100 pairs, n = 99"),
        (lambda: ccs(5), "ccs needs the signals of a training run, or features of image and text"),
        (lambda: ccs(5, signals=signal_of_ranks(10), signal="clipscore"), "needs features and none are given"),
        (lambda: ccs(5, features=Features.from_arrays(np.eye(9))), "clipscore compares image and text"),
        (lambda: ccs(5, features=Features.from_arrays(np.eye(9), np.eye(9)), passes=2), "passes = 2 has no meaning for clipscore"),
        (lambda: ccs(5, signals=signal_of_ranks(10), beta=1.0), "beta = 1.0 is not allowed"),
        (lambda: ccs(5, signals=signal_of_ranks(10), beta=np.nan), "beta = nan is not allowed"),
        (lambda: ccs(5, signals=signal_of_ranks(10), bins=0), "bins = 0 is not allowed"),
        (lambda: ccs(11, signals=signal_of_ranks(10)), "k = 11 of 10 pairs"),
        (lambda: ccs(10, signals=signal_of_ranks(10)), "ccs: k = 10, and 9 of 10 pairs are left .0 have no score, beta = 0.1"),
        (lambda: ccs_budgets([3, 4], 8), "k = 8 can't be shared out among strata of 7 pairs"),
        (lambda: classes(None), "this data set has no labels"),
        (lambda: classes(LABELS, 101), "k = 101 of 100 pairs"),
        (lambda: classes(LABELS, share=0.0), "share = 0.0 is not allowed"),
        (lambda: classes(LABELS, share=np.nan), "share = nan is not allowed"),
        (lambda: classes(LABELS.astype(float)), "labels are float64"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(call, message):
    with pytest.raises(CoreclipError, match=message):
        call()
