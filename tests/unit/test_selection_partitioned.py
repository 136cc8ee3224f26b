"""Facility location over parts: workers, paths, what is noted and what is refused."""

import pickle

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, facility_location, facility_objective, greedi, select_part


def rows(n=120, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize(("settings", "by_path"), [({"parts": 4}, False), ({"parts": 3, "represented": "all"}, True)])
def test_workers_and_paths_change_nothing(settings, by_path, tmp_path):
    x = Features.from_arrays(rows()).vectors()
    np.save(tmp_path / "x.npy", x)
    alone = greedi(x, 6, **settings)
    together = greedi(str(tmp_path / "x.npy") if by_path else x, 6, workers=2, **settings)
    assert together.indices.tolist() == alone.indices.tolist()
    assert together.gains.tolist() == alone.gains.tolist()
    assert together.parameters == alone.parameters


def test_a_part_can_be_sent_away_and_its_picks_come_back(tmp_path):
    np.save(tmp_path / "x.npy", rows())
    work = pickle.loads(pickle.dumps(select_part))
    found = pickle.loads(pickle.dumps(work(tmp_path / "x.npy", 4, candidates=np.arange(40, 80))))
    direct = facility_location(rows()[40:80], 4)
    assert found.indices.tolist() == (direct.indices + 40).tolist()
    assert found.gains.tolist() == direct.gains.tolist()
    assert found.objective == direct.objective


def test_a_part_smaller_than_k_is_picked_whole():
    found = select_part(rows(), 50, candidates=[7, 3, 5])
    assert sorted(found.indices) == [3, 5, 7]
    assert select_part(rows(6), 50).indices.shape == (6,)


def test_parts_are_random_by_the_seed_or_cut_in_order():
    x = rows()
    random = [greedi(x, 5, parts=6, seed=seed).indices.tolist() for seed in (1, 1, 2, 3)]
    assert random[0] == random[1]
    assert len({tuple(indices) for indices in random}) > 1
    in_order = [greedi(x, 5, parts=6, randomised=False, seed=seed) for seed in (1, 2)]
    assert in_order[0].indices.tolist() == in_order[1].indices.tolist()


def test_the_number_of_parts_follows_from_what_fits():
    x = rows(300, 3)
    assert greedi(x, 4, capacity=300).parameters["parts"] == 1
    assert greedi(x, 4, capacity=299).parameters["parts"] == 2
    assert 300 / greedi(x, 4, capacity=100).parameters["parts"] <= 100


def test_fewer_picks_of_each_part_are_filled_up_to_k():
    x = rows()
    found = greedi(x, 30, parts=6, picks=7)
    assert found.k == len(set(found.indices)) == 30
    assert found.parameters["candidates"] == 42
    assert found.objective == pytest.approx(facility_objective(x, found.indices), rel=1e-12)
    best = found.parameters["best_part_objective"]
    alone = max(
        facility_objective(x, select_part(x, 7, candidates=part).indices) for part in np.array_split(range(120), 6)
    )
    by_order = greedi(x, 30, parts=6, picks=7, randomised=False)
    assert by_order.parameters["best_part_objective"] > alone
    assert best <= found.objective


def test_more_picks_of_each_part_than_k_are_more_candidates():
    found = greedi(rows(), 5, parts=3, picks=20)
    assert (found.k, found.parameters["candidates"]) == (5, 60)
    assert found.parameters["best_part_objective"] <= found.objective


def test_the_modality_decides_and_the_fingerprint_stays():
    image, text = rows(seed=1), rows(seed=2)
    features = Features.from_arrays(image, text, info={"fingerprint": "abc"})
    of_text = greedi(features, 5, parts=3, modality="text")
    assert of_text.indices.tolist() == greedi(text, 5, parts=3).indices.tolist()
    both = greedi(features, 5, parts=3, modality="both")
    assert both.objective == pytest.approx(facility_objective(features, both.indices, modality="both"), rel=1e-12)
    assert (both.fingerprint, both.method, both.upper_bound) == ("abc", "greedi", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 120 pairs is not allowed"),
        ({"parts": 0}, "parts = 0 of 120 pairs is not allowed: 1 to 120"),
        ({"parts": 121}, "parts = 121 of 120 pairs is not allowed"),
        ({"rounds": 0}, "rounds = 0 is not allowed: at least 1"),
        ({"capacity": 0}, "capacity = 0 is not allowed"),
        ({"workers": 0}, "workers = 0 is not allowed"),
        ({"picks": 0}, "picks = 0 is not allowed"),
        (
            {"k": 20, "parts": 3, "picks": 6},
            "picks = 6 of each of 3 parts are 18 pairs, fewer than k = 20; raise picks",
        ),
        ({"k": 115, "parts": 60, "picks": 2}, "parts are .* pairs, fewer than k = 115; raise picks"),
        ({"neighbors": 0}, "neighbors = 0 is not allowed"),
        ({"represented": "some"}, "unknown represented = 'some'; known: part, all"),
        ({"modality": "sound"}, "unknown modality 'sound'"),
        ({"modality": "text", "parts": 2}, "hold no text embeddings"),
        ({"features": "nowhere.npy"}, "no features at nowhere.npy"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        greedi(**({"features": rows(), "k": 2} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 is not allowed: at least 1"),
        ({"candidates": []}, "a part without candidates has nothing to pick"),
        ({"candidates": [3, 4, 3]}, "candidate 3 is listed twice"),
        ({"candidates": [3, 120]}, "candidates: 120 is not one of the 120 pairs"),
        ({"candidates": [0.5]}, "candidates are float64 of shape"),
        ({"represented": "none"}, "unknown represented"),
        ({"neighbors": -1}, "neighbors = -1 is not allowed"),
    ],
)
def test_wrong_parts_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        select_part(rows(), **({"k": 2} | arguments))


@pytest.mark.parametrize(
    ("indices", "weights", "message"),
    [
        ([0, -1], None, "indices: -1 is not one of the 120 pairs; it must be 0 to 119"),
        ([[0]], None, r"indices are int64 of shape \(1, 1\)"),
        ([0], np.ones(3), "weights must be 120 finite numbers"),
        ([0], np.full(120, np.nan), "weights must be 120 finite numbers"),
    ],
)
def test_wrong_picks_have_no_objective(indices, weights, message):
    with pytest.raises(CoreclipError, match=message):
        facility_objective(rows(), indices, weights=weights)


def test_no_picks_represent_nothing():
    assert facility_objective(rows(), []) == 0
