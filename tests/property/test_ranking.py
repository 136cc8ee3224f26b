"""Ranks against their definition, in exact arithmetic: sort everything, and look where the first right item is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.training import ranking
from coreclip.training.ranking import (
    best_ranks,
    chance_at,
    image_groups,
    ranks_both_ways,
    retrieval_recalls,
    text_groups,
)

TYPES = (np.float16, np.float32, np.float64)


def by_definition(queries, items, right, counts):
    scores = queries.astype(int) @ items.T.astype(int)  # the tests' features are small integers
    ranks = []
    for query, row in enumerate(scores):
        own = set(right[1][right[0] == query].tolist())
        before = 0
        for item in sorted(range(len(items)), key=lambda item: (-row[item], item)):
            if item in own:
                break
            before += counts[item]
        ranks.append(before)
    return ranks


@st.composite
def problems(draw):
    """Features of few values, so that many scores are equal, with right pairs and multiplicities."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    q, m, d = (draw(st.integers(1, most)) for most in (20, 30, 4))
    queries = rng.integers(-2, 3, (q, d)).astype(draw(st.sampled_from(TYPES)))
    items = rng.integers(-2, 3, (m, d)).astype(draw(st.sampled_from(TYPES)))
    entries = draw(st.integers(1, 60))
    right = np.unique(np.stack([rng.integers(0, q, entries), rng.integers(0, m, entries)]), axis=1)
    right = right[:, rng.permutation(right.shape[1])]
    return queries, items, right, rng.integers(1, 5, q), rng.integers(1, 5, m)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_ranks_both_ways_are_those_of_the_definition_whatever_the_blocks(problem, rows, columns, wide):
    queries, items, right, query_counts, item_counts = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_ROWS", rows)
        patch.setattr(ranking, "_COLUMNS", columns)
        patch.setattr(ranking, "_WIDE_BYTES", 8 * items.shape[1] * wide)
        found = ranks_both_ways(queries, items, right, query_counts, item_counts)
    assert found[0].tolist() == by_definition(queries, items, right, item_counts)
    assert found[1].tolist() == by_definition(items, queries, right[::-1], query_counts)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 64), st.sampled_from(TYPES))
def test_equal_vectors_tie_exactly_wherever_they_lie(seed, d, dtype):
    """A hundred copies of one vector of any values: each query's rank is the number of its item, blocks or not."""
    row = np.random.default_rng(seed).normal(size=d)
    rows = np.tile((row / np.linalg.norm(row)).astype(dtype), (100, 1))
    numbers = np.arange(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_ROWS", 13)
        patch.setattr(ranking, "_COLUMNS", 7)
        assert best_ranks(rows, rows, np.stack([numbers, numbers])).tolist() == numbers.tolist()


def test_features_may_be_mapped_from_a_file(tmp_path):
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(40, 6)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    right = np.stack([np.arange(40), rng.permutation(40)])
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(best_ranks(mapped, mapped, right), best_ranks(rows, rows, right))


def test_a_query_without_a_right_item_comes_after_all():
    rows = np.eye(3, dtype=np.float32)
    assert best_ranks(rows, rows, np.array([[0], [0]]), np.array([1, 2, 3])).tolist() == [0, 6, 6]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_model_of_nan_is_not_a_perfect_one(wrong):
    rows = np.eye(4, dtype=np.float32)
    broken = rows.copy()
    broken[2, 1] = wrong
    right = np.stack([np.arange(4), np.arange(4)])
    with pytest.raises(CoreclipError, match="features of the queries are NaN or infinite"):
        best_ranks(broken, rows, right)
    with pytest.raises(CoreclipError, match="features of the items are NaN or infinite"):
        best_ranks(rows, broken, right)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 6), st.integers(1, 5))
def test_recalls_count_every_pair_and_caption_however_often_it_is_there(seed, n, n_images, n_texts):
    """Against the definition on the whole list, equal images and captions spelled out."""
    rng = np.random.default_rng(seed)
    pictures, _ = image_groups(np.array([f"{i}" for i in rng.integers(0, n_images, n)], object))
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 4, n))])
    groups, _ = text_groups([f"text {i}" for i in rng.integers(0, n_texts, offsets[-1])])
    images = rng.integers(-2, 3, (pictures.max() + 1, 3)).astype(np.float32)
    texts = rng.integers(-2, 3, (groups.max() + 1, 3)).astype(np.float32)
    found = retrieval_recalls(images, texts, pictures, groups, offsets)
    owner = np.repeat(np.arange(n), np.diff(offsets))
    scores = images[pictures].astype(int) @ texts[groups].T.astype(int)  # (pairs, captions)
    fits = np.array([[any(groups[owner == j] == groups[c]) and pictures[i] == pictures[j] for j in range(n)]
                     for i in range(n) for c in range(len(groups))]).any(1).reshape(scores.shape)  # fmt: skip
    for way, table, right, order in (
        ("image_to_text", scores, fits, groups),
        ("text_to_image", scores.T, fits.T, pictures),
    ):
        ranks = []
        for row, own in zip(table, right, strict=True):
            places = sorted(range(len(row)), key=lambda item: (-row[item], order[item]))
            ranks.append(next(rank for rank, item in enumerate(places) if own[item]))
        for k in (1, 5, 10):
            assert found[f"{way}_recall_at_{k}"] == pytest.approx(np.mean(np.array(ranks) < k))
            chance = np.mean(chance_at(k, right.sum(1), right.shape[1]))
            assert found[f"{way}_chance_at_{k}"] == pytest.approx(chance)
