"""What profilers say of the same faulty loops: coreclip, TraceML, Lightning's simple profiler and torch.profiler, side by side.

Each fault of benchmarks/planted_faults.py is planted once, in a size drawn anew; then there is a loop without any. coreclip runs
the loop under its conditions, the others watch as many steps as told. TraceML's answer is its primary diagnosis; Lightning's
the actions, torch.profiler's the operators that take most of the time: they give no verdict.
"""

import json
import os
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from faulty_loop import EXPECTED, FAULTS, draw_size
from planted_faults import diagnose_loop, step_milliseconds
from side_by_side import arguments, write_result

from coreclip.heap import keep_freed_memory

_HERE = Path(__file__).parent
_BIN = _HERE.parent / ".venv-profilers" / "bin"
_SCRIPT = _HERE / "peers" / "faulty_profilers.py"
_WATCHES = ("Lightning", "torch.profiler")
_VERSIONS = "import importlib.metadata as m; print({p: m.version(p) for p in ('traceml-ai', 'lightning', 'torch')})"


def main() -> None:
    options = arguments(__doc__ or "", steps=100)
    if not _BIN.exists():
        raise SystemExit(f"{_BIN.parent.name} is missing; run `make bench-profilers`")
    keep_freed_memory()
    seed = secrets.randbits(32)
    rng, base = np.random.default_rng(seed), step_milliseconds()
    lines = [
        "| planted | coreclip | a step without it | TraceML | Lightning, of an epoch | torch.profiler, of all operators |",
        "|---|---|---|---|---|---|",
    ]
    right = 0
    for fault in [*FAULTS, ""]:
        plants = {fault: draw_size(fault, base, rng)} if fault else {}
        diagnosis, _ = diagnose_loop(plants, inline=False)
        right += diagnosis.verdict in ({EXPECTED[fault]} if fault else {"compute-bound", "balanced"})
        cause = Path(diagnosis.cause).name  # of file:line
        finding = next((found for found in diagnosis.findings if found.verdict == diagnosis.verdict), None)
        gain = "" if finding is None else f"{finding.speedup:.2f}x as fast"
        asked = {"plants": plants, "inline": False, "steps": options.steps}
        said = {name: "; ".join(_answer({**asked, "profiler": name})) for name in _WATCHES}
        cells = [
            _planted(fault, plants), f"{diagnosis.verdict}{f' ({cause})' if cause else ''}", gain,
            _traceml({**asked, "profiler": "TraceML"}), said["Lightning"], said["torch.profiler"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"coreclip's verdict is the planted one in {right} of {len(FAULTS) + 1}. Sizes were drawn with seed {seed}; a step without "
        f"plants takes {base:.1f} ms; the loader works one thread ahead, so that what hides behind the step costs nothing.",
    ]
    versions = subprocess.run([_BIN / "python", "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
    peers: dict[str, str] = json.loads(versions.replace("'", '"'))
    write_result(
        "peer_verdicts", "What profilers say of the same faults", "\n".join(lines), "coreclip", "torch", peers=peers
    )


def _planted(fault: str, plants: dict[str, Any]) -> str:
    if not fault:
        return "nothing"
    size = plants[fault]
    if fault == "checkpoints":
        return f"{fault}: {size[0]:.0f} ms every {size[1]} steps"
    unit = {"growing-metric": "us more with each call", "element-reads": "reads", "too-many-threads": "threads"}
    return f"{fault}: {size:,.0f} {unit.get(fault, 'ms')}"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent)])}


def _answer(asked: dict[str, Any]) -> list[str]:
    command = [_BIN / "python", _SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    answer: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _traceml(asked: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            _BIN / "traceml",
            "run",
            _SCRIPT,
            "--logs-dir",
            folder,
            "--run-name",
            "run",
            "--args",
            json.dumps(asked),
        ]
        environment = {**_environment(), "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(command, env=environment, capture_output=True, check=True, cwd=folder)
        summary = json.loads((Path(folder) / "run" / "final_summary.json").read_text())
    primary = summary["primary_diagnosis"]
    return " ".join(f"{primary['status']}: {primary['summary']}".split()).replace("|", "/")


if __name__ == "__main__":
    main()
