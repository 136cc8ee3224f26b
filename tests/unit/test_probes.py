"""Probes on features that can be separated, that can't, and that need regularisation."""

import itertools

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.training import probes, streams
from coreclip.training.probes import few_shot, linear_probe


def made(n, *, noise, seed=0, classes=3):
    labels = np.arange(n) % classes
    features = np.eye(classes, dtype=np.float32)[labels]
    return features + noise * np.random.default_rng(seed).normal(size=(n, classes)).astype(np.float32), labels


def test_the_probe_separates_what_is_separable():
    features, labels = made(60, noise=0.1)
    found = linear_probe(features, labels)
    assert found["linear_probe_accuracy"] == found["linear_probe_mean_per_class_accuracy"] == 1.0
    assert found["linear_probe_chance"] < 0.6
    assert (found["linear_probe_train_pairs"], found["linear_probe_test_pairs"]) == (48, 12)


def test_the_split_follows_from_the_seed():
    features, labels = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32), np.arange(60) % 3
    assert linear_probe(features, labels, seed=1) == linear_probe(features, labels, seed=1)
    found = {linear_probe(features, labels, seed=seed)["linear_probe_accuracy"] for seed in range(4)}
    assert len(found) > 1


def test_a_probe_is_fitted_to_one_data_set_and_tested_on_the_other():
    features, labels = made(30, noise=0.1)
    swapped = linear_probe(features, labels, test=(features, (labels + 1) % 3))
    assert swapped["linear_probe_accuracy"] == 0.0
    assert (swapped["linear_probe_train_pairs"], swapped["linear_probe_test_pairs"]) == (30, 30)
    assert linear_probe(features, labels, test=(features[:5], labels[:5]))["linear_probe_accuracy"] == 1.0


def test_the_search_finds_the_best_of_all_strengths_that_it_may_try():
    """Few pairs in many dimensions, of which one says something: the validation part prefers strong regularisation."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 80)
    features = rng.normal(size=(80, 60)).astype(np.float32)
    features[:, 0] += 2.0 * labels
    asked = {}
    fit = probes._fit

    class Watched:
        def __init__(self, c, probe):
            self.c, self.probe = c, probe

        def predict(self, some):
            predicted = self.probe.predict(some)
            asked[self.c] = predicted
            return predicted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "_fit", lambda x, y, c: Watched(c, fit(x, y, c)))
        best = probes._search_regularisation(features, labels, seed=0)
    order = probes.permutation(80, 0, stream=streams.PROBE_VALIDATION)
    truth = labels[order[:16]]
    accuracies = {c: float((predicted == truth).mean()) for c, predicted in asked.items()}
    assert accuracies[best] == max(accuracies.values())
    assert best == min(c for c, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
    exponents = sorted(np.log10(list(asked)).round(6).tolist())
    assert set(exponents) >= {-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0}
    assert min(b - a for a, b in itertools.pairwise(exponents)) == pytest.approx(1 / 8)


def test_too_little_for_a_probe_is_refused():
    features, _ = made(4, noise=0.1)
    with pytest.raises(CoreclipError, match="a linear probe on 4 pairs with 1 classes is not possible"):
        linear_probe(features, np.zeros(4, dtype=np.int64))


def test_numbers_of_classes_may_be_far_apart():
    features, labels = made(60, noise=0.1)
    found = linear_probe(features, np.array([5, 70_000, 3_000_000_000])[labels])
    assert found["linear_probe_mean_per_class_accuracy"] == 1.0
    assert found["linear_probe_chance"] == linear_probe(features, labels)["linear_probe_chance"]


def test_few_shots_are_enough_where_classes_are_far_apart():
    features, labels = made(60, noise=0.05)
    rows = few_shot(features, labels, [4, 1], draws=3)
    assert [row["shots"] for row in rows] == [1, 4]
    for row in rows:
        assert row["logistic_accuracy"] == row["nearest_mean_accuracy"] == 1.0
        assert row["logistic_accuracy_std"] == row["nearest_mean_accuracy_std"] == 0.0
        assert row["draws"] == 3


def test_more_shots_help_and_their_draws_differ():
    features, labels = made(300, noise=0.7)
    rows = few_shot(features, labels, [1, 32], draws=6, seed=2)
    for name in ("logistic", "nearest_mean"):
        assert rows[1][f"{name}_accuracy"] > rows[0][f"{name}_accuracy"] > 1 / 3
        assert rows[0][f"{name}_accuracy_std"] > 0
    assert rows == few_shot(features, labels, [1, 32], draws=6, seed=2)
    assert rows != few_shot(features, labels, [1, 32], draws=6, seed=3)


def test_shots_are_of_every_class_nested_and_not_tested_on():
    labels = np.array([0] * 30 + [1] * 6 + [2] * 9)
    drawn = [probes._draw(labels, 5, seed=1, draw=draw) for draw in range(3)]
    for places in drawn:
        assert (labels[places] == np.array([[0], [1], [2]])).all()
        assert len(set(places.ravel().tolist())) == 15
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(probes._draw(labels, 2, seed=1, draw=0), drawn[0][:, :2])
    # A feature that gives each pair away: what was fitted to is known by heart, so a test on it would be perfect.
    features = np.eye(45, dtype=np.float32)
    assert few_shot(features, labels, [5], draws=2)[0]["nearest_mean_accuracy"] < 0.9


def test_few_shots_on_a_test_set_use_all_of_it():
    features, labels = made(12, noise=0.05)
    rows = few_shot(features, labels, [4], test=made(90, noise=0.05, seed=9), draws=1)
    assert rows[0]["logistic_accuracy"] == 1.0
    with pytest.raises(CoreclipError, match=r"class 0 has 4 pairs, and 4 shots need 5 of each; ask for fewer shots"):
        few_shot(features, labels, [4])


def test_shots_that_can_not_be_are_refused():
    features, labels = made(12, noise=0.05)
    for shots, draws in (([], 5), ([0, 1], 5), ([1], 0)):
        with pytest.raises(CoreclipError, match="draws is not allowed: numbers above 0"):
            few_shot(features, labels, shots, draws=draws)
    with pytest.raises(CoreclipError, match="few shots of 1 class say nothing"):
        few_shot(features, np.zeros(12, dtype=np.int64), [1])
