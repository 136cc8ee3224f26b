"""The outcome of a selection, and its file: Parquet with one row per chosen pair, in order of choice."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

import coreclip
from coreclip.errors import CoreclipError
from coreclip.files import atomic_path

_FORMAT_VERSION = 1
_KEY = b"coreclip"


def check_output(path: str | Path) -> None:
    """Refuse to write a subset over something else.

    Raises
    ------
    CoreclipError
        For a path that is there and is no subset.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).exists():
        return
    try:
        is_subset = _KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        is_subset = False
    if not is_subset:
        raise CoreclipError(f"{path} exists and is no subset; nothing of yours is replaced; name another file")


@dataclass(frozen=True, eq=False, kw_only=True)
class Subset:
    """Some pairs of a data set, in order of choice; a prefix of it is a smaller choice by the same method.

    Attributes
    ----------
    indices : int64 (k,)
        Distinct, 0..n-1.
    weights : float64 (k,)
        Of each pair in training, >= 0; all 1 where the method gives none.
    gains : float64 (k,)
        What each pick added to the objective, or its score.
    objective : float or None
        Of the whole choice; None where the method has none.
    upper_bound : float or None
        No choice of k pairs has a higher objective.
    method : str
    parameters : dict
        Of the method, and what it reports; JSON types.
    seed : int
    n : int
        Pairs that were chosen from.
    seconds : float
        That the selection took.
    fingerprint : str or None
        The data set's.

    Raises
    ------
    CoreclipError
        For anything that breaks the rules above.
    """

    indices: np.ndarray
    weights: np.ndarray
    gains: np.ndarray
    method: str
    n: int
    objective: float | None = None
    upper_bound: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("indices", np.int64), ("weights", np.float64), ("gains", np.float64)):
            given = np.asarray(getattr(self, name))
            if given.ndim != 1 or (kind is np.int64 and len(given) and given.dtype.kind not in "iu"):
                raise CoreclipError(
                    f"subset: {name} must be a list of numbers, got {given.dtype} of shape {given.shape}"
                )
            array = np.array(given, dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        _check_rows(self)

    @property
    def k(self) -> int:
        """Chosen pairs."""
        return len(self.indices)

    def check(self, n: int, fingerprint: str | None) -> None:
        """Refuse another data set than the one that was chosen from.

        Parameters
        ----------
        n : int
            Pairs of the data set at hand.
        fingerprint : str or None
            Its fingerprint; None where there is none to compare.

        Raises
        ------
        CoreclipError
            When the number of pairs or the fingerprint differs.
        """
        if self.fingerprint is not None and fingerprint is not None and self.fingerprint != fingerprint:
            raise CoreclipError(
                f"the subset was chosen from the data set with fingerprint {self.fingerprint}, this one has {fingerprint}; "
                f"select again on this data set"
            )
        if self.n != n:
            raise CoreclipError(
                f"the subset was chosen from {self.n} pairs, this data set has {n}; select again on this data set"
            )

    def prefix(self, k: int) -> Self:
        """Return the first k picks; the objective is that of the prefix, weights are scaled to keep their mean.

        Raises
        ------
        CoreclipError
            For a k that is not 1 to :attr:`k`.
        """
        if not 1 <= k <= self.k:
            raise CoreclipError(f"k = {k} is not a prefix of a subset of {self.k}; it must be 1 to {self.k}")
        weights, total = self.weights[:k], float(self.weights[:k].sum())
        return dataclasses.replace(
            self,
            indices=self.indices[:k],
            weights=weights * (self.weights.mean() * k / total) if total > 0 else weights,
            gains=self.gains[:k],
            objective=None if self.objective is None else float(self.gains[:k].sum()),
            upper_bound=self.upper_bound if k == self.k else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the subset as Parquet, atomically.

        Raises
        ------
        CoreclipError
            Where ``path`` is something else than a subset; see :func:`check_output`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_output(path)
        names = ("method", "parameters", "seed", "n", "k", "objective", "upper_bound", "seconds", "fingerprint")
        metadata = {name: getattr(self, name) for name in names}
        metadata |= {"format_version": _FORMAT_VERSION, "version": coreclip.__version__}
        table = pa.table({"index": self.indices, "weight": self.weights, "gain": self.gains})
        table = table.replace_schema_metadata({_KEY: json.dumps(metadata, sort_keys=True, default=_plain)})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CoreclipError
            For a file that is missing, damaged or no subset.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise CoreclipError(f"no subset at {path}: the file does not exist; make it with coreclip select")
        try:
            table = pq.read_table(path)
            metadata = json.loads((table.schema.metadata or {})[_KEY])
            version, k = metadata.pop("format_version"), metadata.pop("k")
            metadata.pop("version")
            columns = [table[name].to_numpy() for name in ("index", "weight", "gain")]
            if version != _FORMAT_VERSION or k != len(table):
                raise CoreclipError(
                    f"format version {version} with {len(table)} of {k} rows, expected version 1, all rows"
                )
            return cls(indices=columns[0], weights=columns[1], gains=columns[2], **metadata)
        except (pa.ArrowException, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise CoreclipError(f"{path} is no subset or is damaged ({error}); make it with coreclip select") from None


def _check_rows(subset: Subset) -> None:
    k = len(subset.indices)
    if not len(subset.weights) == len(subset.gains) == k:
        raise CoreclipError(
            f"subset: {k} indices, {len(subset.weights)} weights, {len(subset.gains)} gains; they must be as many"
        )
    if not k:
        raise CoreclipError("subset: no pair was chosen; choose at least one")
    if subset.indices.min() < 0 or subset.indices.max() >= subset.n:
        outside = subset.indices[(subset.indices < 0) | (subset.indices >= subset.n)][0]
        raise CoreclipError(
            f"subset: index {outside} is not one of the {subset.n} pairs; it must be 0 to {subset.n - 1}"
        )
    if len(np.unique(subset.indices)) < k:
        names, counts = np.unique(subset.indices, return_counts=True)
        raise CoreclipError(f"subset: index {names[counts > 1][0]} is chosen twice; each pair counts once, use weights")
    if not (np.isfinite(subset.weights).all() and (subset.weights >= 0).all() and np.isfinite(subset.gains).all()):
        raise CoreclipError("subset: weights must be finite and not negative, gains finite")


def _plain(value: Any) -> Any:
    """Turn numpy's scalars and arrays into JSON's types."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be stored with a subset")
