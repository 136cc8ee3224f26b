"""Scores of difficulty and uncertainty have known answers; selections read the signals that they say, and refuse what is wrong."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import (
    METHODS,
    difficulty_scores,
    easy,
    el2n,
    el2n_scores,
    entropy,
    entropy_scores,
    forgetting,
    forgetting_events,
    grand,
    grand_scores,
    hard,
    least_confidence,
    least_confidence_scores,
    margin,
    margin_scores,
    tracin,
    tracin_self_influence,
    vog,
    vog_scores,
)
from coreclip.selection import difficulty as difficulty_module
from coreclip.selection.signals import mean_over_passes

NAN, INF = np.nan, np.inf
LARGEST = np.finfo(np.float64).max


def test_el2n_is_the_distance_to_the_label():
    probabilities = np.array([[[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 0], [0, 0, 1]]])
    root = np.sqrt(2)
    np.testing.assert_allclose(el2n_scores(probabilities, np.array([0, 0, 0])), [0, root / 2, (root / 2 + root) / 2])


def test_scores_do_not_depend_on_the_size_of_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), (3, 11))
    labels = rng.integers(0, 5, 11)
    gradients = rng.normal(size=(4, 11, 2, 3))

    def everything():
        by_rows = (least_confidence_scores, margin_scores, entropy_scores)
        scores = [score(probabilities[0]) for score in by_rows]
        return np.array([el2n_scores(probabilities, labels), vog_scores(gradients, labels % 2), *scores])

    whole = everything()
    monkeypatch.setattr(difficulty_module, "_BLOCK_NUMBERS", 60)
    np.testing.assert_array_equal(everything(), whole)
    monkeypatch.setattr(difficulty_module, "_BLOCK_NUMBERS", 1)
    np.testing.assert_array_equal(everything(), whole)


def test_a_run_that_did_not_see_a_pair_is_left_out_of_its_mean():
    probabilities = np.full((2, 2, 2), NAN)
    probabilities[1, 0] = 0.5
    np.testing.assert_allclose(el2n_scores(probabilities, np.array([0, 1])), [np.sqrt(0.5), NAN])
    np.testing.assert_array_equal(grand_scores([[1, NAN, NAN], [3, 4, NAN]]), [2, 4, NAN])


def test_forgetting_counts_correct_then_wrong_and_never_learned_is_infinite():
    correct = np.array(
        [
            [1, 0, 0, 1, -1, 1],
            [0, 1, 0, 1, -1, -1],
            [1, 1, 0, 1, -1, 0],
            [0, 1, -1, 1, -1, -1],
        ],
        np.int8,
    )
    assert forgetting_events(correct).tolist()[:4] == [2, 0, INF, 0]
    assert np.isnan(forgetting_events(correct)[4])
    assert forgetting_events(correct)[5] == 1  # a pass without it is passed over


def test_forgetting_takes_the_never_learned_first_and_never_the_unseen():
    correct = np.array([[1, 1, 0, -1], [1, 0, 0, -1]], np.int8)
    subset = forgetting({"correct": correct}, 3)
    assert subset.indices.tolist() == [2, 1, 0]
    assert subset.gains.tolist() == [LARGEST, 1, 0]
    assert subset.objective is None
    assert subset.parameters == {"signal": "forgetting", "passes": "first 2", "unscored": 1}
    assert forgetting({"correct": correct}, 3, passes=1).indices.tolist() == [2, 0, 1]
    with pytest.raises(CoreclipError, match="only 3 of the 4 pairs have a score"):
        forgetting({"correct": correct}, 4)


def test_vog_of_unchanging_gradients_is_lowest_and_lone_classes_are_zero():
    gradients = np.zeros((2, 4, 2))
    gradients[1, 1] = [2, 4]  # standard deviations 1 and 2
    gradients[1, 3] = [6, 6]
    np.testing.assert_allclose(vog_scores(gradients, np.array([0, 0, 1, 1])), [-1, 1, -1, 1])
    np.testing.assert_array_equal(vog_scores(gradients, np.arange(4)), np.zeros(4))
    plain = np.array([0, 1.5, 0, 3])
    np.testing.assert_allclose(vog_scores(gradients), (plain - plain.mean()) / plain.std())


@pytest.mark.parametrize("gap", [NAN, INF])
def test_vog_needs_finite_gradients_at_every_checkpoint(gap):
    gradients = np.random.default_rng(0).normal(size=(3, 5, 4))
    with_gap = gradients.copy()
    with_gap[1, 2, 3] = gap
    others = [0, 1, 3, 4]
    scores = vog_scores(with_gap)
    assert np.isnan(scores[2])
    np.testing.assert_array_equal(scores[others], vog_scores(gradients[:, others]))


def test_vog_of_equal_or_nearly_equal_pairs_is_finite():
    equal = np.zeros((2, 3, 1))
    equal[1] = 0.2  # the mean of three of these is another number
    assert vog_scores(equal).tolist() == [0, 0, 0]
    tiny = np.array([0, 1e-300, 2e-300])
    np.testing.assert_allclose(
        vog({"vog": tiny}, 3, labels=np.zeros(3, int)).gains, np.sqrt([1.5, 0, 1.5]) * [1, 0, -1]
    )


def test_the_vog_signal_is_scored_per_class_where_there_are_labels():
    signal = np.array([1, 5, 100, 104, NAN])
    assert vog({"vog": signal}, 2).indices.tolist() == [3, 2]
    subset = vog({"vog": signal}, 4, labels=np.array([0, 0, 1, 1, 1]))
    assert subset.indices.tolist() == [1, 3, 0, 2]
    assert subset.gains.tolist() == [1, 1, -1, -1]
    assert subset.parameters == {"signal": "vog", "unscored": 1, "z_scored_by": "labels"}


def test_self_influence_weighs_checkpoints_by_their_rates():
    squared = np.array([[1, 2, NAN], [10, NAN, 30], [NAN, INF, 300]])
    np.testing.assert_array_equal(tracin_self_influence(squared, [0.5, 0.1, 0]), [1.5, NAN, NAN])
    assert tracin({"tracin": np.float32([1, 3, NAN, 2])}, 3).indices.tolist() == [1, 3, 0]


def test_an_infinite_signal_is_the_hardest():
    subset = hard({"loss": np.array([[1, INF, 3, NAN]])}, 3)
    assert subset.indices.tolist() == [1, 2, 0]
    assert subset.gains[0] == LARGEST
    assert easy({"loss": np.array([[1, INF, 3, NAN]])}, 3).indices.tolist() == [0, 2, 1]


def test_opposite_infinities_have_no_mean():
    assert np.isnan(mean_over_passes(np.array([[INF], [-INF]]))).all()
    assert mean_over_passes(np.array([[INF], [1]])).tolist() == [INF]


def test_uncertainty_of_known_probabilities():
    probabilities = np.array([[1, 0, 0], [0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [NAN, 0.5, 0.5]])
    np.testing.assert_allclose(least_confidence_scores(probabilities), [0, 0.5, 2 / 3, NAN])
    np.testing.assert_allclose(margin_scores(probabilities), [-1, -0.25, 0, NAN])
    np.testing.assert_allclose(entropy_scores(probabilities), [0, 1.5 * np.log(2), np.log(3), NAN])


def test_float16_probabilities_of_many_classes_are_accepted():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(1000), 20)
    np.testing.assert_allclose(
        entropy_scores(probabilities.astype(np.float16)), entropy_scores(probabilities), rtol=1e-3
    )


SIGNALS = {
    "loss": np.float32([[9, 1, 2, 9], [3, NAN, 1, NAN]]),
    "margin": np.float32([[4, 1, 2, NAN], [0, NAN, 8, NAN]]),
    "el2n": np.float32([[0.5, 0.25, NAN, 1], [0.5, 1.25, 1, NAN]]),
    "grand": np.float32([[4, 2, NAN, 1], [0, 0, 3, NAN]]),
    "confidence": np.float32([[0.5, 0.25, 0.5, NAN], [0.75, NAN, 0.5, NAN]]),
    "probability_margin": np.float32([[0, 0.25, 0.5, NAN], [0.75, NAN, 0.5, NAN]]),
    "entropy": np.float32([[0, 0.25, 0.5, NAN], [0.75, NAN, 0.5, NAN]]),
    "correct": np.int8([[1, 1, 0, -1], [0, -1, 0, -1]]),
    "vog": np.float32([1, 2, 3, NAN]),
    "tracin": np.float32([3, 2, 1, NAN]),
}


@pytest.mark.parametrize(
    ("name", "passes", "expected", "used"),
    [
        ("loss", None, [3, 1, 1, 9], "last 1"),
        ("loss", 2, [6, 1, 1.5, 9], "last 2"),
        ("margin", None, [-2, -1, -5, NAN], "first 2"),
        ("margin", 1, [-4, -1, -2, NAN], "first 1"),
        ("el2n", None, [0.5, 0.75, 1, 1], "first 2"),
        ("el2n", 1, [0.5, 0.25, NAN, 1], "first 1"),
        ("grand", None, [2, 1, 3, 1], "first 2"),
        ("confidence", None, [0.25, 0.75, 0.5, NAN], "last 1"),
        ("probability_margin", None, [-0.75, -0.25, -0.5, NAN], "last 1"),
        ("entropy", None, [0.75, 0.25, 0.5, NAN], "last 1"),
        ("forgetting", None, [1, 0, INF, NAN], "first 2"),
        ("vog", None, [1, 2, 3, NAN], None),
        ("tracin", None, [3, 2, 1, NAN], None),
    ],
)
def test_difficulties_are_of_the_passes_that_they_say(name, passes, expected, used):
    scores, parameters = difficulty_scores(SIGNALS, name, passes=passes)
    np.testing.assert_array_equal(scores, expected)
    assert parameters.get("passes") == used
    assert parameters.get("unscored", 0) == np.isnan(expected).sum()


@pytest.mark.parametrize(
    ("method", "expected", "gains"),
    [
        (lambda: el2n(SIGNALS, 3), [2, 3, 1], [1, 1, 0.75]),
        (lambda: el2n(SIGNALS, 2, passes=1), [3, 0], [1, 0.5]),
        (lambda: grand(SIGNALS, 2), [2, 0], [3, 2]),
        (lambda: grand(SIGNALS, 2, checkpoints=1), [0, 1], [4, 2]),
        (lambda: easy(SIGNALS, 3), [1, 2, 0], [1, 1, 3]),
        (lambda: hard(SIGNALS, 3), [3, 0, 1], [9, 3, 1]),
        (lambda: hard(SIGNALS, 2, signal="margin"), [1, 0], [-1, -2]),
        (lambda: easy(SIGNALS, 2, signal="margin", passes=1), [0, 2], [-4, -2]),
        (lambda: least_confidence(SIGNALS, 2), [1, 2], [0.75, 0.5]),
        (lambda: least_confidence(SIGNALS, 1, passes=2), [1], [0.75]),
        (lambda: margin(SIGNALS, 2), [1, 2], [-0.25, -0.5]),
        (lambda: margin(SIGNALS, 2, passes=2), [1, 0], [-0.25, -0.375]),
        (lambda: entropy(SIGNALS, 2), [0, 2], [0.75, 0.5]),
    ],
)
def test_selections_keep_the_end_that_they_say(method, expected, gains):
    subset = method()
    assert subset.indices.tolist() == expected
    assert subset.gains.tolist() == gains
    assert subset.weights.tolist() == [1] * len(expected)
    assert METHODS[subset.method].higher_is_better == (subset.objective is not None)


def test_el2n_takes_ten_passes_by_default():
    signal = np.zeros((12, 2), np.float32)
    signal[9, 1], signal[10:, 0] = 1, 100
    assert el2n({"el2n": signal}, 1).indices.tolist() == [1]
    assert el2n({"el2n": signal}, 1, passes=12).indices.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: el2n({"loss": np.ones((1, 3))}, 1), "el2n needs the signal 'el2n' of a training run, and there is loss"),
        (lambda: least_confidence({}, 1), "least-confidence needs the signal 'confidence'.* none at all"),
        (lambda: el2n(SIGNALS, 1, passes=0), "passes = 0 is not allowed: at least 1"),
        (lambda: grand(SIGNALS, 1, checkpoints=-1), "checkpoints = -1 is not allowed: at least 1"),
        (lambda: grand(SIGNALS, 5), "k = 5 of 4 pairs is not allowed"),
        (lambda: margin(SIGNALS, 4), "margin: k = 4, and only 3 of the 4 pairs have a score"),
        (lambda: easy(SIGNALS, 1, signal="beauty"), "easy: no difficulty is known by 'beauty'; known: loss, el2n"),
        (lambda: hard(SIGNALS, 1, signal="vog", passes=2), "passes = 2 has no meaning for vog"),
        (lambda: hard({"loss": np.ones(3)}, 1), r"signal loss has shape \(3,\); it must be \(passes, n\)"),
        (lambda: hard({"loss": np.ones((0, 3))}, 1), r"signal loss has shape \(0, 3\)"),
        (lambda: tracin({"tracin": np.ones((2, 3))}, 1), r"signal tracin has shape \(2, 3\); it must be \(n,\)"),
        (lambda: vog(SIGNALS, 1, labels=np.zeros(3, int)), "must be one integer for each of 4 pairs"),
        (lambda: vog(SIGNALS, 1, labels=np.zeros(4)), "labels are float64"),
        (lambda: mean_over_passes(np.ones(3)), r"the signal has shape \(3,\)"),
        (lambda: el2n_scores(np.ones((2, 3)), np.zeros(3, int)), r"must be \(runs, n, classes\)"),
        (lambda: el2n_scores(np.full((1, 2, 2), 0.5), np.array([0, 2])), "labels are 0 to 2; 2 classes have the labels 0 to 1"),
        (lambda: el2n_scores(np.full((1, 2, 2), 3.0), np.array([0, 1])), "sum to 6 with 3 as the lowest.*not the logits"),
        (lambda: entropy_scores(np.array([[1.5, -0.5]])), "sum to 1 with -0.5 as the lowest"),
        (lambda: margin_scores(np.ones((3, 1))), "of at least 2 classes"),
        (lambda: least_confidence_scores(np.ones(3)), r"probabilities have shape \(3,\)"),
        (lambda: grand_scores(np.ones(3)), r"gradient norms have shape \(3,\)"),
        (lambda: grand_scores([[1, -2.0]]), "gradient norms go down to -2; they must not be negative"),
        (lambda: forgetting_events(np.ones(3, int)), r"signal correct has shape \(3,\)"),
        (lambda: forgetting_events(np.array([[0, 2]])), "correct holds 2; it must be 1"),
        (lambda: vog_scores(np.ones((2, 3))), r"gradients have shape \(2, 3\)"),
        (lambda: vog_scores(np.ones((1, 3, 2))), "gradients are of 1 checkpoint.* at least 2"),
        (lambda: tracin_self_influence(np.ones((2, 3)), [1]), r"learning rates have shape \(1,\); it must be \(2,\)"),
        (lambda: tracin_self_influence(np.ones((2, 3)), [1, -1]), r"learning rates \[1.0, -1.0\] are not allowed"),
        (lambda: tracin_self_influence(np.ones((2, 3)), [0, 0]), "at least one above 0"),
        (lambda: tracin_self_influence(np.ones((2, 3)), [1, NAN]), "finite, not negative"),
        (lambda: tracin_self_influence(-np.ones((1, 3)), [1]), "squared gradient norms go down to -1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(call, message):
    with pytest.raises(CoreclipError, match=message):
        call()
