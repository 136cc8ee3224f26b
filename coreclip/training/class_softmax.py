"""Training on labelled images: the softmax over the classes' texts.

The classifier is the text tower itself, read with each class's name in one of the prompts of zero-shot classification (Radford et al.
2021), drawn anew in each step: what is trained is what ``evaluate`` measures, new classes can be named afterwards, and no head is left
over. The captions take no part. Left out: a text-to-image direction, a linear head, which would know its own classes only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, Tokenizer
from coreclip.randomness import hash64
from coreclip.training import streams
from coreclip.training.loss import BatchSoftmax, ContrastiveLoss, first_of_group


@dataclass(frozen=True)
class ClassTexts:
    """The token rows of each class in each prompt; made by :func:`class_texts`.

    Attributes
    ----------
    tokens : int64 (prompts, classes, context)
    group : int64 (classes,)
        Equal for classes whose names read the same.
    """

    tokens: Tensor
    group: Tensor

    def draw(self, seed: int, step: int) -> Tensor:
        """Return the classes in one of the prompts, int64 (classes, context): a pure function of (seed, step)."""
        return self.tokens[int(hash64(seed, 0, np.array([step]), streams.PROMPTS)[0] % np.uint64(len(self.tokens)))]


def class_texts(dataset: Dataset, tokenizer: Tokenizer, templates: tuple[str, ...], context: int) -> ClassTexts:
    """Return the prompts of a data set's classes.

    Raises
    ------
    CoreclipError
        For a data set without labels or without the classes' names.
    """
    names = dataset.class_names
    if dataset.labels is None or names is None:
        lacks = "labels" if dataset.labels is None else "class names"
        raise CoreclipError(
            f"train.objective = 'classification' needs labels and class names, {dataset.path} has no {lacks}; "
            "convert class folders, or use train.objective=softmax"
        )
    rows = [
        tokenizer.encode([template.replace("{}", name.replace("_", " ")) for name in names], context)
        for template in templates
    ]
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
    # All prompts of two classes are equal where their names are.
    _, group = torch.unique(tokens.transpose(0, 1).flatten(1), dim=0, return_inverse=True)
    return ClassTexts(tokens, group)


def classification_loss(
    image_features: Tensor,
    class_features: Tensor,
    logit_scale: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    total: Tensor | None = None,
    group: Tensor | None = None,
) -> ContrastiveLoss:
    """Return the cross-entropy of images among the texts of all classes.

    Parameters
    ----------
    image_features : float32 (b, d), unit norm
    class_features : float32 (c, d), unit norm
    logit_scale : float32 ()
        Natural logarithm of the factor on the cosines.
    labels : int64 (b,)
    weight : float32 (b,), optional
        Above 0; only their ratios matter: a pair of weight w counts as w copies. None: all equal.
    total : float32 (), optional
        Sum of the weights of the whole batch, where these images are a part of it. None: of ``weight``.
    group : int64 (c,), optional
        Equal for classes that can't be told apart by their texts; they share the target's mass. None: all differ.

    Returns
    -------
    ContrastiveLoss
        ``floor`` is the weighted mean of the logarithm of how many classes share a name.
    """
    b, c, device = len(image_features), len(class_features), image_features.device
    weight = torch.ones(b, device=device) if weight is None else weight
    weight = weight.to(image_features.dtype)
    total = weight.sum() if total is None else total
    group = torch.arange(c, device=device) if group is None else group
    same = group[labels].unsqueeze(1) == group  # (b, c)
    mass = same.sum(1).to(image_features.dtype)
    target = same / mass.unsqueeze(1)
    cosine = image_features @ class_features.T
    logits = logit_scale.exp() * cosine
    log_total = torch.logsumexp(logits, dim=1)
    rows = log_total - (target * logits).sum(1)
    return ContrastiveLoss(
        loss=(weight * rows).sum() / total,
        floor=(weight * mass.log()).sum() / total,
        sample_loss=rows.detach(),
        scores=BatchSoftmax(
            cosine=cosine.detach(),
            logits=(logits.detach(),),
            log_weight=logits.new_zeros(c),
            log_total=log_total.detach().unsqueeze(0),
            same=same,
            target=target,
            kept=torch.arange(b, device=device),
            b=b,
            first=first_of_group(group),
        ),
    )
