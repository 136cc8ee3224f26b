"""CRAIG: budgets, weights and order; its bound is tested with the properties, its gradients against autograd."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, clip_gradients, craig
from coreclip.selection.clusters import apportion
from coreclip.selection.coresets import craig_of_gradients


def make_features(n=120, d=8, seed=0, **info):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return Features.from_arrays(image, image + 0.5 * rng.normal(size=(n, d)), info=info)


def test_two_tight_groups_are_chosen_once_each_and_weighted_by_their_sizes():
    gradients = np.repeat([[0.0, 0.0], [10.0, 0.0]], [7, 3], axis=0)
    found = craig_of_gradients(gradients, 2, np.zeros(10, np.int64))
    assert found.indices.tolist() == [0, 7]
    assert found.gamma.tolist() == [7, 3]


def test_classes_get_their_share_and_take_turns():
    labels = np.repeat([5, 2], [80, 40])
    subset = craig(make_features(), 30, labels=labels)
    assert np.bincount(labels[subset.indices])[[2, 5]].tolist() == [10, 20]
    for k in range(3, 31, 3):
        assert (labels[subset.indices[:k]] == 2).sum() == pytest.approx(k / 3, abs=1)
    assert subset.parameters["classes_from"] == "labels"


def test_a_class_without_a_share_is_still_represented():
    gradients = np.array([[0.0], [0.1], [0.2], [9.0]])
    found = craig_of_gradients(gradients, 1, np.array([0, 0, 0, 1]))
    assert found.gamma.sum() == 4


def test_weights_have_mean_one_and_gains_sum_to_the_objective():
    subset = craig(make_features(), 25, clusters=3, bank=32)
    assert subset.weights.mean() == pytest.approx(1)
    assert (subset.weights * 120 / 25).sum() == pytest.approx(120)
    assert subset.gains.sum() == pytest.approx(subset.objective)
    assert subset.objective <= subset.upper_bound
    assert subset.parameters["classes"] == 3


def test_the_temperature_comes_from_the_features_unless_given():
    assert craig(make_features(logit_scale=20.0), 5).parameters["temperature"] == pytest.approx(0.05)
    assert craig(make_features(logit_scale=20.0), 5, temperature=0.5).parameters["temperature"] == 0.5
    assert craig(make_features(), 5).parameters["temperature"] == 0.01


def test_the_same_seed_gives_the_same_subset():
    runs = [craig(make_features(), 20, bank=16, clusters=2, seed=seed).indices.tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_shares_follow_the_largest_remainder():
    assert apportion(np.array([5, 3, 2]), 4).tolist() == [2, 1, 1]
    assert apportion(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]
    assert apportion(np.array([4, 0, 6]), 10).tolist() == [4, 0, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros(5, int)}, r"int64 of shape \(5,\); they must be one integer for each of 120 pairs"),
        ({"labels": np.zeros(120)}, "labels are float64"),
        ({"labels": np.zeros(120, int), "clusters": 3}, "clusters = 3 beside labels"),
        ({"clusters": 121}, "121 clusters of 120 pairs"),
        ({"clusters": -1}, "-1 clusters of 120 pairs"),
        ({"bank": 0}, "bank = 0 is not allowed"),
        ({"temperature": 0.0}, "temperature = 0.0 is not allowed"),
        ({"k": 0}, "k = 0 of 120 pairs"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        craig(make_features(), **({"k": 10} | arguments))


def test_both_modalities_are_needed():
    with pytest.raises(CoreclipError, match="gradients need image and text"):
        clip_gradients(Features.from_arrays(np.eye(4)))
