"""Zero-shot classification of many images by class features, measured by torchmetrics a chunk at a time.

After Radford et al. 2021: the class whose feature is nearest is the answer. Beside the accuracy over pairs stand the mean over the
classes, which rare classes count in as much as common ones (ImageNet's and CLIP_benchmark's second figure), and that of each class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

_CELLS = 1 << 24  # scores that are held at a time
_TOP = 5


def zero_shot_metrics(
    images: np.ndarray, labels: np.ndarray, classes: Tensor, names: Sequence[str], *, confusion: bool = False
) -> dict[str, Any]:
    """Measure how well class features classify images.

    Parameters
    ----------
    images : float16 or float32 (n, d)
        May be mapped from a file.
    labels : int64 (n,)
    classes : float32 (classes, d)
    names : sequence of str
        Of the classes.
    confusion : bool
        Whether the confusion matrix is returned too.

    Returns
    -------
    dict
        ``zero_shot_accuracy``, ``zero_shot_chance`` (1 / classes), ``zero_shot_top_5_accuracy`` (None for five classes or fewer),
        ``zero_shot_mean_per_class_accuracy`` over the classes that have pairs, ``zero_shot_per_class``, a list of ``class``, ``pairs``
        and ``accuracy`` (None without pairs), and, where it was asked for, ``zero_shot_confusion``: a row of counts for each true
        class.
    """
    n_classes = len(classes)
    metrics = _metrics(n_classes, confusion)
    classes = classes.cpu().float()
    # Counted here: torchmetrics' accuracy of each class takes memory that is quadratic in the classes.
    pairs, right = np.bincount(labels, minlength=n_classes), np.zeros(n_classes, np.int64)
    rows = max(_CELLS // max(n_classes, 2), 1)
    for start in range(0, len(images), rows):
        scores = torch.from_numpy(np.asarray(images[start : start + rows], np.float32)) @ classes.T
        own = labels[start : start + rows]
        right += np.bincount(own[scores.argmax(1).numpy() == own], minlength=n_classes)
        if n_classes == 1:  # torchmetrics knows no fewer than two
            scores = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf)
        metrics.update(scores, torch.from_numpy(own))
    found = metrics.compute()
    per_class = [float(right[i] / pairs[i]) if pairs[i] else None for i in range(n_classes)]
    result: dict[str, Any] = {
        "zero_shot_accuracy": float(found["accuracy"]),
        "zero_shot_chance": 1 / n_classes,
        "zero_shot_top_5_accuracy": float(found["top_5"]) if "top_5" in found else None,
        "zero_shot_mean_per_class_accuracy": float(np.mean([value for value in per_class if value is not None])),
        "zero_shot_per_class": [
            {"class": name, "pairs": int(pairs[i]), "accuracy": per_class[i]} for i, name in enumerate(names)
        ],
    }
    if confusion:
        result["zero_shot_confusion"] = found["confusion"][:n_classes, :n_classes].tolist()
    return result


def _metrics(n_classes: int, confusion: bool) -> MetricCollection:
    n = max(n_classes, 2)
    metrics: dict[str, Any] = {"accuracy": MulticlassAccuracy(n, average="micro")}
    if n_classes > _TOP:
        metrics["top_5"] = MulticlassAccuracy(n, average="micro", top_k=_TOP)
    if confusion:
        metrics["confusion"] = MulticlassConfusionMatrix(n)
    return MetricCollection(metrics, compute_groups=False)
