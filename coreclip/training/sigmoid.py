"""Sigmoid loss that knows duplicates and weights.

SigLIP (Zhai et al. 2023, arXiv 2303.15343): every image and text of a batch are one decision, do they belong together, with a learned
bias beside the temperature. Pairs that say the same are several positives; a pair of weight w counts as w copies of itself. Left out:
the exchange of negatives in a ring, which saves memory on many devices.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coreclip.training.loss import ContrastiveLoss, Pairs, first_equal, spread, weighted_rows


@dataclass(frozen=True)
class BatchSigmoid:
    """The decisions that a loss was computed from: k pairs of a batch and the m pairs they are told from; all detached.

    Attributes
    ----------
    cosine : float32 (k, m)
        Images in rows, texts in columns.
    logits : tuple of two float32 (k, m)
        Image to text and text to image.
    same : bool (k, m)
    kept : int64 (k,)
        Which rows of the batch.
    b : int
        Rows of the batch.
    first : int64 (m,) or None
        As of :class:`coreclip.training.loss.Pairs`.
    """

    cosine: Tensor
    logits: tuple[Tensor, Tensor]
    same: Tensor
    kept: Tensor
    b: int
    first: Tensor | None

    def signals(self) -> dict[str, Tensor]:
        """Return :func:`sigmoid_signals`."""
        return sigmoid_signals(self)


def first_bias(batch_size: int) -> float:
    """Return the bias at the start, -ln(b): one of b texts belongs to an image, so that the first losses are small.

    SigLIP's -10 at b = 32,768 is that, too.
    """
    return -math.log(batch_size)


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    same: Tensor | None = None,
    weight: Tensor | None = None,
) -> ContrastiveLoss:
    """Return the sigmoid loss of a batch, and each pair's share in it.

    Parameters
    ----------
    image_features, text_features : float32 (b, d), unit norm
    logit_scale, logit_bias : float32 ()
        The logits are exp(logit_scale) x cosine + logit_bias.
    same : bool (b, b), optional
        Which pairs say the same, as of :func:`coreclip.training.loss.contrastive_loss`.
    weight : float32 (b,), optional
        Numbers of copies, at least 0, whole or not; twice the weights are twice the batch, which has twice the negatives. A pair
        of weight 0 is left out entirely. None: all 1.

    Returns
    -------
    ContrastiveLoss

    Notes
    -----
    With z_ij = 1 where pairs say the same, else -1, and the logits s_ij: ``sum_ij w_i w_j log(1 + exp(-z_ij s_ij)) / sum_i w_i``. Its
    gradient is that of the batch in which pair i is repeated w_i times. A pair's own loss is half its row's sum plus half its
    column's. Several positives do not contradict each other as they do in a softmax: the floor is 0.
    """
    kept, (images, texts), pairs = weighted_rows((image_features, text_features), same, weight)
    return sigmoid_pairs_loss(images, texts, logit_scale, logit_bias, pairs, kept=kept, b=len(image_features))


def sigmoid_pairs_loss(
    images: Tensor,
    texts: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    pairs: Pairs,
    *,
    kept: Tensor | None = None,
    b: int = 0,
) -> ContrastiveLoss:
    """Return the part of :func:`sigmoid_loss` that ``pairs.own`` has in it; the parts of all rows add up to the whole.

    Parameters
    ----------
    images, texts : float32 (m, d), unit norm
    logit_scale, logit_bias : float32 ()
    pairs : Pairs
    kept : int64 (k,), optional
        Rows of a batch of ``b`` that the k pairs are; None: all of k.
    """
    cosine = images[pairs.own] @ texts.T
    logits = logit_scale.exp() * cosine + logit_bias
    sign = torch.where(pairs.same, -1.0, 1.0).to(logits.dtype)
    rows = F.softplus(sign * logits) @ pairs.weight  # (k,)
    with torch.no_grad():
        back = logits.T if pairs.is_whole else logit_scale.exp() * (texts[pairs.own] @ images.T) + logit_bias
        columns = F.softplus(sign * back) @ pairs.weight
    kept = torch.arange(len(rows), device=rows.device) if kept is None else kept
    b = b or len(rows)
    total = pairs.weight.sum().clamp(min=torch.finfo(pairs.weight.dtype).tiny)
    return ContrastiveLoss(
        loss=(pairs.weight[pairs.own] * rows).sum() / total,
        floor=rows.new_zeros(()),
        sample_loss=spread((rows.detach() + columns) / 2, kept, b, torch.nan),
        scores=BatchSigmoid(
            cosine=cosine.detach(),
            logits=(logits.detach(), back.detach()),
            same=pairs.same,
            kept=kept,
            b=b,
            first=pairs.first,
        ),
    )


def sigmoid_signals(sigmoid: BatchSigmoid) -> dict[str, Tensor]:
    """Return what the decisions of a batch say of its pairs, each the mean of both directions, float32 (k,).

    Returns
    -------
    dict of str to Tensor
        ``confidence``, the largest probability p1 of a match; ``entropy``, in nats, of all decisions together, which are
        independent, so the sum of theirs; ``probability_margin``, p1 - p2; ``el2n``, ||p - y||_2.

    Notes
    -----
    As in :func:`coreclip.training.loss.softmax_signals` pairs that say the same are one outcome: the most probable of them stands
    for all.
    """
    k, m = sigmoid.same.shape
    if not k:
        return dict.fromkeys(("confidence", "entropy", "probability_margin", "el2n"), sigmoid.cosine.sum(1))
    p = torch.stack(sigmoid.logits).sigmoid_()  # (2, k, m)
    first = first_equal(sigmoid.same) if sigmoid.first is None else sigmoid.first
    outcomes = torch.zeros_like(p).scatter_reduce_(2, first.expand_as(p), p, "amax")
    top = outcomes.topk(min(2, m), dim=2).values
    entropy = -(torch.xlogy(outcomes, outcomes) + torch.special.xlog1py(1 - outcomes, -outcomes))
    return {
        "confidence": top[..., 0].mean(0),
        "entropy": entropy.sum(2).mean(0),
        "probability_margin": (top[..., 0] - (top[..., 1] if m > 1 else 0)).mean(0),
        "el2n": torch.linalg.vector_norm(p.sub_(sigmoid.same.to(p.dtype)), dim=2).mean(0),
    }
