"""Uids of DataComp (Gadre et al. 2023, arXiv 2304.14108) and its files of them.

A uid is 32 hexadecimal digits; here, and in DataComp's files of subsets, it is its two 64-bit halves, a number pair of dtype
``u8,u8``. Such a file is a sorted ``.npy`` of them. Left out: files that were pickled.
"""

from pathlib import Path

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, read_npy

UID = np.dtype("u8,u8")
_HEX = 32  # digits of a uid


def parse_uids(texts: np.ndarray, source: str = "uids") -> np.ndarray:
    """Turn hexadecimal uids into pairs of numbers.

    Parameters
    ----------
    texts : str (n,)
        32 hexadecimal digits each.
    source : str
        Names them in errors.

    Returns
    -------
    u8,u8 (n,)

    Raises
    ------
    CoreclipError
        For a uid of another form, naming the first.
    """
    texts = np.asarray(texts)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str) or len(text) != _HEX), None)
    if wrong is None:
        try:
            raw = bytes.fromhex("".join(texts))  # skips blanks, hence the check of the length
        except ValueError:
            raw = b""
        if len(raw) == 16 * len(texts):
            return np.frombuffer(raw, ">u8").astype(np.uint64).view(UID)
        wrong = next(i for i, text in enumerate(texts) if not set(text) <= set("0123456789abcdefABCDEF"))
    raise CoreclipError(f"{source}: uid {texts[wrong]!r} at row {wrong} is no uid of DataComp: 32 hexadecimal digits")


def sort_uids(uids: np.ndarray) -> np.ndarray:
    """Return uids (dtype ``u8,u8``) in ascending order, by their first halves, then their second."""
    return uids[np.lexsort((uids["f1"], uids["f0"]))]


def check_uids_output(path: str | Path) -> None:
    """Refuse to write uids over something else.

    Raises
    ------
    CoreclipError
        For a path that is there and holds no uids, and for one that does not end in .npy.
    """
    if Path(path).suffix != ".npy":
        raise CoreclipError(f"{path} does not end in .npy, as DataComp's files of uids do; name it so")
    if Path(path).exists():
        try:
            load_uids(path)
        except CoreclipError:
            raise CoreclipError(
                f"{path} exists and holds no uids; nothing of yours is replaced; name another file"
            ) from None


def save_uids(path: str | Path, uids: np.ndarray) -> None:
    """Write uids (dtype ``u8,u8``) as DataComp's resharder reads them: sorted, as ``.npy``, atomically.

    Raises
    ------
    CoreclipError
        See :func:`check_uids_output`.
    """
    check_uids_output(path)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, sort_uids(uids))


def load_uids(path: str | Path) -> np.ndarray:
    """Read a subset in DataComp's format, dtype ``u8,u8`` (m,).

    Raises
    ------
    CoreclipError
        For a file that is missing, damaged or of another dtype.
    """
    if not Path(path).is_file():
        raise CoreclipError(f"no uids at {path}: the file does not exist; check the path")
    uids = read_npy(Path(path))
    if uids.dtype != UID or uids.ndim != 1:
        raise CoreclipError(
            f"{path} holds {uids.dtype} of shape {uids.shape}; DataComp's uids are a list of dtype u8,u8"
        )
    return uids


def uid_keys(uids: np.ndarray) -> np.ndarray:
    """Return uids (dtype ``u8,u8``) as 16 bytes each, which compare as they do, ``S16`` (n,)."""
    return np.ascontiguousarray(uids).view(np.uint64).astype(">u8").view("S16")
