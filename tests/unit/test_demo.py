"""The demonstration's refusals, and its figures on a hand-made truth."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from coreclip.demo import ARMS, CONFIG, EXPRESSION, FRACTION, run_demo
from coreclip.demo_truth import Truth
from coreclip.errors import CoreclipError
from coreclip.selection import Features, Subset, parse


def test_refuses_to_replace_what_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>my thesis</title>")
    with pytest.raises(CoreclipError, match="exists and is no demo report; nothing of yours is replaced"):
        run_demo(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<title>my thesis</title>"
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_refuses_a_file_as_output(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CoreclipError, match="is no demo report"):
        run_demo(tmp_path / "out")


@pytest.mark.parametrize("option", [{"minutes": 0.0}, {"minutes": float("nan")}, {"workers": 0}, {"seeds": 1}])
def test_refuses_options_out_of_range(tmp_path: Path, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(CoreclipError, match=f"{name} = .* is out of range: it must be between"):
        run_demo(tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_a_failed_demonstration(tmp_path: Path) -> None:
    with pytest.raises(CoreclipError, match="n = 3 is out of range"):
        run_demo(tmp_path / "out", pairs=3)
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])


def test_a_demonstration_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "work" / "scenes").mkdir(parents=True)
    with pytest.raises(CoreclipError, match="is no demo report"):
        run_demo(out, pairs=3)
    (out / ".coreclip-demo").touch()
    with pytest.raises(CoreclipError, match="n = 3 is out of range"):
        run_demo(out, pairs=3)
    assert list(out.iterdir()) == []


def test_selection_is_an_expression_that_keeps_half() -> None:
    stages = parse(EXPRESSION)
    assert [stage.name for stage in stages] == ["clipscore", "semdedup", "facility-location"]
    assert np.prod([stage.keep or 1.0 for stage in stages]) > FRACTION
    assert ARMS[-1] == "coreset"
    assert CONFIG.train.signals is False


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    """Six pairs: 1 repeats 0, 3 repeats 2; 1 and 4 have swapped captions and low scores; 5 is rare."""
    keys = [f"k{i}" for i in range(6)]
    pd.DataFrame(
        {
            "key": [*keys[::-1], "broken"],
            "mismatched": [False, True, False, False, True, False, False],
            "duplicate_of": ["", "", "k2", "", "k0", "", ""],
            "rarity": [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            "true_caption": [f"a {key}" for key in [*keys[::-1], "broken"]],
        }
    ).to_parquet(tmp_path / "truth.parquet")
    angles = np.array([0.1, 1.2, 0.2, 0.3, 1.1, 0.4])
    image = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (6, 1))
    text = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    dataset: Any = SimpleNamespace(keys=np.array(keys, dtype=object), n=6)
    return Truth(dataset, tmp_path, Features.from_arrays(image, text))


def _subset(*indices: int) -> Subset:
    rows = np.array(indices, dtype=np.int64)
    return Subset(indices=rows, weights=np.ones(len(rows)), gains=np.zeros(len(rows)), method="by hand", n=6)


def test_shares_of_what_was_planted(truth: Truth) -> None:
    everything = truth.shares([None])
    assert everything == pytest.approx({"mismatched": 2 / 6, "near_duplicates": 2 / 6, "rare": 1 / 6})
    clean = truth.shares([_subset(0, 2, 5)])
    assert clean == pytest.approx({"mismatched": 0, "near_duplicates": 0, "rare": 1 / 3})
    assert truth.shares([_subset(0, 1), _subset(2, 5)]) == pytest.approx(
        {"mismatched": 0.25, "near_duplicates": 0.25, "rare": 0.25}
    )


def test_check_counts_refused_faults(truth: Truth) -> None:
    check = truth.check(_subset(0, 2, 5))
    assert check == {"mismatched": {"auroc": 1.0, "recall": 1.0}, "near_duplicates": {"recall": 1.0}, "precision": 1.0}
    check = truth.check(_subset(1, 2, 3))
    assert check["mismatched"]["recall"] == 0.5
    assert check["near_duplicates"]["recall"] == 0.5  # the second scene was taken twice
    assert check["precision"] == pytest.approx(2 / 3)  # 0 and 4, not 5


def test_truth_follows_the_keys_and_not_the_order_of_the_file(truth: Truth) -> None:
    assert truth.true_captions == [f"a k{i}" for i in range(6)]
    assert truth.mismatched.tolist() == [False, True, False, False, True, False]
    assert truth.words(1) == "swapped caption"
    assert truth.words(0) == ""
