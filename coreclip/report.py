"""The page of a demonstration: verdict in words, table, plot and pictures in one HTML file that needs no network.

Everything is inline: style sheet, SVG plots, pictures as ``data:`` URIs. Interactive plots and other languages are left out.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coreclip.errors import CoreclipError
from coreclip.files import write_text
from coreclip.pages import Gallery, generator_mark, has_mark, percent, template

GENERATOR = "coreclip demonstration report"  # the page's meta tag, by which a report is known again
Outcome = Literal["better", "worse", "within the spread"]

METRIC = "recall_at_5"  # by which arms are compared: the mean of R@5 in both directions
_METRICS = {
    METRIC: "R@5, both ways",
    "text_to_image_recall_at_1": "text → image R@1",
    "text_to_image_recall_at_5": "R@5",
    "text_to_image_recall_at_10": "R@10",
    "image_to_text_recall_at_1": "image → text R@1",
    "image_to_text_recall_at_5": "R@5",
    "image_to_text_recall_at_10": "R@10",
}
_PLOT_WIDTH, _PLOT_LEFT, _PLOT_ROW = 760, 120, 52


@dataclass(frozen=True)
class Comparison:
    """One arm against another, by the means and the spread over seeds.

    Attributes
    ----------
    other : str
        The arm that the coreset is compared with.
    difference : float
        Mean of the coreset's runs minus mean of the other's.
    standard_error : float
        Of that difference.
    outcome : {"better", "worse", "within the spread"}
        Better or worse only where the difference exceeds two standard errors and the runs do not overlap.
    """

    other: str
    difference: float
    standard_error: float
    outcome: Outcome


def compare(ours: Sequence[float], others: Sequence[float], other: str) -> Comparison:
    """Compare two arms by their runs.

    Parameters
    ----------
    ours, others : sequence of float
        One value a seed, higher = better; at least two each.
    other : str
        Name of the other arm.

    Raises
    ------
    CoreclipError
        For fewer than two runs, from which no spread can be told.
    """
    if min(len(ours), len(others)) < 2:
        raise CoreclipError(
            f"{min(len(ours), len(others))} run against {other}: a spread needs at least 2 seeds; train more seeds"
        )
    difference = statistics.fmean(ours) - statistics.fmean(others)
    error = math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(others) / len(others))
    outcome: Outcome = "within the spread"
    if difference > 2 * error and min(ours) > max(others):
        outcome = "better"
    elif difference < -2 * error and max(ours) < min(others):
        outcome = "worse"
    return Comparison(other, difference, error, outcome)


def verdict_sentence(comparisons: Sequence[Comparison], metric: str) -> str:
    """Say in words what the comparisons show, the failures as plainly as the successes.

    Parameters
    ----------
    comparisons : sequence of Comparison
    metric : str
        Name of the compared figure, e.g. ``"R@5"``; differences are fractions and are given in points (hundredths).
    """
    outcomes = {c.outcome for c in comparisons}
    names = " and ".join(c.other for c in comparisons)
    if outcomes == {"better"}:
        head = f"The coreset beats {names} at equal samples seen."
    elif outcomes == {"worse"}:
        head = f"The coreset does not beat {names} at equal samples seen: it is worse."
    elif outcomes == {"within the spread"}:
        head = f"The coreset does not beat {names} at equal samples seen: the differences lie within the seeds’ spread."
    else:
        head = (
            "The result is mixed: at equal samples seen, the coreset "
            + ", and ".join(_clause(c) for c in comparisons)
            + "."
        )
    figures = "; ".join(
        f"{100 * c.difference:+.1f} points of {metric} against {c.other} (2 standard errors: {200 * c.standard_error:.1f})"
        for c in comparisons
    )
    return f"{head} {figures[0].upper() + figures[1:]}."


def _clause(comparison: Comparison) -> str:
    return {
        "better": f"beats {comparison.other}",
        "worse": f"is worse than {comparison.other}",
        "within the spread": f"does not beat {comparison.other} (the difference lies within the seeds’ spread)",
    }[comparison.outcome]


def overall_outcome(comparisons: Sequence[Comparison]) -> Outcome:
    """Return "better" or "worse" where all comparisons agree on it, else "within the spread"."""
    outcomes = {comparison.outcome for comparison in comparisons}
    return outcomes.pop() if len(outcomes) == 1 else "within the spread"


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return ``{metric: {"mean", "spread"}}`` of the recalls over runs; the spread is the sample standard deviation."""
    return {
        name: {
            "mean": statistics.fmean(run[name] for run in runs),
            "spread": statistics.stdev(run[name] for run in runs),
        }
        for name in runs[0]
        if "recall_at_" in name
    }


def table_text(result: Mapping[str, Any]) -> str:
    """Return the table of the arms and the verdict as plain text for a terminal."""
    metrics = (METRIC, "text_to_image_recall_at_1", "text_to_image_recall_at_10", "image_to_text_recall_at_10")
    heads = ("R@5 both ways", "text→image R@1", "text→image R@10", "image→text R@10")
    lines = [f"{'':12}{'pairs':>7}" + "".join(f"{head:>19}" for head in heads)]
    for name, arm in result["arms"].items():
        cells = (f"{100 * arm['summary'][m]['mean']:.1f} ± {100 * arm['summary'][m]['spread']:.1f} %" for m in metrics)
        lines.append(f"{name:12}{arm['pairs']:>7,}" + "".join(f"{cell:>19}" for cell in cells))
    note = (
        f"{result['samples_per_run']:,} samples seen in every run, {len(result['seeds'])} seeds; "
        f"mean ± standard deviation over seeds on {result['data']['heldout']:,} clean held-out pairs."
    )
    return "\n".join([*lines, "", note, result["verdict"]["sentence"], f"report: {result['report']}"])


def write_report(path: str | Path, result: Mapping[str, Any], galleries: Sequence[Gallery]) -> None:
    """Write the HTML page of a demonstration, atomically.

    Parameters
    ----------
    path : path
        The page, e.g. ``index.html``.
    result : mapping
        As :func:`coreclip.demo.run_demo` returns it.
    galleries : sequence of Gallery
    """
    write_text(path, render_report(result, galleries))


def render_report(result: Mapping[str, Any], galleries: Sequence[Gallery]) -> str:
    """Return the page of :func:`write_report` as text."""
    return template("report.html").render(
        **result, generator=GENERATOR, galleries=galleries, metrics=_METRICS, plot=_plot(result["arms"], METRIC)
    )


def is_report(path: Path) -> bool:
    """Return whether ``path`` is a page that :func:`write_report` wrote."""
    return has_mark(path, generator_mark(GENERATOR))


def _plot(arms: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the geometry of the dot plot: one row an arm, one dot a run, a bar at the mean."""
    values = [run[metric] for arm in arms.values() for run in arm["runs"]]
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if max(values) - min(values) <= 5 * s or s == 0.2)
    low, high = math.floor(min(values) / step - 0.3) * step, math.ceil(max(values) / step + 0.3) * step
    low = max(low, 0.0)

    def x(value: float) -> float:
        return round(_PLOT_LEFT + (value - low) / (high - low) * (_PLOT_WIDTH - _PLOT_LEFT - 70), 1)

    ticks = [low + i * step for i in range(round((high - low) / step) + 1)]
    rows = [
        {
            "name": name,
            "y": 30 + i * _PLOT_ROW,
            "dots": [
                {"x": x(run[metric]), "title": f"seed {run['seed']}: {percent(run[metric])}"} for run in arm["runs"]
            ],
            "mean": x(arm["summary"][metric]["mean"]),
            "low": x(arm["summary"][metric]["mean"] - arm["summary"][metric]["spread"]),
            "high": x(arm["summary"][metric]["mean"] + arm["summary"][metric]["spread"]),
            "label": percent(arm["summary"][metric]["mean"]),
        }
        for i, (name, arm) in enumerate(arms.items())
    ]
    height = 30 + len(rows) * _PLOT_ROW
    return {
        "width": _PLOT_WIDTH,
        "height": height + 26,
        "bottom": height - 10,
        "rows": rows,
        "ticks": [{"x": x(tick), "label": f"{100 * tick:.1f}".removesuffix(".0") + " %"} for tick in ticks],
    }
