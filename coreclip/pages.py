"""What the HTML pages of coreclip share: their templates, pictures and charts, and the mark by which a page is known again.

A page needs no network and no script: style sheet, SVG and pictures (``data:`` URIs) are inline, everything else is escaped.
Charts are shapes in per cent of their box, so that a template may stretch them without stretching their text.
"""

import base64
import decimal
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.errors import CoreclipError

if TYPE_CHECKING:
    from jinja2 import Template

_HEAD_BYTES = 2000  # of a page, in which its mark is
_BINS = 40
_TICKS = 6  # at most, about
_LOG_SPREAD = 50  # from which ratio of the highest value to the median on an axis is logarithmic
_HUGE = 1e300  # stands for infinity in a subset's gains


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what is said of it.

    Attributes
    ----------
    jpeg : bytes or None
        None for an empty tile.
    caption : str
        The text that the pair carries.
    note : str
        Why it was taken or refused.
    truth : str
        What was planted in it; empty for a sound pair.
    alt : str
        What stands for the picture where it is not seen; the caption where it is empty.
    """

    jpeg: bytes | None
    caption: str
    note: str = ""
    truth: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading, with a sentence of explanation."""

    title: str
    text: str
    pictures: Sequence[Picture] = field(default_factory=tuple)


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, in per cent of its length, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Histograms of several groups over one axis.

    Attributes
    ----------
    paths : dict of str to str
        By group: the outline as the ``d`` of an SVG path in a box of 100 x 100, as high as the shares of that group.
    ticks : list of Tick
    logarithmic : bool
    left_out : int
        Values that are infinite or have no place on the axis.
    """

    paths: dict[str, str]
    ticks: list[Tick]
    logarithmic: bool
    left_out: int


def template(name: str) -> "Template":
    """Return a template of the package by its file name; what it is given is escaped, and a missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("coreclip"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        two_digits=two_digits,
        data_uri=data_uri,
        seconds=seconds,
        thousands="{:,}".format,
        figure=figure,
    )
    return environment.get_template(name)


def generator_mark(generator: str) -> str:
    """Return the meta tag that marks the pages of a generator."""
    return f'<meta name="generator" content="{generator}">'


def has_mark(path: Path, mark: str) -> bool:
    """Return whether ``path`` is a file with a mark at its beginning."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return mark.encode() in file.read(_HEAD_BYTES)


def check_page(path: Path, mark: str, what: str) -> None:
    """Refuse to write a page over something else.

    Parameters
    ----------
    path : Path
    mark : str
        What such a page has at its beginning.
    what : str
        Names such a page in the error.

    Raises
    ------
    CoreclipError
        For a path that is there and is no such page.
    """
    if path.exists() and not has_mark(path, mark):
        raise CoreclipError(f"{path} exists and is no {what}; nothing of yours is replaced; name another file")


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction in per cent; None as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def two_digits(value: float | None) -> str:
    """Write a number with two decimals; None as a dash."""
    return "–" if value is None else f"{value:.2f}"


def seconds(value: float) -> str:
    """Write a duration, in milliseconds where tenths of a second would be none."""
    if 0 < value < 0.05:
        return f"{1000 * value:.0f} ms" if value >= 0.001 else "below 1 ms"
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def figure(value: float, digits: int = 6, rounding: str = decimal.ROUND_HALF_EVEN) -> str:
    """Write a number with that many significant digits at most, thousands apart; ``rounding`` is one of decimal's."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    number = decimal.Context(prec=digits, rounding=rounding).create_decimal(repr(float(value))).normalize()
    return f"{number:,f}" if -6 <= number.adjusted() < 15 else f"{number:e}"


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as an address that holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def histogram(groups: Mapping[str, np.ndarray]) -> Histogram | None:
    """Draw the distributions of groups of values over a common axis, each scaled to its own size.

    The axis is logarithmic where all values are positive and the highest is far above the median.

    Parameters
    ----------
    groups : mapping of str to float (m,)
        Empty ones are left out.

    Returns
    -------
    Histogram or None
        None where there are not two different values.
    """
    drawn = {name: np.asarray(values, np.float64) for name, values in groups.items()}
    total = sum(map(len, drawn.values()))
    drawn = {name: values[np.abs(values) < _HUGE] for name, values in drawn.items()}  # False for NaN
    drawn = {name: values for name, values in drawn.items() if len(values)}
    if not drawn:
        return None
    everything = np.concatenate(list(drawn.values()))
    low, high = float(everything.min()), float(everything.max())
    if low == high:
        return None
    logarithmic = low > 0 and high > _LOG_SPREAD * float(np.median(everything))
    scale = np.log10 if logarithmic else np.asarray
    span = (float(scale(low)), float(scale(high)))
    if span[1] - span[0] <= 1e-12 * max(map(abs, span)):  # too close for bins between them
        return None
    shares = {name: np.histogram(scale(values), _BINS, span)[0] / len(values) for name, values in drawn.items()}
    highest = max(float(share.max()) for share in shares.values())
    return Histogram(
        paths={name: _outline(share / highest) for name, share in shares.items()},
        ticks=_log_ticks(*span) if logarithmic else linear_ticks(*span),
        logarithmic=logarithmic,
        left_out=total - len(everything),
    )


def _outline(heights: np.ndarray) -> str:
    """Return the steps of bars of these heights (0..1) as an SVG path from the lower left to the lower right."""
    points = ["M0,100"]
    for i, height in enumerate(heights.tolist()):
        y = 100 * (1 - height)
        points += [f"L{100 * i / len(heights):.4g},{y:.4g}", f"L{100 * (i + 1) / len(heights):.4g},{y:.4g}"]
    return " ".join([*points, "L100,100"])


def linear_ticks(low: float, high: float) -> list[Tick]:
    """Return round marks within an axis from low to high."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    marks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [Tick(_place(mark, low, high), figure(mark, 4)) for mark in marks]


def _log_ticks(low: float, high: float) -> list[Tick]:
    """Return powers of ten within an axis whose ends' logarithms are given."""
    step = math.ceil((high - low) / _TICKS)
    marks = range(math.ceil(low), math.floor(high) + 1, max(step, 1))
    return [Tick(_place(mark, low, high), figure(10.0**mark, 4)) for mark in marks]


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def describe(values: np.ndarray) -> dict[str, Any]:
    """Return how many values there are, and their 5 %, 50 % and 95 % points."""
    points = np.quantile(np.asarray(values, np.float64), (0.05, 0.5, 0.95), method="inverted_cdf")
    return {"count": len(values), "low": float(points[0]), "median": float(points[1]), "high": float(points[2])}
