"""Expressions: what they mean, what they record, and where their errors point."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import (
    METHODS,
    Features,
    Method,
    Subset,
    clip_scores,
    clipscore,
    facility_location,
    metadata_of,
    needs_features,
    parse,
    random_subset,
    select,
    semdedup,
)
from coreclip.selection.clusters import apportion, spherical_kmeans
from coreclip.selection.registry import Tier


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
        "thumbnail": np.random.default_rng(0).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8),
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


def test_an_intersection_holds_what_both_choose_in_the_order_of_the_first():
    features = make_features(fingerprint="abc")
    subset = select(features, 100, method="clipscore(keep=0.5) & random(keep=0.6)", seed=3)
    score, chance = clipscore(features, 50), random_subset(100, 60, seed=3)
    assert subset.indices.tolist() == [i for i in score.indices if i in set(chance.indices)]
    assert 0 < subset.k < 50
    assert (subset.objective, subset.upper_bound, subset.fingerprint) == (None, None, "abc")
    assert subset.method == "clipscore(keep=0.5) & random(keep=0.6)"
    assert [(part["method"], part["k"], part["seed"]) for part in subset.parameters["of"]] == [
        ("clipscore(keep=0.5)", 50, 3),
        ("random(keep=0.6)", 60, 3),
    ]


def test_a_union_holds_what_either_chooses_the_first_first():
    features = make_features()
    subset = select(features, 100, method="clipscore(k=10) + random(k=20)")
    score, chance = clipscore(features, 10).indices.tolist(), random_subset(100, 20).indices.tolist()
    assert subset.indices.tolist() == score + [i for i in chance if i not in score]


def test_and_binds_tighter_than_plus_and_plus_than_the_bar():
    features = make_features()
    loose = select(features, 100, method="random(k=30) + random(k=60) & clipscore(k=40) | clipscore", k=25)
    tight = select(features, 100, method="(random(k=30) + (random(k=60) & clipscore(k=40))) | clipscore", k=25)
    other = select(features, 100, method="(random(k=30) + random(k=60)) & clipscore(k=40) | clipscore", k=25)
    assert loose.indices.tolist() == tight.indices.tolist() != other.indices.tolist()
    assert [stage["method"] for stage in loose.parameters["stages"]] == ["union", "clipscore"]


def test_operands_see_the_pairs_that_come_in_and_stages_in_parentheses_those_of_their_own():
    features = make_features()
    subset = select(features, 100, method="clipscore(k=50) | (random(keep=0.8) | random(keep=0.5)) & random(keep=0.9)")
    operands = subset.parameters["stages"][1]["parameters"]["of"]
    assert [part["k"] for part in operands] == [20, 45]
    assert [(stage["n"], stage["k"]) for stage in operands[0]["parameters"]["stages"]] == [(50, 40), (40, 20)]
    assert set(subset.indices) <= set(clipscore(features, 50).indices)


def test_the_number_asked_for_is_cut_from_a_combination_in_its_order():
    features = make_features()
    whole = select(features, 100, method="clipscore(keep=0.5) & random(keep=0.6)")
    cut = select(features, 100, method="clipscore(keep=0.5) & random(keep=0.6)", k=7)
    assert cut.indices.tolist() == whole.indices[:7].tolist()
    fewer = select(features, 100, method="clipscore(keep=0.5) & random(keep=0.6)", k=60)
    assert fewer.k == whole.k
    assert fewer.parameters["note"].startswith(f"{whole.k} pairs instead of the 60 asked for")


def test_an_intersection_without_a_pair_points_at_its_mark():
    features = Features.from_arrays(np.eye(4), np.eye(4)[[0, 2, 1, 3]])
    expression = "clipscore(k=1) & random(k=3) & random(k=1)"
    last = next(seed for seed in range(50) if random_subset(4, 1, seed).indices[0] != 0)
    with pytest.raises(CoreclipError, match="no pair is in all of these; let each of them keep more") as caught:
        select(features, 4, method=expression, seed=last)
    assert str(caught.value).split("\n")[2].index("^") - 2 == expression.index("&")


def test_classes_get_their_shares_and_the_best_of_each():
    features, labels = make_features(), np.repeat([5, 9], [80, 20])
    subset = select(features, 100, method="clipscore @ class", k=10, labels=labels)
    scores = clip_scores(features)
    first, second = np.argsort(-scores[:80])[:8], 80 + np.argsort(-scores[80:])[:2]
    assert sorted(subset.indices) == sorted([*first, *second])
    assert subset.objective == subset.upper_bound == pytest.approx(scores[subset.indices].sum(), rel=1e-6)
    assert subset.gains.tolist() == pytest.approx(scores[subset.indices].tolist())
    expected = {"by": "class", "quota": "proportional", "number": 2, "without_pairs": 0}
    assert subset.parameters["groups"] == expected
    # Of every five picks one is of the class that has a fifth of the pairs.
    assert [(labels[subset.indices[i : i + 5]] == 9).sum() for i in (0, 5)] == [1, 1]


def test_equal_quotas_give_small_groups_all_they_have():
    features, labels = make_features(), np.repeat([0, 1, 2], [70, 27, 3])
    subset = select(features, 100, method="facility-location @ class(equal)", k=23, labels=labels)
    assert np.bincount(labels[subset.indices]).tolist() == [10, 10, 3]
    parts = [facility_location(features.take(np.flatnonzero(labels == c)), k) for c, k in enumerate((10, 10, 3))]
    assert subset.objective == pytest.approx(sum(part.objective for part in parts))
    assert subset.upper_bound == pytest.approx(sum(part.upper_bound for part in parts))
    assert subset.parameters["modality"] == "image"


def test_clusters_are_those_of_the_images():
    features = make_features()
    subset = select(features, 100, method="clipscore(keep=0.3) @ cluster(4)", seed=2)
    clusters, _ = spherical_kmeans(features.vectors("image"), 4, 2)
    shares = apportion(np.bincount(clusters), 30)
    assert np.bincount(clusters[subset.indices], minlength=4).tolist() == shares.tolist()
    assert select(features, 100, method="clipscore @ cluster", k=30).parameters["groups"]["number"] <= 10


@pytest.mark.parametrize(
    "method", ["random", "clipscore", "facility-location", "craig", "semdedup", "semdedup(eps=0.3)"]
)
def test_one_group_is_the_method_itself(method):
    features = make_features()
    alone = select(features, 100, method=method, k=20, seed=4)
    grouped = select(features, 100, method=f"{method} @ class", k=20, seed=4, labels=np.zeros(100, int))
    one_cluster = select(features, 100, method=f"{method} @ cluster(1, equal)", k=20, seed=4)
    assert grouped.indices.tolist() == alone.indices.tolist() == one_cluster.indices.tolist()
    assert grouped.objective == alone.objective
    assert grouped.weights.tolist() == alone.weights.tolist()


def test_groups_of_one_size_are_not_drawn_at_the_same_places():
    subset = select(None, 200, method="random(k=50) @ class", labels=np.repeat([0, 1], 100))
    places = [sorted(subset.indices[subset.indices // 100 == c] % 100) for c in (0, 1)]
    assert [len(place) for place in places] == [25, 25]
    assert places[0] != places[1]


def test_a_filter_may_leave_nothing_of_a_group(monkeypatch):
    def low(n: int, labels: np.ndarray, k: int | None) -> Subset:
        rows = np.flatnonzero(labels < 1)[:k]
        return Subset(indices=rows, weights=np.ones(len(rows)), gains=np.zeros(len(rows)), method="low", n=n)

    monkeypatch.setitem(METHODS, "low", Method(low, "class 0", Tier.REFERENCE, filters=True))
    labels = np.repeat([0, 1], [6, 4])
    subset = select(None, 10, method="low @ class", labels=labels)
    assert subset.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert subset.parameters["groups"]["without_pairs"] == 1
    with pytest.raises(CoreclipError, match="low leaves no pair of any class; let it keep more"):
        select(None, 10, method="low @ class", labels=labels + 1)


def test_clusters_need_images():
    with pytest.raises(CoreclipError, match="clusters are of image features and none are given"):
        select(None, 10, method="random @ cluster(2)", k=3)
    with pytest.raises(CoreclipError, match="clusters are of image features and none are given"):
        select(Features.from_arrays(None, np.eye(10)), 10, method="random @ cluster(2)", k=3)


def test_metadata_are_those_of_every_method_of_the_tree(monkeypatch):
    for name in ("a", "b", "c"):
        monkeypatch.setitem(METHODS, name, Method(random_subset, name, Tier.REFERENCE, metadata=(f"{name}_column",)))
    expression = "(a(k=1) | random(k=1)) & random(k=1) + b(k=1) @ class | c"
    assert metadata_of(expression) == {"a_column", "b_column", "c_column"}


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
        ("craig random", "random", "expected |, &, + or the end"),
        ("craig(keep=0.5) |", None, "expected the name of a method"),
        ("", None, "expected the name of a method"),
        ("craig % random", "%", "unexpected '%'"),
        ("craig & random(k=5)", "craig", "craig does not say how many pairs it leaves; write craig(keep=0.5)"),
        ("craig(k=5) + random", "random", "random does not say how many pairs it leaves; write random(keep=0.5)"),
        ("(craig | random(k=5)) & random(k=5)", "craig", "craig does not say how many pairs it leaves"),
        ("craig(k=5) &", None, "expected the name of a method"),
        ("(craig(k=5)", None, "expected |, &, + or )"),
        ("craig(k=5))", ")", "expected |, &, + or the end"),
        ("()", ")", "expected the name of a method"),
        ("(" * 30 + "craig", "(" * 10, "parentheses are more than 20 deep"),
        ("(craig) @ class", "@", "@ belongs to a method; write it behind the methods within the parentheses"),
        ("craig @ kind", "kind", "expected class or cluster after @"),
        ("craig @", None, "expected class or cluster after @"),
        ("craig @ class(3)", "3", "class takes no number, the labels make the groups"),
        ("craig @ class(equally)", "equally", "expected equal"),
        ("craig @ cluster(even)", "even", "expected a number or equal"),
        ("craig @ cluster(0)", "0", "0 clusters are not possible: a whole number, at least 1"),
        ("craig @ cluster(2.5)", "2.5", "2.5 clusters are not possible"),
        ("craig @ cluster(3 equal)", "equal", "expected , or )"),
        ("craig @ cluster(3, even)", "even", "expected equal"),
        ("craig @ cluster(3, equal, 4)", ", 4", "expected )"),
        ("craig(k=2) @ cluster(31)", "cluster", "31 clusters of 30 pairs are not possible"),
        ("craig @ class @ class", "@", "expected |, &, + or the end"),
        ("craig(k=9223372036854775808)", "9223", "this number is too large"),
        ("craig(temperature=1e999)", "1e999", "this number is too large"),
        ("craig(k=5) @ class", "class", "the data set has no class labels; group by @ cluster"),
        ("random(k=5) & craig(bank=0, k=5)", "craig", "craig: bank = 0"),
        ("random(keep=0.5) | craig(bank=0) @ cluster(1)", "craig", "craig in cluster 0, 15 pairs: bank = 0"),
        ("craig | random", "craig", "craig does not say how many pairs it leaves; write craig(keep=0.5)"),
    ],
)
def test_errors_point_at_the_place(expression, place, message):
    with pytest.raises(CoreclipError) as caught:
        select(make_features(30), 30, method=expression, k=3)
    explanation, shown, caret = str(caught.value).split("\n")
    assert message in explanation
    assert shown == f"  {expression}"
    assert caret.index("^") - 2 == (len(expression) if place is None else expression.rindex(place))


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
