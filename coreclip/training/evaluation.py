"""How good a trained model is: retrieval both ways, zero-shot classification, a linear probe, few-shot classifiers.

One call embeds a data set, or takes its FEATURES, and measures all that is asked for. What each figure is, the modules say that make
it: :mod:`~coreclip.training.ranking`, :mod:`~coreclip.training.classification`, :mod:`~coreclip.training.probes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.selection import Features
from coreclip.training.classification import zero_shot_metrics
from coreclip.training.clip_model import ClipModel
from coreclip.training.features import all_image_features, load_features
from coreclip.training.pretrained import is_pretrained
from coreclip.training.probes import LEAST_SPLIT, check_few_shot, check_linear_probe
from coreclip.training.probes import few_shot as run_few_shot
from coreclip.training.probes import linear_probe as run_linear_probe
from coreclip.training.prompts import TEMPLATES, check_templates, class_features
from coreclip.training.ranking import image_groups, retrieval_recalls, text_groups
from coreclip.training.store import read_record

_ZERO_SHOT = ("accuracy", "chance", "top_5_accuracy", "mean_per_class_accuracy", "per_class")
_PROBE = ("accuracy", "chance", "mean_per_class_accuracy", "c", "train_pairs", "test_pairs")


def evaluate(
    run: str | Path | ClipModel,
    dataset: Dataset,
    *,
    features: str | Path | None = None,
    templates: Sequence[str] = TEMPLATES,
    class_names: Sequence[str] | None = None,
    confusion: bool = False,
    linear_probe: bool = False,
    few_shot: Sequence[int] = (),
    draws: int = 5,
    train: Dataset | None = None,
    train_features: str | Path | None = None,
    batch_size: int = 512,
    workers: int = 2,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a run on a data set.

    Parameters
    ----------
    run : path or ClipModel
        A finished run, a checkpoint of another tool, or a model that is loaded already (an export too); its own tokenizer reads the
        captions.
    dataset : Dataset
    features : path, optional
        FEATURES of this data set by this run, made by :func:`embed`; they are read where they lie, and nothing is embedded again.
    templates : sequence of str
        Prompts with ``{}`` for the class name; a class is the normalised mean of its prompts' features.
    class_names : sequence of str, optional
        In place of the data set's own, one for each label.
    confusion : bool
        Whether the zero-shot confusion matrix is returned too.
    linear_probe : bool
        Whether a logistic regression is fitted to the image features of ``train``, or of four fifths of the pairs, and tested on the
        data set, or on the rest.
    few_shot : sequence of int
        Of how many pairs of each class small classifiers are fitted: from ``train`` and tested on the data set, or from the data set
        and tested on its other pairs.
    draws : int
        How often the few pairs are drawn.
    train : Dataset, optional
        Where probes are fitted, with the same classes.
    train_features : path, optional
        FEATURES of ``train`` by this run.
    batch_size, workers : int
        Of the image loader.
    device : {"cpu", "cuda", "cuda:N", "auto"}
    seed : int
        Of the probes' splits and draws.

    Returns
    -------
    dict
        ``image_to_text_recall_at_1`` (5, 10), ``text_to_image_recall_at_1`` (5, 10): fractions; each with ``..._chance_at_...``, what a
        random order reaches. What :func:`~coreclip.training.classification.zero_shot_metrics` and
        :func:`~coreclip.training.probes.linear_probe` return, None where they do not apply; ``few_shot``, what
        :func:`~coreclip.training.probes.few_shot` returns, or None. ``pairs``, ``captions``, ``different_images``,
        ``different_captions``, and ``trained_on_this_data``
        (None where a checkpoint of another tool does not say).

    Raises
    ------
    CoreclipError
        For a run that can't be loaded, features of something else, templates or class names that do not fit, a probe without labels,
        a training data set of other classes.
    """
    labels = dataset.labels
    if class_names is not None and labels is None:
        raise CoreclipError("class names are given, but the data set has no class labels; leave them out")
    names = list(class_names) if class_names is not None else dataset.class_names
    templates = check_templates(templates)
    _check_classes(labels, names)
    asked = _Probes(linear_probe, tuple(few_shot), draws, seed)
    _check_probes(dataset, asked, train, train_features)
    if confusion and (labels is None or names is None):
        raise CoreclipError("a confusion matrix needs class labels and names, which the data set lacks; leave it out")
    if isinstance(run, ClipModel):
        if features is not None or train_features is not None:
            raise CoreclipError(
                "FEATURES are a run's, and a loaded model was given; give the run's folder, or leave them out"
            )
        clip, place = run, ""
    else:
        clip, place = ClipModel.load(run, device), str(run)
    stored = None if features is None else load_features(features, place, clip, dataset)
    images = all_image_features(clip, dataset, stored, batch_size=batch_size, workers=workers)
    result: dict[str, Any] = {
        "pairs": dataset.n,
        "trained_on_this_data": None if isinstance(run, ClipModel) else _trained_on(run, dataset),
    }
    result |= _retrieval(clip, dataset, images, stored)
    zero_shot = dict.fromkeys(f"zero_shot_{key}" for key in _ZERO_SHOT)
    if labels is not None and names is not None:
        classes = class_features(clip, names, templates)
        zero_shot = zero_shot_metrics(images, labels, classes, names, confusion=confusion)
    result |= zero_shot | dict.fromkeys(f"linear_probe_{key}" for key in _PROBE) | {"few_shot": None}
    if labels is not None and asked.any:
        fitted = None
        if train is not None:
            stored = None if train_features is None else load_features(train_features, place, clip, train)
            fitted = all_image_features(clip, train, stored, batch_size=batch_size, workers=workers), _labels_of(train)
        result |= _probe(asked, (images, labels), fitted)
    return result


@dataclass(frozen=True)
class _Probes:
    """Which probes are asked for."""

    linear: bool
    shots: tuple[int, ...]
    draws: int
    seed: int

    @property
    def any(self) -> bool:
        return self.linear or bool(self.shots)


def _trained_on(run: str | Path, dataset: Dataset) -> bool | None:
    """Whether a run was trained on a data set; None for a checkpoint of another tool, which does not say."""
    if is_pretrained(run):
        return None
    path = Path(run)
    return (path / "run.json").is_file() and read_record(path)["asked"]["fingerprint"] == dataset.fingerprint


def _check_classes(labels: np.ndarray | None, names: list[str] | None) -> None:
    if labels is not None and names is not None and len(names) <= labels.max():
        raise CoreclipError(
            f"{len(names)} class names for labels up to {labels.max()}; each label needs a name; give {labels.max() + 1} of them"
        )


def _check_probes(dataset: Dataset, asked: _Probes, train: Dataset | None, train_features: str | Path | None) -> None:
    for wanted, name, option in (
        (asked.linear, "a linear probe", "--linear-probe"),
        (asked.shots, "few shots", "--few-shot"),
    ):
        if wanted and dataset.labels is None:
            verb = "needs" if name.startswith("a ") else "need"
            raise CoreclipError(f"{name} {verb} class labels, and the data set has none; leave {option} out")
    if train is None and train_features is not None:
        raise CoreclipError(f"features of a training data set ({train_features}) without one; name it by --train")
    if train is not None:
        _check_train(dataset, asked, train)
    labels = dataset.labels if train is None else train.labels
    if labels is not None and asked.linear:
        check_linear_probe(labels, least=1 if train is not None else LEAST_SPLIT)
    if labels is not None and asked.shots:
        check_few_shot(labels, asked.shots, asked.draws, is_apart=train is not None)


def _check_train(dataset: Dataset, asked: _Probes, train: Dataset) -> None:
    if not asked.any:
        raise CoreclipError(f"{train.path} is for probes, and none is asked for; add --linear-probe or --few-shot")
    _labels_of(train)
    if train.fingerprint == dataset.fingerprint:
        raise CoreclipError(
            f"{train.path} is the data set that is tested on, whose labels probes must not know; leave --train out, and a part is kept "
            "back, or name another one"
        )
    if None not in (train.class_names, dataset.class_names) and train.class_names != dataset.class_names:
        raise CoreclipError(
            f"{train.path} and {dataset.path} have other classes, and label 3 of one must be label 3 of the other; "
            "convert both with the same --classes"
        )


def _labels_of(train: Dataset) -> np.ndarray:
    if train.labels is None:
        raise CoreclipError(f"{train.path} has no class labels, which probes are fitted to; name another --train")
    return train.labels


def _retrieval(clip: ClipModel, dataset: Dataset, images: np.ndarray, stored: Features | None) -> dict[str, Any]:
    """Recalls both ways; of equal images and of equal texts one is ranked, and one text is encoded."""
    texts, offsets = dataset.all_captions()
    images_by, texts_by = image_groups(dataset.metadata("content_hash")), text_groups(texts)
    own = images if len(images_by[1]) == len(images) else images[images_by[1]]
    if stored is not None and stored.captions is not None:
        if len(stored.captions) != len(texts):
            raise CoreclipError(
                f"the features have {len(stored.captions)} captions, the data set {len(texts)}; embed it again"
            )
        rows = stored.captions if len(texts_by[1]) == len(texts) else stored.captions[texts_by[1]]
    else:
        rows = clip.encode_text([texts[i] for i in texts_by[1].tolist()]).cpu().numpy()
    counts = {"captions": len(texts), "different_images": len(own), "different_captions": len(rows)}
    return counts | retrieval_recalls(own, rows, images_by[0], texts_by[0], offsets)


def _probe(
    asked: _Probes, own: tuple[np.ndarray, np.ndarray], fitted: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """Fit what is asked for to ``fitted`` and test it on ``own``, or do both with the latter; each is features and labels."""
    source, test = (own, None) if fitted is None else (fitted, (np.asarray(own[0], np.float32), own[1]))
    result: dict[str, Any] = {}
    if asked.linear:
        result |= run_linear_probe(*source, test=test, seed=asked.seed)
    if asked.shots:
        result["few_shot"] = run_few_shot(*source, asked.shots, test=test, draws=asked.draws, seed=asked.seed)
    return result
