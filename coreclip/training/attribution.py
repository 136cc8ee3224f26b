"""What the weights that a run has kept on its way say of pairs: gradient norms, influence, variance of gradients.

GraNd (Paul et al. 2021, arXiv 2107.07075), TracIn-CP (Pruthi et al. 2020, arXiv 2002.08484) and VoG (Agarwal et al. 2022, arXiv
2008.11600). GraNd and TracIn take the gradient with respect to the last layers, the two projections to the common space, as TracIn's
paper recommends for large models; for their matrices it is exact (the ResNet's projection also has a bias, which is left out). Of e = W h the gradient is the
outer product of a = dL/de and h, and is never formed: <g, g'> = <a, a'><h, h'>, images and texts added up. The loss is that of
:func:`coreclip.selection.clip_gradients`: the pair against a frozen bank of others, both directions' mean; as in training, pairs that
say the same (the same caption or class) are not contrasted. A pair's text is its first caption, its image the centre crop. Left out:
the gradients of all other layers and of the temperature.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, lock, read_json, write_json
from coreclip.pipeline import Dataset, Tokenizer, make_loader
from coreclip.progress import Progress
from coreclip.selection.gradients import bank_members, gradients_against
from coreclip.selection.signals import CHECKPOINT_SIGNALS
from coreclip.training.device import resolve_device
from coreclip.training.model import MAX_LOGIT_SCALE, Clip
from coreclip.training.store import KeptWeights, kept_weights, load_kept, read_record

_BANK = 1024


# --------------------------------------------------------------------------------------------------------------------- signals


def checkpoint_signals(
    run: str | Path,
    dataset: Dataset,
    names: Iterable[str] = CHECKPOINT_SIGNALS,
    *,
    bank: int = _BANK,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 2,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Return signals that need a run's kept weights, and keep them in ``RUN/signals`` beside those of training.

    What is there already for this data set, these weights and this bank is read, not made again.

    Parameters
    ----------
    run : path
        A finished run with ``checkpoints/``.
    dataset : Dataset
        Any; not only the run's own.
    names : iterable of {"grand", "tracin", "vog"}
    bank : int
        Pairs of the data set that each one is contrasted with (grand, tracin); a random sample, the same for all.
    seed : int
        Of the bank.
    batch_size, workers : int
        Of the image loader.
    device : {"cpu", "cuda", "cuda:N", "auto"}

    Returns
    -------
    dict of str to array
        ``grand`` float32 (checkpoints, n): norm of the gradient of each pair's loss with respect to the last layers. ``tracin``
        float32 (n,): its square times the learning rate, summed over the checkpoints: the pair's influence on itself. ``vog``
        float32 (n,): see Notes.

    Raises
    ------
    CoreclipError
        For an unknown name, a run without kept weights (vog: without two of them), an image that can't be decoded.

    Notes
    -----
    VoG: the gradient of the pair's own logit, the scaled cosine of its image and text, with respect to the standardised pixels; the
    mean over pixels and channels of its standard deviation over the checkpoints; less the mean over the pair's class, over that
    class's standard deviation. Without labels all pairs are one class; a class without any spread gets 0.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in CHECKPOINT_SIGNALS:
            raise CoreclipError(f"unknown signal {name!r}; from checkpoints there are {', '.join(CHECKPOINT_SIGNALS)}")
    run = Path(run)
    kept = kept_weights(run)
    note = {"fingerprint": dataset.fingerprint, "steps": [one.step for one in kept]}
    notes = {name: note if name == "vog" else note | {"bank": bank, "seed": seed} for name in wanted}
    found = {name: values for name in wanted if (values := _cached(run, name, notes[name])) is not None}
    missing = set(wanted) - set(found)
    if missing:
        with lock(run):
            models = _open_models(run, device)
            feed = _Feed(dataset, models, batch_size, workers)
            made = _last_layer_signals(models, feed, bank, seed) if missing & {"grand", "tracin"} else {}
            if "vog" in missing:
                made["vog"] = _vog(models, feed, dataset.labels)
            for name in sorted(missing):
                _cache(run, name, made[name], notes[name])
                found[name] = made[name]
    return {name: found[name] for name in wanted}


def _last_layer_signals(models: "_Models", feed: "_Feed", bank: int, seed: int) -> dict[str, np.ndarray]:
    contrast = _Contrast(models, feed, bank, seed)
    squares = np.empty((len(models.kept), feed.n))
    for index, images, tokens in feed.batches("gradients"):
        squares[:, index] = [_squares(gradients) for gradients in contrast.gradients(images, tokens, index)]
    rates = np.array([one.learning_rate for one in models.kept])
    return {"grand": np.sqrt(squares).astype(np.float32), "tracin": (rates @ squares).astype(np.float32)}


def _vog(models: "_Models", feed: "_Feed", labels: np.ndarray | None) -> np.ndarray:
    if len(models.kept) < 2:
        raise CoreclipError(
            f"vog needs 2 checkpoints, {models.run} has 1; train longer or with --set train.checkpoints=5"
        )
    spread = np.empty(feed.n)
    for index, images, tokens in feed.batches("variance of gradients"):
        # Welford's running mean and sum of squares: the memory is that of one batch, however many checkpoints there are.
        mean = torch.zeros(images.shape, dtype=torch.float64, device=images.device)
        squares = torch.zeros_like(mean)
        for number, network in enumerate(models.networks, start=1):
            gradient = _pixel_gradient(network, images, tokens).double()
            away = gradient - mean
            mean += away / number
            squares += away * (gradient - mean)
        spread[index] = (squares / len(models.networks)).sqrt_().mean((1, 2, 3)).cpu().numpy()
    return _z_scores(spread, np.zeros(feed.n, np.int64) if labels is None else labels).astype(np.float32)


def _pixel_gradient(network: Clip, images: Tensor, tokens: Tensor) -> Tensor:
    """Gradient of each pair's own logit with respect to its standardised pixels; the pairs of a batch do not touch each other."""
    with torch.no_grad():
        texts = network.encode_text(tokens)
        pixels = network.pixels(images)
    pixels.requires_grad_()
    vectors = F.normalize(network.image_projection(network.image(pixels)).float(), dim=1)
    logits = _scale(network) * (vectors * texts).sum()
    [gradient] = torch.autograd.grad(logits, pixels)
    return gradient


def _z_scores(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return float64 (n,): each value less its class's mean, over its class's standard deviation; 0 where that is 0."""
    _, member = np.unique(classes, return_inverse=True)
    count = np.bincount(member)
    away = values - (np.bincount(member, values) / count)[member]
    deviation = np.sqrt(np.bincount(member, away**2) / count)[member]
    # Equal values differ from their mean by rounding, which must not be blown up to a score.
    has_spread = deviation > 1e-9 * np.abs(values)
    return np.divide(away, deviation, out=np.zeros_like(away), where=has_spread)


# ------------------------------------------------------------------------------------------------------------------- influence


def influence(
    run: str | Path,
    dataset: Dataset,
    targets: Sequence[int] | np.ndarray,
    *,
    train: Dataset | None = None,
    bank: int = _BANK,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 2,
    device: str = "cpu",
) -> np.ndarray:
    """Return how much training on each pair helped some others, by TracIn-CP.

    Parameters
    ----------
    run : path
        A finished run with ``checkpoints/``.
    dataset : Dataset
        Of the targets.
    targets : int (m,)
        Indices in ``dataset``.
    train : Dataset, optional
        Of the pairs whose influence is asked for; None for ``dataset`` itself.
    bank, seed : int
        Pairs of ``train`` that each pair and target is contrasted with.
    batch_size, workers : int
        Of the image loader.
    device : {"cpu", "cuda", "cuda:N", "auto"}

    Returns
    -------
    float64 (m, n of train)
        sum_t eta_t <grad loss(theta_t, z), grad loss(theta_t, z')> over the checkpoints t with their learning rates eta_t. Positive:
        a step on the pair lowers the target's loss. A target's influence on itself is its ``tracin`` signal.

    Raises
    ------
    CoreclipError
        For targets out of range, a run without kept weights, an image that can't be decoded.
    """
    indices = np.atleast_1d(np.asarray(targets))
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise CoreclipError(f"targets = {targets!r} are not allowed: one index or more of {dataset.path}")
    wrong = indices[(indices < 0) | (indices >= dataset.n)]
    if len(wrong):
        raise CoreclipError(f"index {wrong[0]} is out of range: {dataset.path} has the indices 0 to {dataset.n - 1}")
    source = dataset if train is None else train
    models = _open_models(Path(run), device)
    feed = _Feed(source, models, batch_size, workers)
    contrast = _Contrast(models, feed, bank, seed)
    is_own = source.fingerprint == dataset.fingerprint
    aims = _targets(contrast, _Feed(dataset, models, batch_size, workers), indices, is_own)
    result = np.zeros((len(indices), source.n))
    for index, images, tokens in feed.batches("influence"):
        for one, aim, gradients in zip(models.kept, aims, contrast.gradients(images, tokens, index), strict=True):
            result[:, index] += one.learning_rate * _dots(aim, gradients)
    return result


def _targets(contrast: "_Contrast", feed: "_Feed", indices: np.ndarray, is_own: bool) -> list["_Gradients"]:
    """The targets' gradients at each checkpoint, in the order of ``indices``."""
    unique, order = np.unique(indices, return_inverse=True)
    parts: list[list[_Gradients]] = [[] for _ in contrast.models.kept]
    for index, images, tokens in feed.batches("targets", unique):
        own = index if is_own else np.full(len(index), -1)  # a pair of another data set is no member of the bank
        for part, gradients in zip(parts, contrast.gradients(images, tokens, own), strict=True):
            part.append(gradients)
    return [
        (_joined([image for image, _ in part], order), _joined([text for _, text in part], order)) for part in parts
    ]


def _joined(layers: list["_Layer"], order: np.ndarray) -> "_Layer":
    error, hidden = (np.concatenate([getattr(layer, name) for layer in layers]) for name in ("error", "hidden"))
    return _Layer(error[order], hidden[order])


def explain(
    run: str | Path,
    dataset: Dataset,
    targets: Sequence[int],
    *,
    train: Dataset | None = None,
    top: int = 10,
    bank: int = _BANK,
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the training pairs that helped or hurt some pairs most: :func:`influence`, averaged over the targets.

    Parameters
    ----------
    run, dataset, targets, train, bank, seed, workers, device
        As of :func:`influence`.
    top : int
        Length of each list, at most.

    Returns
    -------
    dict
        ``index``: the targets. ``helped``, the highest influence first, above 0, and ``hurt``, the lowest first, below 0: lists of
        ``index``, ``key``, ``influence``, ``caption`` (the first). The targets themselves are left out where they are pairs of
        the same data set. ``trained_on_this_data``: whether the run's data set is the one whose pairs are listed.

    Raises
    ------
    CoreclipError
        As :func:`influence`, and for ``top`` below 1.
    """
    if top < 1:
        raise CoreclipError(f"top = {top} is not allowed: at least 1 pair is asked for")
    source = dataset if train is None else train
    values = influence(run, dataset, targets, train=train, bank=bank, seed=seed, workers=workers, device=device).mean(
        axis=0
    )
    if source.fingerprint == dataset.fingerprint:
        values[np.asarray(targets)] = np.nan  # neither above nor below 0
    lists = {"helped": np.argsort(-values, kind="stable"), "hurt": np.argsort(values, kind="stable")}
    shown = {
        name: [i for i in order[:top].tolist() if (values[i] > 0 if name == "helped" else values[i] < 0)]
        for name, order in lists.items()
    }
    return {
        "index": [int(target) for target in targets],
        **{name: [_shown(source, i, values[i]) for i in indices] for name, indices in shown.items()},
        "trained_on_this_data": read_record(Path(run))["asked"]["fingerprint"] == source.fingerprint,
    }


def _shown(dataset: Dataset, index: int, value: float) -> dict[str, Any]:
    return {
        "index": index,
        "key": str(dataset.keys[index]),
        "influence": float(value),
        "caption": dataset.captions(index)[0],
    }


# --------------------------------------------------------------------------------------------------------- last-layer gradients


@dataclass(frozen=True)
class _Models:
    """The kept models of a run, in order."""

    run: Path
    kept: list[KeptWeights]
    networks: list[Clip]
    tokenizer: Tokenizer
    image_size: int
    device: torch.device


def _open_models(run: Path, device: str) -> _Models:
    target = resolve_device(device)
    models, tokenizer, config = load_kept(run, target)
    return _Models(
        run, [one for one, _ in models], [model for _, model in models], tokenizer, config.data.image_size, target
    )


class _Feed:
    """The pairs of a data set as the models are given them: the centre crop and the first caption."""

    def __init__(self, dataset: Dataset, models: _Models, batch_size: int, workers: int) -> None:
        self.dataset, self.n = dataset, dataset.n
        self._models, self._batch_size, self._workers = models, batch_size, workers

    def batches(self, label: str, indices: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield (index int64 (b,), images uint8, tokens int64) of some pairs, or of all, in order."""
        loader = make_loader(
            self.dataset,
            batch_size=self._batch_size,
            image_size=self._models.image_size,
            train=False,
            subset=indices,
            workers=self._workers,
            tokenizer=self._models.tokenizer,
            context=self._models.networks[0].context,
        )
        device = self._models.device
        with Progress(self.n if indices is None else len(indices), label) as progress:
            for batch in loader:
                batch.check_decoded(self.dataset)
                yield batch.index.numpy(), batch.images.to(device), batch.tokens.to(device)
                progress.advance(len(batch.index))


@dataclass(frozen=True)
class _Layer:
    """Gradients of b pairs with respect to one projection: outer products of ``error`` (dL/de) and ``hidden`` (h)."""

    error: np.ndarray  # float64 (b, d)
    hidden: np.ndarray  # float64 (b, width)


_Gradients = tuple[_Layer, _Layer]  # of the images' projection and of the texts'


def _squares(gradients: _Gradients) -> np.ndarray:
    """Return the squared norms, float64 (b,)."""
    image, text = (
        np.einsum("ij,ij->i", layer.error, layer.error) * np.einsum("ij,ij->i", layer.hidden, layer.hidden)
        for layer in gradients
    )
    return image + text


def _dots(gradients: _Gradients, others: _Gradients) -> np.ndarray:
    """Return the inner products of some pairs' gradients with others', float64 (b, b of the others)."""
    image, text = (
        (layer.error @ other.error.T) * (layer.hidden @ other.hidden.T)
        for layer, other in zip(gradients, others, strict=True)
    )
    return image + text


class _Contrast:
    """The loss of a pair against a frozen bank of others, at each kept model."""

    def __init__(self, models: _Models, feed: _Feed, bank: int, seed: int) -> None:
        self.models, self._labels = models, feed.dataset.labels
        self._members = np.sort(bank_members(feed.n, bank, seed))
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in models.networks]
        captions: list[bytes] = []
        for _, images, tokens in feed.batches("bank", self._members):
            captions += _caption_keys(tokens)
            for part, network in zip(parts, models.networks, strict=True):
                image, text = _towers(network, images, tokens)
                part.append((image.unit, text.unit))
        self._banks = [
            (np.concatenate([image for image, _ in part]), np.concatenate([text for _, text in part])) for part in parts
        ]
        self._with_caption: dict[bytes, list[int]] = {}
        for position, key in enumerate(captions):
            self._with_caption.setdefault(key, []).append(position)

    def gradients(self, images: Tensor, tokens: Tensor, index: np.ndarray) -> list[_Gradients]:
        """Return the gradients of some pairs at each kept model; ``index`` is -1 for a pair of another data set."""
        left_out = self._not_contrasted(tokens, index)
        found = []
        for network, (bank_images, bank_texts) in zip(self.models.networks, self._banks, strict=True):
            image, text = _towers(network, images, tokens)
            temperature = 1 / _scale(network).item()
            for_image, for_text = gradients_against(
                image.unit, text.unit, bank_images, bank_texts, left_out, temperature
            )
            found.append((image.layer(for_image), text.layer(for_text)))
        return found

    def _not_contrasted(self, tokens: Tensor, index: np.ndarray) -> np.ndarray:
        """Bool (b, m): the members of the bank that are the pair itself or say the same."""
        found = index[:, None] == self._members
        for row, key in enumerate(_caption_keys(tokens)):
            found[row, self._with_caption.get(key, [])] = True
        if self._labels is not None:
            own = np.where(index >= 0, self._labels[index], -1)
            found |= own[:, None] == self._labels[self._members]
        return found


def _caption_keys(tokens: Tensor) -> list[bytes]:
    """What tells captions apart, however much padding follows them."""
    return [row.tobytes().rstrip(b"\0") for row in tokens.cpu().numpy()]


@dataclass(frozen=True)
class _Tower:
    """What one of the two projections is given and gives for b pairs."""

    hidden: np.ndarray  # float32 (b, width)
    unit: np.ndarray  # float32 (b, d)
    length: np.ndarray  # float32 (b, 1), of the output before it was normalised

    def layer(self, gradient: np.ndarray) -> _Layer:
        """Return the projection's gradients, given those of the unit vectors, which are tangent to the sphere already."""
        return _Layer(gradient.astype(np.float64) / self.length, self.hidden.astype(np.float64))


@torch.no_grad()
def _towers(network: Clip, images: Tensor, tokens: Tensor) -> tuple[_Tower, _Tower]:
    return (
        _tower(network.image(network.pixels(images)), network.image_projection),
        _tower(network.text_hidden(tokens), network.text_projection),
    )


def _tower(hidden: Tensor, projection: torch.nn.Module) -> _Tower:
    output = projection(hidden).float()
    length = output.norm(dim=1, keepdim=True).clamp(min=1e-12)  # as F.normalize has it
    return _Tower(hidden.float().cpu().numpy(), (output / length).cpu().numpy(), length.cpu().numpy())


def _scale(network: Clip) -> Tensor:
    return network.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()


# ----------------------------------------------------------------------------------------------------------------------- cache


def _cached(run: Path, name: str, note: dict[str, Any]) -> np.ndarray | None:
    """Return what is kept under ``RUN/signals`` where it was made just so, else None."""
    path = run / "signals" / f"{name}.npy"
    if not path.exists() or not path.with_suffix(".json").exists():
        return None
    if read_json(path.with_suffix(".json"), "note on a signal") != note:
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # it is made again


def _cache(run: Path, name: str, values: np.ndarray, note: dict[str, Any]) -> None:
    path = run / "signals" / f"{name}.npy"
    # The note comes last and the old one goes first: it never stands beside numbers that it does not describe.
    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)
    write_json(path.with_suffix(".json"), note)
