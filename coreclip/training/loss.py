"""Symmetric contrastive loss that knows duplicates and weights.

The softmax loss of CLIP (Radford et al. 2021), with the targets of UniCL (Yang et al. 2022): pairs that say the same are not each
other's negatives but share the target's mass. A pair of weight w counts as w copies of itself, in its row and in every partition
function, so that a weighted subset estimates the whole set's loss. Left out: the sigmoid loss.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEAST_ROWS = 2  # a contrast needs a second pair


@dataclass(frozen=True)
class BatchSoftmax:
    """The softmaxes that a loss was computed from: the k pairs of a batch that have a weight; all detached.

    Attributes
    ----------
    cosine, logits : float32 (k, k)
        Images in rows, texts in columns.
    log_weight : float32 (k,)
    log_total : float32 (2, k)
        Logarithms of the weighted partition functions, image to text and text to image.
    same : bool (k, k)
    target : float32 (k, k)
        What the softmax should be, in both directions.
    kept : int64 (k,)
        Which rows of the batch.
    b : int
        Rows of the batch.
    """

    cosine: Tensor
    logits: Tensor
    log_weight: Tensor
    log_total: Tensor
    same: Tensor
    target: Tensor
    kept: Tensor
    b: int


@dataclass(frozen=True)
class ContrastiveLoss:
    """What :func:`contrastive_loss` returns; the signals of the pairs are computed when they are asked for.

    Attributes
    ----------
    loss : float32 ()
        To be differentiated.
    floor : float32 ()
        The least value that any features can reach on this batch; above 0 where captions repeat.
    sample_loss : float32 (b,)
        Each pair's own loss, both directions' mean, detached; NaN for an excluded pair.
    softmax : BatchSoftmax
    """

    loss: Tensor
    floor: Tensor
    sample_loss: Tensor
    softmax: BatchSoftmax

    @property
    def correct(self) -> Tensor:
        """Bool (b,): whether the image's most similar text is its own or an equal one; the first of a tie counts."""
        return self._right_and_wrong[0]

    @property
    def margin(self) -> Tensor:
        """Float32 (b,): cosine of the image's best right text less its best wrong text's; NaN where one of them is missing."""
        return self._right_and_wrong[1]

    def signals(self) -> dict[str, Tensor]:
        """Return what is worth recording of each pair, (b,) each, NaN (False) for an excluded pair; see :func:`softmax_signals`.

        Returns
        -------
        dict of str to Tensor
            ``loss``, ``margin``, ``correct``, ``confidence``, ``entropy``, ``probability_margin``, ``el2n``.
        """
        found = {"loss": self.sample_loss, "margin": self.margin, "correct": self.correct}
        with torch.no_grad():
            softmax = self.softmax
            return found | {
                name: _spread(values, softmax.kept, softmax.b, torch.nan)
                for name, values in softmax_signals(softmax).items()
            }

    @cached_property
    def _right_and_wrong(self) -> tuple[Tensor, Tensor]:
        softmax = self.softmax
        with torch.no_grad():
            correct, margin = _right_and_wrong(softmax.cosine, softmax.same)
        return _spread(correct, softmax.kept, softmax.b, False), _spread(margin, softmax.kept, softmax.b, torch.nan)


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
    log_weight = weight.log()
    # The weights enter the partition functions only, the target holds them already.
    log_total = [torch.logsumexp(scores + log_weight, dim=1) for scores in (logits, logits.T)]
    rows = log_total[0] - (target * logits).sum(1) + (log_total[1] - (target * logits.T).sum(1))
    n = max(len(kept), 1)
    with torch.no_grad():
        floor = (weight * mass.log()).sum() / n
    return ContrastiveLoss(
        loss=(weight * rows).sum() / (2 * n),
        floor=floor,
        sample_loss=_spread(rows.detach() / 2, kept, b, torch.nan),
        softmax=BatchSoftmax(
            cosine=cosine.detach(),
            logits=logits.detach(),
            log_weight=log_weight,
            log_total=torch.stack(log_total).detach(),
            same=same,
            target=target,
            kept=kept,
            b=b,
        ),
    )


def softmax_signals(softmax: BatchSoftmax) -> dict[str, Tensor]:
    """Return what the softmaxes of a batch say of its pairs, each the mean of both directions, float32 (k,).

    Parameters
    ----------
    softmax : BatchSoftmax

    Returns
    -------
    dict of str to Tensor
        ``confidence``, the largest probability p1; ``entropy``, in nats; ``probability_margin``, p1 - p2; ``el2n``, ||p - y||_2.

    Notes
    -----
    Pairs that say the same are one outcome, whose probability is the sum of theirs (the first of them stands for all); otherwise
    a caption that repeats would make its pairs look uncertain. EL2N (Paul et al. 2021, arXiv 2107.07075) is the norm over the
    batch of the softmax less the target, which spreads over equal pairs in proportion to their weights; it is 0 at the loss's
    floor. The classes being the pairs of the batch, all of them depend on its size.
    """
    k = len(softmax.logits)
    if not k:
        return dict.fromkeys(("confidence", "entropy", "probability_margin", "el2n"), softmax.log_weight)
    scores = torch.stack([softmax.logits, softmax.logits.T]).add_(softmax.log_weight)
    p = scores.sub_(softmax.log_total.unsqueeze(2)).exp_()  # (2, k, k)
    first = softmax.same.to(torch.uint8).argmax(1)  # int64 (k,)
    outcomes = torch.zeros_like(p).scatter_add_(2, first.expand_as(p), p)
    top = outcomes.topk(min(2, k), dim=2).values
    return {
        "confidence": top[..., 0].mean(0),
        "entropy": -torch.xlogy(outcomes, outcomes).sum(2).mean(0),
        "probability_margin": (top[..., 0] - (top[..., 1] if k > 1 else 0)).mean(0),
        "el2n": torch.linalg.vector_norm(p.sub_(softmax.target), dim=2).mean(0),
    }


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


def _right_and_wrong(cosine: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    if not len(cosine):
        return cosine.new_zeros(0, dtype=torch.bool), cosine.new_zeros(0)
    right = cosine.masked_fill(~same, -torch.inf).amax(1)
    wrong = cosine.masked_fill(same, -torch.inf).amax(1)
    correct = same.gather(1, cosine.argmax(1, keepdim=True)).squeeze(1)
    return correct, (right - wrong).masked_fill(wrong == -torch.inf, torch.nan)


def _spread(values: Tensor, kept: Tensor, b: int, fill: float) -> Tensor:
    return values if len(kept) == b else values.new_full((b,), fill).index_copy_(0, kept, values)
