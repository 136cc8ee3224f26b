"""What a training run on the CPU gains by keeping freed memory: steps with and without it, in processes that take turns.

The allocator can't be set back, so each turn is a process of its own, which leaves its first steps out and says its median
step, the pages that the kernel gave it, and its largest size.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import arguments, write_result
from signals import scenes

from coreclip.config import load_config
from coreclip.pipeline import Dataset
from coreclip.training import make_step, steps

_WARMUP = 12
_RUN_ALONE = "--alone"


def alone(folder: str, keeps: bool, n_steps: int) -> dict[str, float]:
    """Train some steps in this process."""
    if not keeps:
        steps.keep_freed_memory = lambda: False  # type: ignore[assignment]
    measured = make_step(Dataset(folder), load_config(None, []), device="cpu")
    ends: list[float] = []
    pages = 0
    while len(ends) <= _WARMUP + n_steps:
        for batch in measured.loader:
            measured.step(batch)
            ends.append(time.perf_counter())
            if len(ends) == _WARMUP + 1:
                pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            if len(ends) > _WARMUP + n_steps:
                break
    use = resource.getrusage(resource.RUSAGE_SELF)
    times = [1e3 * (end - begin) for begin, end in zip(ends[_WARMUP:], ends[_WARMUP + 1 :], strict=False)]
    return {
        "milliseconds": statistics.median(times),
        "pages": (use.ru_minflt - pages) / len(times),
        "mebibytes": use.ru_maxrss / 1024,
    }


def main() -> None:
    if _RUN_ALONE in sys.argv:
        folder, keeps, n_steps = sys.argv[-3:]
        print(json.dumps(alone(folder, keeps == "kept", int(n_steps))))
        return
    options = arguments(__doc__ or "", dataset="", n=4000, steps=40, rounds=7)
    runs: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dataset or str(scenes(Path(temporary), options.n).path)
        for turn in range(options.rounds):
            for mode in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
                command = [sys.executable, __file__, _RUN_ALONE, folder, mode.split()[0], str(options.steps)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[mode].append(json.loads(done.stdout.splitlines()[-1]))
    lines = ["| freed memory is | a step, ms | fresh pages a step | peak of the process, MiB |", "|---|---|---|---|"]
    for mode, results in runs.items():
        cells = []
        for figure in ("milliseconds", "pages", "mebibytes"):
            values = sorted(result[figure] for result in results)
            cells.append(f"{statistics.median(values):,.0f} ({values[0]:,.0f} - {values[-1]:,.0f})")
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    gains = sorted(a["milliseconds"] / b["milliseconds"] for a, b in zip(runs["given back"], runs["kept"], strict=True))
    body = "\n".join(lines) + (
        f"\n\nKeeping it is {statistics.median(gains):.3f}x as fast, round by round ({gains[0]:.3f} - {gains[-1]:.3f}). "
        f"The default configuration, {options.rounds} processes each, {options.steps} steps measured in each."
    )
    write_result("kept_memory", "Freed memory that a training run keeps", body, "coreclip", "torch")


if __name__ == "__main__":
    main()
