"""ClipCov (Joshi & Mirzasoleiman 2024, Data-Efficient Contrastive Language-Image Pretraining, arXiv 2403.12267).

Pairs of each latent class that keep the class's image-text cross-covariance: like all of their class, in agreement with
themselves, unlike other classes, and unlike what is already chosen. Left out: choosing across classes by one common score, as the
published code does; here a class's budget is in proportion to its size, so that terms that are equal for a class play no part.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.selection.checks import check_k, check_labels
from coreclip.selection.clusters import apportion, groups, spherical_kmeans, take_turns
from coreclip.selection.features import Features
from coreclip.selection.scores import clip_scores
from coreclip.selection.subset import Subset

_CLUSTER_PAIRS = 2000  # of a cluster, on average
_BLOCK = 1 << 14  # rows
_LOOKAHEAD = 64  # candidates whose similarities to their class are multiplied at a time
_KEPT = 1024  # such products that wait for their candidate to be chosen


def clipcov(
    features: Features,
    k: int,
    *,
    classes: str | None = None,
    clusters: int | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
) -> Subset:
    """Choose k pairs that keep the cross-covariance of images and texts within each latent class.

    Parameters
    ----------
    features : Features
        With image and text.
    k : int
        1 to n, shared out among the classes in proportion to their sizes.
    classes : str or None
        Path of features of the class prompts, one row for each class (text where there is one, else image). A pair's class is
        its label, else the prompt that its image is most similar to.
    clusters : int or None
        Number of k-means clusters of the images and texts together, the classes where there are no labels and no prompts; None
        for one per 2,000 pairs.
    labels : int (n,) or None
        Class of each pair; rows of ``classes`` where those are given too.
    seed : int
        Of the clusters.

    Returns
    -------
    Subset
        Gains are those of the objective F below and sum to it; classes take turns, so that prefixes are balanced. Weights are 1.

    Raises
    ------
    CoreclipError
        For a missing modality, labels and prompts that do not fit, and parameters out of range.

    Notes
    -----
    With s_ij = <u_i, t_j> of image i and text j, V_c the pairs of class c, m_c their number, C the number of classes and S_c the
    chosen pairs of class c::

        score_i = 1/m_c sum_{j in V_c} (s_ij + s_ji) + 2 s_ii + 1/2 <t_i, prompt_c>
                  - 1/(C - 1) sum_{c' != c} 1/m_c' sum_{j in V_c'} (s_ij + s_ji)
        F(S) = sum_c [ sum_{i in S_c} score_i - 1/m_c sum_{i, j in S_c, i < j} (s_ij + s_ji) ]

    The term of the prompt is there where ``classes`` are given. A pick's gain is its score less 1/m_c sum_{j in S_c} (s_ij + s_ji).
    Within a class the greedy choice is exact, ties to the lowest index, whatever the signs of the similarities; F is submodular
    where they are not negative. Sums over classes are products with their mean vectors, O(n d); the greedy multiplies little more
    than the k_c chosen pairs of a class with its m_c members, and keeps that product for one class at a time.
    """
    start = time.perf_counter()
    n = features.n
    check_k(k, n)
    features.check_both("clipcov needs")
    latent = _latent_classes(features, classes, clusters, labels, seed)
    members = groups(latent.of_pair)
    scores = _scores(features, members, latent)
    budgets = apportion(np.array([len(rows) for rows in members]), k)
    indices, gains = _choose(features, members, budgets, scores)
    return Subset(
        indices=indices,
        weights=np.ones(k),
        gains=gains,
        objective=float(gains.sum()),
        method="clipcov",
        parameters={"classes": len(members), "classes_from": latent.source, "prompts": classes},
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=features.fingerprint,
    )


@dataclass(frozen=True, eq=False)
class _Latent:
    """Classes of the pairs (int64 (n,)), where they are from, and the prompts' unit vectors (C, d) where there are any."""

    of_pair: np.ndarray
    source: str
    prompts: np.ndarray | None = None


def _latent_classes(features: Features, classes: str | None, clusters: int | None, labels: Any, seed: int) -> _Latent:
    if clusters is not None and (labels is not None or classes is not None):
        other = "labels" if labels is not None else "class prompts"
        raise CoreclipError(f"clusters = {clusters} beside {other}: classes come from one of them; leave the other out")
    prompts = None if classes is None else _load_prompts(classes, features.dim)
    if labels is not None:
        of_pair = check_labels(labels, features.n)
        if prompts is not None:
            _check_rows(of_pair, prompts)
        return _Latent(of_pair, "labels", prompts)
    if prompts is not None:
        return _Latent(_zero_shot(features, prompts), "prompts", prompts)
    n_clusters = -(-features.n // _CLUSTER_PAIRS) if clusters is None else clusters
    return _Latent(spherical_kmeans(features.vectors("both"), n_clusters, seed)[0], "clusters")


def _load_prompts(path: str, dim: int) -> np.ndarray:
    found = Features.load(path)
    if found.dim != dim:
        raise CoreclipError(
            f"the class prompts at {path} have {found.dim} dimensions, the pairs {dim}; embed both with one model"
        )
    return found.vectors("image" if found.text is None else "text")


def _check_rows(labels: np.ndarray, prompts: np.ndarray) -> None:
    if labels.min() < 0 or labels.max() >= len(prompts):
        raise CoreclipError(
            f"labels from {labels.min()} to {labels.max()} and {len(prompts)} class prompts: "
            f"a label must be a row of the prompts, 0 to {len(prompts) - 1}"
        )


def _zero_shot(features: Features, prompts: np.ndarray) -> np.ndarray:
    found = np.empty(features.n, np.int64)
    for rows, block in features.blocks(_BLOCK):
        found[rows] = np.argmax(block.vectors("image") @ prompts.T, axis=1)
    return found


def _scores(features: Features, members: list[np.ndarray], latent: _Latent) -> np.ndarray:
    """Return score_i of the notes, float64 (n,)."""
    image_means, text_means = (_means(features, members, modality) for modality in ("image", "text"))
    others = max(len(members) - 1, 1)
    scores = 2 * clip_scores(features).astype(np.float64)
    for c, of_class in enumerate(members):
        # Of the other classes there are C - 1, but for one class alone, whose sum is 0.
        to_texts = text_means[c] - (text_means.sum(axis=0) - text_means[c]) / others
        to_images = image_means[c] - (image_means.sum(axis=0) - image_means[c]) / others
        if latent.prompts is not None:
            to_images = to_images + latent.prompts[latent.of_pair[of_class[0]]] / 2
        for rows in _blocks(of_class):
            pairs = features.take(rows)
            scores[rows] += pairs.vectors("image") @ to_texts + pairs.vectors("text") @ to_images
    return scores


def _means(features: Features, members: list[np.ndarray], modality: str) -> np.ndarray:
    """Return the mean vector of each class, float64 (C, d)."""
    means = np.zeros((len(members), features.dim))
    for c, of_class in enumerate(members):
        for rows in _blocks(of_class):
            means[c] += features.take(rows).vectors(modality).sum(axis=0, dtype=np.float64)
        means[c] /= len(of_class)
    return means


def _choose(
    features: Features, members: list[np.ndarray], budgets: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the picks and gains of all classes, which take turns."""
    indices, gains = [], []
    with Progress(int(budgets.sum()), "choosing", "pairs") as progress:
        for rows, budget in zip(members, budgets.tolist(), strict=True):
            if budget:
                pairs = features.take(rows)
                picks, added = greedy_class(pairs.vectors("image"), pairs.vectors("text"), scores[rows], budget)
                indices.append(rows[picks])
                gains.append(added)
                progress.advance(budget)
    order = take_turns(budgets)
    return np.concatenate(indices)[order], np.concatenate(gains)[order]


def greedy_class(images: np.ndarray, texts: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose k pairs of one class greedily.

    Parameters
    ----------
    images, texts : float32 (m, d)
        Unit rows.
    scores : float64 (m,)
    k : int
        1 to m.

    Returns
    -------
    picks : int64 (k,)
        In order of choice; ties go to the lowest row.
    gains : float64 (k,)
        ``scores[i] - 1/m sum over the earlier picks j of (<u_i, t_j> + <t_i, u_j>)``.
    """
    m = len(scores)
    current = scores.astype(np.float64)
    chosen = np.zeros(m, bool)
    picks, gains = np.empty(k, np.int64), np.empty(k)
    columns: dict[int, np.ndarray] = {}
    for t in range(k):
        best = int(np.argmax(current))
        if best not in columns:
            if len(columns) > _KEPT:
                columns.clear()
            # What leads now will soon be chosen: one product for many of them is much faster than one for each.
            columns |= _columns(images, texts, _leaders(current, min(_LOOKAHEAD, k - t), columns))
        picks[t], gains[t] = best, current[best]
        chosen[best] = True
        current -= columns.pop(best)
        current[chosen] = -np.inf
    return picks, gains


def _leaders(current: np.ndarray, size: int, known: dict[int, np.ndarray]) -> np.ndarray:
    """Return the best of the rows that are not known yet, always with the very best among them."""
    open_ = current.copy()
    open_[list(known)] = -np.inf
    leaders = np.argpartition(-open_, size - 1)[:size]
    return np.union1d(leaders[np.isfinite(open_[leaders])], int(np.argmax(open_)))


def _columns(images: np.ndarray, texts: np.ndarray, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Return what each of the rows takes from every row once it is chosen, float32 (m,)."""
    products = images[rows] @ texts.T
    products += texts[rows] @ images.T
    products /= len(images)
    return dict(zip(rows.tolist(), products, strict=True))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
