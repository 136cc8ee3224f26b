"""The set functions beside facility location: on hand-made data, by their definitions, and what they refuse."""

import itertools
from decimal import Decimal

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import (
    Features,
    feature_based,
    graph_cut,
    max_coverage,
    mixture,
    mixture_of,
    saturated_coverage,
    select,
    sum_redundancy,
)
from coreclip.selection import functions as f
from coreclip.selection.dense import exact_cosines
from coreclip.selection.greedy import add_all, candidate_gains, maximise_function
from coreclip.selection.submodular import _cosines

METHODS = (feature_based, max_coverage, graph_cut, saturated_coverage, sum_redundancy, mixture)


def make_features(n=60, d=6, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return Features.from_arrays(image, image + rng.normal(size=(n, d)), info={"fingerprint": "abc"})


def definition(name, x, picks, k):
    """The function of ``picks`` by its formula, with the default parameters."""
    picks = list(picks)
    s = np.maximum(x @ x.T, 0)
    parts = np.hstack([np.maximum(x, 0), np.maximum(-x, 0)])
    total = parts[picks].sum(axis=0)
    if name == "feature_based":
        return np.sqrt(total).sum()
    if name == "max_coverage":
        return np.minimum(total, np.sort(parts.sum(axis=1))[-k:].sum() / parts.any(axis=0).sum()).sum()
    if name == "graph_cut":
        return 2 * s[picks].sum() - s[np.ix_(picks, picks)].sum()
    if name == "saturated_coverage":
        return np.minimum(s[picks].sum(axis=0), 0.1 * s.sum(axis=0)).sum()
    if name == "sum_redundancy":
        return -s[np.ix_(picks, picks)].sum()
    return (
        s[picks].max(axis=0).sum() / len(x)
        + definition("feature_based", x, picks, k) / np.sqrt(parts.sum(axis=0)).sum()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("modality", ["image", "text", "both"])
def test_the_objective_is_the_definition_and_the_gains_are_its_steps(method, modality):
    features = make_features()
    x = features.vectors(modality).astype(np.float64)
    subset = method(features, 7, modality=modality)
    values = [definition(method.__name__, x, subset.indices[:t], 7) for t in range(1, 8)]
    assert subset.objective == pytest.approx(values[-1], rel=1e-5)
    np.testing.assert_allclose(subset.gains, np.diff(values, prepend=0), atol=1e-4)
    assert subset.gains.sum() == pytest.approx(subset.objective)
    assert subset.method == method.__name__.replace("_", "-")
    assert (subset.n, subset.fingerprint, subset.parameters["modality"]) == (60, "abc", modality)
    assert subset.weights.tolist() == [1] * 7


@pytest.mark.parametrize("method", METHODS)
def test_greedy_is_near_the_best_and_the_bound_above_it(method):
    for seed in range(5):
        features = make_features(n=9, d=3, seed=seed)
        x = features.vectors().astype(np.float64)
        subset = method(features, 3)
        best = max(definition(method.__name__, x, s, 3) for s in itertools.combinations(range(9), 3))
        assert subset.objective <= best + 1e-5
        if method is sum_redundancy:
            assert subset.upper_bound is None
        else:
            assert subset.objective >= (1 - 1 / np.e) * best - 1e-6
            assert best <= subset.upper_bound + 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_lazy_picks_what_naive_picks_and_copies_come_by_their_index(method):
    x = np.random.default_rng(0).normal(size=(40, 5))
    x[[3, 17, 30]] = x[8]
    lazy, naive = (method(x, 40, optimizer=optimizer) for optimizer in ("lazy", "naive"))
    assert lazy.indices.tolist() == naive.indices.tolist()
    np.testing.assert_array_equal(lazy.gains, naive.gains)
    places = {int(j): at for at, j in enumerate(lazy.indices)}
    assert places[3] < places[8] < places[17] < places[30]


@pytest.mark.parametrize("method", METHODS)
def test_the_other_optimizers_are_functions_of_seed_and_epsilon(method):
    features = make_features()
    runs = [method(features, 8, optimizer="stochastic", epsilon=0.5, seed=seed).indices.tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    if method is sum_redundancy:
        with pytest.raises(CoreclipError, match="no pick can lower"):
            method(features, 8, optimizer="threshold")
    else:
        falling = method(features, 8, optimizer="threshold", epsilon=0.05)
        assert falling.objective >= (1 - 1 / np.e - 0.05) * falling.upper_bound
        assert falling.parameters["epsilon"] == 0.05


def directions():
    """Six rows along x, three along y, one along -x."""
    return np.array([[1, 0]] * 6 + [[0, 1]] * 3 + [[-1, 0]], np.float32)


def test_feature_based_takes_each_direction_before_more_of_one():
    subset = feature_based(directions(), 5)
    assert subset.indices.tolist() == [0, 6, 9, 1, 7]
    np.testing.assert_allclose(subset.gains, [1, 1, 1, 2**0.5 - 1, 2**0.5 - 1])


def test_phi_is_the_curve_that_it_names():
    features = make_features()
    x = features.vectors().astype(np.float64)
    parts = np.hstack([np.maximum(x, 0), np.maximum(-x, 0)])
    for phi, curve in (("log1p", np.log1p), ("inverse", lambda z: z / (1 + z))):
        subset = feature_based(features, 9, phi=phi)
        assert subset.objective == pytest.approx(curve(parts[subset.indices].sum(axis=0)).sum())
        assert subset.gains.sum() == pytest.approx(subset.objective)


def test_coverage_stops_at_the_threshold_and_the_rest_comes_by_index():
    subset = max_coverage(directions(), 6, threshold=1.5)
    assert subset.indices.tolist() == [0, 6, 9, 1, 7, 2]
    assert subset.gains.tolist() == [1, 1, 1, 0.5, 0.5, 0]
    # Six units over the three directions that there are; the fourth part, -y, is 0 everywhere.
    assert max_coverage(directions(), 6).parameters["threshold"] == 2


def test_no_pick_is_wasted_at_the_default_threshold():
    assert (max_coverage(make_features(), 50).gains > 0).all()


def test_graph_cut_weighs_being_like_many_against_being_like_each_other():
    assert graph_cut(directions(), 4).indices.tolist() == [0, 1, 2, 3]  # gains 11, 9, 7, 5; of y 5 too
    assert graph_cut(directions(), 4, trade_off=1.0).indices.tolist() == [0, 1, 6, 2]  # gains 5, 3, 2, 1
    assert graph_cut(directions(), 4, trade_off=1.0).upper_bound is None
    assert graph_cut(directions(), 4, trade_off=9.0).indices.tolist() == [0, 1, 2, 3]


def test_graph_cut_says_how_many_pairs_its_bounds_decided():
    subset = graph_cut(directions(), 2)
    # Along x a pair gains 11, and 9 beside its like; along y at most 5, along -x 1.
    assert (subset.parameters["pruned"], subset.parameters["certain"]) == (4, 0)
    assert graph_cut(directions(), 10).parameters["certain"] == 10
    assert 0 < graph_cut(make_features(300), 10).parameters["pruned"] < 290


def test_saturated_coverage_turns_to_others_once_a_group_is_covered():
    subset = saturated_coverage(directions(), 5, alpha=0.3)
    assert subset.indices.tolist() == [0, 1, 6, 9, 2]
    np.testing.assert_allclose(subset.gains, [6, 4.8, 2.7, 0.3, 0], atol=1e-12)


def test_sum_redundancy_avoids_what_is_alike_and_starts_with_the_first():
    subset = sum_redundancy(directions(), 5)
    assert subset.indices.tolist() == [0, 6, 9, 1, 7]
    assert subset.gains.tolist() == [-1, -1, -1, -3, -3]


def test_a_mixture_of_one_function_chooses_as_the_function_does():
    features = make_features()
    alone = {"graph_cut": graph_cut(features, 9), "feature": feature_based(features, 9)}
    for name, subset in alone.items():
        weights = {"facility": 0.0, "coverage": 0.0, "graph_cut": 0.0, "feature": 0.0} | {name: 3.0}
        mixed = mixture(features, 9, **weights)
        assert mixed.indices.tolist() == subset.indices.tolist()
        assert np.ptp(mixed.gains / subset.gains) <= 1e-9 * mixed.gains[0]


def test_a_mixture_of_everything_is_worth_its_weights():
    subset = mixture(make_features(20), 20, facility=1, coverage=0.5, graph_cut=0.2, feature=0.3)
    assert subset.objective == pytest.approx(2.0)
    assert subset.objective <= subset.upper_bound + 1e-9


def test_functions_of_a_mixture_may_look_at_different_data():
    features = make_features()
    image = exact_cosines(features.vectors("image"))
    parts = [(1.0, f.facility(image, np.ones(60))), (2.0, f.feature_based(np.abs(features.vectors("text"))))]
    subset = mixture_of(parts, 6, fingerprint="abc")
    text = np.abs(features.vectors("text").astype(np.float64))
    expected = image[subset.indices].max(axis=0).sum() / image.max(axis=0).sum()
    expected += 2 * np.sqrt(text[subset.indices].sum(axis=0)).sum() / np.sqrt(text.sum(axis=0)).sum()
    assert subset.objective == pytest.approx(expected, rel=1e-6)
    assert (subset.n, subset.fingerprint) == (60, "abc")
    assert subset.parameters["parts"] == [
        {"function": "DenseFacility", "weight": 1.0},
        {"function": "FeatureBased", "weight": 2.0},
    ]
    redundant = mixture_of([(1.0, parts[0][1]), (1.0, f.graph_cut(image, 0.0))], 6)
    assert redundant.upper_bound is None


def test_an_expression_sets_the_parameters():
    features = make_features()
    subset = select(
        features, 60, method="mixture(facility=1, coverage=0.5, graph_cut=0.2, feature=0.3, phi=log1p)", k=5
    )
    expected = mixture(features, 5, coverage=0.5, graph_cut=0.2, feature=0.3, phi="log1p")
    assert subset.indices.tolist() == expected.indices.tolist()
    assert subset.parameters["phi"] == "log1p"
    cut = select(features, 60, method="graph_cut(trade_off=3, modality=both)", k=5)
    assert cut.indices.tolist() == graph_cut(features, 5, trade_off=3.0, modality="both").indices.tolist()


def test_functions_of_single_pairs_have_no_limit_and_others_have_one():
    x = np.ones((10_001, 1), np.float32)
    for method in (graph_cut, saturated_coverage, sum_redundancy, mixture):
        name = method.__name__.replace("_", "-")
        message = rf"{name} would hold 10001\^2 similarities, 0.8 GB; at most 10000 pairs; filter first, or use facility-location"
        with pytest.raises(CoreclipError, match=message):
            method(x, 2)
    assert max_coverage(x, 2).k == feature_based(x, 2).k == mixture(x, 2, facility=0.0).k == 2


def test_blocks_of_rows_do_not_change_the_choice(monkeypatch):
    features = make_features(n=50)
    whole = feature_based(features, 9)
    monkeypatch.setattr("coreclip.selection.submodular._BLOCK", 7)
    np.testing.assert_array_equal(feature_based(features, 9).gains, whole.gains)


def test_a_pair_is_as_like_itself_as_its_copies_are():
    x = np.random.default_rng(0).normal(size=(20, 7))
    similarity = _cosines(Features.from_arrays(np.vstack([x, x])), "image", "test")
    np.testing.assert_array_equal(similarity[:20], similarity[20:])
    assert (np.diagonal(similarity) == 1).all()
    assert (similarity == 1).sum() == 2 * 40


def test_gains_stay_exact_when_much_has_been_picked():
    """The difference of two square roots or of two sums would lose most of its digits here."""
    x = np.array([[1e12], [0.1]])
    expected = (Decimal(10**12) + Decimal("0.1")).sqrt() - Decimal(10**12).sqrt()
    for phi, exact in (("sqrt", float(expected)), ("min", 0.1)):
        state = f.feature_based(x, phi=phi, threshold=2e12).fresh()
        add_all(state, np.array([0]))
        assert candidate_gains(state)[1] == pytest.approx(exact, rel=1e-9)


def test_float32_columns_are_kept_and_lead_to_the_picks_of_float64():
    x = np.random.default_rng(0).random((50, 7), dtype=np.float32)
    assert f.feature_based(x).x.dtype == np.float32
    for phi in f.CONCAVE:
        narrow, wide = (
            maximise_function(f.feature_based(y, phi=phi, threshold=2.5), 20) for y in (x, x.astype(np.float64))
        )
        np.testing.assert_array_equal(narrow.picks, wide.picks)
        np.testing.assert_array_equal(narrow.gains, wide.gains)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        *((method, {"k": 0}, "k = 0 of 10 pairs is not allowed") for method in METHODS),
        *((method, {"k": 11}, "k = 11 of 10 pairs is not allowed") for method in METHODS),
        *((method, {"modality": "sound"}, "unknown modality 'sound'") for method in METHODS),
        *((method, {"modality": "text"}, "hold no text embeddings") for method in METHODS),
        *((method, {"optimizer": "magic"}, "unknown optimizer 'magic'") for method in METHODS),
        *((method, {"epsilon": 0.9}, "epsilon = 0.9 is not allowed") for method in METHODS),
        (feature_based, {"phi": "min"}, "unknown phi 'min'; known: sqrt, log1p, inverse; .* use max-coverage"),
        (mixture, {"phi": "cube"}, "unknown phi 'cube'"),
        (max_coverage, {"threshold": 0.0}, "threshold = 0.0 is not allowed: above 0 and finite"),
        (max_coverage, {"threshold": float("inf")}, "threshold = inf is not allowed"),
        (max_coverage, {"threshold": float("nan")}, "threshold = nan is not allowed"),
        (graph_cut, {"trade_off": -1.0}, "trade_off = -1.0 is not allowed: at least 0"),
        (graph_cut, {"trade_off": float("inf")}, "trade_off = inf is not allowed"),
        (graph_cut, {"trade_off": float("nan")}, "trade_off = nan is not allowed"),
        (graph_cut, {"trade_off": 1.0, "optimizer": "threshold"}, "no pick can lower"),
        (saturated_coverage, {"alpha": 0.0}, "alpha = 0.0 is not allowed: above 0, at most 1"),
        (saturated_coverage, {"alpha": 1.1}, "alpha = 1.1 is not allowed"),
        (mixture, {"coverage": 1.0, "alpha": float("nan")}, "alpha = nan is not allowed"),
        (mixture, {"facility": -1.0}, "mixture: facility = -1.0 is not allowed: at least 0 and finite"),
        (mixture, {"feature": float("inf")}, "mixture: feature = inf is not allowed"),
        (mixture, {"facility": 0.0, "feature": 0.0}, "all weights are 0; give one of facility, coverage, graph_cut, feature"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(method, arguments, message):
    with pytest.raises(CoreclipError, match=message):
        method(directions(), **({"k": 2} | arguments))


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0.0, f.feature_based(np.ones((3, 1))))],
        [(np.inf, f.feature_based(np.ones((3, 1))))],
        [(1.0, f.feature_based(np.ones((3, 1)))), (1.0, f.feature_based(np.ones((4, 1))))],
    ],
)
def test_wrong_parts_of_a_mixture_are_refused(parts):
    with pytest.raises(
        CoreclipError, match="one function or more over the same candidates, each with a weight above 0"
    ):
        mixture_of(parts, 2)
    with pytest.raises(CoreclipError, match="k = 4 of 3 pairs"):
        mixture_of([(1.0, f.feature_based(np.ones((3, 1))))], 4)


@pytest.mark.parametrize("weights", [np.ones(2), np.array([1.0, -1, 1]), np.array([1.0, np.nan, 1])])
def test_wrong_weights_of_columns_are_refused(weights):
    with pytest.raises(CoreclipError, match="weights must be 3 finite numbers, none negative"):
        f.feature_based(np.ones((2, 3)), weights)
