"""What a run minimises: a loss of a batch's features by name, with a teacher where there is one, on any number of processes.

Left out: mixtures of the objectives, weights that change while training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coreclip.config import Config
from coreclip.pipeline import Dataset, Tokenizer
from coreclip.training.class_softmax import ClassTexts, class_texts, classification_loss
from coreclip.training.device import send
from coreclip.training.distillation import Teacher, affinity_loss, make_teacher
from coreclip.training.distributed import ONE, Ranks
from coreclip.training.large_batch import Encode, Towers
from coreclip.training.loss import ContrastiveLoss, Pairs, pairs_of, scaled, softmax_loss
from coreclip.training.model import MAX_LOGIT_SCALE, Clip, set_statistics_share
from coreclip.training.sigmoid import sigmoid_pairs_loss
from coreclip.training.text_towers import caption_lengths
from coreclip.training.word_dropout import drop_words

if TYPE_CHECKING:
    from coreclip.training.steps import Rows

Backward = Callable[[], None]


@dataclass(frozen=True)
class Encoded:
    """A batch as the towers and the losses see it.

    Attributes
    ----------
    images : float32 (m, d)
        Of all processes' rows.
    texts : float32 (m, d) or None
        Of the captions; None where they take no part.
    classes : float32 (c, d) or None
    scale, bias : float32 (), the bias None where the model has none
    pairs : Pairs
        With weights of mean 1.
    labels : int64 (k,) or None
        Of this process's rows.
    groups : int64 (c,) or None
        Of the classes; see :class:`coreclip.training.class_softmax.ClassTexts`.
    """

    images: Tensor
    texts: Tensor | None
    classes: Tensor | None
    scale: Tensor
    bias: Tensor | None
    pairs: Pairs
    labels: Tensor | None
    groups: Tensor | None


def _softmax(batch: Encoded) -> ContrastiveLoss:
    assert batch.texts is not None
    return softmax_loss(batch.images, batch.texts, batch.scale, batch.pairs)


def _sigmoid(batch: Encoded) -> ContrastiveLoss:
    assert batch.texts is not None
    assert batch.bias is not None
    return sigmoid_pairs_loss(batch.images, batch.texts, batch.scale, batch.bias, batch.pairs)


def _classification(batch: Encoded) -> ContrastiveLoss:
    assert batch.classes is not None
    assert batch.labels is not None
    own, weight = batch.pairs.own, batch.pairs.weight
    return classification_loss(
        batch.images[own],
        batch.classes,
        batch.scale,
        batch.labels,
        weight=weight[own],
        total=weight.sum(),
        group=batch.groups,
    )


OBJECTIVES: dict[str, Callable[[Encoded], ContrastiveLoss]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "classification": _classification,
}


class Objective:
    """The loss of a run and its gradient; made by :func:`make_objective`.

    Attributes
    ----------
    teacher : Teacher or None
    """

    def __init__(self, config: Config, classes: ClassTexts | None, teacher: Teacher | None, ranks: Ranks) -> None:
        self.teacher = teacher
        self._config, self._classes, self._ranks = config, classes, ranks

    def alone(self) -> "Objective":
        """Return the objective of this process's rows alone, to measure with."""
        return Objective(self._config, self._classes, self.teacher, ONE)

    def forward(self, model: Clip, rows: "Rows", *, bf16: bool, step: int = 0) -> tuple[ContrastiveLoss, Backward]:
        """Return the batch's loss, and what adds its gradient to the parameters'.

        Parameters
        ----------
        model : Clip
        rows : Rows
            This process's.
        bf16 : bool
            Whether the towers run under bf16 autocast.
        step : int
            Of the run; classes' prompts and the words that are left out depend on it.

        Returns
        -------
        result : ContrastiveLoss
            ``loss`` and ``floor`` are those of the whole batch, everything of single pairs is of this process's.
        backward : callable
            To be called once.
        """
        inputs = self._inputs(model, rows, step)
        size = self._config.train.micro_batch
        in_pieces = size and any(len(x[0]) > size for _, x in inputs.values())
        if self._ranks.size == 1 and not in_pieces:
            set_statistics_share(model, rows.share)
            with torch.autocast(rows.images.device.type, torch.bfloat16, enabled=bf16):
                features = {name: encode(*x) for name, (encode, x) in inputs.items()}
            result = self._loss(model, features, rows, [len(rows.index)])
            return result, result.loss.backward
        return self._forward_in_parts(model, Towers(model, inputs, size, rows.share, bf16), rows)

    def _forward_in_parts(self, model: Clip, towers: Towers, rows: "Rows") -> tuple[ContrastiveLoss, Backward]:
        """The loss on features that are cut off from the towers: those of other processes, or of pieces without a graph."""
        ranks, counts = self._ranks, self._ranks.counts(len(rows.index))
        # Every process encodes all classes itself; pairs come from all of them.
        leaves = {
            name: (features if name == "classes" else ranks.gather(features, counts)).requires_grad_()
            for name, features in towers.features().items()
        }
        result = self._loss(model, leaves, rows, counts)

        def backward() -> None:
            result.loss.backward()
            gradients = {}
            for name, leaf in leaves.items():
                assert leaf.grad is not None
                gradients[name] = leaf.grad if name == "classes" else ranks.sum(leaf.grad)[ranks.own(counts)]
            towers.backward(gradients)
            ranks.sum_gradients(model)

        loss, floor = ranks.sum(torch.stack([result.loss.detach(), result.floor]))
        return replace(result, loss=loss, floor=floor), backward

    def _inputs(self, model: Clip, rows: "Rows", step: int) -> dict[str, tuple[Encode, tuple[Tensor, ...]]]:
        inputs: dict[str, tuple[Encode, tuple[Tensor, ...]]] = {}
        if self._classes is None or self.teacher is not None:
            c = self._config.train
            words = drop_words(rows.tokens, rows.lengths, rows.index, share=c.word_dropout, seed=c.seed, step=step)
            inputs["texts"] = (model.encode_text, words)
        if self._classes is not None:
            tokens = self._classes.draw(self._config.train.seed, step)
            lengths = caption_lengths(tokens, model.end)
            inputs["classes"] = (model.encode_text, (send(tokens, rows.images.device), lengths))
        inputs["images"] = (model.encode_image, (rows.images,))  # last: a device works on it while the host goes on
        return inputs

    def _loss(self, model: Clip, features: dict[str, Tensor], rows: "Rows", counts: list[int]) -> ContrastiveLoss:
        ranks = self._ranks
        own = None if ranks.size == 1 else ranks.own(counts)
        labels = None if rows.labels is None else ranks.gather(rows.labels, counts)
        weight = ranks.gather(rows.weight, counts).to(features["images"].dtype)
        batch = Encoded(
            images=features["images"],
            texts=features.get("texts"),
            classes=features.get("classes"),
            scale=model.logit_scale.clamp(max=MAX_LOGIT_SCALE),
            bias=model.logit_bias,
            pairs=scaled(
                pairs_of(
                    ranks.gather(rows.tokens, counts),
                    labels,
                    weight,
                    own,
                    index=ranks.indices(rows.index, counts),
                    caption=rows.caption_number if ranks.size == 1 else None,
                )
            ),
            labels=rows.labels,
            groups=None if self._classes is None else self._classes.group.to(rows.images.device),
        )
        result = OBJECTIVES[self._config.train.objective](batch)
        if self.teacher is None:
            return result
        share, affinity = self._config.distill.weight, self._affinity(self.teacher, batch, rows, counts)
        return replace(result, loss=(1 - share) * result.loss + share * affinity, floor=(1 - share) * result.floor)

    def _affinity(self, teacher: Teacher, batch: Encoded, rows: "Rows", counts: list[int]) -> Tensor:
        assert batch.texts is not None
        caption = np.zeros_like(rows.index) if rows.caption is None else rows.caption
        shown = [self._ranks.indices(numbers, counts) for numbers in (rows.index, caption)]
        images, texts = teacher.take(shown[0], shown[1], batch.images)
        return affinity_loss(batch.images, batch.texts, batch.scale, images, texts, teacher.scale, batch.pairs)


def make_objective(dataset: Dataset, config: Config, tokenizer: Tokenizer, ranks: Ranks = ONE) -> Objective:
    """Return what ``train.objective`` and ``[distill]`` ask for.

    Raises
    ------
    CoreclipError
        For a classification without labels or class names, and a teacher's features that do not fit.
    """
    classes = None
    if config.train.objective == "classification":
        from coreclip.training.prompts import TEMPLATES  # imports what only evaluation needs

        classes = class_texts(dataset, tokenizer, TEMPLATES, config.model.context)
    return Objective(config, classes, make_teacher(dataset, config), ranks)
