"""What each pair asks of the model: gradients of CLIP's loss with respect to a pair's two embeddings.

Stand-ins for the gradient of all parameters, which would need the model: they are the last thing that all pairs share.
Left out: the factor of the penultimate features, and the length of the embeddings before they were normalised (taken as 1).
"""

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.randomness import permutation
from coreclip.selection.features import Features

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
    temperature = resolve_temperature(features, temperature)
    if features.image is None or features.text is None:
        raise CoreclipError(
            "craig needs image and text, these features hold only one of them; embed the pairs with both"
        )
    images, texts = features.vectors("image"), features.vectors("text")
    members = bank_members(features.n, bank, seed)
    image_gradients, text_gradients = np.empty_like(images), np.empty_like(texts)
    for start in range(0, features.n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, features.n))
        image_gradients[rows], text_gradients[rows] = gradients_against(
            images[rows], texts[rows], images[members], texts[members], rows[:, None] == members, temperature
        )
    return image_gradients, text_gradients


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


def _softmax(logits: np.ndarray, own: np.ndarray, is_self: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the softmax over the bank (b, m) and the pair itself (b,); entries of ``is_self`` get 0."""
    logits[is_self] = -np.inf
    top = np.maximum(logits.max(axis=1), own)
    among, alone = np.exp(logits - top[:, None]), np.exp(own - top)
    total = among.sum(axis=1) + alone
    return among / total[:, None], alone / total


def _tangent(gradient: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return gradient - np.einsum("ij,ij->i", gradient, unit)[:, None] * unit
