"""A subset keeps what it is made with, through its file, and refuses what is wrong and data sets that are not its own."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import NoPairChosen, Subset


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


def other_subset(**changes):
    return make_subset(
        **{
            "indices": [2, 7, 5],
            "weights": [3.0, 2.0, 1.0],
            "gains": [9.0, 8.0, 7.0],
            "method": "b",
            "seconds": 1.0,
            "seed": 8,
        }
        | changes
    )


def test_a_union_is_the_first_and_then_the_new_ones_of_the_others():
    both = make_subset().union(other_subset(), other_subset(indices=[1, 4, 2]))
    assert both.indices.tolist() == [4, 0, 7, 2, 5, 1]
    assert both.weights.tolist() == [1.5, 0.5, 1.0, 3.0, 1.0, 3.0]
    assert both.gains.tolist() == [3.0, 2.0, 0.5, 9.0, 7.0, 9.0]
    assert (both.objective, both.upper_bound) == (None, None)
    assert (both.seed, both.n, both.seconds, both.fingerprint) == (3, 9, 2.25, "a" * 64)
    assert both.method == "union(facility-location, b, b)"


def test_an_intersection_keeps_the_first_ones_order_gains_and_mean_weight():
    shared = make_subset().intersection(other_subset(indices=[7, 4, 5]))
    assert shared.indices.tolist() == [4, 7]
    assert shared.gains.tolist() == [3.0, 0.5]
    assert shared.weights.tolist() == pytest.approx([1.2, 0.8])
    assert (shared.objective, shared.upper_bound) == (None, None)


def test_a_difference_is_what_the_others_do_not_have():
    left = make_subset().difference(other_subset(), other_subset(indices=[0, 1, 2]))
    assert left.indices.tolist() == [4]
    assert left.weights.tolist() == [1.0]
    assert left.method == "difference(facility-location, b, b)"


def test_the_objective_holds_where_the_choice_is_the_same():
    everything = other_subset(indices=np.arange(9), weights=np.ones(9), gains=np.ones(9))
    subset = make_subset()
    assert subset.intersection(everything).objective == 5.5
    assert subset.union(subset).upper_bound == 6.0
    assert subset.difference(other_subset(indices=[1, 2, 3])).objective == 5.5
    assert subset.union(everything).objective is None


def test_combinations_say_what_they_are_of_and_can_be_stored(tmp_path):
    nested = make_subset().union(other_subset()).intersection(other_subset())
    assert nested.method == "intersection(union(facility-location, b), b)"
    nested.save(tmp_path / "s.parquet")
    first, second = Subset.load(tmp_path / "s.parquet").parameters["of"]
    assert (first["method"], first["k"], first["seed"]) == ("union(facility-location, b)", 5, 3)
    assert [part["method"] for part in first["parameters"]["of"]] == ["facility-location", "b"]
    assert second == {
        "method": "b",
        "seed": 8,
        "k": 3,
        "parameters": {"neighbors": 5, "metric": "cosine", "list": [0, 1]},
    }


def test_a_fingerprint_that_one_of_them_knows_is_kept():
    assert make_subset(fingerprint=None).union(other_subset()).fingerprint == "a" * 64
    assert make_subset(fingerprint=None).union(other_subset(fingerprint=None)).fingerprint is None


@pytest.mark.parametrize("way", ["union", "intersection", "difference"])
def test_subsets_of_two_data_sets_are_not_combined(way):
    with pytest.raises(CoreclipError, match=f"fingerprints {'a' * 64} and {'b' * 64}; only subsets of one data set"):
        getattr(make_subset(), way)(other_subset(fingerprint="b" * 64))
    with pytest.raises(CoreclipError, match=f"fingerprints {'a' * 64} and {'b' * 64}"):
        getattr(make_subset(fingerprint=None), way)(other_subset(), other_subset(fingerprint="b" * 64))
    with pytest.raises(CoreclipError, match="chosen from 9 and 10 pairs; only subsets of one data set"):
        getattr(make_subset(), way)(other_subset(n=10))


def test_nothing_left_is_an_error_of_its_own():
    with pytest.raises(
        NoPairChosen, match="intersection of facility-location, b: no pair is in all; take larger subsets"
    ):
        make_subset().intersection(other_subset(indices=[1, 2, 3]))
    with pytest.raises(NoPairChosen, match="difference of facility-location, facility-location: no pair is left"):
        make_subset().difference(make_subset())


def test_resizing_takes_a_prefix_or_fills_up():
    subset = make_subset(weights=[3.0, 2.0, 1.0])
    assert subset.resize(2).indices.tolist() == subset.prefix(2).indices.tolist()
    filled = subset.resize(4, fill=other_subset())
    assert filled.indices.tolist() == [4, 0, 7, 2]
    assert filled.method == "union(facility-location, b)"
    chance = [subset.resize(k, fill="random", seed=6) for k in (6, 9)]
    assert chance[1].indices[:6].tolist() == chance[0].indices.tolist()
    assert chance[0].indices[:3].tolist() == [4, 0, 7]
    assert sorted(chance[1].indices) == list(range(9))
    assert chance[0].weights.tolist() == [3.0, 2.0, 1.0, 2.0, 2.0, 2.0]
    assert chance[0].parameters["of"][1] == {"method": "random", "seed": 6, "k": 3, "parameters": {}}
    assert subset.resize(9, fill="random", seed=7).indices.tolist() != chance[1].indices.tolist()


@pytest.mark.parametrize(
    ("k", "fill", "message"),
    [
        (0, None, "k = 0 of 9 pairs is not allowed: 1 to 9"),
        (10, "random", "k = 10 of 9 pairs is not allowed: 1 to 9"),
        (4, None, "k = 4 is more than the 3 pairs of the subset; fill up from another subset or at random"),
        (4, "chance", "fill = 'chance' is not allowed: a subset, or 'random'"),
        (6, other_subset(), "k = 6 is more than the 3 pairs of the subset and the 2 others"),
        (4, other_subset(n=10), "from 9 and 10 pairs"),
    ],
)
def test_sizes_that_are_not_there_are_refused(k, fill, message):
    with pytest.raises(CoreclipError, match=message):
        make_subset().resize(k, fill=fill)


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
