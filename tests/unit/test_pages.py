"""What the pages share: numbers as text, marks of pages, and the shapes of histograms."""

import decimal
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.pages import (
    check_page,
    describe,
    figure,
    generator_mark,
    has_mark,
    histogram,
    linear_ticks,
    percent,
    seconds,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (4021.7, "4,021.7"), (1234567.0, "1,234,570"), (0.000123456789, "0.000123457"),
        (-2.5, "-2.5"), (100.0, "100"), (1e20, "1e+20"), (1e-12, "1e-12"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_figures_have_six_digits_and_no_more_zeros_than_needed(value, text):
    assert figure(value) == text


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e12, 1e12))
def test_a_figure_rounded_up_is_not_below_and_one_rounded_down_not_above(value):
    low, high = (
        float(figure(value, 4, rounding).replace(",", "")) for rounding in (decimal.ROUND_FLOOR, decimal.ROUND_CEILING)
    )
    assert low <= value <= high
    assert high - low <= 1.1e-3 * abs(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0 s"), (0.0001, "below 1 ms"), (0.03201, "32 ms"), (3.24, "3.2 s"), (1234.5, "1,234 s")],
)
def test_durations_are_short(value, text):
    assert seconds(value) == text


def test_a_fraction_keeps_its_sign_on_its_line():
    assert percent(0.973) == "97.3\N{NO-BREAK SPACE}%"
    assert percent(None) == "–"


def test_a_page_is_known_by_the_mark_at_its_beginning_only(tmp_path):
    page = tmp_path / "page.html"
    mark = generator_mark("a report")
    page.write_text(f"<html>{mark}")
    check_page(page, mark, "report")
    page.write_text("x" * 3000 + mark)
    assert not has_mark(page, mark)
    with pytest.raises(CoreclipError, match=r"page\.html exists and is no report; nothing of yours is replaced"):
        check_page(page, mark, "report")
    with pytest.raises(CoreclipError, match="is no report"):
        check_page(tmp_path, mark, "report")
    check_page(tmp_path / "none.html", mark, "report")


def heights(path: str) -> np.ndarray:
    """Heights of the bars of an outline, 0..1."""
    points = np.array([[float(part) for part in point.split(",")] for point in re.findall(r"[\d.e-]+,[\d.e-]+", path)])
    assert (np.diff(points[:, 0]) >= 0).all()
    assert points[0].tolist() == [0, 100]
    assert points[-1].tolist() == [100, 100]
    return 1 - points[1:-1:2, 1] / 100


def test_bars_are_the_shares_of_each_group_on_a_common_scale():
    groups = {"a": np.repeat([0.0, 1.0], [30, 10]), "b": np.repeat([0.0, 1.0], [500, 500])}
    drawn = histogram(groups)
    assert drawn is not None
    a, b = heights(drawn.paths["a"]), heights(drawn.paths["b"])
    assert a[[0, -1]] == pytest.approx([1, 1 / 3], abs=1e-3)
    assert b[[0, -1]] == pytest.approx([2 / 3, 2 / 3], abs=1e-3)
    assert not a[1:-1].any()


def test_values_over_many_powers_of_ten_have_a_logarithmic_axis():
    drawn = histogram({"a": np.geomspace(0.01, 1000, 60)})
    assert drawn is not None
    assert drawn.logarithmic
    assert [tick.label for tick in drawn.ticks] == ["0.01", "0.1", "1", "10", "100", "1,000"]
    assert [tick.at for tick in drawn.ticks] == pytest.approx([0, 20, 40, 60, 80, 100], abs=0.01)
    evenly = histogram({"a": np.linspace(1, 2, 60)})
    assert evenly is not None
    assert not evenly.logarithmic


@pytest.mark.parametrize("values", [[], [1.0, 1.0], [np.nan], [np.inf, 2.0, np.nan], [1.0, 1.0 + 1e-15]])
def test_nothing_is_drawn_without_two_different_values(values):
    assert histogram({"a": np.array(values)}) is None


def test_infinite_values_are_left_out_and_counted():
    drawn = histogram({"a": np.array([1.0, 2.0, np.inf, np.nan, np.finfo(float).max]), "b": np.array([np.inf])})
    assert drawn is not None
    assert drawn.left_out == 4
    assert list(drawn.paths) == ["a"]


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_on_the_axis_in_order_and_are_few(low, width):
    ticks = linear_ticks(low, low + width)
    places = [tick.at for tick in ticks]
    assert 2 <= len(ticks) <= 7
    assert places == sorted(places)
    assert min(places) >= -1e-2
    assert max(places) <= 100.01


def test_description_gives_values_that_occur():
    assert describe(np.arange(100)) == {"count": 100, "low": 4, "median": 49, "high": 94}
