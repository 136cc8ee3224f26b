"""DataComp's metadata folders (Gadre et al. 2023, DataComp, arXiv 2304.14108) as pools to select from, and its own baselines.

A folder holds ``*.parquet`` (uid, url, text, original_width, original_height, clip_b32_similarity_score,
clip_l14_similarity_score, sha256, ...) beside ``*.npz`` of the same stem with the same rows (b32_img, b32_txt, l14_img, l14_txt).
Pair i is row i of all files in the order of their names. Left out: the baselines text_based, image_based and laion2b, which need word
nets, centroids and models that DataComp downloads; other disks than local ones.
"""

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.basics import basic_rules
from coreclip.selection.features import Features
from coreclip.selection.shardrows import ShardedRows
from coreclip.selection.uids import parse_uids, sort_uids, uid_keys

ARCHITECTURES = ("l14", "b32")
BASELINES = ("no_filter", "basic_filter", "clip_score")

_COLUMNS = {"caption": "text", "width": "original_width", "height": "original_height"}


class DatacompPool:
    """A DataComp metadata folder; make it with :func:`read_datacomp`.

    Attributes
    ----------
    folder : Path
    files : tuple of Path
        The parquet files in the order of their names.
    rows : int64 (files,)
        Of each.
    n : int
        Pairs.
    """

    def __init__(self, folder: Path, files: tuple[Path, ...], rows: np.ndarray) -> None:
        self.folder, self.files, self.rows, self.n = folder, files, rows, int(rows.sum())

    @cached_property
    def uids(self) -> np.ndarray:
        """Uids in the order of the index, dtype ``u8,u8`` (n,)."""
        return parse_uids(self._column("uid"), str(self.folder))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the uids in their order."""
        return hashlib.sha256(uid_keys(self.uids).tobytes()).hexdigest()

    def metadata(self, name: str) -> np.ndarray:
        """Return a column (n,).

        Parameters
        ----------
        name : str
            ``caption`` is DataComp's ``text`` (object), ``width`` and ``height`` the original ones; else a column's own name.

        Raises
        ------
        CoreclipError
            For a column that is not there.
        """
        return self._column(_COLUMNS.get(name, name))

    def scores(self, arch: str = "l14") -> np.ndarray:
        """Return DataComp's CLIP score of each pair, float64 (n,), NaN where there is none.

        Parameters
        ----------
        arch : {"l14", "b32"}

        Raises
        ------
        CoreclipError
            For an unknown architecture and a missing column.
        """
        _check_arch(arch)
        return np.asarray(self._column(f"clip_{arch}_similarity_score"), np.float64)

    def features(self, arch: str | None = None) -> Features:
        """Return the embeddings of all files, read from the disk as they are asked for.

        Parameters
        ----------
        arch : {"l14", "b32"} or None
            None for l14, or b32 where the first file holds no other.

        Raises
        ------
        CoreclipError
            For a file that is missing, damaged or of other rows than its parquet file, and for what
            :meth:`Features.from_arrays` refuses.
        """
        archives = [file.with_suffix(".npz") for file in self.files]
        if arch is None:
            arch = next((name for name in ARCHITECTURES if f"{name}_img" in _members(archives[0])), "l14")
        _check_arch(arch)
        image, text = (ShardedRows.open(archives, f"{arch}_{side}", self.rows) for side in ("img", "txt"))
        info = {"fingerprint": self.fingerprint, "model": f"DataComp {arch}"}
        return Features.from_arrays(cast(Any, image), cast(Any, text), info=info, source=str(self.folder))

    def indices_of(self, uids: np.ndarray) -> np.ndarray:
        """Return the pairs with these uids (dtype ``u8,u8``), ascending, int64; a uid that several pairs have stands for all.

        Raises
        ------
        CoreclipError
            For uids that are not of this pool.
        """
        ours, wanted = uid_keys(self.uids), np.unique(uid_keys(uids))
        foreign = np.count_nonzero(~np.isin(wanted, ours))
        if foreign:
            raise CoreclipError(
                f"{foreign} of {len(wanted)} uids are not in {self.folder}; take the pool that they are from"
            )
        return np.flatnonzero(np.isin(ours, wanted))

    def _column(self, name: str) -> np.ndarray:
        import pyarrow.parquet as pq

        parts = []
        for file, n_rows in zip(self.files, self.rows, strict=True):
            with _readable(file), pq.ParquetFile(file) as opened:
                names, found = opened.schema_arrow.names, opened.metadata.num_rows
                if name not in names:
                    raise CoreclipError(f"{file} has no column {name!r}; it has {', '.join(names)}")
                if found != n_rows:
                    raise CoreclipError(f"{file} holds {found} rows, {n_rows} when it was opened; it must not change")
                table = opened.read(columns=[name])
            parts.append(table[name].to_numpy())
        return np.concatenate(parts)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CoreclipError(f"{file} is not a readable parquet file ({error}); fetch it again") from None


def is_datacomp(folder: str | Path) -> bool:
    """Return whether a path is a DataComp metadata folder: with parquet files of a ``uid`` column and no ``dataset.json``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not folder.is_dir() or (folder / "dataset.json").exists():
        return False
    first = next(iter(sorted(folder.glob("*.parquet"))), None)
    try:
        return first is not None and "uid" in pq.read_schema(first).names
    except (pa.ArrowException, OSError):
        return False


def read_datacomp(folder: str | Path) -> DatacompPool:
    """Open a DataComp metadata folder; columns and embeddings are read when they are asked for.

    Parameters
    ----------
    folder : path
        With ``*.parquet`` and, for embeddings, ``*.npz`` of the same stems.

    Returns
    -------
    DatacompPool

    Raises
    ------
    CoreclipError
        For a folder without parquet files, a damaged one, one without ``uid``, and no rows at all.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    files = tuple(sorted(folder.glob("*.parquet")))
    if not files:
        raise CoreclipError(
            f"{folder} holds no *.parquet; a DataComp metadata folder does, beside *.npz of the same names"
        )
    rows = []
    for file in files:
        with _readable(file):
            described = pq.ParquetFile(file)
        if "uid" not in described.schema_arrow.names:
            raise CoreclipError(
                f"{file} has no column 'uid'; DataComp's metadata have one; take other files out of the folder"
            )
        rows.append(described.metadata.num_rows)
    if not sum(rows):
        raise CoreclipError(f"the parquet files in {folder} hold no rows; fetch DataComp's metadata again")
    return DatacompPool(folder, files, np.array(rows, np.int64))


def datacomp_baseline(
    folder: str | Path,
    name: str,
    *,
    arch: str = "l14",
    fraction: float | None = None,
    threshold: float | None = None,
    language: str = "english",
    language_model: str | None = None,
) -> np.ndarray:
    """Return the uids that one of DataComp's baselines keeps.

    Parameters
    ----------
    folder : path
        See :func:`read_datacomp`.
    name : {"no_filter", "basic_filter", "clip_score"}
    arch : {"l14", "b32"}
        Of ``clip_score``.
    fraction, threshold : float or None
        Of ``clip_score``, one of them: a pair stays when its score is at least the threshold. The threshold of a fraction is the
        score of rank ``int(n * fraction)``, counted from 0, the best first: pairs that tie with it stay, so that a little more than
        the fraction does. A pair without a score never stays.
    language, language_model
        Of ``basic_filter``, see :func:`datacomp_basic`; only with ``lid.176.bin`` are captions judged as DataComp judges them.

    Returns
    -------
    u8,u8 (m,)
        Sorted; with repetitions where several pairs that stay have one uid.

    Raises
    ------
    CoreclipError
        For an unknown baseline, parameters that do not fit, and damaged files.
    """
    if name not in BASELINES:
        raise CoreclipError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)} (the others need downloads)")
    if name != "clip_score" and (fraction is not None or threshold is not None):
        raise CoreclipError(f"{name} takes no fraction and no threshold; they are clip_score's")
    pool = read_datacomp(folder)
    if name == "clip_score":
        kept = _by_score(pool.scores(arch), fraction, threshold)
    elif name == "basic_filter":
        columns = [pool.metadata(column) for column in ("caption", "width", "height")]
        rules = basic_rules(*columns, language=language, language_model=language_model)
        kept = np.logical_and.reduce(list(rules.values()))
    else:
        kept = np.ones(pool.n, bool)
    return sort_uids(pool.uids[kept])


def _by_score(scores: np.ndarray, fraction: float | None, threshold: float | None) -> np.ndarray:
    if (fraction is None) == (threshold is None):
        raise CoreclipError(
            f"clip_score takes a fraction or a threshold; got fraction = {fraction}, threshold = {threshold}"
        )
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise CoreclipError(f"fraction = {fraction} is not allowed: above 0, at most 1")
        ranked = np.sort(-scores)  # NaN comes last
        threshold = -ranked[min(int(len(scores) * fraction), len(scores) - 1)]
        if np.isnan(threshold):
            threshold = -np.inf
    return scores >= threshold


def _members(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []  # the reading that follows says what is wrong


def _check_arch(arch: str) -> None:
    if arch not in ARCHITECTURES:
        raise CoreclipError(f"unknown architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")
