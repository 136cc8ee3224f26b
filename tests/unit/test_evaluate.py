"""Retrieval, zero-shot and probe on features whose answer is known, and on a run."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coreclip.errors import CoreclipError
from coreclip.training import ClipModel, embed, evaluate, evaluation, ranking, train
from coreclip.training import features as features_module
from coreclip.training.features import encode_unique, mean_direction
from coreclip.training.prompts import class_features
from coreclip.training.ranking import best_ranks, chance_at, recall_at, text_groups
from tests.helpers import BY_HEART, make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Twelve pairs and a run that knows them by heart."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_dataset(folder / "set", 12, captions_per_pair=(2, 1, 3))
    train(data, folder / "run", config=BY_HEART, epochs=40)
    return data, folder / "run"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("labelled") / "set", 12, labels=("red cat", "dog"))


def unit(rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_a_perfect_model_has_recall_one():
    items = torch.eye(20)
    own = np.stack([np.arange(20), np.arange(20)])
    ranks = best_ranks(items, items, own)
    assert (ranks == 0).all()
    assert recall_at(ranks, 1) == 1.0


def test_known_ranks():
    # One query, items in falling order of score; the right one is the third.
    queries, items = unit([[1, 0]]), unit([[1, 0], [1, 0.5], [1, 1], [0, 1]])
    assert best_ranks(queries, items, np.array([[0], [2]])).tolist() == [2]
    assert best_ranks(queries, items, np.array([[0, 0], [3, 1]])).tolist() == [1]  # the better of two counts
    assert best_ranks(queries, items, np.array([[0], [2]]), np.array([3, 1, 1, 1])).tolist() == [
        4
    ]  # the first stands for 3
    assert recall_at(np.array([2, 0, 7]), 5) == pytest.approx(2 / 3)
    assert recall_at(np.array([2, 0, 7]), 5, np.array([1, 1, 6])) == pytest.approx(1 / 4)


def test_equal_scores_go_to_the_lowest_item_so_that_a_collapsed_model_is_at_chance():
    same = torch.ones(50, 2) / math.sqrt(2)
    ranks = best_ranks(same, same, np.stack([np.arange(50), np.arange(50)]))
    assert ranks.tolist() == list(range(50))
    assert recall_at(ranks, 1) == 1 / 50


def test_chunks_do_not_change_the_ranks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(30, 4, generator=generator), torch.randn(40, 4, generator=generator)
    right = np.stack([np.arange(30)[::-1], np.arange(30)])
    whole = best_ranks(queries, items, right)
    monkeypatch.setattr(ranking, "_ROWS", 7)
    monkeypatch.setattr(ranking, "_COLUMNS", 3)
    monkeypatch.setattr(ranking, "_WIDE_BYTES", 8 * 4 * 9)  # nine items at a time
    assert np.array_equal(best_ranks(queries, items, right), whole)


def test_texts_are_equal_whatever_their_case_and_spaces():
    groups, first = text_groups(["A dog", "a  dog ", "a cat"])
    assert groups.tolist() == [0, 0, 1]
    assert first.tolist() == [0, 2]


def test_chance_is_what_a_random_order_reaches():
    assert chance_at(1, np.array([1]), 100).item() == pytest.approx(0.01)
    assert chance_at(10, np.array([1]), 100).item() == pytest.approx(0.1)
    assert chance_at(2, np.array([2]), 4).item() == pytest.approx(1 - 2 / 4 * 1 / 3)
    assert chance_at(10, np.array([1]), 3).item() == 1.0


def test_a_run_that_learned_its_data_by_heart_finds_it(trained):
    data, run = trained
    result = evaluate(run, data)
    assert result["trained_on_this_data"]
    assert (result["pairs"], result["captions"]) == (12, 24)
    assert result["text_to_image_recall_at_1"] > 0.5
    assert result["image_to_text_recall_at_10"] == 1.0
    assert result["text_to_image_chance_at_1"] == pytest.approx(1 / 12)
    assert result["image_to_text_chance_at_1"] == pytest.approx(2 / 24)
    for way in ("image_to_text", "text_to_image"):
        values = [result[f"{way}_recall_at_{k}"] for k in (1, 5, 10)]
        assert values == sorted(values)
    assert result["zero_shot_accuracy"] is None
    assert result["linear_probe_accuracy"] is None
    with pytest.raises(CoreclipError, match="a linear probe needs class labels"):
        evaluate(run, data, linear_probe=True)


def test_labels_bring_zero_shot_and_the_probe(trained, labelled):
    result = evaluate(trained[1], labelled, linear_probe=True)
    assert not result["trained_on_this_data"]
    assert 0 <= result["zero_shot_accuracy"] <= 1
    assert result["zero_shot_chance"] == 0.5
    assert 0 <= result["linear_probe_accuracy"] <= 1
    json.dumps(result, allow_nan=False)


def test_every_figure_of_a_labelled_data_set_is_there(trained, labelled, tmp_path_factory):
    train = make_dataset(tmp_path_factory.mktemp("train") / "set", 20, labels=("red cat", "dog"))
    result = evaluate(
        trained[1],
        labelled,
        confusion=True,
        linear_probe=True,
        few_shot=[1, 2],
        draws=2,
        train=train,
        templates=["a {}"],
    )
    assert sum(map(sum, result["zero_shot_confusion"])) == 12
    assert [row["class"] for row in result["zero_shot_per_class"]] == ["red cat", "dog"]
    assert result["zero_shot_top_5_accuracy"] is None
    assert result["zero_shot_mean_per_class_accuracy"] == pytest.approx(result["zero_shot_accuracy"])  # six of each
    assert (result["linear_probe_train_pairs"], result["linear_probe_test_pairs"]) == (20, 12)
    assert [row["shots"] for row in result["few_shot"]] == [1, 2]
    json.dumps(result, allow_nan=False)


def test_probes_and_their_training_data_must_fit(trained, labelled, tmp_path_factory, monkeypatch):
    data, run = trained
    others = make_dataset(tmp_path_factory.mktemp("others") / "set", 6, labels=("dog", "red cat"))
    cases = (
        (data, {"few_shot": [1]}, "few shots need class labels, and the data set has none; leave --few-shot out"),
        (data, {"confusion": True}, "a confusion matrix needs class labels and names"),
        (labelled, {"linear_probe": True, "train": data}, "has no class labels, which probes are fitted to"),
        (labelled, {"train": others}, "is for probes, and none is asked for; add --linear-probe or --few-shot"),
        (labelled, {"linear_probe": True, "train": others}, "have other classes, and label 3 of one must be label 3"),
        (labelled, {"train_features": "somewhere"}, r"features of a training data set \(somewhere\) without one"),
        (
            labelled,
            {"linear_probe": True, "train": labelled},
            "is the data set that is tested on, whose labels probes must not know",
        ),
        (labelled, {"few_shot": [0]}, r"few_shot = \[0\] in 5 draws is not allowed"),
        (labelled, {"few_shot": [6]}, "class 0 has 6 pairs, and 6 shots need 7 of each"),
        (data, {"class_names": ["a", "b"]}, "class names are given, but the data set has no class labels"),
    )
    monkeypatch.setattr(evaluation, "all_image_features", None)  # said before anything is embedded
    for dataset, options, message in cases:
        with pytest.raises(CoreclipError, match=message):
            evaluate(run, dataset, **options)


def test_features_stand_for_embedding_again(trained, labelled, tmp_path, monkeypatch):
    data, run = trained
    embed(data, tmp_path / "plain", model=run)
    embed(labelled, tmp_path / "labelled", model=run)
    more = make_dataset(tmp_path / "more", 20, labels=("red cat", "dog"))
    embed(more, tmp_path / "more features", model=run)
    expected = evaluate(run, data)
    options = {"linear_probe": True, "few_shot": [1], "train": more}
    probed = evaluate(run, labelled, **options)
    monkeypatch.setattr(features_module, "image_features", None)  # nothing is decoded
    found = evaluate(run, data, features=tmp_path / "plain")
    assert {key: value for key, value in found.items() if value != expected[key]} == {}
    stored = {"features": tmp_path / "labelled", "train_features": tmp_path / "more features"}
    assert evaluate(run, labelled, **options, **stored).keys() == probed.keys()


def test_features_of_something_else_are_refused(trained, labelled, tmp_path):
    data, run = trained
    embed(data, tmp_path / "features", model=run)
    with pytest.raises(CoreclipError, match=r"no features at .*nowhere: it has no features.json; make them"):
        evaluate(run, data, features=tmp_path / "nowhere")
    with pytest.raises(CoreclipError, match=r"holds features of the data set .*; embed this data set"):
        evaluate(run, labelled, features=tmp_path / "features")
    shutil.copytree(run, tmp_path / "other")
    weights = load_file(run / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(CoreclipError, match=r"holds features by the weights .*; embed the data set with this run"):
        evaluate(tmp_path / "other", data, features=tmp_path / "features")
    for n, captions, message in (
        (5, (2,), "has no feature for each of the 12 images; embed the data set again"),
        (12, (1,), "the features have 12 captions, the data set 24; embed it again"),
    ):  # of another data set, with this one's fingerprint written into them
        forged = tmp_path / f"forged{n}"
        embed(make_dataset(tmp_path / f"set{n}", n, captions_per_pair=captions), forged, model=run)
        info = json.loads((forged / "features.json").read_text())
        (forged / "features.json").write_text(json.dumps(info | {"fingerprint": data.fingerprint}))
        with pytest.raises(CoreclipError, match=message):
            evaluate(run, data, features=forged)


def test_copies_of_a_picture_are_one_picture(trained, tmp_path):
    copies = make_dataset(tmp_path / "set", 6, copies={3: 0, 4: 0})
    result = evaluate(trained[1], copies)
    assert (result["pairs"], result["different_images"]) == (6, 4)
    assert (result["captions"], result["different_captions"]) == (12, 8)
    assert result["text_to_image_chance_at_1"] == pytest.approx(np.average([3, 1, 1, 1], weights=[3, 1, 1, 1]) / 6)


def test_class_names_and_templates_must_fit(trained, labelled):
    with pytest.raises(CoreclipError, match="1 class names for labels up to 1"):
        evaluate(trained[1], labelled, class_names=["cat"])
    for templates in ("{}", [], ["a photo"]):
        with pytest.raises(CoreclipError, match="are not allowed: a list in which each has"):
            evaluate(trained[1], labelled, templates=templates)


def test_a_class_is_the_normalised_mean_of_its_prompts(trained):
    clip = ClipModel.load(trained[1])
    classes = class_features(clip, ["red_cat", "dog"], ["{}", "a {}"])
    expected = clip.encode_text(["red cat", "a red cat"]).mean(0)
    torch.testing.assert_close(classes[0], expected / expected.norm())


def test_embed_writes_unit_features_in_order(trained, tmp_path):
    data, run = trained
    report = embed(data, tmp_path / "features", model=run, batch_size=5, workers=1)
    assert (report.n, report.dim, report.captions) == (12, 8, 24)
    image, text, captions, offsets = (np.load(tmp_path / "features" / f"{name}.npy") for name in ("image", "text", "captions", "offsets"))  # fmt: skip
    assert image.shape == text.shape == (12, 8)
    assert image.dtype == text.dtype == captions.dtype == np.float16
    assert offsets.dtype == np.int64
    assert np.diff(offsets).tolist() == [2, 1, 3] * 4
    clip = ClipModel.load(run)
    expected = clip.encode_text(data.captions(2)).numpy()
    np.testing.assert_allclose(captions[offsets[2] : offsets[3]], expected, atol=2e-3)
    mean = expected.mean(0)
    np.testing.assert_allclose(text[2], mean / np.linalg.norm(mean), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(image.astype(np.float32), axis=1), 1, atol=2e-3)
    info = json.loads((tmp_path / "features" / "features.json").read_text())
    assert info["fingerprint"] == data.fingerprint
    assert info["tokenizer_sha256"] == clip.tokenizer.sha256
    assert info["logit_scale"] == pytest.approx(math.exp(clip.logit_scale))
    first = (tmp_path / "features" / "image.npy").read_bytes()
    embed(data, tmp_path / "features", model=run, batch_size=12, workers=1)  # replaces; the batch size changes nothing
    np.testing.assert_allclose(np.load(tmp_path / "features" / "image.npy"), image, atol=1e-3)
    assert len(first) == (tmp_path / "features" / "image.npy").stat().st_size


def test_embed_refuses_a_folder_of_somebody_else(trained, tmp_path):
    data, run = trained
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CoreclipError, match="something else than features"):
        embed(data, tmp_path, model=run)


def test_an_image_that_does_not_decode_is_named(trained, tmp_path):
    _, run = trained
    broken = make_dataset(tmp_path / "set", 5, images={3: b"\xff\xd8 no image"})
    with pytest.raises(CoreclipError, match=r"the images of the pairs \[3\] .* can't be decoded"):
        embed(broken, tmp_path / "features", model=run)
    assert not (tmp_path / "features").exists()


def test_each_text_is_encoded_once():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    assert encode_unique(encode, ["aa", "b", "aa"]).tolist() == [[2.0], [1.0], [2.0]]
    assert asked == ["aa", "b"]


def test_the_mean_direction_of_opposite_captions_is_the_first():
    rows = np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    np.testing.assert_array_equal(mean_direction(rows, np.array([0, 2, 3])), [[1, 0], [0, 1]])
