"""ClipCov against its objective, evaluated anew for every candidate."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, clipcov, covariance
from coreclip.selection.clusters import apportion, spherical_kmeans
from coreclip.selection.covariance import greedy_class


def make_features(n=40, d=6, seed=0, **info):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return Features.from_arrays(image, image + rng.normal(size=(n, d)), info=info)


def objective(features, chosen, labels, prompts=None):
    """F of the notes, term by term."""
    u, t = (features.vectors(side).astype(np.float64) for side in ("image", "text"))
    s = u @ t.T
    total = 0.0
    names = sorted(set(labels.tolist()))
    for c in names:
        own = np.flatnonzero(labels == c)
        picked = [i for i in chosen if labels[i] == c]
        for i in picked:
            total += sum(s[i, j] + s[j, i] for j in own) / len(own) + 2 * s[i, i]
            if prompts is not None:
                total += prompts[c] @ t[i] / 2
            for other in set(names) - {c}:
                far = np.flatnonzero(labels == other)
                total -= sum(s[i, j] + s[j, i] for j in far) / len(far) / (len(names) - 1)
        for a, i in enumerate(picked):
            total -= sum(s[i, j] + s[j, i] for j in picked[:a]) / len(own)
    return total


def greedy_by_objective(features, k, labels, prompts=None):
    """Per class, add the pair with the greatest objective, the first of equals; returns the picks of each class."""
    names, sizes = np.unique(labels, return_counts=True)
    picks = {}
    for c, budget in zip(names.tolist(), apportion(sizes, k).tolist(), strict=True):
        chosen = []
        for _ in range(budget):
            candidates = [i for i in np.flatnonzero(labels == c) if i not in chosen]
            values = [objective(features, [*chosen, i], labels, prompts) for i in candidates]
            chosen.append(int(candidates[int(np.argmax(np.round(values, 6)))]))
        picks[c] = chosen
    return picks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_classes", [1, 3])
def test_the_choice_is_the_greedy_one_of_the_objective(seed, n_classes):
    features = make_features(n=24, seed=seed)
    labels = np.random.default_rng(seed).integers(0, n_classes, 24)
    subset = clipcov(features, 9, labels=labels)
    for c, picks in greedy_by_objective(features, 9, labels).items():
        assert [i for i in subset.indices.tolist() if labels[i] == c] == picks
    assert subset.objective == pytest.approx(objective(features, subset.indices.tolist(), labels), abs=1e-4)


def test_gains_sum_to_the_objective_of_every_prefix():
    features, labels = make_features(), np.arange(40) % 3
    subset = clipcov(features, 20, labels=labels)
    for size in (1, 7, 20):
        prefix = subset.indices[:size].tolist()
        assert subset.gains[:size].sum() == pytest.approx(objective(features, prefix, labels), abs=1e-4)


def test_similarities_to_the_prompts_count_by_half(tmp_path):
    features, labels = make_features(), np.arange(40) % 3
    prompts = Features.from_arrays(None, np.random.default_rng(9).normal(size=(3, 6)))
    np.save(tmp_path / "prompts.npy", prompts.text)
    with_prompts = clipcov(features, 12, labels=labels, classes=str(tmp_path / "prompts.npy"))
    for c, picks in greedy_by_objective(features, 12, labels, prompts.vectors("text")).items():
        assert [i for i in with_prompts.indices.tolist() if labels[i] == c] == picks
    assert with_prompts.objective == pytest.approx(
        objective(features, with_prompts.indices.tolist(), labels, prompts.vectors("text")), abs=1e-4
    )


def test_classes_are_labels_else_prompts_else_clusters(tmp_path):
    features = make_features()
    prompts = np.random.default_rng(9).normal(size=(4, 6)).astype(np.float32)
    np.save(tmp_path / "prompts.npy", prompts)
    unit = prompts / np.linalg.norm(prompts, axis=1, keepdims=True)
    zero_shot = np.argmax(features.vectors("image") @ unit.T, axis=1)
    path = str(tmp_path / "prompts.npy")
    one, same = clipcov(features, 10, classes=path), clipcov(features, 10, classes=path, labels=zero_shot)
    assert one.indices.tolist() == same.indices.tolist()
    assert (one.parameters["classes_from"], same.parameters["classes_from"]) == ("prompts", "labels")
    clustered = clipcov(features, 10, clusters=5, seed=2)
    clusters, _ = spherical_kmeans(features.vectors("both"), 5, 2)
    assert clustered.indices.tolist() == clipcov(features, 10, labels=clusters).indices.tolist()
    assert clustered.parameters["classes_from"] == "clusters"
    assert clipcov(features, 10).parameters["classes"] == 1  # one per 2,000 pairs


def test_budgets_are_in_proportion_to_the_classes():
    labels = np.repeat([0, 1, 2], [10, 20, 10])
    subset = clipcov(make_features(), 8, labels=labels)
    assert np.bincount(labels[subset.indices]).tolist() == [2, 4, 2]
    assert np.bincount(labels[subset.indices[:4]]).tolist() == [1, 2, 1], "prefixes are balanced too"


@pytest.mark.parametrize("lookahead", [1, 5])
@pytest.mark.parametrize("kept", [0, 1024])
def test_the_number_of_products_at_a_time_changes_nothing(monkeypatch, lookahead, kept):
    expected = clipcov(make_features(n=100), 50, labels=np.arange(100) % 2).indices.tolist()
    monkeypatch.setattr(covariance, "_LOOKAHEAD", lookahead)
    monkeypatch.setattr(covariance, "_KEPT", kept)
    monkeypatch.setattr(covariance, "_BLOCK", 7)
    assert clipcov(make_features(n=100), 50, labels=np.arange(100) % 2).indices.tolist() == expected


def test_gains_can_rise_and_the_choice_is_still_the_greedy_one():
    """Similarities below 0 make the objective not submodular: what was evaluated once can become better."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(30, 3)).astype(np.float32)
    texts = -images + 0.5 * rng.normal(size=(30, 3)).astype(np.float32)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    scores = rng.normal(size=30) * 0.01
    picks, gains = greedy_class(images, texts, scores, 30)
    assert sorted(picks) == list(range(30))
    s = images.astype(np.float64) @ texts.astype(np.float64).T
    chosen = []
    for pick, gain in zip(picks.tolist(), gains, strict=True):
        values = np.array([scores[i] - sum(s[i, j] + s[j, i] for j in chosen) / 30 for i in range(30)])
        values[chosen] = -np.inf
        assert gain == pytest.approx(values[pick], abs=1e-6)
        assert values[pick] >= values.max() - 1e-6
        chosen.append(pick)
    assert (np.diff(gains) > 1e-3).any(), "no gain rises: the test shows nothing"


def test_pairs_that_agree_and_are_typical_of_their_class_are_kept():
    """Per class, half of the captions are another class's; of those hardly any must be chosen."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 32))
    labels = np.repeat(np.arange(4), 50)
    image = centres[labels] + 0.8 * rng.normal(size=(200, 32))
    text = centres[labels] + 0.8 * rng.normal(size=(200, 32))
    wrong = np.arange(200) % 2 == 1
    text[wrong] = centres[(labels[wrong] + 1) % 4] + 0.8 * rng.normal(size=(100, 32))
    subset = clipcov(Features.from_arrays(image, text), 60, labels=labels)
    assert wrong[subset.indices].mean() < 0.05


def test_duplicates_are_not_taken_one_after_the_other():
    rng = np.random.default_rng(0)
    image = np.vstack([np.tile(rng.normal(size=8), (20, 1)), rng.normal(size=(20, 8))])
    subset = clipcov(Features.from_arrays(image, image), 20, clusters=1)
    assert (subset.indices < 20).sum() < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 40 pairs"),
        ({"labels": np.zeros(39, int)}, "labels are int64 of shape"),
        ({"labels": np.zeros(40)}, "labels are float64"),
        ({"labels": np.zeros(40, int), "clusters": 2}, "clusters = 2 beside labels"),
        ({"classes": "{tmp}/p.npy", "clusters": 2}, "clusters = 2 beside class prompts"),
        ({"classes": "{tmp}/p.npy", "labels": np.full(40, 3)}, "labels from 3 to 3 and 3 class prompts"),
        ({"classes": "{tmp}/p.npy", "labels": np.full(40, -1)}, "a label must be a row of the prompts, 0 to 2"),
        ({"classes": "{tmp}/wide.npy"}, "have 7 dimensions, the pairs 6"),
        ({"clusters": 0}, "0 clusters of 40 pairs"),
        ({"clusters": 41}, "41 clusters of 40 pairs"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path):
    np.save(tmp_path / "p.npy", np.eye(3, 6, dtype=np.float32))
    np.save(tmp_path / "wide.npy", np.eye(3, 7, dtype=np.float32))
    given = {name: v.format(tmp=tmp_path) if isinstance(v, str) else v for name, v in ({"k": 5} | arguments).items()}
    with pytest.raises(CoreclipError, match=message):
        clipcov(make_features(), **given)


def test_a_missing_modality_is_refused():
    with pytest.raises(CoreclipError, match="clipcov needs image and text"):
        clipcov(Features.from_arrays(np.eye(3)), 2)
