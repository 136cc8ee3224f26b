"""GradMatch and CRUST as subsets: classes, weights, notes and what they refuse; their fits are tested with the properties."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import (
    FactoredGradients,
    Features,
    clip_factored_gradients,
    clip_gradients,
    craig,
    craig_of_gradients,
    crust,
    gradmatch,
    gradmatch_of_gradients,
)
from coreclip.selection.robust import near_counts, nearest_median


def make_features(n=120, d=8, seed=0, **info):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return Features.from_arrays(image, image + 0.5 * rng.normal(size=(n, d)), info=info)


LABELS = np.repeat([5, 2], [80, 40])


def test_the_weighted_gradients_of_gradmatch_are_nearer_to_the_sum_than_random_ones():
    features = make_features(400, logit_scale=10.0)
    subset = gradmatch(features, 40, bank=64)
    gradients = np.hstack(clip_gradients(features, bank=64)).astype(np.float64)
    target = gradients.sum(axis=0)
    weights = subset.weights * subset.parameters["scale"]
    error = np.linalg.norm(weights @ gradients[subset.indices] - target) / np.linalg.norm(target)
    assert error == pytest.approx(subset.parameters["relative_error"], abs=1e-6)
    rng = np.random.default_rng(0)
    random = [10 * gradients[rng.permutation(400)[:40]].sum(axis=0) - target for _ in range(20)]
    assert error < 0.2 * min(np.linalg.norm(random, axis=1)) / np.linalg.norm(target)


def test_more_regularisation_spreads_the_weights_and_misses_more():
    runs = [gradmatch(make_features(400, logit_scale=10.0), 40, bank=64, lam=lam) for lam in (0.01, 3.0)]
    assert runs[0].weights.std() > runs[1].weights.std()
    assert runs[0].parameters["relative_error"] < runs[1].parameters["relative_error"]


@pytest.mark.parametrize("method", [gradmatch, crust])
def test_classes_get_their_share_and_take_turns_and_weights_have_mean_one(method):
    subset = method(make_features(logit_scale=10.0), 30, labels=LABELS, bank=32)
    assert np.bincount(LABELS[subset.indices])[[2, 5]].tolist() == [10, 20]
    for k in range(3, 31, 3):
        assert (LABELS[subset.indices[:k]] == 2).sum() == pytest.approx(k / 3, abs=1)
    assert subset.weights.mean() == pytest.approx(1)
    assert subset.gains.sum() == pytest.approx(subset.objective)
    assert subset.objective <= subset.upper_bound
    assert (subset.parameters["classes"], subset.parameters["classes_from"]) == (2, "labels")
    assert "note" not in subset.parameters


@pytest.mark.parametrize("method", [gradmatch, crust])
def test_the_same_seed_gives_the_same_subset(method):
    runs = [method(make_features(), 20, bank=16, clusters=2, seed=seed) for seed in (0, 0, 1)]
    assert runs[0].indices.tolist() == runs[1].indices.tolist() != runs[2].indices.tolist()
    assert runs[0].weights.tolist() == runs[1].weights.tolist()


def test_gradmatch_stops_where_no_pair_helps_and_says_so():
    """Gradients of 2 x 3 dimensions are matched by 6 pairs."""
    subset = gradmatch(make_features(50, 3), 40, lam=0.0)
    assert subset.k <= 6
    assert subset.parameters["relative_error"] == pytest.approx(0, abs=1e-5)
    assert subset.parameters["note"] == f"{subset.k} pairs instead of 40: no further one would improve its class's fit"


def test_gradmatch_tells_of_classes_without_a_share():
    labels = np.repeat([0, 1], [110, 10])
    subset = gradmatch(make_features(logit_scale=10.0), 5, labels=labels)
    assert subset.parameters["note"] == "10 pairs are of classes too small for a share of 5: nothing stands for them"


def test_gradients_that_add_up_to_nothing_are_refused():
    gradients = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    with pytest.raises(CoreclipError, match="the gradients of each class add up to 0"):
        gradmatch_of_gradients(gradients, 2, np.array([0, 0, 1, 1]))
    assert gradmatch_of_gradients(gradients, 2, np.array([0, 1, 1, 1])).indices.tolist() == [0, 1]


def test_crust_weighs_a_medoid_by_the_pairs_nearer_than_r():
    gradients = np.array([[0.0], [0.1], [0.2], [1.0], [5.0], [5.4], [0.05]])
    classes = np.array([0, 0, 0, 0, 0, 0, 1])
    assert near_counts(gradients, classes, np.array([1, 4]), 0.5).tolist() == [3, 2]
    assert near_counts(gradients, classes, np.array([1, 4, 6]), 0.4).tolist() == [3, 1, 1]  # below r, not at it
    assert near_counts(gradients, classes, np.array([1, 4]), 1e-9).tolist() == [1, 1]
    # Left are 0, 2, 3, 5 at the distances 0.1, 0.1, 0.9, 0.4 of the nearest of their class; 6 has none.
    assert nearest_median(gradients, classes, np.array([1, 4])) == pytest.approx(0.25)
    assert nearest_median(gradients[:2], classes[:2], np.array([1, 0])) == 0


def test_crust_picks_what_craig_does_and_makes_outliers_weigh_little():
    features = make_features(logit_scale=10.0)
    subset = crust(features, 20, bank=32, clusters=1)
    like = craig(features, 20, bank=32, clusters=1)
    assert subset.indices.tolist() == like.indices.tolist()
    gradients = np.hstack(clip_gradients(features, bank=32)).astype(np.float64)
    distances = np.linalg.norm(gradients[:, None] - gradients[subset.indices], axis=2)
    counts = (distances < subset.parameters["r"]).sum(axis=0)
    np.testing.assert_allclose(subset.weights * subset.parameters["scale"], counts)
    assert subset.weights[distances.mean(axis=0).argmax()] < 1
    assert crust(features, 20, bank=32, clusters=1, r=1e9).weights.tolist() == pytest.approx([1.0] * 20)


def test_all_pairs_may_be_chosen():
    features = make_features(12)
    assert crust(features, 12).weights.tolist() == pytest.approx([1.0] * 12)
    assert crust(features, 12).parameters["r"] == 0


@pytest.mark.parametrize("method", [gradmatch, crust])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros(5, int)}, r"int64 of shape \(5,\); they must be one integer for each of 120 pairs"),
        ({"labels": np.zeros(120, int), "clusters": 3}, "clusters = 3 beside labels"),
        ({"clusters": 121}, "121 clusters of 120 pairs"),
        ({"bank": 0}, "bank = 0 is not allowed"),
        ({"temperature": 0.0}, "temperature = 0.0 is not allowed"),
        ({"k": 0}, "k = 0 of 120 pairs"),
    ],
)
def test_wrong_arguments_are_refused(method, arguments, message):
    with pytest.raises(CoreclipError, match=message):
        method(make_features(), **({"k": 10} | arguments))


@pytest.mark.parametrize("lam", [-0.1, np.nan, np.inf])
def test_a_wrong_regularisation_is_refused(lam):
    with pytest.raises(CoreclipError, match=f"lam = {lam} is not allowed: 0 or more"):
        gradmatch(make_features(), 10, lam=lam)
    with pytest.raises(CoreclipError, match=f"lam = {lam} is not allowed"):
        gradmatch_of_gradients(np.eye(3), 1, np.zeros(3, int), lam=lam)


@pytest.mark.parametrize("r", [0.0, -1.0, np.nan, np.inf])
def test_a_wrong_radius_is_refused(r):
    with pytest.raises(CoreclipError, match=f"r = {r} is not allowed: a distance of gradients, above 0"):
        crust(make_features(), 10, r=r)


@pytest.mark.parametrize("method", [gradmatch, crust])
def test_both_modalities_are_needed(method):
    with pytest.raises(CoreclipError, match="gradients need image and text"):
        method(Features.from_arrays(np.eye(4)), 2)


@pytest.mark.parametrize("run", [craig_of_gradients, gradmatch_of_gradients])
def test_classes_must_fit_the_gradients(run):
    with pytest.raises(CoreclipError, match=r"shape \(2,\); they must be one integer for each of 3 pairs"):
        run(np.eye(3), 1, np.zeros(2, int))
    with pytest.raises(CoreclipError, match="k = 4 of 3 pairs"):
        run(np.eye(3), 4, np.zeros(3, int))


@pytest.mark.parametrize(
    ("residuals", "hidden", "message"),
    [
        (np.zeros(3), None, r"residuals are float64 of shape \(3,\); they must be numbers \(rows, width\)"),
        (np.zeros((3, 0)), None, r"residuals are float64 of shape \(3, 0\)"),
        (np.array([["a"]]), None, "residuals are <U1"),
        (
            np.zeros((3, 2)),
            np.zeros((4, 2)),
            r"hidden are float64 of shape \(4, 2\); they must be numbers \(3, width\)",
        ),
        (np.array([[0.0], [np.inf]]), None, "residuals: row 1 is NaN or infinite"),
        (np.zeros((2, 2)), np.array([[np.nan], [0.0]]), "hidden: row 0 is NaN or infinite"),
    ],
)
def test_factors_that_do_not_fit_are_refused(residuals, hidden, message):
    with pytest.raises(CoreclipError, match=message):
        FactoredGradients(residuals, hidden)


def test_layers_of_unequal_rows_and_wrong_lengths_are_refused():
    with pytest.raises(CoreclipError, match="gradients of 2 rows beside those of 3; they must be as many"):
        FactoredGradients(np.eye(2)).beside(FactoredGradients(np.eye(3)))
    with pytest.raises(CoreclipError, match=r"text_lengths must be 120 finite numbers above 0; got shape \(120,\)"):
        clip_factored_gradients(make_features(), text_lengths=np.zeros(120))
    with pytest.raises(CoreclipError, match=r"image_lengths must be 120 finite numbers above 0; got shape \(3,\)"):
        clip_factored_gradients(make_features(), image_lengths=np.ones(3))
