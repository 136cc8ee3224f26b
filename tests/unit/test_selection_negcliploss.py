"""NegCLIPLoss against the definition, written as plain loops in float64."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection import Features, clip_scores, contrast, negclip_scores, negcliploss
from coreclip.selection.contrast import batch_scores, n_batches


def make_features(n=60, d=12, seed=0, noise=0.7, **info):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return Features.from_arrays(image, image + noise * rng.normal(size=(n, d)), info=info)


def by_the_definition(images, texts, tau):
    """In float64, without any blocks."""
    s = images.astype(np.float64) @ texts.astype(np.float64).T
    scores = []
    for i in range(len(s)):
        both = [row.max() / tau + np.log(np.exp((row - row.max()) / tau).sum()) for row in (s[i], s[:, i])]
        scores.append(s[i, i] - tau / 2 * sum(both))
    return np.array(scores)


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.07, 1.0, 100.0])
@pytest.mark.parametrize("tile", [7, 2048])
def test_a_batch_agrees_with_the_definition(monkeypatch, temperature, tile):
    monkeypatch.setattr(contrast, "_TILE", tile)
    features = make_features()
    images, texts = features.vectors("image"), features.vectors("text")
    found = batch_scores(images, texts, temperature)
    tolerance = (
        2e-6 if temperature <= 1 else 1e-4
    )  # float32 logits near 0 keep their absolute precision times temperature
    np.testing.assert_allclose(found, by_the_definition(images, texts, temperature), atol=tolerance)


def test_the_exponentials_are_taken_apart_where_a_common_maximum_would_lose_rows():
    """One row agrees with everything, another one opposes everything: at 1e-4 their logits lie 10,000 apart."""
    images = np.float32([[1, 0], [-1, 0], [0, 1]])
    texts = np.float32([[1, 0], [0.6, 0.8], [0.8, 0.6]])
    found = batch_scores(images, texts, 1e-4)
    np.testing.assert_allclose(found, by_the_definition(images, texts, 1e-4), atol=1e-6)
    with np.errstate(all="ignore"):
        overflown = np.log(np.exp(images @ texts.T / np.float32(1e-4)).sum(axis=1))
    assert not np.isfinite(overflown).all(), "the data do not overflow float32: the test shows nothing"


def test_scores_are_the_mean_over_repetitions_in_which_each_pair_is_once():
    features = make_features(n=50)
    images, texts = features.vectors("image"), features.vectors("text")
    expected = np.zeros(50)
    for repetition in range(3):
        order = permutation(50, 4, repetition, contrast._STREAM_BATCHES)
        batches = np.array_split(order, 4)
        assert sorted(np.concatenate(batches)) == list(range(50))
        for rows in batches:
            expected[rows] += by_the_definition(images[rows], texts[rows], 0.05) / 3
    found = negclip_scores(features, temperature=0.05, batch_size=16, repetitions=3, seed=4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("n", "batch_size"), [(100, 32), (33, 32), (64, 32), (5, 32), (1, 2), (100_001, 32_768)])
def test_no_batch_is_short(n, batch_size):
    sizes = [len(part) for part in np.array_split(np.arange(n), n_batches(n, batch_size))]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n // batch_size)


def test_scores_are_a_function_of_the_seed():
    features = make_features()
    one, again = (negclip_scores(features, batch_size=16, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - negclip_scores(features, batch_size=16, seed=2)).max() > 1e-6


def test_one_batch_of_all_leaves_nothing_to_chance():
    features = make_features()
    one, other = negclip_scores(features, seed=1, repetitions=1), negclip_scores(features, seed=2, repetitions=5)
    np.testing.assert_allclose(one, other, atol=1e-7)
    order = np.random.default_rng(0).permutation(features.n)
    np.testing.assert_allclose(negclip_scores(features.take(order)), one[order], atol=1e-7)


def test_a_pair_alone_scores_0_and_no_score_is_above():
    assert negclip_scores(make_features(n=1)).tolist() == [0]
    assert (negclip_scores(make_features(noise=0.01), temperature=1e-3) <= 0).all()


def test_the_temperature_is_the_features_own():
    scores = [negclip_scores(make_features(logit_scale=scale)) for scale in (10.0, 100.0)]
    np.testing.assert_array_equal(scores[0], negclip_scores(make_features(), temperature=0.1))
    np.testing.assert_array_equal(scores[1], negclip_scores(make_features()))


def test_mismatched_captions_come_last():
    """A quarter of the captions belongs to another image; chance would put three quarters of the good ones on top."""
    features = make_features(n=400, d=32)
    text = features.text.copy()
    wrong = np.arange(0, 400, 4)
    text[wrong] = text[np.roll(wrong, 1)]
    subset = negcliploss(Features.from_arrays(features.image, text), 300, temperature=0.05, batch_size=128)
    found = np.isin(wrong, subset.indices, invert=True).mean()
    assert found > 0.9


def test_a_caption_that_fits_everything_scores_lower_than_by_clipscore():
    """Text 0 is the mean direction of all images: it agrees with its own image, and as much with all others."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(200, 16)) + 2
    text = image + 1.5 * rng.normal(size=image.shape)
    text[0] = 2
    features = Features.from_arrays(image, text)
    clip_rank = (clip_scores(features) > clip_scores(features)[0]).sum()
    scores = negclip_scores(features)
    assert (scores > scores[0]).sum() > clip_rank + 50


def test_the_choice_is_the_best_by_score():
    features = make_features(fingerprint="abc")
    subset = negcliploss(features, 10, batch_size=32, repetitions=2, seed=3)
    scores = negclip_scores(features, batch_size=32, repetitions=2, seed=3)
    assert subset.indices.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
    assert subset.objective == subset.upper_bound == pytest.approx(subset.gains.sum())
    assert subset.parameters == {"temperature": 0.01, "batch_size": 30, "repetitions": 2}
    assert (subset.fingerprint, subset.seed, subset.n) == ("abc", 3, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 60 pairs is not allowed"),
        ({"batch_size": 1}, "batch_size = 1 is not allowed: at least 2"),
        ({"repetitions": 0}, "repetitions = 0 is not allowed: at least 1"),
        ({"temperature": 0.0}, "temperature = 0.0 is not allowed"),
        ({"temperature": float("nan")}, "temperature = nan is not allowed"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        negcliploss(make_features(), **({"k": 5} | arguments))


def test_a_missing_modality_is_refused():
    with pytest.raises(CoreclipError, match="negcliploss compares image and text"):
        negcliploss(Features.from_arrays(np.eye(3)), 2)
