"""Symmetric contrastive loss that knows duplicates and weights.

The softmax loss of CLIP (Radford et al. 2021), with the targets of UniCL (Yang et al. 2022): pairs that say the same are not each
other's negatives but share the target's mass. A pair of weight w counts as w copies of itself, in its row and in every partition
function, so that a weighted subset estimates the whole set's loss. A process that has some of a batch's rows computes its part of the
loss, those rows against all columns. The sigmoid loss is in :mod:`coreclip.training.sigmoid`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from coreclip.training.device import send

LEAST_ROWS = 2  # a contrast needs a second pair


@dataclass(frozen=True)
class Pairs:
    """What a loss knows of a batch of m pairs beside its features; made by :func:`pairs_of`.

    Attributes
    ----------
    weight : float (m,)
        Above 0.
    same : bool (k, m)
        Which pairs say the same as the k pairs whose loss is asked for.
    first : int64 (m,) or None
        The first pair that says the same as each one; None: to be read off ``same``, which has all rows then.
    own : slice
        Which of the m pairs the k are.
    """

    weight: Tensor
    same: Tensor
    first: Tensor | None
    own: slice

    @property
    def is_whole(self) -> bool:
        """Whether the loss of all pairs is asked for."""
        return len(self.same) == len(self.weight)


class Scores(Protocol):
    """What a loss was computed from, for the signals: k pairs and the m texts (or classes) that they are told from; all detached."""

    @property
    def cosine(self) -> Tensor:
        """Float (k, m), images in rows."""
        ...

    @property
    def same(self) -> Tensor:
        """Bool (k, m): the right texts."""
        ...

    @property
    def kept(self) -> Tensor:
        """Int64 (k,): which rows of the batch."""
        ...

    @property
    def b(self) -> int:
        """Rows of the batch."""
        ...

    def signals(self) -> dict[str, Tensor]:
        """Return confidence, entropy, probability_margin and el2n, float (k,) each."""
        ...


@dataclass(frozen=True)
class BatchSoftmax:
    """The softmaxes that a loss was computed from: the k pairs of a batch that have a weight; all detached.

    Attributes
    ----------
    cosine : float32 (k, m)
        Images in rows, texts (or classes) in columns.
    logits : tuple of float32 (k, m)
        Image to text and, but for classes, text to image.
    log_weight : float32 (m,)
    log_total : float32 (1 or 2, k)
        Logarithms of the weighted partition functions of ``logits``.
    same : bool (k, m)
    target : float32 (k, m)
        What the softmax should be, in each direction.
    kept : int64 (k,)
        Which rows of the batch.
    b : int
        Rows of the batch.
    first : int64 (m,) or None
        As of :class:`Pairs`.
    """

    cosine: Tensor
    logits: tuple[Tensor, ...]
    log_weight: Tensor
    log_total: Tensor
    same: Tensor
    target: Tensor
    kept: Tensor
    b: int
    first: Tensor | None = None

    def signals(self) -> dict[str, Tensor]:
        """Return :func:`softmax_signals`."""
        return softmax_signals(self)


@dataclass(frozen=True)
class ContrastiveLoss:
    """What a loss function returns; the signals of the pairs are computed when they are asked for.

    Attributes
    ----------
    loss : float32 ()
        To be differentiated.
    floor : float32 ()
        The least value that any features can reach on this batch; above 0 where captions repeat.
    sample_loss : float32 (b,)
        Each pair's own loss, both directions' mean, detached; NaN for an excluded pair.
    scores : Scores
    """

    loss: Tensor
    floor: Tensor
    sample_loss: Tensor
    scores: Scores

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
            scores = self.scores
            return found | {
                name: spread(values, scores.kept, scores.b, torch.nan) for name, values in scores.signals().items()
            }

    @cached_property
    def _right_and_wrong(self) -> tuple[Tensor, Tensor]:
        scores = self.scores
        with torch.no_grad():
            correct, margin = _right_and_wrong(scores.cosine, scores.same)
        return spread(correct, scores.kept, scores.b, False), spread(margin, scores.kept, scores.b, torch.nan)


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
    kept, (images, texts), pairs = weighted_rows((image_features, text_features), same, weight)
    return softmax_loss(images, texts, logit_scale, scaled(pairs), kept=kept, b=len(image_features))


def softmax_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, pairs: Pairs, *, kept: Tensor | None = None, b: int = 0
) -> ContrastiveLoss:
    """Return the part of :func:`contrastive_loss` that ``pairs.own`` has in it; the parts of all rows add up to the whole.

    Parameters
    ----------
    images, texts : float32 (m, d), unit norm
    logit_scale : float32 ()
    pairs : Pairs
        With weights of mean 1.
    kept : int64 (k,), optional
        Rows of a batch of ``b`` that the k pairs are; None: all of k.
    """
    share = pairs.same * pairs.weight  # (k, m)
    mass = share.sum(1)
    target = share / mass.unsqueeze(1)
    cosine = images[pairs.own] @ texts.T
    log_weight = pairs.weight.log()
    factor = logit_scale.exp()
    logits = factor * cosine
    both = logits, logits.T if pairs.is_whole else factor * (texts[pairs.own] @ images.T)
    # The weights enter the partition functions only, the target holds them already.
    log_total = [torch.logsumexp(scores + log_weight, dim=1) for scores in both]
    rows = log_total[0] - (target * both[0]).sum(1) + (log_total[1] - (target * both[1]).sum(1))
    weight, n = pairs.weight[pairs.own], max(len(pairs.weight), 1)
    with torch.no_grad():
        floor = (weight * mass.log()).sum() / n
    kept = torch.arange(len(rows), device=rows.device) if kept is None else kept
    b = b or len(rows)
    return ContrastiveLoss(
        loss=(weight * rows).sum() / (2 * n),
        floor=floor,
        sample_loss=spread(rows.detach() / 2, kept, b, torch.nan),
        scores=BatchSoftmax(
            cosine=cosine.detach(),
            logits=(both[0].detach(), both[1].detach()),
            log_weight=log_weight,
            log_total=torch.stack(log_total).detach(),
            same=pairs.same,
            target=target,
            kept=kept,
            b=b,
            first=pairs.first,
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
    k, m = softmax.same.shape
    if not k:
        return dict.fromkeys(("confidence", "entropy", "probability_margin", "el2n"), softmax.log_total[0])
    scores = torch.stack(softmax.logits).add_(softmax.log_weight)
    p = scores.sub_(softmax.log_total.unsqueeze(2)).exp_()  # (1 or 2, k, m)
    first = first_equal(softmax.same) if softmax.first is None else softmax.first
    outcomes = torch.zeros_like(p).scatter_add_(2, first.expand_as(p), p)
    top = outcomes.topk(min(2, m), dim=2).values
    return {
        "confidence": top[..., 0].mean(0),
        "entropy": -torch.xlogy(outcomes, outcomes).sum(2).mean(0),
        "probability_margin": (top[..., 0] - (top[..., 1] if m > 1 else 0)).mean(0),
        "el2n": torch.linalg.vector_norm(p.sub_(softmax.target), dim=2).mean(0),
    }


# ------------------------------------------------------------------------------------------------------------- equal pairs, weights


def equal_pairs(tokens: Tensor, labels: Tensor | None = None, index: np.ndarray | None = None) -> Tensor:
    """Tell which pairs of a batch say the same: the same caption, the same class, or the same pair, drawn twice.

    Parameters
    ----------
    tokens : int64 (b, context)
    labels : int64 (b,), optional
        Class ids; a negative one stands for no class and equals none.
    index : int64 (b,), numpy, optional
        Of the pairs in their data set: a pair that is drawn twice comes with two of its captions, and both fit both copies' image.

    Returns
    -------
    bool (b, b)
    """
    return _equal(caption_numbers(tokens), labels, _repeats(index, tokens.device), slice(None))


def caption_numbers(tokens: Tensor) -> Tensor:
    """Return numbers from 0 on that equal captions share, int64 (m,), of tokens int64 (m, context)."""
    return torch.unique(tokens, dim=0, return_inverse=True)[1]


def _equal(caption: Tensor, labels: Tensor | None, repeats: Tensor | None, own: slice) -> Tensor:
    """Which of the m pairs, by numbers of their captions, their classes and themselves, say the same as some of them, bool (k, m)."""
    same = caption[own].unsqueeze(1) == caption
    if labels is not None:
        same = same | ((labels[own].unsqueeze(1) == labels) & (labels >= 0))
    return same if repeats is None else same | (repeats[own].unsqueeze(1) == repeats)


def _repeats(index: np.ndarray | None, device: torch.device) -> Tensor | None:
    """Return numbers from 0 on that equal pairs share, int64 (m,); None where each pair is there once, as nearly always."""
    if index is None:
        return None
    pairs, number = np.unique(index, return_inverse=True)
    return None if len(pairs) == len(index) else send(torch.from_numpy(number), device)


def first_equal(same: Tensor) -> Tensor:
    """Return the first pair that says the same as each one, int64 (b,), of bool (b, b)."""
    return same.to(torch.uint8).argmax(1)


def pairs_of(
    tokens: Tensor,
    labels: Tensor | None,
    weight: Tensor,
    own: slice | None = None,
    *,
    index: np.ndarray | None = None,
    caption: Tensor | None = None,
) -> Pairs:
    """Return what a loss knows of a batch beside its features.

    Parameters
    ----------
    tokens : int64 (m, context)
    labels : int64 (m,) or None
        As of :func:`equal_pairs`.
    weight : float32 (m,)
        Above 0.
    own : slice, optional
        The rows whose loss is asked for; None: all.
    index : int64 (m,), numpy, optional
        As of :func:`equal_pairs`.
    caption : int64 (m,), on the CPU, optional
        As of :func:`caption_numbers`; where they are known, a device is not waited for.
    """
    caption = caption_numbers(tokens) if caption is None else send(caption, tokens.device)
    repeats = _repeats(index, tokens.device)
    if own is None:
        return Pairs(weight, _equal(caption, labels, repeats, slice(None)), None, slice(0, len(tokens)))
    same, first = _equal(caption, labels, repeats, own), first_of_group(caption)
    if repeats is not None:
        first = torch.minimum(first, first_of_group(repeats))
    if labels is not None:
        by_class = first_of_group(torch.where(labels >= 0, labels, labels.amax() + 1))
        first = torch.where(labels >= 0, torch.minimum(first, by_class), first)
    return Pairs(weight, same, first, own)


def first_of_group(group: Tensor) -> Tensor:
    """Return the first position of each one's group, int64 (m,), of numbers int64 (m,) from 0."""
    at = torch.arange(len(group), device=group.device)
    first = torch.full((int(group.max()) + 1,), len(group), device=group.device)
    return first.scatter_reduce_(0, group, at, "amin")[group]


def scaled(pairs: Pairs) -> Pairs:
    """Return the pairs with weights of mean 1."""
    weight = pairs.weight
    return Pairs(weight / weight.mean() if len(weight) else weight, pairs.same, pairs.first, pairs.own)


def weighted_rows(
    features: tuple[Tensor, Tensor], same: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor], Pairs]:
    """Leave out the rows of weight 0; None for ``same`` and ``weight`` is as of :func:`contrastive_loss`.

    Returns
    -------
    kept : int64 (k,)
    features : tuple of float32 (k, d)
    pairs : Pairs
    """
    images, texts = features
    b, device = len(images), images.device
    weight = torch.ones(b, device=device) if weight is None else weight
    weight = weight.to(images.dtype)
    same = torch.eye(b, dtype=torch.bool, device=device) if same is None else same
    kept = (weight > 0).nonzero().squeeze(1)
    if len(kept) < b:
        images, texts = images[kept], texts[kept]
        same, weight = same[kept][:, kept], weight[kept]
    return kept, (images, texts), Pairs(weight, same, None, slice(0, len(kept)))


def _right_and_wrong(cosine: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    if not len(cosine):
        return cosine.new_zeros(0, dtype=torch.bool), cosine.new_zeros(0)
    right = cosine.masked_fill(~same, -torch.inf).amax(1)
    wrong = cosine.masked_fill(same, -torch.inf).amax(1)
    correct = same.gather(1, cosine.argmax(1, keepdim=True)).squeeze(1)
    return correct, (right - wrong).masked_fill(wrong == -torch.inf, torch.nan)


def spread(values: Tensor, kept: Tensor, b: int, fill: float) -> Tensor:
    """Return (b,) with ``values`` at the rows ``kept`` and ``fill`` elsewhere."""
    return values if len(kept) == b else values.new_full((b,), fill).index_copy_(0, kept, values)
