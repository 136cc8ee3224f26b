"""A split covers all pairs, overlaps nowhere and leaks neither image nor caption."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.files import sha256_file, write_json
from coreclip.pipeline import Dataset, plan_split, split, verify
from coreclip.pipeline.groups import components
from coreclip.pipeline.split import parse_parts
from tests.helpers import make_dataset

HALVES = {"train": 0.5, "test": 0.5}


def describe(data: Path, images: list[str], captions: list[list[str]], labels: list[int] | None = None) -> Dataset:
    """Give a made data set other hashes and captions in its table, which is all that a plan reads."""
    n = len(images)
    table = pd.read_parquet(data / "pairs.parquet")
    table = table.iloc[np.resize(np.arange(len(table)), n)]
    table = table.assign(index=np.arange(n), content_hash=images, captions=captions)
    if labels is not None:
        table["label"] = labels
    table.to_parquet(data / "pairs.parquet", index=False)
    info = json.loads((data / "dataset.json").read_text())
    first = {**info["shards"][0], "rows": n}
    write_json(
        data / "dataset.json",
        {**info, "n": n, "shards": [first], "pairs_sha256": sha256_file(data / "pairs.parquet")},
    )
    return Dataset(data)


def leaks(images: list[str], captions: list[list[str]], indices: dict[str, np.ndarray], by: str) -> list[str]:
    """Return what two parts share."""
    parts_of: dict[str, set[str]] = {}
    for name, chosen in indices.items():
        for index in chosen.tolist():
            texts = {f"caption {' '.join(text.split()).lower()}" for text in captions[index] if "caption" in by}
            for thing in texts | ({f"image {images[index]}"} if "image" in by else set()):
                parts_of.setdefault(thing, set()).add(name)
    return [thing for thing, names in parts_of.items() if len(names) > 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("split") / "data"
    make_dataset(at, 60, rows_per_shard=60, size=(24, 16), labels=["x", "y"]).close()
    return at


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_image_and_no_caption_crosses_parts(folder, data):
    n = data.draw(st.integers(4, 40))
    images = [f"hash {data.draw(st.integers(0, 30))}" for _ in range(n)]
    words = ["a Dog", "a  dog", "A DOG ", *(f"text {i}" for i in range(40))]
    captions = [data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=2)) for _ in range(n)]
    by = data.draw(st.sampled_from(["image", "caption", "image,caption"]))
    parts = data.draw(st.sampled_from([HALVES, {"a": 0.8, "b": 0.1, "c": 0.1}]))
    dataset = describe(folder, images, captions, [0] * n)
    try:
        plan = plan_split(dataset, parts, seed=data.draw(st.integers(0, 3)), by=by)
    except CoreclipError as error:
        assert "tied together" in str(error) or "would be empty" in str(error)  # noqa: PT017 - either may happen
        return
    everything = np.concatenate(list(plan.indices.values()))
    assert sorted(everything.tolist()) == list(range(n))
    assert leaks(images, captions, plan.indices, by) == []
    assert all((np.diff(indices) > 0).all() for indices in plan.indices.values())


@pytest.fixture
def data(tmp_path) -> Dataset:
    return make_dataset(tmp_path / "data", 40, size=(24, 16), labels=["x", "y"])


def test_parts_are_data_sets_of_their_pairs(data, tmp_path):
    report = split(data, tmp_path / "out", {"train": 0.7, "val": 0.2, "test": 0.1}, seed=3)
    assert {name: part["pairs"] for name, part in report["parts"].items()} == {"train": 28, "val": 8, "test": 4}
    assert (report["pairs"], report["groups"], report["largest_group"], report["by"]) == (40, 40, 1, "image,caption")
    found = []
    for name in report["parts"]:
        part = Dataset(tmp_path / "out" / name)
        assert verify(part.path, decode="all").ok
        indices = part.pairs["source_index"].tolist()
        assert indices == sorted(indices)
        assert part.keys.tolist() == [data.keys[i] for i in indices]
        assert [part.image_bytes(i) for i in range(len(part))] == [data.image_bytes(i) for i in indices]
        found += indices
    assert sorted(found) == list(range(40))


def test_the_split_is_the_seeds_and_not_the_orders(tmp_path, data):
    plans = [plan_split(data, HALVES, seed=seed).indices["train"].tolist() for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    keys = {data.keys[i] for i in plans[0]}
    table = data.pairs
    mixed = describe(data.path, list(table["content_hash"][::-1]), list(table["captions"][::-1]))
    assert {data.keys[39 - i] for i in plan_split(mixed, HALVES).indices["train"]} == keys


def test_sizes_are_as_close_as_groups_allow(data):
    images = [f"group {i}" if i < 6 else f"group {6 + i // 3}" for i in range(40)]
    captions = [[f"text {i}"] for i in range(40)]
    opened = describe(data.path, images, captions, [0] * 40)
    plan = plan_split(opened, {"train": 0.75, "test": 0.25}, by="image")
    assert {name: len(indices) for name, indices in plan.indices.items()} == {"train": 30, "test": 10}


def test_captions_made_from_classes_tie_nothing(data):
    images = [f"image {i}" for i in range(40)]
    captions = [[f"a photo of a {'xy'[i % 2]}"] for i in range(40)]
    opened = describe(data.path, images, captions, [i % 2 for i in range(40)])
    plan = plan_split(opened, HALVES)
    assert (plan.by, plan.groups) == ("image", 40)
    with pytest.raises(CoreclipError, match=r"would be empty|tied together"):
        plan_split(opened, {"train": 0.9, "test": 0.1}, by="image,caption")


def test_a_group_that_fits_no_part_is_refused_with_a_remedy(data):
    captions = [["the same"]] * 30 + [[f"text {i}"] for i in range(10)]
    opened = describe(data.path, [f"image {i}" for i in range(40)], captions, [0] * 40)
    with pytest.raises(
        CoreclipError, match=r"30 of 40 pairs are tied together by a shared image or caption.*--by image"
    ):
        plan_split(opened, HALVES)
    assert plan_split(opened, {"train": 0.75, "test": 0.25}).indices["test"].tolist() == list(range(30, 40))


def test_a_part_without_a_pair_is_refused(data, tmp_path):
    with pytest.raises(CoreclipError, match="part test would be empty"):
        split(data, tmp_path / "out", {"train": 0.999, "test": 0.001})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"train": 1.0}, "two or more"),
        ({}, "two or more"),
        ({"a": 0.5, "b": 0.4}, "the sum 1"),
        ({"a": 1.5, "b": -0.5}, "above 0"),
        ({"a": float("nan"), "b": 0.5}, "above 0"),
        ({"../a": 0.5, "b": 0.5}, "can't be a folder"),
        ({".hidden": 0.5, "b": 0.5}, "can't be a folder"),
    ],
)
def test_parts_against_the_rules_are_refused(data, tmp_path, parts, words):
    with pytest.raises(CoreclipError, match=words):
        split(data, tmp_path / "out", parts)
    assert not (tmp_path / "out").exists()


def test_what_ties_must_be_known(data):
    with pytest.raises(CoreclipError, match="by = 'key'"):
        plan_split(data, HALVES, by="key")


def test_parts_are_read_from_text():
    assert parse_parts("train=0.9, val=.1") == {"train": 0.9, "val": 0.1}


@pytest.mark.parametrize("text", ["", "train", "train=x", "a=0.5,a=0.5", "a=0.5,b=nan"])
def test_other_text_is_refused(text):
    with pytest.raises(CoreclipError, match="NAME=FRACTION"):
        parse_parts(text)


def test_groups_are_connected_over_images_and_captions():
    images = (np.array([1, 1, 2, 3, 4], np.uint64), np.arange(5))
    captions = (np.array([7, 8, 8, 9, 1, 9], np.uint64), np.array([0, 1, 2, 3, 4, 4]))
    group = components([images, captions], 5)
    assert group[0] == group[1] == group[2] != group[3] == group[4]
