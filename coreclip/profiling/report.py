"""A diagnosis to read: plain text for a terminal, and one self-contained HTML page or fragment. Both from its dictionary."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from coreclip.pages import generator_mark, template
from coreclip.profiling.remedies import change_text

GENERATOR = "coreclip profile"
MARK = generator_mark(GENERATOR)
"""By which a page is known again."""
_BAR = 24
_COLOURS = {
    "wait": "#c0392b", "transfer": "#d68910", "forward": "#2471a3", "backward": "#1a5276", "optimiser": "#117864",
    "step": "#2471a3", "metrics": "#7d3c98", "logging": "#a569bd", "tokens": "#b7702b", "other": "#839192",
}  # fmt: skip
_ROW, _LABEL, _WIDTH = 26, 130, 900
_SERIES_TOP, _SERIES_BOTTOM = 14, 130
_ROOF_LEFT, _ROOF_TOP, _ROOF_BOTTOM = 60, 10, 290
_NAMED_POINTS = 6
_NAME_ROOM = 170
_MOST_SHOWN_STEPS = 400


def render_text(diagnosis: Mapping[str, Any]) -> str:
    """Return a summary for a terminal: verdict, stages with bars, evidence, remedies, and what trying them came to.

    Parameters
    ----------
    diagnosis : mapping
        Of :meth:`coreclip.profiling.Diagnosis.to_dict`; what else a profile has is shown too.
    """
    cause = f" ({diagnosis['cause']})" if diagnosis.get("cause") else ""
    lines = [
        f"{diagnosis['verdict']}{cause}: {diagnosis['summary']}",
        f"{diagnosis['steps_per_second']:.1f} steps/s, {diagnosis['samples_per_second']:,.0f} samples/s",
        "",
        f"{'stage':<12}{'ms/step':>9}{'share':>7}{'p95 ms':>9}",
    ]
    for stage, figures in diagnosis["stages"].items():
        bar = "#" * round(_BAR * figures["share"])
        lines.append(
            f"{stage:<12}{figures['milliseconds_per_step']:>9.2f}{figures['share']:>7.0%}{figures['p95']:>9.2f}  {bar}".rstrip()
        )
    if diagnosis.get("loader_stages"):
        parts = ", ".join(f"{_words(name)} {spent:.1f}" for name, spent in diagnosis["loader_stages"].items())
        lines += ["", f"the loader's work for a batch, ms: {parts}"]
    lines += ["", "evidence", *(f"- {line}" for line in diagnosis["evidence"])]
    if diagnosis.get("roofline"):
        lines.append(f"- {_roofline_line(diagnosis['roofline'])}")
    lines += [f"- {_probe_line(opinion)}" for opinion in diagnosis.get("probe", ())]
    if diagnosis["remedies"]:
        lines += ["", "remedies (predicted speed-up with its 95 % interval)"]
    for remedy in diagnosis["remedies"]:
        lines += [
            f"- {remedy['name']}: {_predicted(remedy)}, measured {_measured(remedy)}",
            f"  {remedy['how']}" + (f" ({change_text(remedy['change'])})" if remedy["change"] else ""),
        ]
    if diagnosis.get("fix"):
        lines += ["", *_fix_lines(diagnosis["fix"])]
    return "\n".join(lines) + "\n"


def render_html(diagnosis: Mapping[str, Any], *, title: str = "Where the time goes", page: bool = True) -> str:
    """Return the same as HTML with pictures as inline SVG; nothing is loaded from elsewhere, everything is escaped.

    Parameters
    ----------
    diagnosis : mapping
        Of :meth:`coreclip.profiling.Diagnosis.to_dict`; what else a profile has is shown too.
    title : str
    page : bool
        A whole page, or a ``<section>`` to put into another.
    """
    from markupsafe import Markup

    timeline, longest, legend = _timeline(diagnosis.get("timeline") or ())
    conditions = diagnosis.get("conditions") or {}
    fragment = template("profile.html").render(
        d={"cause": "", "findings": [], "fix": None, "probe": None, **diagnosis},
        bars=_bars(diagnosis["stages"]), label=_LABEL, width=_WIDTH, row=_ROW,
        timeline=timeline, longest=longest, legend=legend,
        series=_series(diagnosis),
        conditions=_conditions(conditions) if len(conditions) > 1 else [], has_cold="cold" in conditions,
        loader=_loader(diagnosis.get("loader_stages") or {}), gauges=_gauges(diagnosis.get("gauges") or {}),
        roofline=_roofline(diagnosis.get("roofline")),
        predicted=_predicted, measured=_measured, change_text=change_text, gains_from_other_files=gains_from_other_files,
        trial_predicted=_trial_predicted, trial_measured=_trial_measured,
    )  # fmt: skip
    if not page:
        return fragment
    return template("profile_page.html").render(title=title, fragment=Markup(fragment), generator=GENERATOR)


def _bars(stages: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    longest = max((figures["milliseconds_per_step"] for figures in stages.values()), default=0.0)
    return [
        {
            "stage": stage,
            "colour": _colour(stage),
            "width": round((_WIDTH - _LABEL - 150) * figures["milliseconds_per_step"] / max(longest, 1e-9), 1),
            "value": f"{figures['milliseconds_per_step']:.2f} ms ({figures['share']:.0%})",
            "title": f"{stage}: p95 {figures['p95']:.2f} ms",
        }
        for stage, figures in stages.items()
    ]


def _colour(stage: str) -> str:
    return _COLOURS.get(stage, "#566573")


def _timeline(steps: Sequence[Sequence[Sequence[Any]]]) -> tuple[list[list[dict[str, Any]]], str, list[dict[str, str]]]:
    """Return the pieces of each step in the picture, the milliseconds that its width stands for, and the stages' colours."""
    longest = max((piece[2] for step in steps for piece in step), default=0.0)
    scale = _WIDTH / max(longest, 1e-9)
    drawn = [
        [
            {
                "x": round(begin * scale, 2),
                "width": round(max((end - begin) * scale, 0.1), 2),
                "colour": _colour(stage),
                "title": f"{stage}: {end - begin:.2f} ms",
            }
            for stage, begin, end in step
        ]
        for step in steps
    ]
    names = list(dict.fromkeys(piece[0] for step in steps for piece in step))
    return drawn, f"{longest:.1f}", [{"name": name, "colour": _colour(name)} for name in names]


def _series(diagnosis: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the lines of every measured step and its waiting."""
    steps = diagnosis.get("steps") or {}
    number, times, waits = (list(steps.get(name, ())) for name in ("number", "milliseconds", "wait"))
    if len(number) < 2:
        return None
    stride = math.ceil(len(number) / _MOST_SHOWN_STEPS)
    number, times, waits = number[::stride], times[::stride], waits[::stride]
    top = max(times) or 1.0
    # Calls between the blocks are not shown: each measured step has the same room.
    x = [_WIDTH * i / max(len(number) - 1, 1) for i in range(len(number))]

    def height(milliseconds: float) -> float:
        return round(_SERIES_BOTTOM - (_SERIES_BOTTOM - _SERIES_TOP) * min(milliseconds / top, 1.0), 1)

    growth = diagnosis.get("growth")
    line = None
    if growth:
        ends = [growth["milliseconds"] + growth["milliseconds_per_call"] * number[i] for i in (0, -1)]
        line = (0, height(max(ends[0], 0.0)), _WIDTH, height(max(ends[1], 0.0)))
    return {
        "steps": " ".join(f"{a:.1f},{height(b)}" for a, b in zip(x, times, strict=True)),
        "waits": " ".join(f"{a:.1f},{height(b)}" for a, b in zip(x, waits, strict=True)),
        "growth": line,
        "top": f"{top:.1f}",
        "first": f"{number[0]:,}",
        "last": f"{number[-1]:,}",
    }


def _conditions(conditions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    longest = max(max(c["high"], c["milliseconds_per_step"]) for c in conditions.values())
    scale = (_WIDTH - _LABEL - 190) / max(longest, 1e-9)
    return [
        {
            "name": name,
            "width": round(c["milliseconds_per_step"] * scale, 1),
            "low": round(_LABEL + c["low"] * scale, 1),
            "high": round(_LABEL + c["high"] * scale, 1),
            "end": round(_LABEL + max(c["high"], c["milliseconds_per_step"]) * scale, 1),
            "value": f"{c['milliseconds_per_step']:.1f} ms ({c['low']:.1f} to {c['high']:.1f})",
        }
        for name, c in conditions.items()
    ]


def _loader(parts: Mapping[str, float]) -> list[dict[str, Any]]:
    total = max(sum(parts.values()), 1e-9)
    return [
        {"name": _words(name), "value": f"{spent:.1f}", "share": round(100 * spent / total, 2), "tone": f"c{i % 10}"}
        for i, (name, spent) in enumerate(parts.items())
    ]


def _words(name: str) -> str:
    return name.replace("_", " ").replace("dct", "DCT")


def _gauges(gauges: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "text": f"{g['mean']:.1f} on average, {g['p5']:g} to {g['p95']:g} in 9 of 10 steps, when the loop asks for one",
        }
        for name, g in gauges.items()
        if g
    ]


def _roofline(roofline: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the picture of a roofline: both axes logarithmic."""
    if not roofline:
        return None
    peaks = roofline["peaks"]
    points = [
        (o, o["flops"] / o["n_bytes"], o["flops"] / (o["milliseconds"] / 1e3))
        for o in roofline["operators"]
        if o["flops"] > 0 and o["n_bytes"] > 0 and o["milliseconds"] > 0
    ]
    if not points:
        return None
    ridge = peaks["flops_per_second"] / peaks["bytes_per_second"]
    x_low, x_high = _decades([ridge, *(x for _, x, _ in points)])
    y_low, y_high = _decades([peaks["flops_per_second"], *(y for _, _, y in points)])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(max(y, 10.0**y_low)) - y_low) / (y_high - y_low)
        return (
            round(_ROOF_LEFT + (_WIDTH - _ROOF_LEFT) * across, 1),
            round(_ROOF_BOTTOM - (_ROOF_BOTTOM - _ROOF_TOP) * up, 1),
        )

    corners = [10.0**x_low, max(10.0**y_low / peaks["bytes_per_second"], 10.0**x_low), ridge, 10.0**x_high]
    roof = [at(x, min(x * peaks["bytes_per_second"], peaks["flops_per_second"])) for x in sorted(set(corners))]
    total = max(sum(o["milliseconds"] for o, _, _ in points), 1e-9)
    return {
        "roof": " ".join(f"{x},{y}" for x, y in roof),
        "points": [
            {
                "x": at(x, y)[0],
                "y": at(x, y)[1],
                "r": round(4 + 16 * math.sqrt(o["milliseconds"] / total), 1),
                "colour": "#0b7a6f" if x >= ridge else "#b7702b",
                "name": o["name"].removeprefix("aten::") if i < _NAMED_POINTS else "",
                **_label_place(at(x, y)[0], 4 + 16 * math.sqrt(o["milliseconds"] / total)),
                "title": f"{o['name']}: {o['milliseconds']:.2f} ms a step, {y / 1e9:,.1f} GFLOP/s, {x:.1f} operations a byte",
            }
            for i, (o, x, y) in enumerate(points)
        ],
        "x_ticks": [{"at": at(10.0**e, 1)[0], "label": f"{10.0**e:g}"} for e in range(x_low, x_high + 1)],
        "y_ticks": [{"at": at(1, 10.0**e)[1], "label": f"1e{e}"} for e in range(y_low, y_high + 1)],
        "peak": f"{peaks['flops_per_second'] / 1e9:,.0f} GFLOP/s in {peaks['precision']}, {peaks['bytes_per_second'] / 1e9:,.1f} GB/s",
        "utilisation": f"{roofline['utilisation']:.0%}",
    }


def _label_place(x: float, radius: float) -> dict[str, Any]:
    """Return where a point's name stands: behind it, or before it near the right edge."""
    if x > _WIDTH - _NAME_ROOM:
        return {"text_x": round(x - radius - 3, 1), "anchor": "end"}
    return {"text_x": round(x + radius + 3, 1), "anchor": "start"}


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _roofline_line(roofline: Mapping[str, Any]) -> str:
    peaks = roofline["peaks"]
    reached = roofline["flops"] / max(roofline["milliseconds"] / 1e3, 1e-9)
    return (
        f"a step of {roofline['flops'] / 1e9:,.1f} GFLOP runs at {reached / 1e9:,.0f} GFLOP/s, {roofline['utilisation']:.0%} of the "
        f"{peaks['flops_per_second'] / 1e9:,.0f} that a product of large matrices reaches here in {peaks['precision']}"
    )


def _probe_line(opinion: Mapping[str, Any]) -> str:
    return (
        f"each ms that {opinion['stage']} is delayed by makes a step {opinion['slope']:.2f} ms longer "
        f"({opinion['low']:.2f} to {opinion['high']:.2f}): {opinion['opinion']}"
    )


def _fix_lines(fix: Mapping[str, Any]) -> list[str]:
    lines = ["tried, each measured in turn with the configuration as it was then"]
    for trial in fix["trials"]:
        kept = ", kept" if trial["kept"] else ""
        lines.append(
            f"- {trial['name']} ({change_text(trial['change'])}): predicted {_trial_predicted(trial)}, measured {_trial_measured(trial)}{kept}"
        )
    if fix["speedup"] > 1:
        lines.append(
            f"together {fix['speedup']:.2f} x ({fix['low']:.2f} to {fix['high']:.2f}), written to {fix['config']}"
        )
    elif gains_from_other_files(fix):
        lines.append(
            "nothing that the configuration can change makes the steps faster beyond the noise; images that are stored otherwise do"
        )
    elif fix["complete"]:
        lines.append("nothing on the list makes the steps faster beyond the noise")
    else:
        lines.append(
            "nothing that was tried makes the steps faster beyond the noise; the time was up before the list was"
        )
    return lines


def gains_from_other_files(fix: Mapping[str, Any]) -> bool:
    """Return whether a change was faster for certain that a configuration can't make: one of the stored images."""
    return any(trial["note"] and (trial["measured_low"] or 0.0) > 1 for trial in fix["trials"])


def _predicted(remedy: Mapping[str, Any]) -> str:
    return f"{remedy['predicted_speedup']:.2f} x ({remedy['low']:.2f} to {remedy['high']:.2f})"


def _measured(remedy: Mapping[str, Any]) -> str:
    speedup = remedy["measured_speedup"]
    if speedup is None:
        return "not yet"
    error = math.fabs(remedy["predicted_speedup"] / speedup - 1)
    return f"{speedup:.2f} x (prediction off by {error:.0%})"


def _trial_predicted(trial: Mapping[str, Any]) -> str:
    return "nothing" if trial["predicted_speedup"] is None else _predicted(trial)


def _trial_measured(trial: Mapping[str, Any]) -> str:
    if trial["measured_speedup"] is None:
        return f"could not be run: {trial['note']}"
    note = f"; {trial['note']}" if trial["note"] else ""
    return f"{trial['measured_speedup']:.2f} x ({trial['measured_low']:.2f} to {trial['measured_high']:.2f}){note}"
