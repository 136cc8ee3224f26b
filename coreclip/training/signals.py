"""What each pair's training looked like, pass by pass: the input of selection methods that follow the training dynamics.

``RUN/signals/NAME.npy``: ``loss``, ``margin`` (of cosines), ``confidence``, ``entropy``, ``probability_margin`` and ``el2n`` (of the
batch's softmax) float32 (passes, n), NaN where a pair was not seen in that pass, and ``correct`` int8 (passes, n), -1 there; see
:class:`coreclip.training.loss.ContrastiveLoss`. The files grow by one row per pass and are valid ``.npy`` files after each.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.errors import CoreclipError
from coreclip.training.device import Fetched

_UNSEEN: dict[str, Any] = {
    "loss": np.float32(np.nan),
    "margin": np.float32(np.nan),
    "correct": np.int8(-1),
    "confidence": np.float32(np.nan),
    "entropy": np.float32(np.nan),
    "probability_margin": np.float32(np.nan),
    "el2n": np.float32(np.nan),
}
SIGNAL_BYTES = sum(unseen.nbytes for unseen in _UNSEEN.values())
"""Of a pair in each pass."""


class SignalRecorder:
    """Collect one pass in memory and append it to the files when it ends.

    Parameters
    ----------
    folder : path
        ``RUN/signals``.
    n : int
        Pairs of the whole data set.
    """

    def __init__(self, folder: Path, n: int) -> None:
        self._folder, self._n = folder, n
        self._passes = 0
        self._current = {name: np.full(n, unseen) for name, unseen in _UNSEEN.items()}
        self._touched = False

    def record(self, index: np.ndarray, names: list[str], rows: Fetched) -> None:
        """Note a batch's pairs, as :meth:`coreclip.training.distributed.Ranks.signals` has them; one that comes twice in a pass keeps
        its last values."""
        for name, row in zip(names, rows.read().numpy(), strict=True):
            self._current[name][index] = row
        self._touched = True

    def end_pass(self) -> None:
        """Append the pass to the files; nothing happens when no batch was noted in it."""
        if not self._touched:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, unseen in _UNSEEN.items():
            _append_row(self._folder / f"{name}.npy", self._current[name], self._passes)
            self._current[name].fill(unseen)
        self._passes += 1
        self._touched = False

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the files and the pass under way."""
        current = {name: torch.from_numpy(row.copy()) for name, row in self._current.items()}
        return {"passes": self._passes, "touched": self._touched, "current": current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state; rows that were appended since are overwritten.

        Raises
        ------
        CoreclipError
            For a state with other signals, as versions before this one wrote.
        """
        if set(state["current"]) != set(_UNSEEN):
            raise CoreclipError(
                f"the run's checkpoint has the signals {', '.join(state['current'])}, this coreclip records {', '.join(_UNSEEN)}; "
                "finish the run with the version that began it, or train into another folder"
            )
        self._passes, self._touched = state["passes"], state["touched"]
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, row in state["current"].items():
            self._current[name][:] = row.numpy()
            _write_header(self._folder / f"{name}.npy", row.numpy().dtype, self._passes, self._n)


def _append_row(path: Path, row: np.ndarray, rows_before: int) -> None:
    header_bytes = _header_bytes(row.dtype, len(row))
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.seek(header_bytes + rows_before * row.nbytes)
        file.write(row.tobytes())
        file.truncate()
    # The header comes last: until then the file holds the passes before this one.
    _write_header(path, row.dtype, rows_before + 1, len(row))


def _write_header(path: Path, dtype: np.dtype[Any], rows: int, n: int) -> None:
    # numpy pads the header so that the first axis can grow in place (format version 1).
    with open(path, "r+b" if path.exists() else "w+b") as file:
        _write_header_to(file, dtype, rows, n)
        file.flush()


def _write_header_to(file: Any, dtype: np.dtype[Any], rows: int, n: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, n)}
    np.lib.format.write_array_header_1_0(file, header)


def _header_bytes(dtype: np.dtype[Any], n: int) -> int:
    import io

    buffer = io.BytesIO()
    _write_header_to(buffer, dtype, 1, n)
    return buffer.tell()
