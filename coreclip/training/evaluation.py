"""How good a trained model is: retrieval both ways, zero-shot classification, a linear probe.

Retrieval as in CLIP_benchmark and big_vision's ``retrieval.py``, with one difference that small and class-labelled data need: a hit is
any pair that says the same as the query's own, since no model can tell equal captions apart. Ranks are exact and computed in chunks,
so memory stays bounded. Accuracies come from torchmetrics; the probe is scikit-learn's logistic regression.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.randomness import permutation
from coreclip.training.clip_model import ClipModel
from coreclip.training.features import image_features
from coreclip.training.pretrained import is_pretrained
from coreclip.training.store import read_record

RECALL_AT = (1, 5, 10)
TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a picture of a {}",
    "a small photo of a {}",
    "a large photo of a {}",
    "a close-up photo of a {}",
    "a blurry photo of a {}",
    "a drawing of a {}",
)
_SCORES_PER_CHUNK = 1 << 24  # 64 MiB of float32
_PROBE_TEST_FRACTION = 0.2


def evaluate(
    run: str | Path,
    dataset: Dataset,
    *,
    templates: Sequence[str] = TEMPLATES,
    class_names: Sequence[str] | None = None,
    linear_probe: bool = False,
    batch_size: int = 512,
    workers: int = 2,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a run on a data set.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool; its own tokenizer reads the captions.
    dataset : Dataset
    templates : sequence of str
        Prompts with ``{}`` for the class name; a class is the normalised mean of its prompts' features.
    class_names : sequence of str, optional
        In place of the data set's own, one for each label.
    linear_probe : bool
        Whether a logistic regression is fitted to the image features of four fifths of the pairs and tested on the rest.
    batch_size, workers : int
        Of the image loader.
    device : {"cpu", "cuda", "auto"}
    seed : int
        Of the linear probe's split.

    Returns
    -------
    dict
        ``image_to_text_recall_at_1`` (5, 10), ``text_to_image_recall_at_1`` (5, 10): fractions; each with ``..._chance_at_...``, what a
        random order reaches. ``zero_shot_accuracy`` and ``linear_probe_accuracy`` with ``zero_shot_chance`` and
        ``linear_probe_chance`` (the commonest class); None where they do not apply. ``pairs``, ``captions``, and
        ``trained_on_this_data`` (None where a checkpoint of another tool does not say).

    Raises
    ------
    CoreclipError
        For a run that can't be loaded, templates or class names that do not fit, a probe without labels.
    """
    labels = dataset.labels
    names = list(class_names) if class_names is not None else dataset.class_names
    _check_classes(labels, names, templates, linear_probe)
    clip = ClipModel.load(run, device)
    loader = image_features(clip, dataset, batch_size=batch_size, workers=workers)
    images = torch.cat([rows for _, rows in loader])
    texts, offsets = dataset.all_captions()
    result: dict[str, Any] = {
        "pairs": dataset.n,
        "captions": len(texts),
        "trained_on_this_data": _trained_on(run, dataset),
    }
    result |= _retrieval(clip, images, texts, offsets)
    zero_shot: dict[str, Any] = {"zero_shot_accuracy": None, "zero_shot_chance": None}
    if labels is not None and names is not None:
        accuracy = _zero_shot(images, torch.tensor(labels), class_features(clip, names, templates))
        zero_shot = {"zero_shot_accuracy": accuracy, "zero_shot_chance": 1 / len(names)}
    probe: dict[str, Any] = {"linear_probe_accuracy": None, "linear_probe_chance": None}
    if linear_probe and labels is not None:
        accuracy, chance = linear_probe_accuracy(images.cpu().numpy(), labels, seed=seed)
        probe = {"linear_probe_accuracy": accuracy, "linear_probe_chance": chance}
    return result | zero_shot | probe


def _trained_on(run: str | Path, dataset: Dataset) -> bool | None:
    """Whether a run was trained on a data set; None for a checkpoint of another tool, which does not say."""
    return None if is_pretrained(run) else read_record(Path(run))["asked"]["fingerprint"] == dataset.fingerprint


def _check_classes(
    labels: np.ndarray | None, names: list[str] | None, templates: Sequence[str], linear_probe: bool
) -> None:
    if labels is None:
        if linear_probe:
            raise CoreclipError(
                "a linear probe needs class labels, and the data set has none; leave --linear-probe out"
            )
        return
    if names is not None and len(names) <= labels.max():
        raise CoreclipError(
            f"{len(names)} class names for labels up to {labels.max()}; each label needs a name; give {labels.max() + 1} of them"
        )
    if isinstance(templates, str) or not templates or any("{}" not in template for template in templates):
        raise CoreclipError(
            f"templates = {templates!r} are not allowed: a list in which each has {{}} for the class name"
        )


# ------------------------------------------------------------------------------------------------------------------- retrieval


def _retrieval(clip: ClipModel, images: Tensor, texts: list[str], offsets: np.ndarray) -> dict[str, float]:
    """Recall and chance both ways; each different text is encoded and ranked once, however often it occurs."""
    groups, unique = text_groups(texts)
    counts = np.bincount(groups, minlength=len(unique))
    # One (image, text) entry for each caption of each pair, duplicates dropped.
    owners = np.repeat(np.arange(len(images)), np.diff(offsets))
    owned = np.unique(np.stack([owners, groups]), axis=1)  # int64 (2, entries)
    features = clip.encode_text(unique)
    result: dict[str, float] = {}
    for way, ranks, weights, right, pool in (
        ("image_to_text", best_ranks(images, features, owned, counts), None,
         np.bincount(owned[0], weights=counts[owned[1]], minlength=len(images)), len(texts)),
        ("text_to_image", best_ranks(features, images, owned[::-1]), counts,
         np.bincount(owned[1], minlength=len(unique)), len(images)),
    ):  # fmt: skip
        for k in RECALL_AT:
            result[f"{way}_recall_at_{k}"] = recall_at(ranks, k, weights)
            result[f"{way}_chance_at_{k}"] = float(np.average(_chance_at(k, right, pool), weights=weights))
    return result


def text_groups(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Number the different texts, case and runs of spaces aside.

    Returns
    -------
    groups : int64 (len(texts),)
    unique : list of str
        The first text of each group, in order of appearance.
    """
    number: dict[str, int] = {}
    unique: list[str] = []
    groups = np.empty(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        key = " ".join(text.lower().split())
        if key not in number:
            number[key] = len(unique)
            unique.append(text)
        groups[i] = number[key]
    return groups, unique


def best_ranks(queries: Tensor, items: Tensor, right: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Return for each query how many wrong items come before its first right one.

    Parameters
    ----------
    queries : float32 (q, d)
    items : float32 (m, d)
    right : int64 (2, entries)
        Pairs (query, item) that belong together; each query has one at least.
    counts : int64 (m,), optional
        How many equal items each one stands for; None: one.

    Returns
    -------
    int64 (q,)
        0 for a hit at once. Of equal scores the item of the lower number comes first, so that a model that has collapsed is at
        chance, not at 1.
    """
    n_items = len(items)
    item_counts = torch.ones(n_items) if counts is None else torch.from_numpy(counts)
    item_counts = item_counts.to(items.device, torch.float32)
    order = np.argsort(right[0], kind="stable")
    query_of, item_of = torch.from_numpy(right[0][order]), torch.from_numpy(right[1][order])
    ranks = torch.empty(len(queries), dtype=torch.int64)
    chunk = max(1, _SCORES_PER_CHUNK // n_items)
    for begin in range(0, len(queries), chunk):
        end = min(begin + chunk, len(queries))
        first, last = torch.searchsorted(query_of, torch.tensor([begin, end])).tolist()
        is_right = torch.zeros(end - begin, n_items, dtype=torch.bool)
        is_right[query_of[first:last] - begin, item_of[first:last]] = True
        ranks[begin:end] = _ranks_of_chunk(queries[begin:end] @ items.T, is_right.to(items.device), item_counts).cpu()
    return ranks.numpy()


def _ranks_of_chunk(scores: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    best, place = scores.masked_fill(~right, -torch.inf).max(1, keepdim=True)
    # max() promises no order among equals: the first of them is looked for.
    place = ((scores == best) & right).to(torch.uint8).argmax(1, keepdim=True)
    columns = torch.arange(scores.shape[1], device=scores.device)
    before = ~right & ((scores > best) | ((scores == best) & (columns < place)))
    return (before * counts).sum(1, dtype=torch.float64).long()


def recall_at(ranks: np.ndarray, k: int, weights: np.ndarray | None = None) -> float:
    """Return the (weighted) fraction of queries with a right item among the first ``k``.

    Parameters
    ----------
    ranks : int64 (q,)
        Wrong items before the first right one.
    k : int
    weights : number (q,), optional
    """
    return float(np.average(ranks < k, weights=weights))


def _chance_at(k: int, right: np.ndarray, pool: int) -> np.ndarray:
    """Probability that one of ``right`` of ``pool`` items is among the first ``k`` of a random order."""
    miss = np.ones(len(right))
    for drawn in range(min(k, pool)):
        miss *= np.maximum(pool - right - drawn, 0) / (pool - drawn)
    return 1 - miss


# -------------------------------------------------------------------------------------------------------------- classification


def class_features(clip: ClipModel, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Return float32 (classes, d): each class's normalised mean over the prompts (the ensemble of Radford et al. 2021)."""
    prompts = [template.replace("{}", name.replace("_", " ")) for name in names for template in templates]
    mean = clip.encode_text(prompts).view(len(names), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=1)


def _zero_shot(images: Tensor, labels: Tensor, classes: Tensor) -> float:
    predicted = (images @ classes.T).argmax(1).cpu()
    return float(multiclass_accuracy(predicted, labels, num_classes=max(len(classes), 2), average="micro"))


def linear_probe_accuracy(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """Fit a logistic regression to frozen features of four fifths of the pairs, test it on the rest.

    Parameters
    ----------
    features : float32 (n, d)
    labels : int64 (n,)
    seed : int

    Returns
    -------
    accuracy, chance : float
        Chance is the accuracy of the commonest class of the training part.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = permutation(len(labels), seed)
    n_test = round(_PROBE_TEST_FRACTION * len(labels))
    test, fitted = order[:n_test], order[n_test:]
    if n_test == 0 or len(np.unique(labels[fitted])) < 2:
        raise CoreclipError(
            f"a linear probe on {len(labels)} pairs with {len(np.unique(labels))} classes is not possible; "
            "it needs two classes and five pairs at least; leave --linear-probe out"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features[fitted], labels[fitted])
    predicted = torch.from_numpy(probe.predict(features[test]))
    truth = torch.tensor(labels[test])
    classes = int(labels.max()) + 1
    accuracy = float(multiclass_accuracy(predicted, truth, num_classes=max(classes, 2), average="micro"))
    return accuracy, float((labels[test] == np.bincount(labels[fitted]).argmax()).mean())
