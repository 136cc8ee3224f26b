"""Several data sets as one: pairs in order, tokens and classes brought together, duplicates found."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.files import sha256_file, write_json
from coreclip.pipeline import Dataset, Tokenizer, merge, verify
from coreclip.pipeline.beton import read_shard
from tests.helpers import encode_jpeg, make_dataset, make_pixels


def others(n: int, first: int = 100) -> dict[int, bytes]:
    """JPEG files that no data set of make_dataset has, of the size 48 x 32."""
    return {i: encode_jpeg(make_pixels(first + i, 48, 32)) for i in range(n)}


def edit(data: Path, **columns: list) -> Dataset:
    """Add columns to ``pairs.parquet`` as a source would have."""
    table = pd.read_parquet(data / "pairs.parquet")
    table.assign(**columns).to_parquet(data / "pairs.parquet", index=False)
    info = json.loads((data / "dataset.json").read_text())
    write_json(data / "dataset.json", {**info, "pairs_sha256": sha256_file(data / "pairs.parquet")})
    return Dataset(data)


def assert_same(made: Dataset, sources: list[tuple[Dataset, int]]) -> None:
    for new, (source, old) in enumerate(sources):
        assert made.image_bytes(new) == source.image_bytes(old)
        assert made.captions(new) == source.captions(old)
        assert made.keys[new] == source.keys[old]
    assert len(made) == len(sources)


def test_pairs_come_one_data_set_after_the_other(tmp_path):
    a = make_dataset(tmp_path / "a", 7, rejects=[("a.tar", "k", "no caption")])
    b = make_dataset(tmp_path / "b", 6, size=(48, 32), images=others(6), rejects=[("b.tar", "k", "empty")])
    report = merge([a, tmp_path / "b"], tmp_path / "out")
    made = Dataset(tmp_path / "out")
    assert_same(made, [*((a, i) for i in range(7)), *((b, i) for i in range(6))])
    assert verify(tmp_path / "out", decode="all").ok
    assert (report["pairs"], report["dropped"], report["shards"]) == (13, 0, 3)
    assert pd.read_parquet(tmp_path / "out" / "rejects.parquet")["source"].tolist() == ["a.tar", "b.tar"]
    assert made.info["rejected"] == 2


def test_shards_of_one_tokenizer_go_over_as_files(tmp_path):
    a, b = make_dataset(tmp_path / "a", 7), make_dataset(tmp_path / "b", 7)
    report = merge([a, b], tmp_path / "out")
    assert (report["shards_copied"], report["retokenised"], report["duplicates"]) == (4, 0, 7)
    assert (tmp_path / "out" / "00000.beton").read_bytes() == (tmp_path / "a" / "00000.beton").read_bytes()
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("given", [None, "file", "data set"])
def test_captions_are_encoded_with_one_tokenizer(tmp_path, given):
    a = make_dataset(tmp_path / "a", 7, captions_per_pair=(1,))
    b = make_dataset(tmp_path / "b", 8, captions_per_pair=(2, 3), context=12)
    chosen = {None: None, "file": tmp_path / "b" / "tokenizer.json", "data set": tmp_path / "b"}[given]
    report = merge([a, b], tmp_path / "out", tokenizer=chosen)
    made = Dataset(tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / ("a" if given is None else "b") / "tokenizer.json")
    assert made.tokenizer_sha256 == tokenizer.sha256
    assert (made.context, made.captions_per_row) == (16, 3)
    assert report["retokenised"] == (1 if given is None else 2)
    tokens = made.stored_tokens(range(15))
    for index in range(15):
        captions = made.captions(index)
        assert np.array_equal(tokens[index, : len(captions)], tokenizer.encode(captions, 16))
        assert not tokens[index, len(captions) :].any()
    assert verify(tmp_path / "out").ok


def test_more_captions_give_wider_rows_without_new_tokens_for_the_old_ones(tmp_path):
    a = make_dataset(tmp_path / "a", 5, captions_per_pair=(2,))
    make_dataset(tmp_path / "b", 5, captions_per_pair=(3,)).close()
    merge([a, tmp_path / "b"], tmp_path / "out")
    made = Dataset(tmp_path / "out")
    assert np.array_equal(made.stored_tokens(range(5))[:, :2], a.stored_tokens(range(5)))
    assert made.captions_per_row == 3
    assert verify(tmp_path / "out").ok


def test_classes_of_one_name_get_one_number(tmp_path):
    a = make_dataset(tmp_path / "a", 6, labels=["x", "y", "z"])
    b = make_dataset(tmp_path / "b", 7, labels=["z", "x", "y"], size=(48, 32), images=others(7))
    merge([a, b], tmp_path / "out")
    made = Dataset(tmp_path / "out")
    assert made.class_names == ["x", "y", "z"]
    names = [made.class_names[label] for label in made.labels]
    assert names == [*(a.class_names[i] for i in a.labels), *(b.class_names[i] for i in b.labels)]
    stored = [read_shard(made.shard_path(number)).label for number in range(len(made.info["shards"]))]
    assert np.array_equal(np.concatenate(stored), made.labels)
    assert verify(tmp_path / "out").ok


def test_columns_are_united(tmp_path):
    make_dataset(tmp_path / "a", 2).close()
    make_dataset(tmp_path / "b", 2, size=(48, 32), images=others(2)).close()
    a = edit(tmp_path / "a", score=[1, 2], place=["here", None], mixed=[1, 2])
    b = edit(tmp_path / "b", score=[0.5, 1.5], author=["me", "you"], mixed=["one", "two"])
    merge([a, b], tmp_path / "out")
    table = Dataset(tmp_path / "out").pairs
    assert table["score"].tolist() == [1.0, 2.0, 0.5, 1.5]
    assert table["mixed"].tolist() == ["1", "2", "one", "two"]
    assert table["place"].tolist()[0] == "here"
    assert table["place"].isna().tolist() == [False, True, True, True]
    assert table["author"].isna().tolist() == [True, True, False, False]


def test_duplicates_are_left_out_with_a_reason(tmp_path):
    a = make_dataset(tmp_path / "a", 6)
    images = others(8) | {3: a.image_bytes(3), 7: encode_jpeg(make_pixels(101, 48, 32))}  # 7 repeats b's own 1
    b = make_dataset(tmp_path / "b", 8, size=(48, 32), images=images)
    assert merge([a, b], tmp_path / "all")["duplicates"] == 2
    report = merge([a, b], tmp_path / "out", drop_duplicates=True)
    assert (report["pairs"], report["duplicates"], report["dropped"]) == (12, 2, 2)
    kept = [0, 1, 2, 4, 5, 6]
    assert_same(Dataset(tmp_path / "out"), [*((a, i) for i in range(6)), *((b, i) for i in kept)])
    rejects = pd.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["key"].tolist() == ["k0003", "k0007"]
    assert rejects["reason"].tolist() == ["the same image as pair 3 of a", "the same image as pair 1 of b"]
    assert verify(tmp_path / "out").ok


def test_a_data_set_of_duplicates_alone_adds_nothing(tmp_path):
    make_dataset(tmp_path / "a", 4).close()
    report = merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out", drop_duplicates=True)
    assert (report["pairs"], report["dropped"]) == (4, 4)
    assert verify(tmp_path / "out").ok


def test_labels_can_be_left_out(tmp_path):
    make_dataset(tmp_path / "a", 6, labels=["x", "y"]).close()
    make_dataset(tmp_path / "b", 6).close()
    with pytest.raises(CoreclipError, match=r"a has class labels, .*b has none.*--drop-labels"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out", drop_labels=True)
    made = Dataset(tmp_path / "out")
    assert made.labels is None
    assert made.class_names is None
    assert verify(tmp_path / "out").ok


def test_other_classes_are_refused(tmp_path):
    make_dataset(tmp_path / "a", 6, labels=["x", "y"]).close()
    make_dataset(tmp_path / "b", 6, labels=["x", "z"]).close()
    with pytest.raises(CoreclipError, match=r"different classes \(y, z only in one\)"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    info = json.loads((tmp_path / "b" / "dataset.json").read_text())
    write_json(tmp_path / "b" / "dataset.json", {**info, "class_names": None})
    with pytest.raises(CoreclipError, match=r"names its classes, .*b only numbers them"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_one_data_set_is_too_few(tmp_path):
    make_dataset(tmp_path / "a", 2).close()
    with pytest.raises(CoreclipError, match="two or more"):
        merge([tmp_path / "a"], tmp_path / "out")


def test_the_output_is_none_of_the_inputs(tmp_path):
    make_dataset(tmp_path / "a", 2).close()
    with pytest.raises(CoreclipError, match="nothing of yours is replaced"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "a")
    assert verify(tmp_path / "a").ok
