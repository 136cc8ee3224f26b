"""What a training run has noted of each pair, read back: the columns of ``RUN/signals``.

Names, shapes and dtypes are those that training writes; an array's last axis is the pairs, NaN (or -1 in integers) stands for
"not seen". Left out: making signals, which needs a model.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coreclip.errors import CoreclipError


def load_signals(run: str | Path) -> dict[str, np.ndarray]:
    """Map the signals of a training run into memory.

    Parameters
    ----------
    run : path
        ``RUN``, or its folder ``signals``.

    Returns
    -------
    dict of str to array (..., n)
        By file name without ``.npy``.

    Raises
    ------
    CoreclipError
        For a folder without signals, and for a damaged file.
    """
    folder = Path(run)
    folder = folder / "signals" if (folder / "signals").is_dir() else folder
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise CoreclipError(
            f"no signals at {run}: it holds no signals/*.npy; train writes them unless train.signals is off"
        )
    return {file.stem: _read(file) for file in files}


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


def _read(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CoreclipError(f"{file} is not a readable .npy of numbers ({error}); train again") from None
