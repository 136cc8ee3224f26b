"""NormSim against the full matrix of similarities."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, normsim, normsim_2, normsim_inf, normsim_scores, targets


def make_images(n=50, d=8, seed=0):
    return Features.from_arrays(np.random.default_rng(seed).normal(size=(n, d)), info={"fingerprint": "abc"})


def similarities(features, target):
    return features.vectors().astype(np.float64) @ target.vectors().astype(np.float64).T


@pytest.fixture(params=[7, 1 << 14])
def blocks(request, monkeypatch):
    monkeypatch.setattr(targets, "_BLOCK", request.param)
    monkeypatch.setattr(targets, "_TILE", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("norm", "order"), [("2", 2), ("inf", np.inf)])
def test_scores_are_the_norms_of_the_similarities(norm, order):
    features, target = make_images(), make_images(23, seed=1)
    expected = np.linalg.norm(similarities(features, target), ord=order, axis=1)
    np.testing.assert_allclose(normsim_scores(features, target, norm=norm), expected, rtol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_the_pool_is_its_own_target():
    features = make_images()
    all_of_them = similarities(features, features)
    np.testing.assert_allclose(normsim_scores(features, norm="2"), np.linalg.norm(all_of_them, axis=1), rtol=1e-5)
    np.fill_diagonal(all_of_them, 0)
    np.testing.assert_allclose(normsim_scores(features, norm="inf"), np.abs(all_of_them).max(axis=1), rtol=1e-5)


def test_norm_inf_counts_the_size_of_a_similarity_as_a_norm_does():
    features, target = (
        Features.from_arrays(np.float32([[1, 0], [0.6, 0.8]])),
        Features.from_arrays(np.float32([[-1, 0]])),
    )
    np.testing.assert_allclose(normsim_scores(features, target, norm="inf"), [1, 0.6], atol=1e-6)


def test_scores_follow_the_rows():
    features, order = make_images(), np.random.default_rng(2).permutation(50)
    for norm in ("2", "inf"):
        for target in (None, make_images(9, seed=3)):
            scores = normsim_scores(features, target, norm=norm)
            np.testing.assert_allclose(
                normsim_scores(features.take(order), target, norm=norm), scores[order], rtol=1e-5
            )


def test_the_target_is_read_from_a_file_and_its_images_alone_count(tmp_path):
    features, target = make_images(), make_images(23, seed=1)
    np.save(tmp_path / "target.npy", target.image)
    for norm, function in (("2", normsim_2), ("inf", normsim_inf)):
        subset = function(features, 12, target=str(tmp_path / "target.npy"))
        scores = normsim_scores(features, target, norm=norm)
        assert subset.indices.tolist() == np.argsort(-scores, kind="stable")[:12].tolist()
        assert subset.method == f"normsim-{norm}"
        assert subset.objective == subset.upper_bound == pytest.approx(subset.gains.sum())
        assert subset.fingerprint == "abc"
    both = Features.from_arrays(target.image, make_images(23, seed=5).image)
    np.testing.assert_array_equal(normsim_scores(features, both), normsim_scores(features, target))


def test_the_pool_is_cut_down_step_by_step():
    """Each step removes the lowest norms to what is left, written with full matrices."""
    features = make_images(40)
    left = np.arange(40)
    for n_left in (30, 20, 10):
        norms = np.linalg.norm(similarities(features.take(left), features.take(left)), axis=1)
        left = left[np.sort(np.argsort(-norms, kind="stable")[:n_left])]
    subset = normsim(features, 10, steps=3)
    assert sorted(subset.indices) == left.tolist()
    assert (np.diff(subset.gains) <= 0).all()
    assert subset.objective is None
    assert subset.parameters["steps"] == 3
    assert sorted(normsim(features, 10).indices) != left.tolist(), "one step chooses the same: the test shows nothing"


def test_images_like_the_target_come_first():
    rng = np.random.default_rng(0)
    centre, other = rng.normal(size=(2, 16))
    wanted, unwanted = (c + 0.5 * rng.normal(size=(100, 16)) for c in (centre, other))
    target = Features.from_arrays(centre + 0.5 * rng.normal(size=(20, 16)))
    pool = Features.from_arrays(np.vstack([unwanted, wanted]))
    for norm in ("2", "inf"):
        best = np.argsort(-normsim_scores(pool, target, norm=norm))[:100]
        assert (best >= 100).mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 51}, "k = 51 of 50 pairs"),
        ({"norm": "3"}, "unknown norm '3'; known: 2, inf"),
        ({"steps": 0}, "steps = 0 is not allowed"),
        ({"steps": 2, "norm": "inf"}, "steps = 2 has a meaning only without a target"),
        ({"steps": 2, "target": "{tmp}/t.npy"}, "steps = 2 has a meaning only without a target"),
        ({"target": "{tmp}/none.npy"}, "no features at"),
        ({"target": "{tmp}/t.npy"}, "the target's images have 5 dimensions, the pool's 8"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path):
    np.save(tmp_path / "t.npy", np.ones((4, 5), np.float32))
    given = {name: v.format(tmp=tmp_path) if isinstance(v, str) else v for name, v in ({"k": 5} | arguments).items()}
    with pytest.raises(CoreclipError, match=message):
        normsim(make_images(), **given)


def test_texts_alone_are_refused():
    texts = Features.from_arrays(None, np.eye(8))
    with pytest.raises(CoreclipError, match="these features hold only texts"):
        normsim_scores(texts)
    with pytest.raises(CoreclipError, match="the target's features hold only texts"):
        normsim_scores(make_images(), texts)
