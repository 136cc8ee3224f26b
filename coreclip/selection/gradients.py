"""What each pair asks of the model: gradients of its loss with respect to its embeddings, or to the weights of the last layer.

Stand-ins for the gradient of all parameters, which would need the model. A last layer's gradient is the outer product of what
comes back from the loss and what the layer was given: :class:`FactoredGradients` computes with the two factors only, O(C + d)
per inner product instead of O(C d). Left out: layers further down.
"""

import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection.features import Features
from coreclip.selection.scores import ranked
from coreclip.selection.subset import Subset

_DEFAULT_LOGIT_SCALE = 100.0  # the value that CLIP's is held to, and reaches
_BLOCK = 4096  # rows
_STREAM_BANK = 104


def clip_gradients(
    features: Features, *, temperature: float | None = None, bank: int = 1024, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of each pair's contrastive loss.

    Parameters
    ----------
    features : Features
        With image and text.
    temperature : float or None
        Of the softmax; None for 1 / the features' ``logit_scale``, or 0.01 where they name none.
    bank : int
        Other pairs that each pair is contrasted with: a random sample, the same for all, from which a pair itself is left out.
    seed : int
        Of that sample.

    Returns
    -------
    image, text : float32 (n, d)
        With respect to the image's and the text's embedding, tangent to the unit sphere.

    Raises
    ------
    CoreclipError
        For a missing modality, a temperature or a bank out of range.

    Notes
    -----
    With unit vectors u_i (image) and t_i (text), the loss is half the cross-entropy of u_i among the texts plus half that of t_i
    among the images. P is the softmax of <u_i, .> / tau over t_i and the bank's texts, Q that of <., t_i> / tau over u_i and the
    bank's images; then dL/du_i = (sum_{j in bank} P_ij t_j + (P_ii + Q_ii - 2) t_i) / (2 tau), likewise for t_i with Q and u,
    and the embedding's length being 1, what is left of it is its part across u_i: (I - u_i u_i^T) dL/du_i.
    """
    image_gradients, text_gradients = (np.empty((features.n, features.dim), np.float32) for _ in range(2))
    for rows, image, text in _gradient_blocks(features, temperature, bank, seed):
        image_gradients[rows], text_gradients[rows] = image, text
    return image_gradients, text_gradients


def clip_error_norms(
    features: Features, *, temperature: float | None = None, bank: int = 1024, seed: int = 0
) -> np.ndarray:
    """Return the length of each pair's :func:`clip_gradients`, both together; higher is harder.

    Parameters
    ----------
    features : Features
        With image and text.
    temperature, bank, seed
        As of :func:`clip_gradients`.

    Returns
    -------
    float64 (n,)

    Raises
    ------
    CoreclipError
        As :func:`clip_gradients`.

    Notes
    -----
    What EL2N, ||p - y||, is for a classifier (Paul et al. 2021, arXiv 2107.07075): the error that comes back to the embeddings.
    """
    norms = np.empty(features.n)
    for rows, image, text in _gradient_blocks(features, temperature, bank, seed):
        squares = [np.einsum("ij,ij->i", part, part, dtype=np.float64) for part in (image, text)]
        norms[rows] = np.sqrt(squares[0] + squares[1])
    return norms


def grand_proxy(
    features: Features, k: int, *, temperature: float | None = None, bank: int = 1024, seed: int = 0
) -> Subset:
    """Choose the k pairs whose gradients are longest, the hardest first, ties to the lowest index.

    Parameters
    ----------
    features : Features
        With image and text.
    k : int
        1 to n.
    temperature, bank, seed
        As of :func:`clip_gradients`.

    Returns
    -------
    Subset
        Gains are :func:`clip_error_norms`, the objective is their sum, which no other choice exceeds; weights are 1.

    Raises
    ------
    CoreclipError
        As :func:`clip_gradients`, and for a k that is not 1 to n.

    Notes
    -----
    GraNd, ||grad loss|| (Paul et al. 2021, arXiv 2107.07075), with the embeddings in place of all parameters.
    """
    start = time.perf_counter()
    norms = clip_error_norms(features, temperature=temperature, bank=bank, seed=seed)
    parameters = {"temperature": resolve_temperature(features, temperature), "bank": min(bank, features.n)}
    return ranked(
        norms,
        k,
        method="grand-proxy",
        parameters=parameters,
        seed=seed,
        fingerprint=features.fingerprint,
        start=start,
    )


class FactoredGradients:
    """Gradients g_i = a_i (x) [h_i; 1] of a last layer, known by their factors.

    Parameters
    ----------
    residuals : float (n, c)
        a_i: the gradient with respect to the layer's output; for a classifier the probabilities minus the one-hot label.
    hidden : float (n, d) or None
        h_i: the layer's input. None where the gradients are the residuals themselves (a convex model's features, an embedding's).
    bias : bool
        Whether the layer has a bias, the 1 beside h_i.

    Attributes
    ----------
    layers : list of (residuals, hidden, bias)
        More than one after :meth:`beside`. Without a layer's input ``hidden`` has the width 0 and ``bias`` is 1.

    Raises
    ------
    CoreclipError
        For shapes that do not fit, and for NaN or infinity.

    Notes
    -----
    <g_i, g_j> = <a_i, a_j> (<h_i, h_j> + 1), the 1 being the bias's. Inner products are float64.
    """

    def __init__(self, residuals: np.ndarray, hidden: np.ndarray | None = None, *, bias: bool = True) -> None:
        residuals = _check_factor(residuals, "residuals", None)
        hidden = np.empty((len(residuals), 0)) if hidden is None else _check_factor(hidden, "hidden", len(residuals))
        self.layers = [(residuals, hidden, float(bias or not hidden.shape[1]))]

    def __len__(self) -> int:
        return len(self.layers[0][0])

    def beside(self, other: Self) -> Self:
        """Return the gradients of two layers, one after the other.

        Raises
        ------
        CoreclipError
            Where they are of different numbers of rows.
        """
        if len(self) != len(other):
            raise CoreclipError(f"gradients of {len(self)} rows beside those of {len(other)}; they must be as many")
        return self._with([*self.layers, *other.layers])

    def take(self, rows: np.ndarray) -> Self:
        """Return a copy of some rows' (int64 (k,)), in that order, in float64."""
        return self._with([(a[rows].astype(np.float64), h[rows].astype(np.float64), one) for a, h, one in self.layers])

    def dot(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
        """Return the inner products of some rows with some others, float64 (r, c)."""
        total: Any = 0.0
        for residuals, hidden, one in self.layers:
            product = _products(residuals, rows, columns)
            if hidden.shape[1]:
                product *= _products(hidden, rows, columns) + one
            total = total + product
        return total

    def squared_norms(self) -> np.ndarray:
        """Return <g_i, g_i>, float64 (n,)."""
        total = np.zeros(len(self))
        for residuals, hidden, one in self.layers:
            total += _row_squares(residuals) * (_row_squares(hidden) + one)
        return total

    def total(self, rows: np.ndarray | None = None, weights: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the weighted sum of some rows' gradients.

        Parameters
        ----------
        rows : int64 (k,) or None
            None for all.
        weights : float64 (k,) or None
            None for 1.

        Returns
        -------
        list of float64 (c, d + 1)
            One matrix per layer, the last column being the bias's.
        """
        size = len(self) if rows is None else len(rows)
        sums = [np.zeros((a.shape[1], h.shape[1] + 1)) for a, h, _ in self.layers]
        for start in range(0, size, _BLOCK):
            block = slice(start, min(start + _BLOCK, size)) if rows is None else rows[start : start + _BLOCK]
            for into, (residuals, hidden, one) in zip(sums, self.layers, strict=True):
                outer = residuals[block].astype(np.float64)
                if weights is not None:
                    outer *= weights[start : start + _BLOCK, None]
                into[:, :-1] += outer.T @ hidden[block]
                into[:, -1] += one * outer.sum(axis=0)
        return sums

    def project(self, total: list[np.ndarray]) -> np.ndarray:
        """Return each row's inner product with what :meth:`total` made, float64 (n,)."""
        result = np.zeros(len(self))
        for start in range(0, len(self), _BLOCK):
            block = slice(start, start + _BLOCK)
            for matrix, (residuals, hidden, one) in zip(total, self.layers, strict=True):
                outer = residuals[block].astype(np.float64, copy=False)
                result[block] += one * (outer @ matrix[:, -1])
                if hidden.shape[1]:
                    result[block] += np.einsum("ij,ij->i", outer @ matrix[:, :-1], hidden[block])
        return result

    def sum_dot(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the inner products of some rows (None for all) with the sum of all gradients, float64."""
        total = self.total()
        return self.project(total) if rows is None else self.take(rows).project(total)

    @classmethod
    def _with(cls, layers: list[tuple[np.ndarray, np.ndarray, float]]) -> Self:
        made = cls.__new__(cls)
        made.layers = layers
        return made


def clip_factored_gradients(
    features: Features,
    *,
    image_hidden: np.ndarray | None = None,
    text_hidden: np.ndarray | None = None,
    image_lengths: np.ndarray | None = None,
    text_lengths: np.ndarray | None = None,
    temperature: float | None = None,
    bank: int = 1024,
    seed: int = 0,
) -> FactoredGradients:
    """Return the gradients of CLIP's two last projections e = W h, by their factors.

    Parameters
    ----------
    features : Features
        With image and text: the unit vectors of e.
    image_hidden, text_hidden : float (n, d) or None
        What the projections were given. None for the gradients of the embeddings themselves.
    image_lengths, text_lengths : float (n,) or None
        ||e||, above 0; None for 1.
    temperature, bank, seed
        As of :func:`clip_gradients`.

    Returns
    -------
    FactoredGradients
        With <a_i, a_j> <hv_i, hv_j> + <b_i, b_j> <ht_i, ht_j> for inner products, where a and b are what :func:`clip_gradients`
        returns, over the lengths.

    Raises
    ------
    CoreclipError
        As :func:`clip_gradients`, and for shapes that do not fit.
    """
    image, text = clip_gradients(features, temperature=temperature, bank=bank, seed=seed)
    for name, gradients, lengths in (("image", image, image_lengths), ("text", text, text_lengths)):
        if lengths is not None:
            gradients /= _check_lengths(lengths, name, features.n)[:, None]
    images = FactoredGradients(image, image_hidden, bias=False)
    return images.beside(FactoredGradients(text, text_hidden, bias=False))


def as_gradients(gradients: np.ndarray | FactoredGradients) -> FactoredGradients:
    """Return ``gradients``; of a bare array (n, d) each row is one."""
    return gradients if isinstance(gradients, FactoredGradients) else FactoredGradients(gradients)


def bank_members(n: int, bank: int, seed: int) -> np.ndarray:
    """Return the pairs that all are contrasted with, int64 (at most ``bank``,); CoreclipError for a bank below 1."""
    if bank < 1:
        raise CoreclipError(f"bank = {bank} is not allowed: at least 1 pair to contrast with; the default is 1024")
    return permutation(n, seed, stream=_STREAM_BANK)[:bank]


def gradients_against(
    images: np.ndarray,
    texts: np.ndarray,
    bank_images: np.ndarray,
    bank_texts: np.ndarray,
    is_self: np.ndarray,
    temperature: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of some pairs' loss against a bank of others; see :func:`clip_gradients`.

    Parameters
    ----------
    images, texts : float32 (b, d), unit norm
    bank_images, bank_texts : float32 (m, d), unit norm
    is_self : bool (b, m)
        Where a member of the bank is the pair itself, or is not to be contrasted with it for another reason.
    temperature : float

    Returns
    -------
    image, text : float32 (b, d)
    """
    own = np.einsum("ij,ij->i", images, texts) / temperature
    p, p_own = _softmax(images @ bank_texts.T / temperature, own, is_self)
    q, q_own = _softmax(texts @ bank_images.T / temperature, own, is_self)
    pull = (p_own + q_own - 2)[:, None]
    return (
        _tangent(p @ bank_texts + pull * texts, images) / (2 * temperature),
        _tangent(q @ bank_images + pull * images, texts) / (2 * temperature),
    )


def resolve_temperature(features: Features, temperature: float | None) -> float:
    """Return the given temperature, else the features' own, else CLIP's 0.01."""
    if temperature is None:
        temperature = 1 / float(features.info.get("logit_scale", _DEFAULT_LOGIT_SCALE))
    if not 1e-4 <= temperature <= 100:
        raise CoreclipError(f"temperature = {temperature} is not allowed: 0.0001 to 100; CLIP's is 0.01")
    return temperature


def _gradient_blocks(
    features: Features, temperature: float | None, bank: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows, and their gradients with respect to image and text (see :func:`clip_gradients`)."""
    temperature = resolve_temperature(features, temperature)
    features.check_both("gradients need")
    members = bank_members(features.n, bank, seed)
    others = features.take(members)
    bank_images, bank_texts = others.vectors("image"), others.vectors("text")
    for rows, block in features.blocks(_BLOCK):
        yield (
            rows,
            *gradients_against(
                block.vectors("image"),
                block.vectors("text"),
                bank_images,
                bank_texts,
                rows[:, None] == members,
                temperature,
            ),
        )


def _softmax(logits: np.ndarray, own: np.ndarray, is_self: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the softmax over the bank (b, m) and the pair itself (b,); entries of ``is_self`` get 0."""
    logits[is_self] = -np.inf
    top = np.maximum(logits.max(axis=1), own)
    among, alone = np.exp(logits - top[:, None]), np.exp(own - top)
    total = among.sum(axis=1) + alone
    return among / total[:, None], alone / total


def _tangent(gradient: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return gradient - np.einsum("ij,ij->i", gradient, unit)[:, None] * unit


def _products(factor: np.ndarray, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
    left, right = (factor[part].astype(np.float64, copy=False) for part in (rows, columns))
    return left @ right.T


def _row_squares(factor: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", factor, factor, dtype=np.float64)


def _check_factor(factor: np.ndarray, name: str, n: int | None) -> np.ndarray:
    factor = np.asarray(factor)
    if factor.ndim != 2 or factor.dtype.kind not in "fiu" or not factor.size or n not in (None, len(factor)):
        due = "(rows, width), neither 0" if n is None else f"({n}, width), one row for each of the residuals"
        raise CoreclipError(f"{name} are {factor.dtype} of shape {factor.shape}; they must be numbers {due}")
    for start in range(0, len(factor), _BLOCK):
        finite = np.isfinite(factor[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            raise CoreclipError(f"{name}: row {start + finite.argmin()} is NaN or infinite; leave it out")
    return factor


def _check_lengths(lengths: np.ndarray, name: str, n: int) -> np.ndarray:
    lengths = np.asarray(lengths, np.float64)
    if lengths.shape != (n,) or not np.isfinite(lengths).all() or lengths.min() <= 0:
        raise CoreclipError(f"{name}_lengths must be {n} finite numbers above 0; got shape {lengths.shape}")
    return lengths
