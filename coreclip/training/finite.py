"""A loss, a gradient or weights that are not finite end a run, and the message names the batch."""

import math
from dataclasses import dataclass

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.training.device import Fetched
from coreclip.training.distributed import Ranks
from coreclip.training.model import Clip


@dataclass(frozen=True)
class LastGradient:
    """The norm of the gradient of the last step, to be looked at when the device has come past it anyway."""

    norm: Fetched | None = None
    step: int = 0
    index: np.ndarray | None = None

    def check(self, ranks: Ranks) -> None:
        """Refuse one that is not finite."""
        if self.norm is not None and self.index is not None and not math.isfinite(norm := self.norm.read().item()):
            refuse_not_finite("the gradient's norm", norm, self.step, ranks.indices(self.index))


def refuse_not_finite(what: str, value: float, step: int, index: np.ndarray) -> None:
    """Raise the error for a ``value`` that a step's batch, of these pairs (int64 (b,)), should not have led to."""
    shown = ", ".join(map(str, index[:8].tolist())) + (", ..." if len(index) > 8 else "")
    raise CoreclipError(
        f"{what} is {value} at step {step} (batch with the indices {shown}); a run needs finite ones; "
        "train into another folder with a lower train.lr, or with train.precision=fp32"
    )


def check_weights(model: Clip) -> None:
    """Refuse a model whose weights are not all finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise CoreclipError(
            "the weights are not finite after the last step; a model needs finite ones; train into another folder with a lower "
            "train.lr, or with train.precision=fp32"
        )
