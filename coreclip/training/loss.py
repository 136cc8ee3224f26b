"""Symmetric contrastive loss that knows duplicates and weights.

The softmax loss of CLIP (Radford et al. 2021), with the targets of UniCL (Yang et al. 2022): pairs that say the same are not each
other's negatives but share the target's mass. A pair of weight w counts as w copies of itself, in its row and in every partition
function, so that a weighted subset estimates the whole set's loss. Left out: the sigmoid loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ContrastiveLoss:
    """What :func:`contrastive_loss` returns.

    Attributes
    ----------
    loss : float32 ()
        To be differentiated.
    floor : float32 ()
        The least value that any features can reach on this batch; above 0 where captions repeat.
    sample_loss : float32 (b,)
        Each pair's own loss, both directions' mean, detached; NaN for an excluded pair.
    correct : bool (b,)
        Whether the image's most similar text is its own or an equal one; the first of a tie counts.
    margin : float32 (b,)
        Cosine of the image's best right text less its best wrong text's; NaN where one of them is missing.
    """

    loss: Tensor
    floor: Tensor
    sample_loss: Tensor
    correct: Tensor
    margin: Tensor


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    same: Tensor | None = None,
    weight: Tensor | None = None,
) -> ContrastiveLoss:
    """Return the loss of a batch, and each pair's share in it.

    Parameters
    ----------
    image_features, text_features : float32 (b, d), unit norm
    logit_scale : float32 ()
        Natural logarithm of the factor on the cosines.
    same : bool (b, b), optional
        Which pairs say the same (see :func:`equal_pairs`); symmetric, true on the diagonal. None: only a pair itself.
    weight : float32 (b,), optional
        At least 0; only their ratios matter. A pair of weight 0 is left out entirely. None: all equal.

    Returns
    -------
    ContrastiveLoss

    Notes
    -----
    With weights w scaled to mean 1, scaled cosines s_ij and the pairs P(i) that say the same as i, row i contributes
    ``log sum_j w_j exp(s_ij) - sum_{p in P(i)} w_p s_ip / W_i``, where ``W_i = sum_{p in P(i)} w_p``; rows are averaged with weights w.
    Its gradient is that of the batch in which pair i is repeated w_i times. The floor is the weighted mean of ``log W_i``.
    """
    b = len(image_features)
    weight = torch.ones(b, device=image_features.device) if weight is None else weight.float()
    same = torch.eye(b, dtype=torch.bool, device=image_features.device) if same is None else same
    kept = (weight > 0).nonzero().squeeze(1)
    if len(kept) < b:
        image_features, text_features = image_features[kept], text_features[kept]
        same, weight = same[kept][:, kept], weight[kept]
    weight = weight / weight.mean() if len(weight) else weight
    share = same * weight  # (k, k)
    mass = share.sum(1)
    target = share / mass.unsqueeze(1)
    cosine = image_features @ text_features.T
    logits = logit_scale.exp() * cosine
    rows = _direction_loss(logits, target, weight.log()) + _direction_loss(logits.T, target, weight.log())
    n = max(len(kept), 1)
    with torch.no_grad():
        correct, margin = _right_and_wrong(cosine, same)
        floor = (weight * mass.log()).sum() / n
    return ContrastiveLoss(
        loss=(weight * rows).sum() / (2 * n),
        floor=floor,
        sample_loss=_spread(rows.detach() / 2, kept, b, torch.nan),
        correct=_spread(correct, kept, b, False),
        margin=_spread(margin, kept, b, torch.nan),
    )


def equal_pairs(tokens: Tensor, labels: Tensor | None = None) -> Tensor:
    """Tell which pairs of a batch say the same: the same caption, or the same class.

    Parameters
    ----------
    tokens : int64 (b, context)
    labels : int64 (b,), optional
        Class ids; a negative one stands for no class and equals none.

    Returns
    -------
    bool (b, b)
    """
    _, caption = torch.unique(tokens, dim=0, return_inverse=True)
    same = caption.unsqueeze(1) == caption
    if labels is not None:
        same = same | ((labels.unsqueeze(1) == labels) & (labels >= 0))
    return same


def _direction_loss(logits: Tensor, target: Tensor, log_weight: Tensor) -> Tensor:
    """Loss of each row; the weights enter the partition function only, the target holds them already."""
    return torch.logsumexp(logits + log_weight, dim=1) - (target * logits).sum(1)


def _right_and_wrong(cosine: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    if not len(cosine):
        return cosine.new_zeros(0, dtype=torch.bool), cosine.new_zeros(0)
    right = cosine.masked_fill(~same, -torch.inf).amax(1)
    wrong = cosine.masked_fill(same, -torch.inf).amax(1)
    correct = same.gather(1, cosine.argmax(1, keepdim=True)).squeeze(1)
    return correct, (right - wrong).masked_fill(wrong == -torch.inf, torch.nan)


def _spread(values: Tensor, kept: Tensor, b: int, fill: float) -> Tensor:
    return values if len(kept) == b else values.new_full((b,), fill).index_copy_(0, kept, values)
