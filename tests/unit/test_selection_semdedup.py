"""SemDeDup on data with planted duplicates."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, semdedup


def planted(n=60, copies=20, d=16, seed=0):
    """``n`` unlike rows, then near-copies of the first ``copies`` of them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d))
    near = rows[:copies] + 0.01 * rng.normal(size=(copies, d))
    return np.vstack([rows, near]).astype(np.float32)


def test_one_of_each_near_duplicate_pair_survives():
    subset = semdedup(planted(), eps=0.02, n_clusters=4)
    assert subset.k == 60
    survivors = set(subset.indices.tolist())
    assert all((i in survivors) != (60 + i in survivors) for i in range(20))


def test_k_alone_leaves_exactly_k_and_names_the_eps():
    subset = semdedup(planted(), 50, n_clusters=4)
    assert subset.k == 50
    same = semdedup(planted(), eps=subset.parameters["eps"], n_clusters=4)
    assert same.indices.tolist() == subset.indices.tolist()


def test_k_and_eps_leave_no_more_than_either():
    assert semdedup(planted(), 30, eps=0.02, n_clusters=4).k == 30
    assert semdedup(planted(), 75, eps=0.02, n_clusters=4).k == 60


def test_a_prefix_is_what_a_larger_eps_leaves():
    subset = semdedup(planted(), eps=0.02, n_clusters=4)
    assert (np.diff(subset.gains) <= 0).all()
    eps = 0.6
    fewer = semdedup(planted(), eps=eps, n_clusters=4)
    assert fewer.indices.tolist() == subset.indices[: fewer.k].tolist()
    assert 0 < fewer.k < subset.k


def test_identical_rows_leave_the_lowest_index():
    subset = semdedup(np.ones((7, 4)), eps=0.1, n_clusters=1)
    assert subset.indices.tolist() == [0]


def test_near_duplicates_on_both_sides_of_a_border_are_found_by_two_probes():
    """Each point of an arc is a near-duplicate of the next; only the ends of a cluster have none that is farther out."""
    angles = np.linspace(0, 1.5, 50)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = {probes: semdedup(x, eps=0.001, n_clusters=2, probes=probes) for probes in (1, 2)}
    assert (found[1].k, found[2].k) == (4, 3)
    lost = set(found[1].indices.tolist()) - set(found[2].indices.tolist())
    assert lost < set(np.sort(found[1].indices)[1:3].tolist())


def test_only_the_named_modality_counts():
    features = Features.from_arrays(np.ones((4, 4)), np.eye(4))
    assert semdedup(features, n_clusters=1).k == 1
    assert semdedup(features, n_clusters=1, modality="text").k == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -0.1}, "eps = -0.1 is not allowed"),
        ({"probes": 0}, "probes = 0 is not allowed: at least 1, the cluster that a pair lies in"),
        ({"k": 0}, "k = 0 of 80 pairs"),
        ({"n_clusters": 81}, "81 clusters of 80 pairs are not possible"),
        ({"modality": "text"}, "hold no text"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        semdedup(planted(), **arguments)
