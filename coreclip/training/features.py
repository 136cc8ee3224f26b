"""A data set's features by a trained model: every image and every caption, in order, on disk.

``FEATURES/``: ``image.npy`` and ``text.npy`` float16 (n, d), ``captions.npy`` float16 (total, d) with ``offsets.npy`` int64 (n + 1),
all of unit norm, and ``features.json``, which says of what and by which model.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, check_free_disk, lock, read_json, sha256_file, write_json
from coreclip.pipeline import Dataset, make_loader
from coreclip.pipeline.image_files import shown_path
from coreclip.progress import Progress
from coreclip.selection import Features
from coreclip.training.clip_model import ClipModel
from coreclip.training.store import weights_file

FORMAT_VERSION = 1
_FILES = {"image.npy", "text.npy", "captions.npy", "offsets.npy", "features.json"}
_PAIRS_PER_CHUNK = 4096


@dataclass(frozen=True)
class EmbedReport:
    """What :func:`embed` returns.

    Attributes
    ----------
    n, dim : int
        Pairs and width of a feature.
    captions : int
        Captions of all pairs.
    seconds, pairs_per_second : float
    """

    n: int
    dim: int
    captions: int
    seconds: float
    pairs_per_second: float


def embed(
    dataset: Dataset,
    features: str | Path,
    *,
    model: str | Path,
    batch_size: int = 512,
    workers: int = 2,
    device: str = "cpu",
) -> EmbedReport:
    """Embed a data set and write the features to a folder, which is replaced as a whole where there is one.

    Parameters
    ----------
    dataset : Dataset
    features : path
        Output folder.
    model : path
        A finished run, or a checkpoint of another tool; its own tokenizer reads the captions.
    batch_size, workers : int
        Of the image loader.
    device : {"cpu", "cuda", "cuda:N", "auto"}

    Returns
    -------
    EmbedReport

    Raises
    ------
    CoreclipError
        For a run that can't be loaded, an image that can't be decoded, a folder that holds something else.
    """
    begin = time.monotonic()
    clip = ClipModel.load(model, device)
    texts, offsets = dataset.all_captions()
    folder = Path(features)
    _check_output(folder, dataset)
    check_free_disk(folder, 2 * clip.dim * (2 * dataset.n + len(texts)))
    with lock(folder), atomic_path(folder) as temporary:
        temporary.mkdir()
        _write_captions(temporary, clip, texts, offsets)
        image = np.lib.format.open_memmap(temporary / "image.npy", "w+", np.float16, (dataset.n, clip.dim))
        for index, rows in image_features(clip, dataset, batch_size=batch_size, workers=workers):
            image[index] = rows.cpu().numpy()
        image.flush()
        write_json(
            temporary / "features.json",
            {
                "format_version": FORMAT_VERSION,
                "n": dataset.n,
                "dim": clip.dim,
                "model": weights_of(model) | {"reading_sha256": _reading(clip)},
                "logit_scale": float(np.exp(clip.logit_scale)),
                "fingerprint": dataset.fingerprint,
                "tokenizer_sha256": clip.tokenizer.sha256,
            },
        )
    seconds = time.monotonic() - begin
    return EmbedReport(dataset.n, clip.dim, len(texts), seconds, dataset.n / seconds)


def weights_of(run: str | Path) -> dict[str, str]:
    """Return where a run is and the SHA-256 of its weights."""
    return {"run": shown_path(run), "sha256": sha256_file(weights_file(run))}


def _reading(clip: ClipModel) -> str:
    """Return the SHA-256 of all that makes features of weights but the weights: the same file may be read in several ways."""
    network = clip.network
    read = {
        "model": asdict(clip.config.model),
        "image_size": clip.image_size,
        "pixels": [statistic.flatten().tolist() for statistic in (network.mean, network.std)],
        "tokenizer": clip.tokenizer.sha256,
    }
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def features_of(dataset: Dataset, path: Path, setting: str) -> Features:
    """Return the FEATURES that a setting names, which must be of all pairs of the data set, with a scale.

    Raises
    ------
    CoreclipError
        For features that are missing, of another data set, or without images, texts or a scale.
    """
    features = Features.load(path)
    if features.fingerprint != dataset.fingerprint or features.n != dataset.n:
        raise CoreclipError(
            f"{setting} = {path} holds features of the data set {str(features.fingerprint)[:12]}, this is "
            f"{dataset.fingerprint[:12]}; embed this data set with the same model"
        )
    if features.image is None or features.text is None or "logit_scale" not in features.info:
        raise CoreclipError(f"{setting} = {path} lacks images, texts or logit_scale; make it with coreclip embed")
    return features


def load_features(features: str | Path, run: str | Path, clip: ClipModel, dataset: Dataset) -> Features:
    """Open a FEATURES folder, mapped into memory, that must be of this run, as it is read here, and of this data set.

    Raises
    ------
    CoreclipError
        For a folder that is no such one or is damaged, and features of another model or another data set, or of the same weights with
        another activation, vocabulary or preparation of the images.
    """
    path = Path(features)
    if not (path / "features.json").is_file():
        raise CoreclipError(f"no features at {path}: it has no features.json; make them with coreclip embed")
    loaded = Features.load(path)
    if loaded.fingerprint != dataset.fingerprint:
        raise CoreclipError(
            f"{path} holds features of the data set {str(loaded.fingerprint)[:12]}, not of {dataset.fingerprint[:12]} "
            f"({dataset.path}); embed this data set"
        )
    model = loaded.info.get("model")
    made_by = model if isinstance(model, dict) else {}
    if (stored := made_by.get("sha256")) != (own := weights_of(run)["sha256"]):
        raise CoreclipError(
            f"{path} holds features by the weights {str(stored)[:12]}, {run} has {own[:12]}; embed the data set with this run"
        )
    if made_by.get("reading_sha256") != _reading(clip):
        raise CoreclipError(
            f"{path} holds features by the weights of {run} as {made_by.get('run')} reads them: with another activation, number of heads, "
            "vocabulary or preparation of the images; embed the data set with this run"
        )
    if loaded.image is None or len(loaded.image) != dataset.n:
        raise CoreclipError(f"{path} has no feature for each of the {dataset.n} images; embed the data set again")
    return loaded


def all_image_features(
    clip: ClipModel, dataset: Dataset, features: Features | None, *, batch_size: int = 512, workers: int = 2
) -> np.ndarray:
    """Return a feature for each image, (n, d): float16 mapped from FEATURES where there are some, else float32 that is made now."""
    if features is not None and features.image is not None:
        return features.image
    rows = np.empty((dataset.n, clip.dim), np.float32)
    for index, some in image_features(clip, dataset, batch_size=batch_size, workers=workers):
        rows[index] = some.cpu().numpy()
    return rows


def _check_output(folder: Path, dataset: Dataset) -> None:
    """Refuse a folder that holds something else than features of this data set; those are made anew."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if (
        not folder.is_dir()
        or not {path.name for path in folder.iterdir()} <= _FILES
        or not (folder / "features.json").exists()
    ):
        raise CoreclipError(
            f"{folder} exists and holds something else than features; a folder of its own is needed; name another one"
        )
    stored = read_json(folder / "features.json", "description of features").get("fingerprint")
    if stored != dataset.fingerprint:
        raise CoreclipError(
            f"{folder} holds features of the data set {str(stored)[:12]}, not of {dataset.fingerprint[:12]} ({dataset.path}); "
            "name another folder or remove it"
        )


def image_features(
    clip: ClipModel, dataset: Dataset, *, batch_size: int = 512, workers: int = 2
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (index int64 (b,), features float32 (b, d)) of all images in order.

    Raises
    ------
    CoreclipError
        For an image that can't be decoded: a feature in its place would belong to nothing.
    """
    loader = make_loader(
        dataset,
        batch_size=batch_size,
        image_size=clip.image_size,
        train=False,
        workers=workers,
        tokenizer=clip.tokenizer,
    )
    with Progress(dataset.n, "embedding images") as progress:
        for batch in loader:
            batch.check_decoded(dataset)
            yield batch.index.numpy(), clip.encode_image(batch.images)
            progress.advance(len(batch.index))


def encode_unique(encode: Callable[[list[str]], Tensor], texts: list[str]) -> Tensor:
    """Encode each different text once; returns float32 (len(texts), d)."""
    number: dict[str, int] = {}
    inverse = [number.setdefault(text, len(number)) for text in texts]
    return encode(list(number))[torch.tensor(inverse, dtype=torch.int64)]


def _write_captions(folder: Path, clip: ClipModel, texts: list[str], offsets: np.ndarray) -> None:
    n = len(offsets) - 1
    captions = np.lib.format.open_memmap(folder / "captions.npy", "w+", np.float16, (len(texts), clip.dim))
    text = np.lib.format.open_memmap(folder / "text.npy", "w+", np.float16, (n, clip.dim))
    with Progress(n, "embedding captions") as progress:
        for begin in range(0, n, _PAIRS_PER_CHUNK):
            end = min(begin + _PAIRS_PER_CHUNK, n)
            first, last = int(offsets[begin]), int(offsets[end])
            rows = encode_unique(clip.encode_text, texts[first:last]).cpu().numpy()
            captions[first:last] = rows
            text[begin:end] = mean_direction(rows, offsets[begin : end + 1] - first)
            progress.advance(end - begin)
    captions.flush()
    text.flush()
    np.save(folder / "offsets.npy", offsets)


def mean_direction(rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the normalised mean of each group of rows.

    Parameters
    ----------
    rows : float32 (total, d), unit norm
    offsets : int64 (n + 1,)
        Group i is ``rows[offsets[i]:offsets[i + 1]]``, never empty. Where its mean vanishes, its first row stands for it.

    Returns
    -------
    float32 (n, d), unit norm
    """
    mean = np.add.reduceat(rows, offsets[:-1], axis=0)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    vanished = norm[:, 0] < 1e-6
    mean[vanished], norm[vanished] = rows[offsets[:-1][vanished]], 1.0
    return mean / norm
