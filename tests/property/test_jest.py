"""Joint example selection: the conditional losses are those of their definition, and rows are drawn in proportion."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from coreclip.errors import CoreclipError
from coreclip.training.jest import conditional_learnability, jest_rows


def logits(m, seed, scale=3.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(m, m)), scale * rng.normal(size=(m, m))


def loss_in_company(matrix, i, company):
    """Half the cross-entropy of image i among the texts of itself and its company, plus half that of its text."""
    among = [i, *(j for j in company if j != i)]
    return -(log_softmax(matrix[i, among])[0] + log_softmax(matrix[among, i])[0]) / 2


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 7), seed=st.integers(0, 10**6), data=st.data())
def test_conditional_learnability_is_the_difference_of_the_two_losses(m, seed, data):
    learner, reference = logits(m, seed)
    chosen = data.draw(st.lists(st.integers(0, m - 1), unique=True))
    scores = conditional_learnability(learner, reference, np.array(chosen, dtype=np.int64))
    company = chosen or range(m)  # nothing chosen yet: all others
    expected = [loss_in_company(learner, i, company) - loss_in_company(reference, i, company) for i in range(m)]
    np.testing.assert_allclose(scores, expected, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 12), seed=st.integers(0, 10**6), chunks=st.integers(1, 20), step=st.integers(0, 50), data=st.data())  # fmt: skip
def test_the_rows_are_distinct_rising_and_follow_from_seed_and_step(m, seed, chunks, step, data):
    learner, reference = logits(m, seed)
    k = data.draw(st.integers(1, m))
    rows = jest_rows(learner, reference, k, chunks=chunks, seed=seed, step=step)
    assert rows.dtype == np.int64
    assert len(rows) == k
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < m
    assert np.array_equal(rows, jest_rows(learner, reference, k, chunks=chunks, seed=seed, step=step))
    # What both models see alike does not matter.
    assert np.array_equal(rows, jest_rows(learner.T, reference.T, k, chunks=chunks, seed=seed, step=step))


@settings(deadline=None, max_examples=20)
@given(m=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_keeping_all_is_the_identity(m, seed):
    assert jest_rows(*logits(m, seed), m).tolist() == list(range(m))


def set_probabilities(learner, reference, sizes):
    """The probability of each set of rows, by walking through every order of draws."""
    found = {}

    def draw(chosen, left, scores, probability, rest):
        if left == 0:
            if not rest:
                key = tuple(sorted(chosen))
                found[key] = found.get(key, 0) + probability
                return
            here = conditional_learnability(learner, reference, np.array(chosen))
            draw(chosen, rest[0], here, probability, rest[1:])
            return
        free = [i for i in range(len(learner)) if i not in chosen]
        weights = np.exp(scores[free])
        for i, weight in zip(free, weights / weights.sum(), strict=True):
            draw([*chosen, i], left - 1, scores, probability * weight, rest)

    first = conditional_learnability(learner, reference, np.zeros(0, np.int64))
    draw([], sizes[0], first, 1.0, sizes[1:])
    return found


@pytest.mark.parametrize(("chunks", "sizes"), [(1, [3]), (2, [2, 1]), (3, [1, 1, 1])])
def test_rows_are_drawn_in_proportion_to_exp_of_what_can_be_learned(chunks, sizes):
    learner, reference = logits(5, 4, scale=1.0)
    expected = set_probabilities(learner, reference, sizes)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) == 10
    n = 4000
    counts = dict.fromkeys(itertools.combinations(range(5), 3), 0)
    for step in range(n):
        counts[tuple(jest_rows(learner, reference, 3, chunks=chunks, seed=7, step=step).tolist())] += 1
    for rows, probability in expected.items():
        assert abs(counts[rows] - n * probability) < 4.5 * np.sqrt(n * probability * (1 - probability))


def test_what_can_be_learned_is_chosen_and_noise_is_not():
    learner, reference = np.zeros((6, 6)), np.zeros((6, 6))
    learner[np.diag_indices(6)] = [0, 0, 0, 50, 50, 50]  # the last three are known already
    reference[np.diag_indices(6)] = [50, 50, 50, 50, 50, 50]
    reference[0, 0] = -50  # pair 0 is noise: the reference can't tell it either
    for seed in range(20):
        rows = jest_rows(learner * 1.0, reference, 2, seed=seed)
        assert set(rows.tolist()) <= {1, 2, 3, 4, 5}
    sure = jest_rows(20 * (1 - np.eye(6)) * [[1], [1], [1], [0], [0], [0]], reference, 2, seed=0)
    assert sure.tolist() == [1, 2]


def test_pairs_that_say_the_same_are_no_negatives():
    learner, reference = logits(3, 0)
    for matrix in (learner, reference):
        matrix[0, 1] = matrix[1, 0] = -np.inf
    scores = conditional_learnability(learner, reference, np.array([1]))
    assert scores[0] == 0  # in the company of its equal alone a pair has nothing to be told from
    assert np.isfinite(scores).all()
    assert len(jest_rows(learner, reference, 2)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learner": np.zeros((3, 2))}, r"the learner's logits have shape \(3, 2\)"),
        ({"reference": np.zeros((2, 2))}, r"the reference's logits are \(2, 2\), the learner's \(3, 3\)"),
        ({"learner": np.full((3, 3), np.nan)}, "the learner's logits hold NaN or infinity"),
        ({"reference": np.diag([np.inf, 0, 0])}, "the reference's logits hold NaN or infinity"),
        ({"reference": np.diag([-np.inf, 0, 0])}, "the reference's logits hold NaN or infinity"),
        ({"k": 0}, "k = 0 of 3 rows is not allowed"),
        ({"k": 4}, "k = 4 of 3 rows is not allowed"),
        ({"chunks": 0}, "chunks = 0 is not allowed"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(CoreclipError, match=message):
        jest_rows(**({"learner": np.zeros((3, 3)), "reference": np.zeros((3, 3)), "k": 2} | change))
