"""A subset keeps what it is made with, through its file, and refuses what is wrong and data sets that are not its own."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Subset


def make_subset(**changes):
    values = {
        "indices": [4, 0, 7],
        "weights": [1.5, 0.5, 1.0],
        "gains": [3.0, 2.0, 0.5],
        "objective": 5.5,
        "upper_bound": 6.0,
        "method": "facility-location",
        "parameters": {"neighbors": np.int64(5), "metric": "cosine", "list": np.arange(2)},
        "seed": 3,
        "n": 9,
        "seconds": 0.25,
        "fingerprint": "a" * 64,
    }
    return Subset(**(values | changes))


def test_a_saved_subset_is_read_back_equal(tmp_path):
    subset = make_subset()
    subset.save(tmp_path / "s.parquet")
    loaded = Subset.load(tmp_path / "s.parquet")
    for name in ("indices", "weights", "gains"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(subset, name))
    for name in ("objective", "upper_bound", "method", "seed", "n", "seconds", "fingerprint", "k"):
        assert getattr(loaded, name) == getattr(subset, name)
    assert loaded.parameters == {"neighbors": 5, "metric": "cosine", "list": [0, 1]}


def test_the_file_is_a_plain_table_in_order_of_choice(tmp_path):
    make_subset().save(tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.to_pydict() == {"index": [4, 0, 7], "weight": [1.5, 0.5, 1.0], "gain": [3.0, 2.0, 0.5]}
    assert table.schema.field("index").type == pa.int64()
    assert b"coreclip" in table.schema.metadata


def test_arrays_are_copied_and_can_not_be_written():
    indices = np.array([1, 2, 3])
    subset = make_subset(indices=indices)
    indices[0] = 8
    assert subset.indices[0] == 1
    assert (subset.indices.dtype, subset.weights.dtype, subset.gains.dtype) == (np.int64, np.float64, np.float64)
    with pytest.raises(ValueError, match="read-only"):
        subset.indices[0] = 5


def test_a_prefix_is_the_earlier_choice():
    prefix = make_subset().prefix(2)
    assert prefix.indices.tolist() == [4, 0]
    assert prefix.objective == 5.0
    assert prefix.upper_bound is None
    assert prefix.weights.tolist() == [1.5, 0.5]
    assert make_subset(weights=[2.0, 0.5, 0.5]).prefix(1).weights.tolist() == [1.0]
    assert make_subset().prefix(3).upper_bound == 6.0


def test_its_own_data_set_passes():
    make_subset().check(9, "a" * 64)
    make_subset().check(9, None)
    make_subset(fingerprint=None).check(9, "b" * 64)


def test_another_data_set_is_refused_with_both_fingerprints():
    with pytest.raises(CoreclipError, match="a" * 64 + ".*" + "b" * 64):
        make_subset().check(9, "b" * 64)
    with pytest.raises(CoreclipError, match="chosen from 9 pairs, this data set has 10"):
        make_subset().check(10, "a" * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [4, 0, 9]}, "index 9 is not one of the 9 pairs"),
        ({"indices": [4, -1, 2]}, "index -1 is not one of"),
        ({"indices": [4, 0, 4]}, "index 4 is chosen twice"),
        ({"indices": [4.0, 0.0, 1.0]}, "indices must be a list of numbers, got float64"),
        ({"gains": [[1.0, 2.0, 3.0]]}, "gains must be a list of numbers"),
        ({"weights": [1.0, 1.0]}, "3 indices, 2 weights, 3 gains"),
        ({"weights": [1.0, 1.0, -1.0]}, "weights must be finite and not negative"),
        ({"gains": [1.0, 1.0, np.nan]}, "gains finite"),
        ({"indices": [], "weights": [], "gains": []}, "no pair was chosen"),
    ],
)
def test_wrong_rows_are_refused(changes, message):
    with pytest.raises(CoreclipError, match=message):
        make_subset(**changes)


@pytest.mark.parametrize("k", [0, 4])
def test_a_prefix_is_at_most_the_whole(k):
    with pytest.raises(CoreclipError, match=f"k = {k} is not a prefix of a subset of 3"):
        make_subset().prefix(k)


def test_files_that_are_no_subset_are_refused(tmp_path):
    with pytest.raises(CoreclipError, match="does not exist; make it with coreclip select"):
        Subset.load(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"index": [1]}), tmp_path / "foreign.parquet")
    make_subset().save(tmp_path / "cut.parquet")
    whole = pq.read_table(tmp_path / "cut.parquet")
    pq.write_table(whole.slice(0, 2), tmp_path / "cut.parquet")
    for name, message in {
        "text": "is no subset or is damaged",
        "foreign": "is no subset or is damaged",
        "cut": "with 2 of 3 rows",
    }.items():
        with pytest.raises(CoreclipError, match=message):
            Subset.load(tmp_path / f"{name}.parquet")
