"""A teacher's features, made once, as a second target: no teacher runs while the student trains.

Affinity distillation, as in TinyCLIP (Wu et al. 2023, arXiv 2309.12314) and, as contrastive relational distillation, in CLIP-KD (Yang
et al. 2024, arXiv 2307.12732): in each batch the student's softmax of every image over the texts, and of every text over the images, is
drawn to the teacher's, each with its own temperature. The teacher's features have any width, and no projection is learned. The teacher
sees the centre crop and, where the features hold each caption, the caption that the student reads. The captions themselves can be the
teacher (:mod:`coreclip.training.caption_topics`): images whose captions share words are then no plain negatives of each other. Left out:
losses between the features themselves.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coreclip.config import Config
from coreclip.files import sha256_file
from coreclip.pipeline import Dataset
from coreclip.selection import Features
from coreclip.training.caption_topics import caption_topics
from coreclip.training.features import features_of
from coreclip.training.loss import Pairs


@dataclass(frozen=True)
class Teacher:
    """Stored features of the data set; made by :func:`make_teacher`.

    Attributes
    ----------
    features : Features
    scale : float
        Factor on the teacher's cosines.
    sha256 : str
        Of the image features; of the data set where its captions teach.
    """

    features: Features
    scale: float
    sha256: str

    def take(self, index: np.ndarray, caption: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's image and text features of some pairs, (m, d) each, unit norm, of the type and device of ``like``.

        Parameters
        ----------
        index, caption : int64 (m,)
            The pairs, and which of its captions each one is shown with.
        like : Tensor
        """
        taken = self.features.take(index)
        images, texts = taken.vectors("image"), taken.vectors("text")
        captions, offsets = self.features.captions, self.features.offsets
        if captions is not None and offsets is not None:
            texts = Features.from_arrays(text=captions[offsets[index] + caption]).vectors("text")
        return torch.from_numpy(images).to(like), torch.from_numpy(texts).to(like)


def make_teacher(dataset: Dataset, config: Config) -> Teacher | None:
    """Return the teacher that ``[distill]`` names, None where it names none.

    Raises
    ------
    CoreclipError
        For captions without common words, and for features that are missing, of another data set, or without images, texts or a scale.
    """
    if config.distill.captions:
        topics = caption_topics(dataset)
        return Teacher(
            Features.from_arrays(image=topics, text=topics), 1 / config.distill.temperature, dataset.fingerprint
        )
    if not config.distill.features:
        return None
    path = Path(config.distill.features)
    features = features_of(dataset, path, "distill.features")
    return Teacher(features, float(features.info["logit_scale"]), sha256_file(path / "image.npy"))


def affinity_loss(
    images: Tensor,
    texts: Tensor,
    logit_scale: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    teacher_scale: float,
    pairs: Pairs,
) -> Tensor:
    """Return how far the student's softmaxes over a batch are from the teacher's.

    Parameters
    ----------
    images, texts : float32 (m, d), unit norm
        The student's.
    logit_scale : float32 ()
        Natural logarithm of the factor on the student's cosines.
    teacher_images, teacher_texts : float32 (m, e), unit norm
    teacher_scale : float
        Factor on the teacher's cosines.
    pairs : Pairs
        With weights of mean 1. The part that ``pairs.own`` has in the loss is returned; the parts of all rows add up to the whole.

    Returns
    -------
    float32 ()

    Notes
    -----
    The mean of both directions' cross-entropies of the student's softmax under the teacher's, less the teacher's own entropy: 0 where
    they agree, with the cross-entropy's gradient. A pair of weight w counts as w copies, as a row and in both softmaxes.
    """
    log_weight, weight = pairs.weight.log(), pairs.weight[pairs.own]
    factor = logit_scale.exp()
    total = weight.new_zeros(())
    for rows, columns, teacher_rows, teacher_columns in (
        (images, texts, teacher_images, teacher_texts),
        (texts, images, teacher_texts, teacher_images),
    ):
        student = torch.log_softmax(factor * (rows[pairs.own] @ columns.T) + log_weight, dim=1)
        teacher = torch.log_softmax(teacher_scale * (teacher_rows[pairs.own] @ teacher_columns.T) + log_weight, dim=1)
        total = total + (weight * (teacher.exp() * (teacher - student)).sum(1)).sum()
    return total / (2 * len(pairs.weight))
