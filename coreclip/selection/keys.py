"""Names of pairs, WebDataset keys or DataComp uids, matched with the names that somebody else uses.

A name is text; numbers are written out, DataComp's pairs of 64-bit halves become 32 hexadecimal digits.
"""

from collections.abc import Sequence

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.uids import UID


def as_names(names: Sequence[object] | np.ndarray, source: str) -> np.ndarray:
    """Return names as text.

    Parameters
    ----------
    names : text, bytes, integers or ``u8,u8`` (n,)
    source : str
        Names them in errors.

    Returns
    -------
    object (n,)
        Of str.

    Raises
    ------
    CoreclipError
        For another shape or type, and bytes that are not UTF-8.
    """
    array = np.asarray(names)
    if array.ndim != 1:
        raise CoreclipError(f"{source}: keys have shape {array.shape}; it must be (n,), one for each pair")
    if array.dtype == UID:
        return uids_of_halves(array)
    result = np.empty(len(array), object)
    result[:] = [_as_text(name, row, source) for row, name in enumerate(array.tolist())]
    return result


def uids_of_halves(halves: np.ndarray) -> np.ndarray:
    """Return DataComp's uids, object (n,) of 32 hexadecimal digits, of their halves, ``u8,u8`` (n,)."""
    result = np.empty(len(halves), object)
    result[:] = [f"{first:016x}{second:016x}" for first, second in halves.tolist()]
    return result


def positions_of(wanted: np.ndarray, among: np.ndarray, wanted_name: str, among_name: str, remedy: str) -> np.ndarray:
    """Return where each wanted name stands.

    Parameters
    ----------
    wanted : object (k,)
    among : object (n,)
        May hold others, and those more than once.
    wanted_name, among_name, remedy : str
        For errors.

    Returns
    -------
    int64 (k,)

    Raises
    ------
    CoreclipError
        Naming the first that is wanted twice, missing, or there twice.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(wanted):
        if rows.setdefault(name, row) != row:
            raise CoreclipError(f"{wanted_name}: {name!r} is there twice, at {rows[name]} and {row}; {remedy}")
    found = [-1] * len(wanted)
    for position, name in enumerate(among):
        place = rows.get(name)
        if place is None:
            continue
        if found[place] >= 0:
            raise CoreclipError(f"{among_name}: {name!r} is there twice, at {found[place]} and {position}; {remedy}")
        found[place] = position
    positions = np.array(found, np.int64)
    missing = np.flatnonzero(positions < 0)
    if len(missing):
        raise CoreclipError(
            f"{len(missing)} of the {len(wanted)} of {wanted_name} are not in {among_name}, the first is "
            f"{wanted[missing[0]]!r}; {remedy}"
        )
    return positions


def _as_text(name: object, row: int, source: str) -> str:
    if isinstance(name, bytes):
        try:
            return name.decode()
        except UnicodeDecodeError:
            raise CoreclipError(f"{source}: key {row} is {name!r}, not UTF-8; make the keys again") from None
    if isinstance(name, str | int) and not isinstance(name, bool):
        return str(name)
    raise CoreclipError(f"{source}: key {row} is {name!r}; it must be text or a whole number")
