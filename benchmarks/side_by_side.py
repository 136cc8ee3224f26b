"""Measure contestants in turn in one process, report medians and spread, and write the result with machine and versions.

The machine may be shared: contestants alternate (A B C A B C ...) after a warm-up, so that a slow minute hits all of
them, and the ratio to quote is the median of the ratios taken round by round.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path


def measure(contestants: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the wall seconds of each contestant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: dict[str, list[float]], *, items: int, unit: str, ours: str) -> str:
    """Return a Markdown table: median rate, lowest and highest, and how many times ours is faster round by round."""
    lines = [f"| | {unit}/s, median | lowest - highest | ours is faster by |", "|---|---|---|---|"]
    for name, values in seconds.items():
        rates = sorted(items / value for value in values)
        ratios = [theirs / own for theirs, own in zip(values, seconds[ours], strict=True)]
        ratio = "" if name == ours else f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f})"
        lines.append(f"| {name} | {statistics.median(rates):,.4g} | {rates[0]:,.4g} - {rates[-1]:,.4g} | {ratio} |")
    return "\n".join(lines)


def machine(*packages: str) -> str:
    """Return processor, cores, Python and the versions of the named packages in one line."""
    model = platform.processor() or "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{date.today()}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def write_result(name: str, title: str, body: str, *packages: str) -> None:
    """Print a result and write it to ``benchmarks/results/NAME.md`` with the command that made it."""
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = f"# {title}\n\n`{command}`: {machine(*packages)}\n\n{body}\n"
    print(text)
    (Path(__file__).parent / "results" / f"{name}.md").write_text(text, encoding="utf-8")


def arguments(description: str, **defaults: int | str) -> argparse.Namespace:
    """Parse ``--name value`` for each default."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default: {default}"
        )
    return parser.parse_args()
