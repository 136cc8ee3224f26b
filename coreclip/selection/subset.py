"""The outcome of a selection, and its file: Parquet with one row per chosen pair, in order of choice."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

import coreclip
from coreclip.errors import CoreclipError
from coreclip.files import atomic_path
from coreclip.randomness import permutation

_FORMAT_VERSION = 1
_KEY = b"coreclip"
_STREAM_FILL = 142


class NoPairChosen(CoreclipError):
    """Nothing is left: of a whole selection a mistake, of one group's share it may be right."""


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
    scores : float64 (n,) or None
        Of every pair, where the method ranks pairs by one; NaN of those that have none. It is not written to the file.

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
    scores: np.ndarray | None = None

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
        if self.scores is not None and np.shape(self.scores) != (self.n,):
            raise CoreclipError(
                f"subset: scores have shape {np.shape(self.scores)}; it must be ({self.n},), one a pair"
            )

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
        return dataclasses.replace(
            self,
            indices=self.indices[:k],
            weights=_keep_mean(self.weights, np.arange(self.k) < k),
            gains=self.gains[:k],
            objective=None if self.objective is None else float(self.gains[:k].sum()),
            upper_bound=self.upper_bound if k == self.k else None,
        )

    def union(self, *others: Self) -> Self:
        """Return the pairs that this or any other subset of the same data set has.

        Parameters
        ----------
        *others : Subset

        Returns
        -------
        Subset
            This one's pairs in order, then the new ones of each other in its order. A pair's weight and gain are those of the
            first subset that has it. The objective and its bound stay where nothing was added, else they are None.
            ``parameters["of"]`` lists each operand's method, seed, k and parameters; ``seconds`` is their sum.

        Raises
        ------
        CoreclipError
            For subsets of another number of pairs or another data set.
        """
        _check_same(self, others)
        parts: list[Self] = [self, *others]
        indices = np.concatenate([part.indices for part in parts])
        _, first = np.unique(indices, return_index=True)
        rows = np.sort(first)
        return self._combined(
            "union",
            others,
            indices=indices[rows],
            weights=np.concatenate([part.weights for part in parts])[rows],
            gains=np.concatenate([part.gains for part in parts])[rows],
        )

    def intersection(self, *others: Self) -> Self:
        """Return the pairs that this and every other subset of the same data set have.

        Parameters
        ----------
        *others : Subset

        Returns
        -------
        Subset
            In this one's order, with its gains, and its weights scaled to keep their mean. Else as :meth:`union`: the objective
            stays where nothing was taken away.

        Raises
        ------
        CoreclipError
            As :meth:`union`; :class:`NoPairChosen` where no pair is in all.
        """
        kept = [np.isin(self.indices, other.indices) for other in others]
        return self._kept("intersection", others, np.logical_and.reduce(kept) if kept else np.ones(self.k, bool))

    def difference(self, *others: Self) -> Self:
        """Return the pairs that this subset has and no other subset of the same data set, else as :meth:`intersection`."""
        dropped = [np.isin(self.indices, other.indices) for other in others]
        return self._kept("difference", others, ~np.logical_or.reduce(dropped) if dropped else np.ones(self.k, bool))

    def resize(self, k: int, *, fill: Self | Literal["random"] | None = None, seed: int = 0) -> Self:
        """Return exactly k pairs: a prefix, or all and others after them.

        Parameters
        ----------
        k : int
            1 to n.
        fill : Subset or "random" or None
            Where the others come from when k is larger: the first new ones of another subset, or random ones, which get this
            subset's mean weight and a gain of 0. None refuses a larger k.
        seed : int
            Of the random ones; a larger k with the same seed only adds to them.

        Returns
        -------
        Subset
            As :meth:`prefix`, or as :meth:`union` with what was filled in.

        Raises
        ------
        CoreclipError
            For a k that is larger without ``fill``, that the second subset does not suffice for, or that is not 1 to n.
        """
        if 1 <= k <= self.k:
            return self.prefix(k)
        if not 1 <= k <= self.n:
            raise CoreclipError(f"k = {k} of {self.n} pairs is not allowed: 1 to {self.n}")
        if fill is None:
            raise CoreclipError(
                f"k = {k} is more than the {self.k} pairs of the subset; fill up from another subset or at random"
            )
        if isinstance(fill, str):
            if fill != "random":
                raise CoreclipError(f"fill = {fill!r} is not allowed: a subset, or 'random'")
            return self.union(self._random_others(k - self.k, seed))
        _check_same(self, [fill])
        fresh = ~np.isin(fill.indices, self.indices)
        if np.count_nonzero(fresh) < k - self.k:
            raise CoreclipError(
                f"k = {k} is more than the {self.k} pairs of the subset and the {np.count_nonzero(fresh)} others of the one "
                f"to fill up from; ask for fewer or give a larger one"
            )
        return self.union(fill).prefix(k)

    def _random_others(self, k: int, seed: int) -> Self:
        order = permutation(self.n, seed, stream=_STREAM_FILL)
        return type(self)(
            indices=order[~np.isin(order, self.indices)][:k],
            weights=np.full(k, self.weights.mean()),
            gains=np.zeros(k),
            method="random",
            seed=seed,
            n=self.n,
            fingerprint=self.fingerprint,
        )

    def _kept(self, name: str, others: Sequence[Self], mask: np.ndarray) -> Self:
        _check_same(self, others)
        if not mask.any():
            what = "no pair is in all" if name == "intersection" else "no pair is left"
            raise NoPairChosen(
                f"{name} of {', '.join(part.method for part in (self, *others))}: {what}; take larger subsets"
            )
        weights = _keep_mean(self.weights, mask)
        return self._combined(name, others, indices=self.indices[mask], weights=weights, gains=self.gains[mask])

    def _combined(self, name: str, others: Sequence[Self], **rows: np.ndarray) -> Self:
        parts = [self, *others]
        same = len(rows["indices"]) == self.k
        return type(self)(
            **rows,
            objective=self.objective if same else None,
            upper_bound=self.upper_bound if same else None,
            method=f"{name}({', '.join(part.method for part in parts)})",
            parameters={
                "of": [
                    {"method": part.method, "seed": part.seed, "k": part.k, "parameters": part.parameters}
                    for part in parts
                ]
            },
            seed=self.seed,
            n=self.n,
            seconds=sum(part.seconds for part in parts),
            fingerprint=next((part.fingerprint for part in parts if part.fingerprint is not None), None),
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
        raise NoPairChosen("subset: no pair was chosen; choose at least one")
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


def _keep_mean(weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return some of the weights, scaled so that they have the mean of all."""
    kept = weights[mask]
    total = float(kept.sum())
    return kept * (weights.mean() * len(kept) / total) if total > 0 else kept


def _check_same(first: Subset, others: Sequence[Subset]) -> None:
    """Refuse to combine subsets of different data sets."""
    known = first
    for other in others:
        if None not in (known.fingerprint, other.fingerprint) and known.fingerprint != other.fingerprint:
            raise CoreclipError(
                f"the subsets {known.method} and {other.method} were chosen from the data sets with fingerprints "
                f"{known.fingerprint} and {other.fingerprint}; only subsets of one data set can be combined"
            )
        if first.n != other.n:
            raise CoreclipError(
                f"the subsets {first.method} and {other.method} were chosen from {first.n} and {other.n} pairs; only subsets "
                f"of one data set can be combined"
            )
        known = known if known.fingerprint is not None else other


def _plain(value: Any) -> Any:
    """Turn numpy's scalars and arrays into JSON's types."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be stored with a subset")
