"""A diagnosis to read: plain text for a terminal, and one self-contained HTML page or fragment. Both from its dictionary."""

import math
from collections.abc import Mapping
from typing import Any

_BAR = 24
_COLOURS = {
    "wait": "#c0392b", "transfer": "#d68910", "forward": "#2471a3", "backward": "#1a5276", "optimiser": "#117864",
    "step": "#2471a3", "metrics": "#7d3c98", "logging": "#a569bd", "other": "#839192",
}  # fmt: skip
_ROW, _LABEL, _WIDTH = 24, 110, 640

_FRAGMENT = """\
<section class="coreclip-profile">
<h2>{{ d.verdict }}: {{ d.summary }}</h2>
<p>{{ "%.1f"|format(d.steps_per_second) }} steps/s, {{ "%.0f"|format(d.samples_per_second) }} samples/s</p>
<svg viewBox="0 0 {{ width }} {{ height }}" width="100%" style="max-width:{{ width }}px" role="img" font-size="12"
 font-family="sans-serif" aria-label="milliseconds of each stage per step">
{%- for bar in bars %}
<g transform="translate(0 {{ bar.y }})"><title>{{ bar.title }}</title>
<text x="{{ label - 8 }}" y="15" text-anchor="end" fill="currentColor">{{ bar.stage }}</text>
<rect x="{{ label }}" y="3" width="{{ bar.width }}" height="16" fill="{{ bar.colour }}"/>
<text x="{{ label + bar.width + 6 }}" y="15" fill="currentColor">{{ bar.value }}</text></g>
{%- endfor %}
</svg>
<h3>Evidence</h3>
<ul>{% for line in d.evidence %}<li>{{ line }}</li>{% endfor %}</ul>
{%- if d.remedies %}
<h3>Remedies</h3>
<table><thead><tr><th>remedy</th><th>predicted</th><th>measured</th><th>change</th><th>when</th></tr></thead><tbody>
{%- for r in d.remedies %}
<tr><td>{{ r.name }}</td><td>{{ predicted(r) }}</td><td>{{ measured(r) }}</td><td>{{ change(r) }}</td><td>{{ r.condition }}</td></tr>
{%- endfor %}
</tbody></table>
{%- endif %}
</section>
"""
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2833;background:#fff}
table{border-collapse:collapse}td,th{border:1px solid #ccd1d1;padding:.3rem .6rem;text-align:left;vertical-align:top}</style>
</head><body><h1>{{ title }}</h1>
{{ fragment }}</body></html>
"""


def render_text(diagnosis: Mapping[str, Any]) -> str:
    """Return a summary for a terminal: verdict, stages with bars, evidence, remedies.

    Parameters
    ----------
    diagnosis : mapping
        Of :meth:`coreclip.profiling.Diagnosis.to_dict`.
    """
    lines = [
        f"{diagnosis['verdict']}: {diagnosis['summary']}",
        f"{diagnosis['steps_per_second']:.1f} steps/s, {diagnosis['samples_per_second']:,.0f} samples/s",
        "",
        f"{'stage':<12}{'ms/step':>9}{'share':>7}{'p95 ms':>9}",
    ]
    for stage, figures in diagnosis["stages"].items():
        bar = "#" * round(_BAR * figures["share"])
        lines.append(
            f"{stage:<12}{figures['milliseconds_per_step']:>9.2f}{figures['share']:>7.0%}{figures['p95']:>9.2f}  {bar}".rstrip()
        )
    lines += ["", "evidence", *(f"- {line}" for line in diagnosis["evidence"])]
    if diagnosis["remedies"]:
        lines += ["", "remedies (predicted speed-up with its 95 % interval)"]
    for remedy in diagnosis["remedies"]:
        lines += [
            f"- {remedy['name']}: {_predicted(remedy)}, measured {_measured(remedy)}",
            f"  {remedy['how']}{f' ({_change(remedy)})' if remedy['change'] else ''}",
        ]
    return "\n".join(lines) + "\n"


def render_html(diagnosis: Mapping[str, Any], *, title: str = "coreclip profile", page: bool = True) -> str:
    """Return the same as HTML with the stages as inline SVG; nothing is loaded from elsewhere, everything is escaped.

    Parameters
    ----------
    diagnosis : mapping
        Of :meth:`coreclip.profiling.Diagnosis.to_dict`.
    title : str
    page : bool
        A whole page, or a ``<section>`` to put into another.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    bars = _bars(diagnosis["stages"])
    fragment = environment.from_string(_FRAGMENT).render(
        d=diagnosis, bars=bars, label=_LABEL, width=_WIDTH, height=_ROW * len(bars),
        predicted=_predicted, measured=_measured, change=_change,
    )  # fmt: skip
    if not page:
        return fragment
    return environment.from_string(_PAGE).render(title=title, fragment=Markup(fragment))


def _bars(stages: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    longest = max((figures["milliseconds_per_step"] for figures in stages.values()), default=0.0)
    bars = []
    for i, (stage, figures) in enumerate(stages.items()):
        milliseconds = figures["milliseconds_per_step"]
        bars.append(
            {
                "y": i * _ROW,
                "stage": stage,
                "colour": _COLOURS.get(stage, "#566573"),
                "width": round((_WIDTH - _LABEL - 130) * milliseconds / max(longest, 1e-9), 1),
                "value": f"{milliseconds:.2f} ms ({figures['share']:.0%})",
                "title": f"{stage}: p95 {figures['p95']:.2f} ms",
            }
        )
    return bars


def _predicted(remedy: Mapping[str, Any]) -> str:
    return f"{remedy['predicted_speedup']:.2f} x ({remedy['low']:.2f} to {remedy['high']:.2f})"


def _measured(remedy: Mapping[str, Any]) -> str:
    speedup = remedy["measured_speedup"]
    if speedup is None:
        return "not yet"
    error = math.fabs(remedy["predicted_speedup"] / speedup - 1)
    return f"{speedup:.2f} x (prediction off by {error:.0%})"


def _change(remedy: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in remedy["change"].items())
