"""Subsets as other tools write them: DataComp's sorted uids, arrays of indices, lists of WebDataset keys.

========  ========  =====================================================================================================
form      file      contents
========  ========  =====================================================================================================
index     ``.npy``  int64 (k,), in order of choice
uids      ``.npy``  ``u8,u8`` (k,), the halves of each uid's 32 hexadecimal digits, ascending, as DataComp's resharder reads
keys      ``.txt``  UTF-8, one key a line, in order of choice; other tools filter a WebDataset by ``sample["__key__"]``
========  ========  =====================================================================================================

Weights, gains and the method stay behind, with uids also the order of choice. Left out: keys that are told apart by their shard;
a key that two pairs have is refused.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, read_npy
from coreclip.selection.keys import as_names, positions_of, uids_of_halves
from coreclip.selection.subset import Subset
from coreclip.selection.uids import UID, parse_uids, sort_uids

FORMS = ("index", "keys", "uids")


def export_subset(
    subset: Subset, path: str | Path, form: str, names: Sequence[object] | np.ndarray | None = None
) -> None:
    """Write the chosen pairs in a form that other tools read.

    Parameters
    ----------
    subset : Subset
    path : path
        Must not be there yet; ``.npy``, or ``.txt`` for keys.
    form : {"index", "keys", "uids"}
    names : text or integers (n,), or None
        The data set's keys or uids; not needed for ``index``.

    Raises
    ------
    CoreclipError
        For an unknown form, a path that is there or has another suffix, names that are missing, not n, or shared by a chosen
        pair and another one, keys with a line break, and uids that are not 32 hexadecimal digits.
    """
    path = Path(path)
    if form not in FORMS:
        raise CoreclipError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    suffix = ".txt" if form == "keys" else ".npy"
    if path.suffix != suffix:
        raise CoreclipError(f"{path} must end in {suffix} to hold {form}; name it so")
    if path.exists():
        raise CoreclipError(f"{path} exists; nothing of yours is replaced; name another file")
    chosen = None if form == "index" else _names_of_chosen(subset, form, names)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if chosen is None:
            np.save(file, subset.indices)
        elif form == "keys":
            file.write("".join(f"{key}\n" for key in chosen).encode())
        else:
            np.save(file, sort_uids(parse_uids(chosen, "the subset")))


def import_subset(
    path: str | Path,
    n: int,
    *,
    keys: Sequence[object] | np.ndarray | None = None,
    uids: Sequence[object] | np.ndarray | None = None,
    fingerprint: str | None = None,
) -> Subset:
    """Read what :func:`export_subset` or another tool wrote; the form is seen from the file.

    Parameters
    ----------
    path : path
        ``.npy`` of integers or of ``u8,u8``, or ``.txt`` of keys.
    n : int
        Pairs of the data set.
    keys, uids : text or integers (n,), or None
        The data set's; each is needed for files of that form only.
    fingerprint : str or None
        The data set's.

    Returns
    -------
    Subset
        In the order of the file, ``method`` ``import``, weights 1 and gains 0.

    Raises
    ------
    CoreclipError
        For a file that is missing, damaged or of another form, and names that are missing or not n; for an index, key or uid
        that is not the data set's or is there twice, naming the first.
    """
    form, listed = _read(Path(path))
    if form == "index":
        indices = _check_indices(listed, n, path)
    else:
        among = _check_names({"keys": keys, "uids": uids}[form], n, form)
        remedy = "it must be a list of this data set's pairs, each once"
        indices = positions_of(listed, among, f"the {form} of {path}", f"the data set's {form}", remedy)
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=np.zeros(len(indices)),
        method="import",
        parameters={"file": str(path), "form": form},
        n=n,
        fingerprint=fingerprint,
    )


def form_of(path: str | Path) -> str:
    """Return which of the forms a file has; raises CoreclipError as :func:`import_subset`."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[str, np.ndarray]:
    """Return a file's form, and its indices, keys or uids."""
    if path.suffix not in (".npy", ".txt"):
        raise CoreclipError(f"{path} is no list of pairs: a .npy of indices or uids, or a .txt of keys")
    if not path.is_file():
        raise CoreclipError(f"no list of pairs at {path}: the file does not exist; check the path")
    form, listed = ("keys", _read_keys(path)) if path.suffix == ".txt" else _read_npy(path)
    if not len(listed):
        raise CoreclipError(f"{path} lists no pair; choose at least one")
    return form, listed


def _read_keys(path: Path) -> np.ndarray:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CoreclipError(f"{path} is not UTF-8 ({error}); save it as UTF-8, one key a line") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    if "" in lines:
        raise CoreclipError(f"{path}: line {lines.index('') + 1} is empty; it must be one key a line")
    return np.array(lines, object)


def _read_npy(path: Path) -> tuple[str, np.ndarray]:
    array = read_npy(path)
    if array.ndim == 1 and array.dtype == UID:
        return "uids", uids_of_halves(array)
    if array.ndim == 1 and array.dtype.kind in "iu":
        return "index", array
    raise CoreclipError(
        f"{path} holds {array.dtype} of shape {array.shape}; it must be a list of integers (of a mask: np.flatnonzero) or of "
        f"DataComp's u8,u8"
    )


def _check_indices(indices: np.ndarray, n: int, path: str | Path) -> np.ndarray:
    outside = (indices < 0) | (indices >= n)
    if outside.any():
        row = int(outside.argmax())
        raise CoreclipError(
            f"{path}: index {indices[row]} at {row} is not one of the {n} pairs; it must be 0 to {n - 1}"
        )
    _, first = np.unique(indices, return_index=True)
    if len(first) < len(indices):
        row = int(np.delete(np.arange(len(indices)), first)[0])
        raise CoreclipError(f"{path}: index {indices[row]} is there twice, again at {row}; each pair counts once")
    return indices.astype(np.int64)


def _names_of_chosen(subset: Subset, form: str, names: Sequence[object] | np.ndarray | None) -> np.ndarray:
    known = _check_names(names, subset.n, form)
    chosen = known[subset.indices]
    # A name that another pair has too would bring that one in when it is read.
    positions_of(chosen, known, f"the {form} of the subset", f"the data set's {form}", "export the index instead")
    if form == "keys":
        wrong = [key for key in chosen if not key or "\n" in key or "\r" in key]
        if wrong:
            raise CoreclipError(f"the key {wrong[0]!r} can't be a line of a list; export the index instead")
    return chosen


def _check_names(names: Sequence[object] | np.ndarray | None, n: int, form: str) -> np.ndarray:
    if names is None:
        raise CoreclipError(f"{form} are those of a data set, and none are given; give a data set that has {form}")
    known = as_names(names, f"the data set's {form}")
    if len(known) != n:
        raise CoreclipError(f"the data set has {len(known)} {form} of {n} pairs; they must be as many")
    if form == "uids":
        known = np.array([uid.lower() for uid in known], object)
    return known
