"""How much a few labels, or many, add to frozen image features: few-shot classifiers and the linear probe.

The linear probe is that of Radford et al. 2021 (appendix A.3): scikit-learn's logistic regression by L-BFGS, its regularisation found
on a validation part by a search over twelve decades down to an eighth of one, then fitted anew to all that may be fitted to.

With a few shots there is no validation part: one would be more labels than the shots (Silva-Rodriguez et al. 2024, "A closer look at
the few-shot adaptation of large vision-language models"). So nothing is tuned there: logistic regression at C = 1, and beside it the
nearest class mean of centred unit features, which has nothing to tune and is hard to beat at one or two shots (Wang et al. 2019,
"SimpleShot"). Left out: a prior by the class names' texts, whose share would have to be tuned; zero-shot accuracy stands beside it.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from coreclip.errors import CoreclipError
from coreclip.progress import Progress
from coreclip.randomness import permutation
from coreclip.training import streams

LEAST_SPLIT = 5  # pairs to fit to and to test on
_TEST_FRACTION = _VALIDATION_FRACTION = 0.2
_COARSE = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # decades of C
_FINEST = 1 / 8


def linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit a logistic regression to frozen features, and test it.

    Parameters
    ----------
    features : float (n, d)
    labels : int64 (n,)
    test : (float (m, d), int64 (m,)), optional
        Features and labels to test on; without them a fifth of the pairs is.
    seed : int
        Of the split, and of that of the validation part: a fifth of what is fitted to.

    Returns
    -------
    dict
        ``linear_probe_accuracy``, ``linear_probe_chance`` (the commonest class of the training part),
        ``linear_probe_mean_per_class_accuracy``, ``linear_probe_c`` (the inverse of the regularisation's strength that was chosen),
        ``linear_probe_train_pairs``, ``linear_probe_test_pairs``.

    Raises
    ------
    CoreclipError
        For fewer than two classes or five pairs.
    """
    features = np.asarray(features, np.float32)
    check_linear_probe(labels, least=1 if test is not None else LEAST_SPLIT)
    if test is None:
        order = permutation(len(labels), seed)
        n_test = round(_TEST_FRACTION * len(labels))
        held, fitted = order[:n_test], order[n_test:]
        test = features[held], labels[held]
        features, labels = features[fitted], labels[fitted]
    check_linear_probe(labels)  # a split may leave one class
    c = _search_regularisation(features, labels, seed)
    predicted = _fit(features, labels, c).predict(np.asarray(test[0], np.float32))
    classes, counts = np.unique(labels, return_counts=True)
    commonest = classes[counts.argmax()]
    return {
        "linear_probe_accuracy": _accuracy(predicted, test[1]),
        "linear_probe_chance": float((test[1] == commonest).mean()),
        "linear_probe_mean_per_class_accuracy": _mean_per_class(predicted, test[1]),
        "linear_probe_c": c,
        "linear_probe_train_pairs": len(labels),
        "linear_probe_test_pairs": len(test[1]),
    }


def check_linear_probe(labels: np.ndarray, *, least: int = 1) -> None:
    """Refuse labels, int64 (n,), that no classifier can be fitted to, or fewer than ``least``."""
    if len(labels) < least or len(np.unique(labels)) < 2:
        raise CoreclipError(
            f"a linear probe on {len(labels)} pairs with {len(np.unique(labels))} classes is not possible; "
            f"it needs two classes and {LEAST_SPLIT} pairs at least; leave --linear-probe out"
        )


def _search_regularisation(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Return the best C on a validation part, the lowest of equals; 1 where the rest of it would be of one class."""
    order = permutation(len(labels), seed, stream=streams.PROBE_VALIDATION)
    n_validation = round(_VALIDATION_FRACTION * len(labels))
    validation, fitted = order[:n_validation], order[n_validation:]
    if not n_validation or len(np.unique(labels[fitted])) < 2:
        return 1.0
    found: dict[float, float] = {}
    with Progress(None, "fitting linear probes", "probes") as progress:

        def best_of(exponents: Sequence[float]) -> float:
            for exponent in exponents:
                if exponent not in found and _COARSE[0] <= exponent <= _COARSE[-1]:
                    probe = _fit(features[fitted], labels[fitted], 10.0**exponent)
                    found[exponent] = _accuracy(probe.predict(features[validation]), labels[validation])
                    progress.advance()
            return min(found, key=lambda exponent: (-found[exponent], exponent))

        best, step = best_of(_COARSE), (_COARSE[1] - _COARSE[0]) / 2
        while step >= _FINEST:
            best = best_of((best - step, best + step))
            step /= 2
    return float(10.0**best)


def few_shot(
    features: np.ndarray,
    labels: np.ndarray,
    shots: Sequence[int],
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    draws: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Fit classifiers to a few pairs of each class, several times, and test them.

    Parameters
    ----------
    features : float (n, d), unit norm
    labels : int64 (n,)
        The shots come from these; each class that is there gives as many.
    shots : sequence of int
        Pairs of each class.
    test : (float (m, d), int64 (m,)), optional
        Features and labels to test on; without them all pairs that no number of shots of the same draw uses.
    draws : int
        How often. Fewer shots of a draw are among the more of the same draw.
    seed : int

    Returns
    -------
    list of dict
        For each number: ``shots``, ``draws``, mean and sample standard deviation (0 for one draw) over the draws as
        ``logistic_accuracy``, ``logistic_accuracy_std``, ``nearest_mean_accuracy``, ``nearest_mean_accuracy_std``.

    Raises
    ------
    CoreclipError
        For numbers that are not above 0, fewer than two classes, and a class with too few pairs.
    """
    check_few_shot(labels, shots, draws, is_apart=test is not None)
    wanted = sorted(set(shots))
    most = wanted[-1]
    results: dict[int, list[tuple[float, float]]] = {k: [] for k in wanted}
    for draw in range(draws):
        places = _draw(labels, most, seed, draw)  # int64 (classes, most)
        left = test
        if left is None:
            others = np.setdiff1d(np.arange(len(labels)), places)
            left = np.asarray(features[others], np.float32), labels[others]
        for k in wanted:
            chosen = places[:, :k].ravel()
            few, own = np.asarray(features[chosen], np.float32), labels[chosen]
            predicted = _fit(few, own, 1.0).predict(left[0]), _nearest_mean(few, own, left[0])
            results[k].append((_accuracy(predicted[0], left[1]), _accuracy(predicted[1], left[1])))
    return [_summary(k, np.array(values)) for k, values in results.items()]


def check_few_shot(labels: np.ndarray, shots: Sequence[int], draws: int, *, is_apart: bool) -> None:
    """Refuse shots that labels, int64 (n,), do not have; not ``is_apart``: one more of each class is needed, to test on."""
    if not shots or min(shots) < 1 or draws < 1:
        raise CoreclipError(f"few_shot = {list(shots)} in {draws} draws is not allowed: numbers above 0, e.g. 1,2,4,8")
    most = max(shots)
    needed = most if is_apart else most + 1
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise CoreclipError(
            f"few shots of {len(classes)} class say nothing; two classes are needed; leave --few-shot out"
        )
    if counts.min() < needed:
        at = int(counts.argmin())
        raise CoreclipError(
            f"class {classes[at]} has {counts[at]} pairs, and {most} shots need {needed} of each; ask for fewer shots, or name a "
            "larger data set by --train"
        )


def _draw(labels: np.ndarray, k: int, seed: int, draw: int) -> np.ndarray:
    """Return k pairs of each class in a random order, int64 (classes, k)."""
    order = permutation(len(labels), seed, draw, stream=streams.SHOTS)
    own = labels[order]
    return np.stack([order[np.flatnonzero(own == label)[:k]] for label in np.unique(labels)])


def _nearest_mean(few: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the class whose mean is nearest after all have been centred by the shots' mean and brought to unit length."""
    centre = few.mean(0)
    few, test = _unit(few - centre), _unit(test - centre)
    classes = np.unique(labels)
    means = _unit(np.stack([few[labels == label].mean(0) for label in classes]))
    return classes[(test @ means.T).argmax(1)]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _summary(k: int, values: np.ndarray) -> dict[str, Any]:
    """Return the mean and the spread over draws of float64 (draws, 2)."""
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(2)
    return {
        "shots": k,
        "draws": len(values),
        "logistic_accuracy": float(values[:, 0].mean()),
        "logistic_accuracy_std": float(spread[0]),
        "nearest_mean_accuracy": float(values[:, 1].mean()),
        "nearest_mean_accuracy_std": float(spread[1]),
    }


def _fit(features: np.ndarray, labels: np.ndarray, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a thousand steps are the method's, whatever is left to gain
        return probe.fit(features, labels)


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    n = max(int(max(predicted.max(), labels.max())) + 1, 2)
    return float(
        multiclass_accuracy(torch.from_numpy(predicted), torch.from_numpy(labels), num_classes=n, average="micro")
    )


def _mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean accuracy over the classes that the labels have."""
    # Numbered anew: torchmetrics' memory is quadratic in the highest number.
    classes, number = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
    found, wanted = torch.from_numpy(number[: len(predicted)]), torch.from_numpy(number[len(predicted) :])
    per_class = multiclass_accuracy(found, wanted, num_classes=max(len(classes), 2), average=None)
    return float(per_class[wanted.unique()].mean())
