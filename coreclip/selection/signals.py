"""What a training run has noted of each pair, read back: the columns of ``RUN/signals``.

Names, shapes and dtypes are those that training writes; an array's last axis is the pairs, NaN (or -1 in integers) stands for
"not seen". Left out: making signals, which needs a model.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import read_json, read_npy

CHECKPOINT_SIGNALS = ("grand", "tracin", "vog")
"""Signals that are not noted in training but made afterwards, from the weights that a run has kept; of any data set."""


def load_signals(run: str | Path, fingerprint: str | None = None) -> dict[str, np.ndarray]:
    """Map the signals of a training run into memory.

    Parameters
    ----------
    run : path
        ``RUN``, or its folder ``signals``.
    fingerprint : str or None
        Of a data set: signals that are known to be of another one are left out.

    Returns
    -------
    dict of str to array (..., n)
        By file name without ``.npy``.

    Raises
    ------
    CoreclipError
        For a folder without signals, or of another data set's alone, and for a damaged file.
    """
    folder = Path(run)
    folder = folder / "signals" if (folder / "signals").is_dir() else folder
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise CoreclipError(
            f"no signals at {run}: it holds no signals/*.npy; train writes them unless train.signals is off"
        )
    kept = [file for file in files if fingerprint is None or _origin(file) in (None, fingerprint)]
    if not kept:
        raise CoreclipError(
            f"the signals of {run} are of the data set {str(_origin(files[0]))[:12]}, this is {str(fingerprint)[:12]}; "
            "give a run that was trained on this data set"
        )
    return {file.stem: read_npy(file, "train again", mapped=True) for file in kept}


def checkpoint_signals_of(expression: str) -> set[str]:
    """Return those of :data:`CHECKPOINT_SIGNALS` that an expression names, as a method or as in ``hard(signal=vog)``."""
    return set(re.findall(r"[\w-]+", expression)) & set(CHECKPOINT_SIGNALS)


def signal_of(signals: Mapping[str, np.ndarray], name: str, method: str) -> np.ndarray:
    """Return a signal that a method needs.

    Raises
    ------
    CoreclipError
        Where it is not there, naming what is.
    """
    if name not in signals:
        known = ", ".join(sorted(signals)) or "none at all"
        raise CoreclipError(
            f"{method} needs the signal {name!r} of a training run, and there is {known}; give a run that has it by --signals"
        )
    return np.asarray(signals[name])


def mean_over_passes(signal: np.ndarray, passes: int | None = None, *, last: bool = False) -> np.ndarray:
    """Return each pair's mean over some passes; the passes in which it was not seen are left out.

    Parameters
    ----------
    signal : float (passes, n)
        NaN where a pair was not seen in that pass.
    passes : int or None
        How many to take, at least 1; None for all.
    last : bool
        Take the last passes that each pair was seen in, instead of the first passes of the run.

    Returns
    -------
    float64 (n,)
        NaN for a pair that was seen in none of them.

    Raises
    ------
    CoreclipError
        For another shape, and for ``passes`` below 1.
    """
    signal = np.asarray(signal)
    if signal.ndim != 2:
        raise CoreclipError(f"the signal has shape {signal.shape}; it must be (passes, n), a row for each pass")
    check_passes(passes)
    rows = signal[::-1] if last else signal[:passes]
    total, count = np.zeros(signal.shape[1]), np.zeros(signal.shape[1], np.int64)
    with np.errstate(invalid="ignore"):  # opposite infinities have no mean: NaN, no score
        for row in rows:
            use = ~np.isnan(row)
            if last and passes is not None:
                use &= count < passes
            total += np.where(use, row, 0)
            count += use
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def check_passes(passes: int | None, name: str = "passes") -> None:
    """Refuse a number of passes below 1."""
    if passes is not None and passes < 1:
        raise CoreclipError(f"{name} = {passes} is not allowed: at least 1, or none for the usual number")


def _origin(file: Path) -> str | None:
    """Return the fingerprint of the data set that a signal is of, where it is known."""
    if file.stem in CHECKPOINT_SIGNALS:
        note = file.with_suffix(".json")
        return read_json(note, "note on a signal").get("fingerprint") if note.exists() else None
    record = file.parent.parent / "run.json"
    return read_json(record, "run record").get("asked", {}).get("fingerprint") if record.exists() else None
