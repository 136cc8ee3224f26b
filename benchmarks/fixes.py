"""`coreclip profile --fix` on the default configuration: does it make training faster, or show that nothing on its list would?

On scenes drawn as the demonstration's are, and on Flickr8k where it is given: every change that was tried, with what was
predicted of it and what steps in turn have measured, and the whole against the beginning.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import arguments, write_result
from signals import scenes

from coreclip.profiling.remedies import change_text


def fixed(dataset: str, minutes: float, folder: str) -> dict[str, Any]:
    """Return the profile with its trials."""
    command = [
        sys.executable, "-m", "coreclip", "profile", dataset, "--fix", "--fix-minutes", str(minutes), "--json",
        "--out", str(Path(folder) / "improved.toml"),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def section(title: str, result: dict[str, Any]) -> str:
    """Return a data set's verdict, trials and outcome as Markdown."""
    fix = result["fix"]
    lines = [
        f"## {title}",
        "",
        f"Before: {result['samples_per_second']:,.0f} samples/s, {result['verdict']}"
        + (f" ({Path(result['cause']).name})" if result["cause"] else "")
        + ".",
        "",
        "| change | predicted | measured | kept |",
        "|---|---|---|---|",
    ]
    for trial in fix["trials"]:
        change = change_text(trial["change"])
        predicted = "" if trial["predicted_speedup"] is None else _spread(trial, "predicted_speedup", "low", "high")
        measured = (
            re.sub(r"/\S*/", "", trial["note"])
            if trial["measured_speedup"] is None
            else _spread(trial, "measured_speedup", "measured_low", "measured_high")
        )
        lines.append(f"| {trial['name']}: {change} | {predicted} | {measured} | {'yes' if trial['kept'] else 'no'} |")
    kept = [trial for trial in fix["trials"] if trial["kept"]]
    outcome = (
        f"All that was kept, measured once more against the beginning: {_spread(fix, 'speedup', 'low', 'high')}."
        if kept
        else "Nothing made the steps faster beyond the noise."
    )
    whole = "everything on the list was tried" if fix["complete"] else "the time was up before the list was"
    return "\n".join([*lines, "", f"{outcome} {fix['seconds'] / 60:.1f} minutes; {whole}."])


def _spread(values: dict[str, Any], middle: str, low: str, high: str) -> str:
    return f"{values[middle]:.2f}x ({values[low]:.2f} - {values[high]:.2f})"


def main() -> None:
    options = arguments(__doc__ or "", flickr="", n=4000, minutes=10.0)
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            section(
                f"{options.n:,} drawn scenes", fixed(str(scenes(Path(folder), options.n).path), options.minutes, folder)
            )
        ]
        if options.flickr:
            (Path(folder) / "improved.toml").unlink(missing_ok=True)
            parts.append(section("Flickr8k", fixed(options.flickr, options.minutes, folder)))
    write_result(
        "fixes", "What --fix makes of the default configuration", "\n\n".join(parts), "coreclip", "torch", "numba"
    )


if __name__ == "__main__":
    main()
