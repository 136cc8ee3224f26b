"""The selections that score each pair by itself have known answers."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, clip_scores, clipscore, random_subset


def features_with_scores(scores):
    scores = np.asarray(scores, np.float32)
    image = np.tile(np.float32([1, 0]), (len(scores), 1))
    return Features.from_arrays(image, np.column_stack([scores, np.sqrt(1 - scores**2)]))


def test_the_best_agreeing_pairs_come_first_and_ties_go_to_the_lowest_index():
    subset = clipscore(features_with_scores([0.5, 0.9, -0.2, 0.9, 0.5]), 4)
    assert subset.indices.tolist() == [1, 3, 0, 4]
    np.testing.assert_allclose(subset.gains, [0.9, 0.9, 0.5, 0.5], atol=1e-6)
    assert subset.objective == subset.upper_bound == subset.gains.sum()


def test_scores_do_not_depend_on_the_order_or_number_of_rows():
    rng = np.random.default_rng(0)
    features = Features.from_arrays(rng.normal(size=(100, 33)), rng.normal(size=(100, 33)))
    order = rng.permutation(100)
    scores = clip_scores(features)
    np.testing.assert_array_equal(clip_scores(features.take(order)), scores[order])
    np.testing.assert_array_equal(clip_scores(features.take(order[:7])), scores[order[:7]])


def test_a_missing_modality_is_refused():
    with pytest.raises(CoreclipError, match="clipscore compares image and text"):
        clipscore(Features.from_arrays(np.eye(3)), 2)


def test_random_is_a_function_of_the_seed_and_nested():
    small, large = random_subset(100, 10, seed=1), random_subset(100, 50, seed=1)
    assert small.indices.tolist() == large.indices[:10].tolist()
    assert small.indices.tolist() != random_subset(100, 10, seed=2).indices.tolist()
    assert sorted(random_subset(100, 100).indices) == list(range(100))


@pytest.mark.parametrize("k", [0, 6])
def test_a_budget_outside_the_data_is_refused(k):
    with pytest.raises(CoreclipError, match=f"k = {k} of 5 pairs is not allowed: 1 to 5"):
        random_subset(5, k)
    with pytest.raises(CoreclipError, match=f"k = {k} of 5 pairs is not allowed: 1 to 5"):
        clipscore(features_with_scores([0.1, 0.2, 0.3, 0.4, 0.5]), k)
