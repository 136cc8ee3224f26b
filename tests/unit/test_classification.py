"""Prompts and zero-shot figures on features whose answer is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from coreclip.errors import CoreclipError
from coreclip.training import TEMPLATE_SETS, classification, read_templates
from coreclip.training.classification import zero_shot_metrics


def test_named_sets_are_plain_prompts_and_the_published_ensembles():
    assert all("{}" in template for templates in TEMPLATE_SETS.values() for template in templates)
    assert {name: len(templates) for name, templates in TEMPLATE_SETS.items()} == {
        "coreclip": 8,
        "clip-7": 7,
        "clip-80": 80,
        "photo": 1,
        "name": 1,
    }
    assert read_templates("clip-7") == TEMPLATE_SETS["clip-7"]


def test_templates_of_a_file_are_its_lines(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffein Foto von {}\n\n  {} im Schnee \n", encoding="utf-8")
    assert read_templates(str(file)) == ("ein Foto von {}", "{} im Schnee")


def test_the_eighty_templates_of_clip_hold_the_best_seven():
    eighty = TEMPLATE_SETS["clip-80"]
    assert len(eighty) == len(set(eighty)) == 80
    assert set(TEMPLATE_SETS["clip-7"]) < set(eighty)


def test_templates_that_are_none_are_refused(tmp_path):
    with pytest.raises(CoreclipError, match="'imagenet' is neither a set nor a file; give coreclip, clip-7"):
        read_templates("imagenet")
    (tmp_path / "latin").write_bytes(b"\xe9 {}\n")
    with pytest.raises(CoreclipError, match="is not UTF-8; save it as UTF-8, one template a line"):
        read_templates(str(tmp_path / "latin"))
    (tmp_path / "without").write_text("a photo of a dog\n")
    with pytest.raises(CoreclipError, match="are not allowed: a list in which each has"):
        read_templates(str(tmp_path / "without"))


def test_zero_shot_figures_are_those_of_scikit_learn(monkeypatch):
    rng = np.random.default_rng(0)
    classes = rng.normal(size=(7, 5)).astype(np.float32)
    labels = rng.integers(0, 7, 60)
    images = classes[labels] + rng.normal(size=(60, 5)).astype(np.float32)
    monkeypatch.setattr(classification, "_CELLS", 7 * 13)  # thirteen rows at a time
    found = zero_shot_metrics(images, labels, torch.from_numpy(classes), list("abcdefg"), confusion=True)
    scores = images @ classes.T
    predicted = scores.argmax(1)
    assert found["zero_shot_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["zero_shot_mean_per_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["zero_shot_top_5_accuracy"] == pytest.approx(
        top_k_accuracy_score(labels, scores, k=5, labels=range(7))
    )
    assert found["zero_shot_confusion"] == confusion_matrix(labels, predicted, labels=range(7)).tolist()
    for i, row in enumerate(found["zero_shot_per_class"]):
        assert (row["class"], row["pairs"]) == ("abcdefg"[i], (labels == i).sum())
        assert row["accuracy"] == pytest.approx((predicted[labels == i] == i).mean())


def test_a_class_without_pairs_has_no_accuracy_and_does_not_count():
    classes = torch.eye(3)
    found = zero_shot_metrics(np.eye(3, dtype=np.float16)[[0, 0, 1]], np.array([0, 0, 0]), classes, ["a", "b", "c"])
    assert found["zero_shot_accuracy"] == pytest.approx(2 / 3)
    assert found["zero_shot_mean_per_class_accuracy"] == pytest.approx(2 / 3)
    assert [row["accuracy"] for row in found["zero_shot_per_class"]] == [pytest.approx(2 / 3), None, None]
    assert found["zero_shot_top_5_accuracy"] is None
    assert "zero_shot_confusion" not in found


def test_memory_is_not_quadratic_in_the_classes():
    """A square of them would be eight terabytes."""
    classes = torch.zeros(1_000_000, 2)
    classes[3], classes[999_999] = torch.eye(2)
    labels = np.array([3, 999_999, 999_999])
    found = zero_shot_metrics(np.eye(2, dtype=np.float32)[[0, 1, 0]], labels, classes, ["a"] * 1_000_000)
    assert found["zero_shot_accuracy"] == pytest.approx(2 / 3)
    assert found["zero_shot_mean_per_class_accuracy"] == 0.75


def test_one_class_is_always_right():
    found = zero_shot_metrics(-np.ones((4, 2), np.float32), np.zeros(4, int), torch.ones(1, 2), ["a"], confusion=True)
    assert found["zero_shot_accuracy"] == found["zero_shot_chance"] == 1.0
    assert found["zero_shot_confusion"] == [[4]]
