"""A subset as a data set of its own: the same bytes, the right order, nothing on trust."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.files import sha256_file, write_json
from coreclip.pipeline import Dataset, materialise, verify
from coreclip.pipeline.beton import read_shard
from tests.helpers import make_dataset


@dataclass
class Chosen:
    indices: np.ndarray
    weights: np.ndarray
    fingerprint: str | None = None


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return make_dataset(
        tmp_path_factory.mktemp("materialise") / "data", 17, captions_per_pair=(1, 2, 3), raw_every=4, labels=["x", "y"]
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same_pairs(made: Dataset, source: Dataset, indices: np.ndarray) -> None:
    assert len(made) == len(indices)
    for new, old in enumerate(indices.tolist()):
        assert made.image_bytes(new) == source.image_bytes(old)
        assert made.captions(new) == source.captions(old)
    assert np.array_equal(made.stored_tokens(range(len(made))), source.stored_tokens(indices))
    assert np.array_equal(made.labels, source.labels[indices])
    same = ["key", "captions", "width", "height", "bytes", "content_hash", "warning", "mode", "transcoded", "source"]
    expected = source.pairs.iloc[indices][same].reset_index(drop=True)
    pd.testing.assert_frame_equal(made.pairs[same], expected, check_dtype=False)


def test_a_subset_in_any_order_is_stored_in_the_data_sets(data, tmp_path):
    subset = Chosen(np.array([16, 3, 9, 0]), np.array([0.5, 1.5, 2.0, 1.0]), data.fingerprint)
    report = materialise(data, subset, tmp_path / "out")
    made = Dataset(tmp_path / "out")
    assert_same_pairs(made, data, np.array([0, 3, 9, 16]))
    assert made.pairs["source_index"].tolist() == [0, 3, 9, 16]
    assert made.pairs["weight"].tolist() == [1.0, 1.5, 2.0, 0.5]
    assert verify(tmp_path / "out", decode="all").ok
    assert (report["pairs"], report["of"], report["shards"], report["shards_copied"]) == (4, 17, 1, 0)
    assert report["fingerprint"] == made.fingerprint != data.fingerprint
    assert made.tokenizer_sha256 == data.tokenizer_sha256
    assert made.class_names == data.class_names


def test_whole_shards_go_over_as_they_are_but_for_their_indices(data, tmp_path):
    indices = np.array([1, *range(5, 10), 12])
    report = materialise(data, indices, tmp_path / "out")
    made = Dataset(tmp_path / "out")
    assert (report["shards"], report["shards_copied"]) == (3, 1)
    assert_same_pairs(made, data, indices)
    assert verify(tmp_path / "out", decode="all").ok
    old, new = (data.path / "00001.beton").read_bytes(), (tmp_path / "out" / "00001.beton").read_bytes()
    assert len(old) == len(new)
    assert sum(a != b for a, b in zip(old, new, strict=True)) <= 5
    everything = materialise(data, np.arange(17), tmp_path / "all")
    assert everything["shards_copied"] == 4
    for path in data.path.glob("*.beton"):
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.integers(0, 16), min_size=1, max_size=25), shard_bytes=st.sampled_from([1 << 16, 1 << 28]))
def test_any_indices_give_a_whole_data_set_of_these_pairs(data, tmp_path_factory, chosen, shard_bytes):
    out = tmp_path_factory.mktemp("any") / "out"
    materialise(data, chosen, out, shard_bytes=shard_bytes)
    distinct, counts = np.unique(chosen, return_counts=True)
    made = Dataset(out)
    assert_same_pairs(made, data, distinct)
    assert np.array_equal(made.pairs["weight"], counts)
    assert verify(out, decode="none", workers=1).ok


def test_the_same_subset_gives_the_same_bytes(data, tmp_path):
    for name in ("one", "two"):
        materialise(data, [2, 5, 6, 7, 8, 9, 16], tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_end_at_their_size(tmp_path):
    source = make_dataset(tmp_path / "data", 30, rows_per_shard=30, size=(400, 300))
    report = materialise(source, np.arange(29), tmp_path / "out", shard_bytes=1 << 16)
    assert report["shards"] > 2
    made = Dataset(tmp_path / "out")
    sizes = made.pairs.groupby("shard")["bytes"].sum()
    assert len(sizes) == report["shards"]
    assert sizes.max() <= 1 << 16
    assert verify(tmp_path / "out").ok


def test_a_subset_of_a_subset_keeps_both_provenances(data, tmp_path):
    materialise(data, Chosen(np.array([4, 8, 12]), np.array([1.0, 2.0, 3.0])), tmp_path / "one")
    materialise(tmp_path / "one", [1, 2], tmp_path / "two")
    pairs = Dataset(tmp_path / "two").pairs
    assert pairs["source_index"].tolist() == [1, 2]
    assert pairs["source_source_index"].tolist() == [8, 12]
    assert pairs["source_weight"].tolist() == [2.0, 3.0]
    assert pairs["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        ([], "non-empty"),
        ([17], "has the index 17"),
        ([0.5], "integer"),
        (np.zeros(17, bool), "flatnonzero"),
        (Chosen(np.array([1]), np.array([-1.0])), "weights"),
        (Chosen(np.array([1]), np.array([1.0]), "other"), "chosen from data set other"),
    ],
)
def test_a_subset_that_is_not_of_this_data_set_is_refused(data, tmp_path, subset, words):
    with pytest.raises(CoreclipError, match=words):
        materialise(data, subset, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("kept")
    with pytest.raises(CoreclipError, match="nothing of yours is replaced"):
        materialise(data, [1], tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "kept"


def test_too_little_disk_is_said_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CoreclipError, match="not enough disk"):
        materialise(data, [1], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_bytes", [1, 1 << 41])
def test_a_shard_size_that_is_not_allowed_is_refused(data, tmp_path, shard_bytes):
    with pytest.raises(CoreclipError, match="shard_bytes"):
        materialise(data, [1], tmp_path / "out", shard_bytes=shard_bytes)


@pytest.mark.parametrize("indices", [[5, 6], [5, 6, 7, 8, 9]])
@pytest.mark.parametrize("damage", ["image", "shard of another", "table", "table and hash"])
def test_damage_is_not_copied(tmp_path, indices, damage):
    source = make_dataset(tmp_path / "data", 12)
    shard, pairs = tmp_path / "data" / "00001.beton", tmp_path / "data" / "pairs.parquet"
    if damage == "image":
        content = bytearray(shard.read_bytes())
        with read_shard(shard) as opened:
            at = int(opened.image_addresses[6 - source.info["shards"][0]["rows"]])
        content[at + 300] ^= 0xFF
        shard.write_bytes(content)
    elif damage == "shard of another":
        shard.write_bytes((tmp_path / "data" / "00000.beton").read_bytes())
    else:
        table = pd.read_parquet(pairs)
        table["captions"] = [["other"] if i == 6 else texts for i, texts in enumerate(table["captions"])]
        table.to_parquet(pairs, index=False)
        if damage == "table and hash":
            if len(indices) == 5:
                return  # a whole shard with right hashes and a table with a right hash are what was written
            info = json.loads((tmp_path / "data" / "dataset.json").read_text())
            write_json(tmp_path / "data" / "dataset.json", {**info, "pairs_sha256": sha256_file(pairs)})
    with pytest.raises(CoreclipError, match="damaged"):
        materialise(tmp_path / "data", indices, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
