"""Measure contestants in turn, report medians and spread, and write the result with machine and versions.

The machine may be shared: contestants alternate (A B C A B C ...) after a warm-up, so that a slow minute hits all of
them, and the ratio to quote is the median of the ratios taken round by round. A contestant is a callable; one that must
not share our process or needs packages of the peers' environment is a :class:`Peer`.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_PEERS_PYTHON = _HERE.parent / ".venv-peers" / "bin" / "python"
OPEN_CLIP_PYTHON = _HERE.parent / ".venv-open-clip" / "bin" / "python"
_LOAD_AT_START = os.getloadavg()[0]


class Peer:
    """A process that runs one round at each call; between the calls it waits and keeps what it has prepared.

    It is ``benchmarks/peers/SCRIPT.py``, given its options as JSON, that serves rounds with ``peers/serving.py``.

    Attributes
    ----------
    pid : int
    versions : {package: version}
        Of what it runs.
    """

    def __init__(self, script: str, *, python: Path | str = _PEERS_PYTHON, **options: Any) -> None:
        self._script = script
        self._process = subprocess.Popen(
            [str(python), str(_HERE / "peers" / f"{script}.py"), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.pid = self._process.pid
        self.versions: dict[str, str] = self._answer()

    def __call__(self) -> Any:
        """Run one round and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks/peers/{self._script}.py ended with code {self._process.wait()}; see above")
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def have_peers() -> bool:
    """Return whether the peers' environment is there; say how to make it where it is not."""
    if not _PEERS_PYTHON.exists():
        print("the peers are left out, as .venv-peers is missing: run `make bench-peers`", file=sys.stderr)
    return _PEERS_PYTHON.exists()


def peers_command(script: str, **options: Any) -> list[str]:
    """Return the command line of a peer that does one thing and ends."""
    return [str(_PEERS_PYTHON), str(_HERE / "peers" / f"{script}.py"), json.dumps(options)]


def start_peers(stack: contextlib.ExitStack, scripts: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Peer]:
    """Start ``{name: (script, options)}``; none where their environment is missing."""
    if not have_peers():
        return {}
    return {name: stack.enter_context(Peer(script, **options)) for name, (script, options) in scripts.items()}


def versions_of(peers: Iterable[Peer]) -> dict[str, str]:
    """Return the versions of the packages that some peers run."""
    return {package: version for peer in peers for package, version in peer.versions.items()}


def measure(
    contestants: dict[str, Callable[[], Any]], *, rounds: int, warmup: int = 1, expected: Any = None
) -> dict[str, list[float]]:
    """Return the wall seconds of each contestant in each round; with ``expected``, each must return that every time."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            answer = run()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
            if expected is not None and answer != expected:
                raise SystemExit(f"{name} delivered {answer!r} in place of {expected!r}")
    return seconds


def ratio(theirs: list[float], own: list[float]) -> str:
    """Return the median, lowest and highest of their seconds divided by ours, round by round."""
    ratios = [their / our for their, our in zip(theirs, own, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f})"


def table(seconds: dict[str, list[float]], *, items: int, unit: str, ours: str) -> str:
    """Return a Markdown table: median rate, lowest and highest, and how many times ours is faster round by round."""
    lines = [f"| | {unit}/s, median | lowest - highest | ours is faster by |", "|---|---|---|---|"]
    for name, values in seconds.items():
        rates = sorted(items / value for value in values)
        faster = "" if name == ours else ratio(values, seconds[ours])
        lines.append(f"| {name} | {statistics.median(rates):,.4g} | {rates[0]:,.4g} - {rates[-1]:,.4g} | {faster} |")
    return "\n".join(lines)


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def machine(*packages: str) -> str:
    """Return processor, cores, load, Python and the versions of the named packages in one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{date.today()}, {processor()}, {os.cpu_count()} cores, load {_LOAD_AT_START:.1f} at the start, "
        f"Python {platform.python_version()}, {versions}"
    )


def write_result(name: str, title: str, body: str, *packages: str, peers: dict[str, str] | None = None) -> None:
    """Print a result and write it to ``benchmarks/results/NAME.md`` with the command that made it.

    ``peers`` is the versions of what the peers run: none where their environment is missing, None where there are none.
    """
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    theirs = "; peers: " + ", ".join(map(" ".join, peers.items())) if peers else ""
    if peers is not None and not peers:
        body += "\n\nPeers are left out, as `make bench-peers` was not run."
    text = f"# {title}\n\n`{command}`: {machine(*packages)}{theirs}\n\n{body}\n"
    print(text)
    (_HERE / "results" / f"{name}.md").write_text(text, encoding="utf-8")


def arguments(description: str, **defaults: int | float | str) -> argparse.Namespace:
    """Parse ``--name value`` for each default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default: {default}"
        )
    return parser.parse_args()
