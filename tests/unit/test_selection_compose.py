"""Expressions: what they mean, what they record, and where their errors point."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import (
    METHODS,
    Features,
    Subset,
    clip_scores,
    clipscore,
    facility_location,
    metadata_of,
    needs_features,
    parse,
    select,
    semdedup,
)


def make_features(n=100, d=8, seed=0, **info):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    return Features.from_arrays(image, image + rng.normal(size=(n, d)), info=info)


def make_signals(n=100, passes=3, seed=0):
    rng = np.random.default_rng(seed)
    names = ("loss", "margin", "confidence", "entropy", "probability_margin", "el2n", "grand")
    signals = {name: rng.random((passes, n), dtype=np.float32) for name in names}
    signals |= {name: rng.random(n, dtype=np.float32) for name in ("vog", "tracin")}
    return signals | {"correct": rng.integers(0, 2, (passes, n)).astype(np.int8)}


def make_metadata(n=100):
    return {
        "caption": np.array([f"a picture of the number {i}" for i in range(n)], object),
        "width": np.full(n, 640),
        "height": np.full(n, 480),
    }


def test_an_expression_is_read_into_stages():
    stages = parse(
        "semdedup( eps = 0.05,modality='text') | clip-score(keep=.6)".replace("clip-score", "clipscore") + "|craig(k=7)"
    )
    assert [stage.name for stage in stages] == ["semdedup", "clipscore", "craig"]
    assert stages[0].parameters == {"eps": 0.05, "modality": "text"}
    assert (stages[1].keep, stages[2].k) == (0.6, 7)


def test_values_have_types():
    (stage,) = parse("facility_location(neighbors=none, epsilon=1e-1, optimizer=naive)")
    assert stage.name == "facility-location"
    assert stage.parameters == {"neighbors": None, "epsilon": 0.1, "optimizer": "naive"}
    (stage,) = parse("craig(temperature=1)")
    assert isinstance(stage.parameters["temperature"], float)


def test_an_expression_describes_itself_so_that_it_can_be_read_again():
    text = "semdedup(eps=0.05, modality=text) | clipscore(keep=0.6) | facility-location(neighbors=None)"
    assert " | ".join(stage.describe() for stage in parse(text)) == text
    assert parse(text)[2].parameters == {"neighbors": None}


def test_one_stage_is_the_method_itself():
    features = make_features(fingerprint="abc")
    subset = select(features, 100, method="facility-location", fraction=0.1)
    direct = facility_location(features, 10)
    assert subset.indices.tolist() == direct.indices.tolist()
    assert (subset.objective, subset.upper_bound) == (direct.objective, direct.upper_bound)
    assert subset.parameters == direct.parameters
    assert (subset.method, subset.n, subset.fingerprint) == ("facility-location", 100, "abc")
    assert subset.seconds > 0


def test_stages_choose_among_the_survivors_and_the_fraction_is_of_all():
    features = make_features()
    subset = select(features, 100, method="clipscore(keep=0.5) | facility-location", fraction=0.2, seed=5)
    assert subset.k == 20
    best_half = np.argsort(-clip_scores(features), kind="stable")[:50]
    assert set(subset.indices) <= set(best_half)
    assert [(stage["n"], stage["k"]) for stage in subset.parameters["stages"]] == [(100, 50), (50, 20)]
    narrowed = facility_location(features.take(clipscore(features, 50).indices), 20)
    assert subset.gains.tolist() == narrowed.gains.tolist()
    assert (subset.n, subset.seed) == (100, 5)


def test_a_filter_decides_by_itself():
    features = make_features()
    by_eps = select(features, 100, method="semdedup(eps=0.3)")
    assert by_eps.indices.tolist() == semdedup(features, eps=0.3).indices.tolist()
    assert by_eps.k < 100


def test_fewer_pairs_than_asked_for_are_noted():
    features = make_features()
    subset = select(features, 100, method="clipscore(keep=0.3) | facility-location", fraction=0.5)
    assert subset.k == 30
    assert subset.parameters["note"] == "30 pairs instead of the 50 asked for: the stages left no more"
    assert select(features, 100, method="clipscore(k=4)", k=10).k == 4
    assert "note" not in select(features, 100, method="clipscore", k=10).parameters


def test_a_method_that_chose_fewer_says_why():
    note = select(make_features(), 100, method="lightweight", k=100).parameters["note"]
    assert note.startswith("100 draws met ")


def test_labels_follow_the_survivors():
    labels = np.arange(100) % 2
    subset = select(make_features(), 100, method="clipscore(keep=0.5) | craig(bank=16)", k=20, labels=labels)
    assert subset.parameters["stages"][1]["parameters"]["classes_from"] == "labels"
    clustered = select(make_features(), 100, method="craig(bank=16, clusters=3)", k=20, labels=labels)
    assert clustered.parameters["classes_from"] == "clusters"


def test_random_needs_no_features():
    assert select(None, 100, method="random", fraction=0.25).k == 25
    with pytest.raises(CoreclipError, match="needs features and none are given"):
        select(None, 100, method="clipscore", fraction=0.25)


def test_signals_follow_the_survivors():
    signals = make_signals()
    subset = select(None, 100, method="hard(keep=0.5) | el2n", k=20, signals=signals)
    hardest_half = np.argsort(-signals["loss"][-1], kind="stable")[:50]
    early = signals["el2n"].astype(np.float64).mean(axis=0)
    assert subset.indices.tolist() == sorted(hardest_half, key=lambda index: -early[index])[:20]


def test_features_that_a_method_can_do_without_may_be_missing():
    assert select(None, 100, method="ccs", k=20, signals=make_signals()).k == 20
    with pytest.raises(CoreclipError, match="ccs needs the signals of a training run, or features"):
        select(None, 100, method="ccs", k=20)


def test_what_an_expression_reads_is_known_beforehand():
    assert metadata_of("datacomp-basic | clipscore") == {"caption", "width", "height"}
    assert needs_features("datacomp-basic | clipscore")
    assert not needs_features("datacomp-basic | random")
    assert needs_features("apricot:GraphCut")


def test_metadata_follow_the_survivors():
    metadata = make_metadata(100)
    metadata["width"][::2] = 10
    subset = select(make_features(), 100, method="clipscore(keep=0.5) | datacomp-basic", metadata=metadata)
    assert subset.k == subset.parameters["stages"][1]["k"] > 0
    assert (subset.indices % 2 == 1).all()


def test_every_method_is_described():
    assert all(method.summary for method in METHODS.values())
    assert [name for name, method in METHODS.items() if not method.higher_is_better] == ["easy"]
    assert {"apricot:GraphCutSelection", "random"} < set(METHODS)


@pytest.mark.parametrize("name", [*(name for name in METHODS if ":" not in name), "apricot:GraphCut"])
def test_every_method_runs_by_name_and_its_subset_can_be_stored(name, tmp_path):
    subset = select(
        make_features(30),
        30,
        method=name,
        k=6,
        signals=make_signals(30),
        metadata=make_metadata(30),
        labels=np.arange(30) % 4,
    )
    assert subset.k == 6 or (subset.k < 6 and subset.parameters["draws"] == 6)  # with replacement
    subset.save(tmp_path / "s.parquet")
    assert Subset.load(tmp_path / "s.parquet").parameters == subset.parameters


@pytest.mark.parametrize(
    ("expression", "place", "message"),
    [
        ("facilty | craig", "facilty", "unknown method 'facilty'; known: random, facility-location"),
        ("random | apricot:Magic", "apricot", "no selector 'Magic'; known: FacilityLocationSelection"),
        ("apricot:Mixture", "apricot", "takes functions as parameters; call apricot_subset from Python"),
        ("craig(size=3)", "size", "craig has no parameter 'size'; known: keep, k, temperature, bank, clusters"),
        ("random(seed=3)", "seed", "random has no parameter 'seed'"),
        ("craig(bank=0.5)", "bank", "bank = 0.5 must be of type int"),
        ("craig(bank=many)", "bank", "bank = 'many' must be of type int"),
        ("craig(clusters=true)", "clusters", "must be of type int or none"),
        ("craig(bank=3, bank=4)", "bank=4", "bank is given twice"),
        ("craig(keep=2)", "keep", "keep = 2 is not allowed"),
        ("craig(k=0.5)", "k=", "k = 0.5 is not allowed: a whole number"),
        ("craig(k=5, keep=0.5)", "craig", "craig has both keep= and k="),
        ("craig(bank 3)", "3", "expected = after bank"),
        ("craig(bank=)", ")", "expected a value"),
        ("craig(bank=3 clusters=2)", "clusters", "expected , or )"),
        ("craig(bank=3", None, "expected , or )"),
        ("craig(=3)", "=", "expected parameter=value or )"),
        ("craig random", "random", "expected | or the end"),
        ("craig(keep=0.5) |", None, "expected the name of a method"),
        ("", None, "expected the name of a method"),
        ("craig & random", "&", "unexpected '&'"),
        ("craig | random", "craig", "craig does not say how many pairs it leaves; write craig(keep=0.5)"),
    ],
)
def test_errors_point_at_the_place(expression, place, message):
    with pytest.raises(CoreclipError) as caught:
        select(make_features(30), 30, method=expression, k=3)
    explanation, shown, caret = str(caught.value).split("\n")
    assert message in explanation
    assert shown == f"  {expression}"
    assert caret.index("^") - 2 == (len(expression) if place is None else expression.index(place))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0.0}, "fraction = 0.0 is not allowed"),
        ({"fraction": 1.5}, "fraction = 1.5 is not allowed"),
        ({"k": 0}, "k = 0 of 30 pairs is not allowed"),
        ({"k": 31}, "k = 31 of 30 pairs is not allowed"),
        ({"k": 3, "fraction": 0.1}, "are both given"),
        ({}, "clipscore does not say how many pairs it leaves; give a fraction or k"),
        ({"k": 3, "n": 31}, "the features are of 30 pairs, the data set has 31"),
        ({"k": 3, "fingerprint": "def"}, "fingerprint abc, this one has def"),
        ({"k": 3, "labels": np.zeros(5)}, r"labels have shape \(5,\)"),
        ({"k": 3, "signals": {"loss": np.zeros((2, 5))}}, r"signal loss has shape \(2, 5\)"),
    ],
)
def test_wrong_requests_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        select(make_features(30, fingerprint="abc"), **({"n": 30, "method": "clipscore"} | arguments))
