"""The demonstration's report: the verdict says what the figures say, and the page stands alone."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pages import Gallery, Picture
from coreclip.report import (
    METRIC,
    Comparison,
    compare,
    is_report,
    overall_outcome,
    render_report,
    summarise,
    table_text,
    verdict_sentence,
    write_report,
)

RECALLS = (METRIC, *(f"{way}_recall_at_{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)))


def _runs(*values: float) -> list[dict[str, float]]:
    return [{"seed": seed, "seconds": 20.0, **dict.fromkeys(RECALLS, value)} for seed, value in enumerate(values)]


def _result(**changes: Any) -> dict[str, Any]:
    arms = {
        name: {
            "pairs": pairs,
            "runs": _runs(*values),
            "summary": summarise(_runs(*values)),
            "planted": {"mismatched": 0.25, "near_duplicates": 0.12, "rare": 0.1},
        }
        for name, pairs, values in (
            ("everything", 90, (0.30, 0.31, 0.32)),
            ("random", 45, (0.28, 0.30, 0.29)),
            ("coreset", 45, (0.40, 0.41, 0.42)),
        )
    }
    stages = [{"name": "draw", "seconds": 3.0, "label": "3.0 s"}, {"name": "convert", "seconds": 1.0, "label": "1.0 s"}]
    return {
        "version": "0.1.0",
        "seed": 0,
        "seeds": [0, 1, 2],
        "seconds": 4.5,
        "expression": "clipscore(keep=0.7) | facility-location",
        "fraction": 0.5,
        "samples_per_run": 12_800,
        "data": {
            "pairs": 100,
            "heldout": 50,
            "mismatched": 25,
            "near_duplicates": 15,
            "converted": 90,
            "rejected": [{"key": "scene-7", "reason": "the image is empty"}],
        },
        "arms": arms,
        "verdict": {"sentence": "The coreset beats random.", "outcome": "better"},
        "selection": {
            "mismatched": {"auroc": 0.9, "recall": 0.8},
            "near_duplicates": {"recall": None},
            "precision": 0.6,
        },
        "training": {
            "verdict": "compute-bound",
            "summary": "the loader keeps up",
            "samples_per_second": 1000.0,
            "threads": 2,
            "stages": stages,
        },
        "machine": {"cores": 2, "processor": "A <fast> one", "torch": "2", "python": "3"},
        "time": stages,
        "selection_seconds": 2.0,
        "commands": ['coreclip search run data "a ball"'],
        **changes,
    }


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("ours", "others", "outcome"),
    [
        ((0.50, 0.51, 0.52), (0.40, 0.41, 0.42), "better"),
        ((0.40, 0.41, 0.42), (0.50, 0.51, 0.52), "worse"),
        ((0.40, 0.45, 0.50), (0.41, 0.44, 0.47), "within the spread"),
        # Beyond two standard errors, but the worst of ours is below the best of theirs.
        ((0.50, 0.60, 0.61, 0.62), (0.40, 0.41, 0.42, 0.51), "within the spread"),
        # No overlap, but within two standard errors.
        ((0.31, 0.60), (0.00, 0.30), "within the spread"),
        ((0.4, 0.4), (0.4, 0.4), "within the spread"),
    ],
)
def test_compare_needs_two_standard_errors_and_no_overlap(
    ours: tuple[float, ...], others: tuple[float, ...], outcome: str
) -> None:
    comparison = compare(ours, others, "random")
    assert comparison.outcome == outcome
    assert comparison.difference == pytest.approx(np.mean(ours) - np.mean(others))


def test_compare_gives_the_standard_error_of_the_difference() -> None:
    comparison = compare((1.0, 2.0, 3.0), (0.0, 4.0), "random")
    assert comparison.standard_error == pytest.approx(np.sqrt(1 / 3 + 8 / 2))


def test_compare_refuses_a_single_run() -> None:
    with pytest.raises(CoreclipError, match="1 run against random: a spread needs at least 2 seeds"):
        compare((0.5,), (0.4, 0.5), "random")


def _comparisons(first: Any, second: Any) -> list[Comparison]:
    return [Comparison("random", 0.031, 0.005, first), Comparison("everything", -0.012, 0.004, second)]


@pytest.mark.parametrize(
    ("first", "second", "words", "overall"),
    [
        ("better", "better", "The coreset beats random and everything at equal samples seen.", "better"),
        (
            "worse",
            "worse",
            "The coreset does not beat random and everything at equal samples seen: it is worse.",
            "worse",
        ),
        (
            "within the spread",
            "within the spread",
            "does not beat random and everything at equal samples seen: the differences lie within the seeds’ spread.",
            "within the spread",
        ),
        ("better", "worse", "mixed: at equal samples seen, the coreset beats random, and is worse than everything.", "within the spread"),
        (
            "better",
            "within the spread",
            "beats random, and does not beat everything (the difference lies within the seeds’ spread).",
            "within the spread",
        ),
    ],
)  # fmt: skip
def test_verdict_says_in_words_what_the_comparisons_show(first: str, second: str, words: str, overall: str) -> None:
    comparisons = _comparisons(first, second)
    sentence = verdict_sentence(comparisons, "R@5")
    assert words in sentence
    assert "+3.1 points of R@5 against random (2 standard errors: 1.0)" in sentence
    assert "-1.2 points of R@5 against everything (2 standard errors: 0.8)" in sentence
    assert overall_outcome(comparisons) == overall


def test_summarise_gives_mean_and_sample_standard_deviation_of_recalls_only() -> None:
    summary = summarise(_runs(0.1, 0.2, 0.3))
    assert set(summary) == set(RECALLS)
    assert summary[METRIC] == {"mean": pytest.approx(0.2), "spread": pytest.approx(0.1)}


def test_table_has_a_line_for_each_arm_and_the_verdict() -> None:
    text = table_text(_result() | {"report": "demo-report/index.html"})
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["everything", "random", "coreset"]
    assert "41.0 ± 1.0 %" in lines[3]
    assert "12,800 samples seen in every run, 3 seeds" in text
    assert text.endswith("The coreset beats random.\nreport: demo-report/index.html")


class _Links(HTMLParser):
    """Collects what a browser would fetch, and which elements are left open."""

    void = frozenset({"meta", "img", "br", "line", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_page_needs_nothing_from_outside_and_is_well_formed() -> None:
    page = render_report(_result(), [Gallery("Refused", "why", [Picture(_jpeg(), "a ball", "score 0.1", "swapped")])])
    parser = _Links()
    parser.feed(page)
    assert parser.open == []
    assert parser.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in parser.links)
    assert not re.search(r"@import|url\(|<script|https?://", page)


def test_page_shows_verdict_arms_reasons_and_rejected_files() -> None:
    page = render_report(_result(), [Gallery("Refused", "why", [Picture(_jpeg(), "a ball", "score 0.1", "swapped")])])
    for text in ("The coreset beats random.", "41.0", "score 0.1", "swapped", "scene-7", "the image is empty", "0.90"):
        assert text in page
    assert page.count("<circle") == 9


def test_page_escapes_captions_reasons_and_names() -> None:
    hostile = '<script>alert("x")</script>'
    result = _result(verdict={"sentence": hostile, "outcome": "worse"}, commands=[hostile])
    page = render_report(result, [Gallery(hostile, hostile, [Picture(_jpeg(), hostile, hostile, hostile)])])
    assert "<script" not in page
    assert "A &lt;fast&gt; one" in page


def test_missing_figures_are_dashes_not_errors() -> None:
    result = _result()
    result["selection"] = {
        "mismatched": {"auroc": None, "recall": None}, "near_duplicates": {"recall": None}, "precision": None
    }  # fmt: skip
    assert "<b>–</b>" in render_report(result, [])


def test_plot_survives_equal_values() -> None:
    result = _result()
    for arm in result["arms"].values():
        arm["runs"] = _runs(0.0, 0.0, 0.0)
        arm["summary"] = summarise(arm["runs"])
    assert "nan" not in render_report(result, [])


def test_a_written_report_is_known_again(tmp_path: Path) -> None:
    write_report(tmp_path / "index.html", _result(), [])
    assert is_report(tmp_path / "index.html")
    (tmp_path / "other.html").write_text("<html><title>mine</title></html>")
    assert not is_report(tmp_path / "other.html")
    assert not is_report(tmp_path / "none.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "other.html"]
