"""What ``select`` selects from: a data set of ``convert`` or a DataComp metadata folder, with its features and signals.

It composes pipeline, selection and training for the command line.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coreclip.errors import CoreclipError

if TYPE_CHECKING:
    import numpy as np

    from coreclip.pipeline import Dataset
    from coreclip.selection import Features


@dataclass(frozen=True)
class Pool:
    """What a selection asks of what it selects from.

    Attributes
    ----------
    n : int
        Pairs.
    fingerprint : str
    labels : int64 (n,) or None
    metadata : callable
        Returns a column (n,) by its name; ``thumbnail``, small pictures, where there are images.
    uids : callable
        Returns DataComp's uids, ``u8,u8`` (n,).
    align : callable
        Puts other people's features in the order of the pairs.
    own_features : callable or None
        Returns the embeddings that it brings along, of an architecture.
    dataset : Dataset or None
        Where it has images.
    """

    n: int
    fingerprint: str
    labels: "np.ndarray | None"
    metadata: "Callable[[str], np.ndarray]"
    uids: "Callable[[], np.ndarray]"
    align: "Callable[[Features], Features]"
    own_features: "Callable[[str | None], Features] | None" = None
    dataset: "Dataset | None" = None


def open_pool(path: Path) -> Pool:
    """Open a data set or a DataComp metadata folder."""
    from coreclip.selection import is_datacomp, parse_uids, read_datacomp

    if is_datacomp(path):
        pool = read_datacomp(path)
        return Pool(
            pool.n,
            pool.fingerprint,
            None,
            pool.metadata,
            lambda: pool.uids,
            lambda embeddings: embeddings,
            pool.features,
        )
    from coreclip.pipeline import Dataset

    data = Dataset(path)
    return Pool(
        data.n, data.fingerprint, data.labels, lambda name: _metadata_of(data, name),
        lambda: parse_uids(names_of(data, "uids"), str(path)), lambda embeddings: _in_order_of(embeddings, data),
        dataset=data,
    )  # fmt: skip


def _metadata_of(data: "Dataset", name: str) -> "np.ndarray":
    from coreclip.pipeline import thumbnails

    return thumbnails(data) if name == "thumbnail" else data.metadata(name)


def _in_order_of(features: "Features", data: "Dataset") -> "Features":
    """Align other people's features by their keys; ours say by their fingerprint that they need it not."""
    if features.keys is None or features.fingerprint is not None:
        return features
    return features.align(names_of(data, "uids" if features.keyed_by == "uid" else "keys"))


def names_of(data: "Dataset", form: str) -> "np.ndarray":
    """Return the keys or the uids of a data set's pairs, as text (n,)."""
    if form == "keys":
        return data.keys
    if "uid" not in data.column_names:
        raise CoreclipError(
            f"{data.path} has no uids: pairs.parquet has no column 'uid'; convert a source that has one (img2dataset's tables "
            f"of DataComp do), or use keys or the index"
        )
    return data.metadata("uid")


def signals_of(run: Path, pool: Pool, method: str) -> "Mapping[str, np.ndarray]":
    """Return a run's signals, with those that the method reads and that must be made from the run's kept weights."""
    from coreclip.selection import checkpoint_signals_of, load_signals

    wanted = checkpoint_signals_of(method)
    made = {}
    if wanted and pool.dataset is not None and (run / "run.json").exists():  # else a folder of arrays, as it is
        from coreclip.training import checkpoint_signals

        made = checkpoint_signals(run, pool.dataset, sorted(wanted), device="auto")
    return load_signals(run, pool.fingerprint) | made
