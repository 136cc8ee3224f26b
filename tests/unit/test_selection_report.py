"""The page of a selection: it stands alone, escapes what strangers wrote, and says what the subset says."""

import base64
import io
import json
import re
import shlex
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coreclip.cli import run_command
from coreclip.errors import CoreclipError
from coreclip.pages import figure
from coreclip.pipeline import Dataset
from coreclip.selection import Features, Subset, clip_scores, select
from coreclip.selection_report import GENERATOR, caption_of, certificate, is_report, render_report, write_report
from tests.helpers import make_dataset

N = 120
HOSTILE = '<script>alert("x")</script><img src=https://evil.example/x.png>'
VOID = {"meta", "img", "br", "line", "path", "rect"}


@dataclass
class Page(HTMLParser):
    """What a page holds, by element."""

    text: str
    opened: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        assert self.opened == [], "every element is closed"

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.opened:
            self.words.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and attributes.items() <= a.items()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("report") / "data", N, rows_per_shard=50, captions_per_pair=(1, 3))


@pytest.fixture(scope="module")
def features(dataset: Dataset) -> Features:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(N, 8))
    text = image + rng.normal(size=(N, 8))
    return Features.from_arrays(image, text, info={"fingerprint": dataset.fingerprint})


def choose(dataset: Dataset, method: str, k: int, features: Features | None = None) -> Subset:
    return select(features, dataset.n, method=method, k=k, fingerprint=dataset.fingerprint)


def render(dataset: Dataset, subset: Subset, features: Features | None = None, command: str | None = None) -> Page:
    return Page(render_report(dataset, subset, features, command))


def heading_counts(page: str) -> dict[str, int]:
    """Pictures and empty tiles below each heading of the third order."""
    parts = re.split(r"<h3>(.*?)</h3>", page)
    return {title: len(re.findall(r"<figure>", text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_page_stands_alone_and_every_thumbnail_is_a_small_jpeg(dataset, features):
    page = render(dataset, choose(dataset, "facility-location", 60, features), features)
    links = [
        value for _, a in page.elements for name, value in a.items() if name in ("src", "href", "srcset", "action")
    ]
    assert len(links) >= 4 * 24
    for link in set(links):
        head, _, data = link.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert image.format == "JPEG"
            assert max(image.size) <= 192
    assert not re.search(r"@import|url\(|<script|https?://|\bon\w+=", page.text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "form"}


def test_page_is_bounded_and_the_same_for_the_same_inputs(dataset, features):
    subset = choose(dataset, "semdedup(eps=0.01) | facility-location", 60, features)
    first, second = (render_report(dataset, subset, features, "x") for _ in range(2))
    assert first == second
    assert len(first) < 3_000_000


def test_every_picture_and_chart_has_words_for_who_cannot_see_it(dataset, features):
    page = render(dataset, choose(dataset, "facility-location", 60, features), features)
    assert all(re.fullmatch(r"image of pair \d+", a["alt"] or "") for a in page.all("img"))
    charts = page.all("div", role="img")
    assert len(charts) == 4, "the certificate's meter, two histograms, the clusters"
    assert all(len(a["aria-label"] or "") > 20 for a in charts)
    assert page.all("html", lang="en")
    assert page.all("meta", name="viewport")
    assert "prefers-color-scheme: dark" in page.text


def test_figures_of_the_headline_are_the_subsets(dataset, features):
    subset = choose(dataset, "facility-location", 30, features)
    shown = render(dataset, subset, features, "coreclip select a b").shown
    assert "30 of 120 pairs kept" in shown
    assert "25.0 % of the pairs kept" in shown
    assert "90 refused" in shown
    assert dataset.fingerprint in shown
    assert "optimizer lazy" in shown
    assert "coreclip select a b" in shown


def plain(**changes: Any) -> Subset:
    rows = {"indices": np.arange(4), "weights": np.ones(4), "gains": np.array([4.0, 3, 2, 1])}
    return Subset(**{**rows, "method": "made", "n": 10, **changes})


@pytest.mark.parametrize(
    ("objective", "bound", "ratio", "words"),
    [
        (9.0, 10.0, 0.9, "No choice of 4 pairs can be better than 10; this one has 9, so it reaches at least 90.0 % of the best possible."),
        # Never more than is certified: 0.99996 is 99.9 %, the objective is rounded down and the bound up.
        (9.9996, 10.0, 0.999, "has 9.9996, so it reaches at least 99.9 %"),
        (1.23456789, 1.33333333, 0.925, "better than 1.33334; this one has 1.23456, so it reaches at least 92.5 %"),
        (10.0, 10.0, 1.0, "No choice of 4 pairs has a higher objective: 10 is the best possible."),
        (10.0 + 1e-12, 10.0, 1.0, "the best possible"),
        (-5.0, -1.0, None, "No choice of 4 pairs can be better than -1; this one has -5."),
        (9.0, None, None, "The objective is 9; there is no upper bound to hold it against"),
        (None, None, None, "made has no objective, so nothing is certified."),
    ],
)  # fmt: skip
def test_certificate_says_no_more_than_objective_and_bound_do(objective, bound, ratio, words):
    said = certificate(plain(objective=objective, upper_bound=bound))
    assert said["ratio"] == ratio
    assert words in said["sentence"].replace("\N{NO-BREAK SPACE}", " ")


def test_certificate_of_a_real_choice_agrees_with_the_subset(dataset, features):
    subset = choose(dataset, "semdedup(eps=0.02) | facility-location", 20, features)
    page = render(dataset, subset, features)
    found = re.search(
        r"No choice of 20 pairs out of the ([\d,]+) that reached the last stage can be better than ([\d.,]+); "
        r"this one has ([\d.,]+), so it reaches at least ([\d.]+) %",
        page.shown,
    )
    assert found
    incoming, bound, objective, percent = (float(number.replace(",", "")) for number in found.groups())
    assert incoming == subset.parameters["stages"][-1]["n"]
    assert bound >= subset.upper_bound == pytest.approx(bound, rel=1e-5)
    assert objective <= subset.objective == pytest.approx(objective, rel=1e-5)
    true = 100 * subset.objective / subset.upper_bound
    assert percent <= true < percent + 0.1
    assert page.all("div", role="img")[0]["aria-label"].replace("\N{NO-BREAK SPACE}", " ") == (
        f"At least {percent} % of the best possible"
    )


def test_stages_are_shown_with_their_numbers_and_parameters(dataset, features):
    page = render(
        dataset, choose(dataset, "semdedup(k=90) | clipscore(k=60) | facility-location", 30, features), features
    )
    shown = page.shown
    assert "semdedup 120 → 90 in" in shown
    assert "clipscore 90 → 60 in" in shown
    assert "facility-location 60 → 30 in" in shown
    assert "n_clusters = 10, modality = image" in shown
    widths = [re.sub(r"\.0%", "%", a["style"] or "") for a in page.all("i") if "style" in a]
    assert widths[-4:] == ["width: 100%", "width: 75%", "width: 50%", "width: 25%"]


def test_one_method_has_no_stages(dataset, features):
    assert "Stage by stage" not in render(dataset, choose(dataset, "facility-location", 30, features), features).shown


def test_fewer_pairs_than_asked_for_are_noted(dataset, features):
    subset = choose(dataset, "clipscore(k=10) | facility-location", 30, features)
    assert "10 pairs instead of the 30 asked for" in render(dataset, subset, features).shown


def test_galleries_show_first_last_others_and_refused_pairs(dataset, features):
    subset = choose(dataset, "clipscore", 80, features)
    page = render_report(dataset, subset, features)
    assert {title: count for title, count in heading_counts(page).items() if "luster" not in title and count} == {
        "The first 24 picks": 24,
        "The last 24 picks": 24,
        "24 other picks": 24,
        "24 refused pairs": 24,
        "The 24 refused pairs whose image and text agree least": 24,
    }
    shown = Page(page).shown
    for position in (0, 23, 56, 79):
        assert (
            f"pick {position + 1}, index {subset.indices[position]} score {figure(subset.gains[position], 3)}" in shown
        )


def test_the_worst_refused_come_in_order_and_kept_pairs_are_not_among_them(dataset, features):
    subset = choose(dataset, "random", 70)
    page = render_report(dataset, subset, features).partition("agree least</h3>")[2]
    listed = [int(index) for index in re.findall(r"alt=\"image of pair (\d+)\"", page)]
    scores = clip_scores(features)
    refused = np.setdiff1d(np.arange(N), subset.indices)
    assert listed == refused[np.argsort(scores[refused])][:24].tolist()


def test_no_picture_is_shown_both_as_kept_and_as_refused(dataset, features):
    subset = choose(dataset, "facility-location", 60, features)
    page = render_report(dataset, subset, features).partition("What was kept, what was refused</h2>")[2]
    kept, _, refused = page.partition("<h3>24 refused pairs</h3>")
    numbers = [set(map(int, re.findall(r"alt=\"image of pair (\d+)\"", part))) for part in (kept, refused)]
    assert numbers[0] <= set(subset.indices.tolist())
    assert not numbers[1] & set(subset.indices.tolist())
    assert len(numbers[0]) == 60, "24 first, 24 last and the 12 between"


def test_refused_pairs_name_the_closest_kept_one(dataset, features):
    subset = choose(dataset, "random", 110)
    page = render(dataset, subset, features).shown
    image = features.vectors("image")
    found = re.findall(r"index (\d+) image-text -?[\d.]+ closest kept (\d+): (-?[\d.]+)", page)
    assert len(found) == 10
    for index, nearest, cosine in found:
        cosines = image[subset.indices] @ image[int(index)]
        assert int(nearest) == subset.indices[cosines.argmax()]
        assert float(cosine) == pytest.approx(cosines.max(), abs=0.006)


def test_histograms_compare_kept_and_refused(dataset, features):
    subset = choose(dataset, "clipscore", 40, features)
    page = render(dataset, subset, features)
    assert [a["class"] for a in page.all("path")] == ["kept", "refused"] * 2
    scores = clip_scores(features)
    low = f"{np.quantile(scores[subset.indices], 0.5, method='inverted_cdf'):.4g}"
    assert f"median {low}" in page.all("div", role="img")[2]["aria-label"]
    assert "refused: 80 values" in page.all("div", role="img")[2]["aria-label"]


def test_refused_pairs_show_the_methods_own_score(dataset, features):
    subset = choose(dataset, "negcliploss(batch_size=30)", 40, features)
    refused = np.setdiff1d(np.arange(dataset.n), subset.indices)
    high = f"{np.quantile(subset.scores[refused], 0.5, method='inverted_cdf'):.4g}"
    page = render(dataset, subset, features)
    assert "refused: 80 values, 90 % of them from" in page.all("div", role="img")[1]["aria-label"]
    assert f"median {high}" in page.all("div", role="img")[1]["aria-label"]
    worst = refused[np.argmin(clip_scores(features)[refused])]
    assert f"index {worst}\nscore {subset.scores[worst]:.3g}" in page.text


def test_pairs_that_an_earlier_stage_refused_have_no_score(dataset, features):
    subset = choose(dataset, "random(keep=0.5) | clipscore", 40, features)
    assert np.isnan(subset.scores).sum() == 60
    np.testing.assert_array_equal(subset.scores[subset.indices], subset.gains)
    assert "60 refused pairs have no score." in render(dataset, subset, features).text
    assert choose(dataset, "clipscore(keep=0.5) | random", 40, features).scores is None


def test_clusters_say_how_many_have_no_kept_pair(dataset):
    rng = np.random.default_rng(1)
    centres = np.eye(10)
    groups = np.arange(N) % 10
    features = Features.from_arrays(centres[groups] + rng.normal(scale=0.01, size=(N, 10)))
    subset = plain(indices=np.flatnonzero(groups == 3), weights=np.ones(12), gains=np.zeros(12), n=N)
    page = render(dataset, subset, features)
    count = len(page.all("rect"))
    assert f"9 of the {count} clusters of the image features have no kept pair" in page.shown
    assert "to 100.0 %. Their Gini coefficient is 0.90" in page.shown


def test_classes_are_counted_and_their_names_escaped(tmp_path):
    data = make_dataset(tmp_path / "data", 30, labels=["cat", HOSTILE, "boat"])
    subset = plain(indices=np.array([0, 3, 6, 2]), n=30)
    page = render(data, subset)
    assert "1 of the 3 classes has no kept pair" in page.shown
    assert "cat 10 3 30.0 %" in page.shown
    assert f"{' '.join(HOSTILE.split())} 10 0 0.0 %" in page.shown
    assert "<script" not in page.text


def test_captions_are_text_and_never_markup(dataset, monkeypatch):
    monkeypatch.setattr(dataset, "captions", lambda index: [HOSTILE, "b", "c"])
    page = render(dataset, choose(dataset, "random", 5), command=HOSTILE)
    assert page.shown.count("alert") == 5 + 24 + 1
    assert f"{HOSTILE} (+2 more)" in page.shown.replace("\N{NO-BREAK SPACE}", " ")
    assert not {tag for tag, _ in page.elements} & {"script"}
    assert all((a["src"] or "").startswith("data:image/jpeg") for a in page.all("img"))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a dog"], "a dog"),
        (["a\ndog\x00 on\ta  mat "], "a dog on a mat"),
        (["lone \ud800 half"], "lone half"),
        ([" \n"], "(empty caption)"),
        (["x" * 500], "x" * 199 + "…"),
    ],
)
def test_captions_are_one_line_of_bounded_length_that_can_be_written(dataset, monkeypatch, texts, expected):
    monkeypatch.setattr(dataset, "captions", lambda index: texts)
    assert caption_of(dataset, 0) == expected
    expected.encode()


def test_an_image_that_cannot_be_decoded_is_an_empty_tile_with_a_label(tmp_path):
    data = make_dataset(tmp_path / "data", 10, images={4: b"\xff\xd8\xff broken"})
    page = render(data, plain(indices=np.array([4, 1]), weights=np.ones(2), gains=np.zeros(2)))
    assert [a["aria-label"] for a in page.all("div", **{"class": "empty"})] == ["image of pair 4: can’t be decoded"]
    assert len(page.all("img")) == 9
    assert len(page.all("figure")) == 10


@pytest.mark.parametrize("k", [1, 2, 24, 25, 48, 119, 120])
@pytest.mark.parametrize("with_features", [True, False])
def test_every_size_of_a_choice_has_a_page_that_shows_what_there_is(dataset, features, k, with_features):
    given = features if with_features else None
    text = render_report(dataset, choose(dataset, "random", k), given)
    Page(text)
    counts = heading_counts(text.partition("What was kept, what was refused</h2>")[2])
    kept = sum(count for title, count in counts.items() if "pick" in title)
    refused = [count for title, count in counts.items() if "refused" in title]
    assert kept == min(k, 72)
    assert sum(refused[:1]) == min(N - k, 24)
    assert ("Nothing was refused." in text) == (k == N)
    assert ("agree least</h3>" in text) == (with_features and N - k > 24)
    assert ("No features were given" in text) != with_features


def test_a_data_set_of_one_pair_has_a_page(tmp_path):
    data = make_dataset(tmp_path / "data", 1)
    one = plain(indices=[0], weights=[1.0], gains=[2.0], n=1)
    assert "1 of 1 pair kept" in render(data, one, Features.from_arrays(np.ones((1, 3)), np.ones((1, 3)))).shown


def test_text_features_alone_give_clusters_of_texts(dataset, features):
    shown = render(dataset, choose(dataset, "random", 60), Features.from_arrays(text=features.vectors("text"))).shown
    assert "clusters of the text features" in shown
    assert "the most similar text" in shown
    assert "Agreement of image and text" not in shown


def test_infinite_scores_and_weights_are_said_in_words(dataset):
    gains = np.array([np.finfo(np.float64).max, 3.0, 2.0, 1.0])
    shown = render(dataset, plain(gains=gains, weights=np.array([0.5, 1, 2, 0.5]), n=N)).shown
    assert "1 infinite value is not drawn." in shown
    assert "weights 0.5 to 2, 1 on average" in shown


def test_subset_or_features_of_another_data_set_are_refused(dataset, features):
    with pytest.raises(CoreclipError, match="the subset was chosen from 10 pairs, this data set has 120"):
        render_report(dataset, plain())
    subset = choose(dataset, "random", 4)
    with pytest.raises(CoreclipError, match="the features are of 5 pairs"):
        render_report(dataset, subset, Features.from_arrays(np.ones((5, 2))))
    with pytest.raises(CoreclipError, match="embed this data set"):
        render_report(dataset, subset, replace(features, info={"fingerprint": "other"}))


def test_only_a_page_of_its_own_is_replaced(dataset, tmp_path):
    subset = choose(dataset, "random", 4)
    mine = tmp_path / "mine.html"
    mine.write_text(f"<title>{GENERATOR}: my notes about it</title>")
    with pytest.raises(
        CoreclipError, match=r"mine\.html exists and is no selection report; nothing of yours is replaced"
    ):
        write_report(mine, dataset, subset)
    with pytest.raises(CoreclipError, match="is no selection report"):
        write_report(tmp_path, dataset, subset)
    assert not is_report(mine)
    page = tmp_path / "page.html"
    write_report(page, dataset, subset, command="first")
    write_report(page, dataset, subset, command="second")
    assert is_report(page)
    assert "second" in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "page.html"]


def test_select_writes_the_page_beside_the_subset(dataset, features, tmp_path, capsys):
    np.save(tmp_path / "f.npy", features.vectors("image"))
    arguments = [
        "select", str(dataset.path), str(tmp_path / "s.parquet"), "--method", "semdedup(k=60) | facility-location", "--k", "30",
        "--features", str(tmp_path / "f.npy"), "--report", str(tmp_path / "page.html"), "--json",
    ]  # fmt: skip
    assert run_command(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    subset = Subset.load(tmp_path / "s.parquet")
    assert f"coreclip {shlex.join(arguments)}" in page.shown
    assert f"pick 1, index {subset.indices[0]}" in page.shown
    assert "30 of 120 pairs kept" in page.shown


def test_select_refuses_a_page_before_it_selects(dataset, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<p>kept</p>")
    given = ["select", str(dataset.path), str(tmp_path / "s.parquet"), "--method", "random", "--k", "3", "--report"]
    assert run_command([*given, str(tmp_path / "mine.html")]) == 2
    assert "mine.html exists and is no selection report" in capsys.readouterr().err
    assert run_command([*given, str(tmp_path / "s.parquet")]) == 2
    assert "is the subset's own file; name another file for the page" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>kept</p>"
    assert not (tmp_path / "s.parquet").exists()


def test_select_without_report_writes_none_and_says_none(dataset, tmp_path, capsys):
    assert (
        run_command(
            ["select", str(dataset.path), str(tmp_path / "s.parquet"), "--method", "random", "--k", "3", "--json"]
        )
        == 0
    )
    assert "report" not in json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


def test_the_path_in_the_headline_is_escaped(tmp_path):
    folder = tmp_path / "<b>data"
    data = make_dataset(folder, 4)
    page = render(data, plain(indices=np.arange(4), n=4))
    assert folder.name in page.shown
    assert "<b>data" not in page.text
