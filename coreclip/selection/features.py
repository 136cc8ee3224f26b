"""Embeddings of the pairs of a data set, ours or other people's, checked before anything is selected by them.

Read are: a FEATURES folder of ``coreclip embed``, one ``.npy`` (images only), a DataComp ``.npz`` (``l14_img`` and ``l14_txt``,
else ``b32_img`` and ``b32_txt``), a clip-retrieval folder (``img_emb/*.npy`` and, if there, ``text_emb/*.npy``).
Nothing is unpickled. Row i is taken to be the pair with index i unless the rows have keys, by which they can be put in a data set's
order: arrays ``uids`` or ``keys`` of an ``.npz``, columns ``uid`` or ``key`` of the ``.parquet`` beside it, and ``key`` or else the
stems of ``image_path`` of clip-retrieval's ``metadata/*.parquet``. Left out: keys of a bare ``.npy``, and of our own folders, which
are in the data set's order.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import read_json, read_npy
from coreclip.selection.keys import as_names, positions_of

MODALITIES = ("image", "text", "both")
KEY_KINDS = ("uid", "key")

_BLOCK = 1 << 16  # rows
_FLOAT32_TOLERANCE = 1e-6
_UNIT_TOLERANCE = 1e-2  # float16 rows miss unit length by up to 1e-3


@dataclass(frozen=True, eq=False)
class Features:
    """Unit embeddings; make it with :meth:`load` or :meth:`from_arrays`, which check and normalise.

    Attributes
    ----------
    image, text : float16 or float32 (n, d), or None
        Row i belongs to the pair with index i; at least one of them is there. Often memory-mapped.
    captions : float16 or float32 (total, d), or None
        Each caption.
    offsets : int64 (n + 1,) or None
        Captions of pair i are ``offsets[i]:offsets[i + 1]``.
    info : dict
        What ``features.json`` says: ``logit_scale``, ``fingerprint``, ``model``, ... Empty for other people's embeddings.
    keys : object (n,) of str, or None
        What each row is called in its source.
    keyed_by : {"uid", "key"}
        What kind of name ``keys`` holds: DataComp's uids, or a data set's keys.
    """

    image: np.ndarray | None
    text: np.ndarray | None = None
    captions: np.ndarray | None = None
    offsets: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    keys: np.ndarray | None = None
    keyed_by: str = "key"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read embeddings from any of the forms that the module names.

        Raises
        ------
        CoreclipError
            For a file that is missing, damaged or of another kind, and for what :meth:`from_arrays` refuses.
        """
        path = Path(path)
        if not path.exists():
            raise CoreclipError(
                f"no features at {path}: it does not exist; make them with coreclip embed or check the path"
            )
        if path.suffix == ".npy":
            return cls.from_arrays(read_npy(path, mapped=True), source=str(path))
        if path.suffix == ".npz":
            return cls.from_arrays(**_read_datacomp(path), source=str(path))
        if (path / "features.json").exists():
            return cls.from_arrays(**_read_folder(path), source=str(path))
        if (path / "img_emb").is_dir():
            return cls.from_arrays(**_read_clip_retrieval(path), source=str(path))
        raise CoreclipError(
            f"{path} holds no features: expected a folder with features.json or img_emb/, a .npy or a DataComp .npz"
        )

    @classmethod
    def from_arrays(
        cls,
        image: np.ndarray | None = None,
        text: np.ndarray | None = None,
        *,
        captions: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
        info: dict[str, Any] | None = None,
        keys: Sequence[object] | np.ndarray | None = None,
        keyed_by: str = "key",
        source: str = "features",
    ) -> Self:
        """Check and, where rows are not of unit length, normalise embeddings.

        Parameters
        ----------
        image, text : float (n, d) or None
        captions : float (total, d) or None
        offsets : int64 (n + 1,) or None
        info : dict or None
        keys : text, integers or ``u8,u8`` (n,), or None
            Names of the rows; ``u8,u8`` are the halves of DataComp's uids.
        keyed_by : {"uid", "key"}
        source : str
            Names the embeddings in errors.

        Raises
        ------
        CoreclipError
            For no embeddings at all, a NaN, an infinity, a row of zeros, a wrong shape or type, counts or widths that differ, and
            keys that are not one text or whole number a row.
        """
        if image is None and text is None:
            raise CoreclipError(f"{source}: neither image nor text embeddings; at least one of them is needed")
        if captions is not None and (offsets is None or offsets.ndim != 1 or offsets[-1] != len(captions)):
            raise CoreclipError(f"{source}: offsets do not fit the {len(captions)} captions; make the features again")
        if image is not None and text is not None and image.shape != text.shape:
            raise CoreclipError(
                f"{source}: image embeddings are {image.shape}, text embeddings {text.shape}; "
                f"both must be (pairs, dimensions) of one model"
            )
        if keyed_by not in KEY_KINDS:
            raise CoreclipError(f"{source}: keyed_by = {keyed_by!r} is not allowed: {' or '.join(KEY_KINDS)}")
        n_rows = len(image if image is not None else text)  # type: ignore[arg-type]
        names = None if keys is None else as_names(keys, source)
        if names is not None and len(names) != n_rows:
            raise CoreclipError(f"{source}: {len(names)} keys of {n_rows} embeddings; they must be as many")
        return cls(
            None if image is None else _unit_rows(image, f"{source}: image embeddings"),
            None if text is None else _unit_rows(text, f"{source}: text embeddings"),
            captions,
            offsets,
            dict(info or {}),
            names,
            keyed_by,
        )

    @property
    def _first(self) -> np.ndarray:
        present = self.image if self.image is not None else self.text
        assert present is not None
        return present

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self._first)

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return int(self._first.shape[1])

    def width(self, modality: str) -> int:
        """Return the dimensions of :meth:`vectors`."""
        return self.dim * (2 if modality == "both" else 1)

    @property
    def fingerprint(self) -> str | None:
        """The data set's that these were made from, where it is known."""
        return self.info.get("fingerprint")

    def vectors(self, modality: str = "image") -> np.ndarray:
        """Return the unit vectors that pairs are compared by.

        Parameters
        ----------
        modality : {"image", "text", "both"}
            ``both`` puts the two side by side, so that a cosine is the mean of the two modalities' cosines.

        Returns
        -------
        float32 (n, d), or (n, 2 d) for ``both``

        Raises
        ------
        CoreclipError
            For a modality that is unknown or not there.
        """
        if modality not in MODALITIES:
            raise CoreclipError(f"unknown modality {modality!r}; known: {', '.join(MODALITIES)}")
        if modality == "both":
            return np.hstack([self.vectors("image"), self.vectors("text")]) * np.float32(0.5**0.5)
        rows = self.image if modality == "image" else self.text
        if rows is None:
            raise CoreclipError(
                f"these features hold no {modality} embeddings; name the other modality or embed the pairs"
            )
        vectors = np.array(rows, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1)
        # What is of unit length but for float32's rounding stays as it was given, to the last bit.
        norms[np.abs(norms - 1) <= _FLOAT32_TOLERANCE] = 1
        vectors /= norms[:, None]
        return vectors

    def take(self, indices: np.ndarray) -> Self:
        """Return the features of some pairs, in the order of ``indices`` (int64 (k,)); captions are left behind."""
        image = None if self.image is None else self.image[indices]
        text = None if self.text is None else self.text[indices]
        keys = None if self.keys is None else self.keys[indices]
        return type(self)(image, text, None, None, self.info, keys, self.keyed_by)

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, Self]]:
        """Yield the pairs ``size`` at a time, the last ones fewer: their indices (int64 (b,)), and :meth:`take` of these."""
        for start in range(0, self.n, size):
            rows = np.arange(start, min(start + size, self.n))
            yield rows, self.take(rows)

    def check_both(self, method: str) -> None:
        """Refuse features that lack images or texts, for a ``method`` (with its verb) that looks at the two together."""
        if self.image is None or self.text is None:
            raise CoreclipError(
                f"{method} image and text, these features hold only one of them; embed the pairs with both"
            )

    def align(self, keys: Sequence[object] | np.ndarray) -> Self:
        """Return the rows of a data set's pairs, in its order; rows of others are left out.

        Parameters
        ----------
        keys : text or integers (m,)
            The data set's keys, or its uids where ``keyed_by`` says so.

        Returns
        -------
        Features
            Of m rows; captions are left behind where the order changes.

        Raises
        ------
        CoreclipError
            For features without keys, a pair without a row, and a key that is there twice on either side.
        """
        if self.keys is None:
            raise CoreclipError(
                "these features have no keys to be put in order by; give an .npz with keys, or rows in the data set's order"
            )
        wanted = as_names(keys, "the data set")
        remedy = (
            f"every pair must have one row with its {self.keyed_by}; embed this data set, or give an .npy in its order"
        )
        rows = positions_of(wanted, self.keys, f"the data set's {self.keyed_by}s", "the features", remedy)
        return self if len(rows) == self.n and (rows == np.arange(self.n)).all() else self.take(rows)


def as_features(features: Features | np.ndarray) -> Features:
    """Return ``features``; a bare array (n, d) is taken for image embeddings."""
    return features if isinstance(features, Features) else Features.from_arrays(np.asarray(features))


def _read_folder(path: Path) -> dict[str, Any]:
    info = read_json(path / "features.json", "features")
    if not isinstance(info, dict) or info.get("format_version") != 1:
        raise CoreclipError(
            f"{path}/features.json is not of format version 1, the only one known; make the features again"
        )
    names = ("image", "text", "captions", "offsets")
    arrays = {name: read_npy(path / f"{name}.npy", mapped=True) for name in names if (path / f"{name}.npy").exists()}
    for name in arrays.keys() & {"image", "text"}:
        if arrays[name].shape != (info.get("n"), info.get("dim")):
            raise CoreclipError(
                f"{path}: features.json says {info.get('n')} pairs of {info.get('dim')} dimensions, {name}.npy holds "
                f"{arrays[name].shape}; make the features again"
            )
    return {**arrays, "info": info}


def _read_datacomp(path: Path) -> dict[str, Any]:
    import zipfile

    try:
        with open(path, "rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
            known = ", ".join(file.files) or "nothing"
            model = next((model for model in ("l14", "b32") if f"{model}_img" in file), None)
            image, text = (file.get(f"{model}_{modality}") for modality in ("img", "txt"))
            names = {kind: file[f"{kind}s"] for kind in KEY_KINDS if f"{kind}s" in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CoreclipError(f"{path} is not a readable .npz of numbers ({error}); fetch or make it again") from None
    if model is None:
        raise CoreclipError(f"{path} holds {known}; a DataComp .npz holds l14_img and l14_txt, or b32_img and b32_txt")
    return {"image": image, "text": text, **_keys_of(names or _columns(path.with_suffix(".parquet"), KEY_KINDS))}


def _read_clip_retrieval(path: Path) -> dict[str, Any]:
    text = path / "text_emb"
    tables = [_columns(part, ("key", "image_path")) for part in _in_order(path / "metadata", ".parquet")]
    names = {
        kind: np.concatenate([table[kind] for table in tables])
        for kind in ("key", "image_path") if tables and all(kind in table for table in tables)
    }  # fmt: skip
    if "key" not in names and "image_path" in names:
        names["key"] = np.array([PurePosixPath(str(name)).stem for name in names["image_path"]], object)
    return {
        "image": _read_parts(path / "img_emb"),
        "text": _read_parts(text) if text.is_dir() else None,
        **_keys_of(names),
    }


def _keys_of(names: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the arguments of :meth:`Features.from_arrays` for keys that are there under their kinds."""
    return next(({"keys": names[kind], "keyed_by": kind} for kind in KEY_KINDS if kind in names), {})


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return those of the columns that a Parquet file has; none where there is no file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return {}
    try:
        with pq.ParquetFile(path) as file:
            there = [name for name in names if name in file.schema_arrow.names]
            table = file.read(columns=there)
    except (OSError, pa.ArrowException) as error:
        cause = str(error).partition("\n")[0]
        raise CoreclipError(f"{path} is not readable as Parquet ({cause}); fetch or make it again") from None
    return {name: table[name].to_numpy() for name in there}


def _read_parts(folder: Path) -> np.ndarray:
    """Join clip-retrieval's parts in the order of their numbers (``img_emb_2`` before ``img_emb_10``)."""
    parts = _in_order(folder, ".npy")
    if not parts:
        raise CoreclipError(f"{folder} holds no .npy files; clip-retrieval writes one per part there")
    arrays = [read_npy(part, mapped=True) for part in parts]
    if len({array.shape[1:] for array in arrays}) > 1 or arrays[0].ndim != 2:
        raise CoreclipError(f"the parts in {folder} have unequal widths; they must come from one model")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _in_order(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"), key=lambda part: [int(number) for number in re.findall(r"\d+", part.stem)])


def _unit_rows(rows: np.ndarray, name: str) -> np.ndarray:
    if rows.ndim != 2 or 0 in rows.shape:
        raise CoreclipError(f"{name} have shape {rows.shape}; it must be (pairs, dimensions), neither of them 0")
    if rows.dtype not in (np.float16, np.float32, np.float64):
        raise CoreclipError(f"{name} are of type {rows.dtype}; they must be float16, float32 or float64")
    norms = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        norms[start : start + _BLOCK] = np.linalg.norm(rows[start : start + _BLOCK].astype(np.float64), axis=1)
    for wrong, what in ((~np.isfinite(norms), "NaN or infinite"), (norms == 0, "all zeros")):
        if wrong.any():
            raise CoreclipError(
                f"{name}: {wrong.sum()} of {len(rows)} rows are {what}, the first at index {wrong.argmax()}; "
                f"leave those pairs out or embed them again"
            )
    if rows.dtype != np.float64 and np.abs(norms - 1).max() <= _UNIT_TOLERANCE:
        return rows
    unit = np.empty(rows.shape, np.float16 if rows.dtype == np.float16 else np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        unit[block] = rows[block].astype(np.float64) / norms[block, None]
    return unit
