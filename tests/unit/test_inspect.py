"""What inspect counts, on data sets whose counts are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.inspect import inspect
from tests.helpers import encode_jpeg, make_dataset, make_pixels


def test_counts(tmp_path: Path) -> None:
    same = encode_jpeg(make_pixels(0))
    rejects = [("a.tar", "k1", "truncated"), ("a.tar", "k2", "no caption"), ("b.tar", "k3", "truncated")]
    dataset = make_dataset(
        tmp_path / "data", 10, captions_per_pair=(1, 2), labels=["x", "y", "z"], raw_every=5, size=(48, 32),
        images={1: same, 2: same, 3: same}, warnings={3: "stray bytes"}, rejects=rejects,
    )  # fmt: skip
    found = inspect(tmp_path / "data")
    assert found == inspect(dataset)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["pairs"], found["rejected"]) == (10, 3)
    assert list(found["reject_reasons"].items()) == [("truncated", 2), ("no caption", 1)]
    assert [shard["rows"] for shard in found["shards"]] == [5, 5]
    assert found["bytes"]["shards"] == sum(file.stat().st_size for file in (tmp_path / "data").glob("*.beton"))
    assert found["bytes"]["images"] == sum(len(dataset.image_bytes(i)) for i in range(10))
    assert found["image_modes"] == {"jpg": 8, "raw": 2}
    assert found["image_width"] == {
        **dict.fromkeys(["min", "p5", "p25", "median", "p75", "p95", "max"], 48),
        "mean": 48.0,
    }
    assert found["resolution"]["1-63"] == 10
    assert sum(found["resolution"].values()) == 10
    assert found["captions"]["total"] == 15
    assert found["captions"]["per_pair"] == {"1": 5, "2": 5, "3": 0, "4": 0, "5": 0, "6-10": 0, "11 and more": 0}
    assert found["captions"]["words"]["4-7"] == 15
    assert found["captions"]["mean_words"] == 7
    assert found["duplicates"] == {"images": 2, "captions": 0}
    assert found["vocabulary"]["tokens"] == dataset.tokenizer().vocab_size
    assert found["warnings"] == {"stray bytes": 1}
    assert found["classes"] == {"x": 4, "y": 3, "z": 3}
    assert found["fingerprint"] == dataset.fingerprint


def test_equal_captions_and_words_are_counted_without_case_and_space(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", 3, captions_per_pair=(1,)).close()
    table = pd.read_parquet(tmp_path / "data" / "pairs.parquet")
    table.assign(captions=[["A dog"], [" a  DOG "], ["two dogs", ""]]).to_parquet(tmp_path / "data" / "pairs.parquet")
    found = inspect(tmp_path / "data")
    assert found["duplicates"]["captions"] == 1
    assert found["vocabulary"]["words"] == 4
    assert found["captions"]["words"] == {
        "0": 1, "1": 0, "2-3": 3, "4-7": 0, "8-15": 0, "16-31": 0, "32-63": 0, "64 and more": 0,
    }  # fmt: skip
    assert found["classes"] is None


@pytest.mark.parametrize(("side", "name"), [(63, "1-63"), (64, "64-127"), (223, "128-223"), (224, "224-335")])
def test_the_shorter_side_gives_the_range(tmp_path: Path, side: int, name: str) -> None:
    make_dataset(tmp_path / "data", 1, size=(side + 9, side)).close()
    found = inspect(tmp_path / "data")
    assert found["resolution"][name] == 1
    assert (found["image_width"]["median"], found["image_height"]["median"]) == (side + 9, side)


def test_classes_without_names_are_counted_by_number(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", 5, labels=["x", "y"]).close()
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**info, "class_names": None}))
    assert inspect(tmp_path / "data")["classes"] == {"0": 3, "1": 2}


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", 2).close()
    (tmp_path / "data" / "rejects.parquet").unlink()
    with pytest.raises(CoreclipError, match=r"rejects\.parquet is missing"):
        inspect(tmp_path / "data")


def test_quantiles_are_values_that_occur(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 9)
    widths = set(dataset.pairs["width"])
    found = inspect(dataset)["image_width"]
    assert {found[name] for name in ("min", "p5", "p25", "median", "p75", "p95", "max")} <= widths
    assert found["mean"] == np.round(dataset.pairs["width"].mean(), 1)


@pytest.mark.parametrize(
    ("column", "values"),
    [("captions", [["a"], [], ["b"]]), ("captions", [["a"], None, ["b"]]), ("width", [1, None, 1])],
)
def test_a_table_with_gaps_is_refused(tmp_path: Path, column: str, values: list) -> None:
    make_dataset(tmp_path / "data", 3).close()
    table = pd.read_parquet(tmp_path / "data" / "pairs.parquet")
    table.assign(**{column: values}).to_parquet(tmp_path / "data" / "pairs.parquet")
    with pytest.raises(CoreclipError, match=rf"damaged: {column} has gaps"):
        inspect(tmp_path / "data")


def test_many_row_groups_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "data", 11, captions_per_pair=(1, 2))
    expected = inspect(dataset)
    monkeypatch.setattr("coreclip.pipeline.rows._BATCH", 3)
    dataset.pairs.to_parquet(tmp_path / "data" / "pairs.parquet", row_group_size=2)
    assert inspect(tmp_path / "data") == expected
