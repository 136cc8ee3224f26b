"""Loops that nobody here wrote, each watched by the very lines that docs/profiling.md has for it: what is found.

A plain PyTorch loop, Hugging Face's Trainer and open_clip's loop over an epoch, each with a loader that sleeps as long as told
for every batch. The lines are taken from the documentation and run as they stand.
"""

import json
import os
import subprocess
from pathlib import Path

from side_by_side import OPEN_CLIP_PYTHON, arguments, write_result

_HERE = Path(__file__).parent
_PROFILERS_PYTHON = _HERE.parent / ".venv-profilers" / "bin" / "python"
_LOOPS = {"a plain loop": _PROFILERS_PYTHON, "Trainer": _PROFILERS_PYTHON, "open_clip": OPEN_CLIP_PYTHON}


def main() -> None:
    options = arguments(__doc__ or "", steps=60, milliseconds=20)
    lines = [
        "| loop | lines | loader sleeps, ms a batch | verdict | wait, ms a step | other stages, ms a step | versions |",
        "|---|---|---|---|---|---|---|",
    ]
    for loop, python in _LOOPS.items():
        if not python.exists():
            raise SystemExit(f"{python.parts[-3]} is missing; run `make bench-profilers bench-open-clip`")
        for milliseconds in (options.milliseconds, 0):
            asked = {"loop": loop, "seconds": milliseconds / 1e3, "steps": options.steps}
            done = subprocess.run(
                [python, _HERE / "peers" / "foreign_loop.py", json.dumps(asked)],
                env={**os.environ, "PYTHONPATH": str(_HERE.parent)}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            wait = found["stages"].pop("wait")
            others = ", ".join(f"{name} {spent:.1f}" for name, spent in found["stages"].items())
            versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
            lines.append(
                f"| {loop} | {found['lines']} | {milliseconds} | {found['verdict']} | {wait:.1f} | {others} | {versions} |"
            )
    write_result("foreign_loops", "Loops that somebody else wrote, watched", "\n".join(lines), "coreclip", "torch")


if __name__ == "__main__":
    main()
