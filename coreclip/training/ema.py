"""An average of the weights over the last steps of a run, whose width is a fraction of the run so far.

The power-function average of Karras et al. 2024 (arXiv 2312.02696, "Analyzing and improving the training dynamics of diffusion
models"): after t steps the weights of step s count in proportion to s^gamma. Its profile stretches with the run, so that it needs
neither the number of steps to come, which a budget of minutes does not tell, nor a rise of the decay at the beginning, which a fixed
decay does; 0.05 and 0.1 are that paper's widths. Everything of floating type is averaged, so the running statistics of batch
normalisation too, as timm's ``ModelEmaV2`` does; counters are those of the last step. Left out: averages of several widths and their
combination afterwards.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's weights, float32, on the model's device.

    Parameters
    ----------
    model : nn.Module
        Where it stays: its tensors are read, and written by :meth:`inside`, in place.
    width : float
        Standard deviation of the average's profile as a fraction of the steps so far, above 0 to 0.25.
    """

    def __init__(self, model: nn.Module, width: float) -> None:
        self._live = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self._mean = {name: tensor.float().clone() for name, tensor in self._live.items()}
        self._exponent = power_of(width)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, at least 1; after the first one they are the average."""
        share = 1 - (1 - 1 / step) ** (self._exponent + 1)
        torch._foreach_lerp_(list(self._mean.values()), [tensor.float() for tensor in self._live.values()], share)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Give the model the average within the block, and its own weights back after it."""
        own = {name: tensor.clone() for name, tensor in self._live.items()}
        self._fill(self._mean)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name."""
        return dict(self._mean)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from averages that :meth:`state_dict` returned."""
        for name, tensor in self._mean.items():
            tensor.copy_(state[name])


def power_of(width: float) -> float:
    """Return the gamma of a profile s^gamma, 0 <= s <= 1, whose standard deviation is ``width`` (above 0, at most 0.25).

    Notes
    -----
    The standard deviation is sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2); squared and multiplied out it is the cubic that is
    solved here, whose largest root is the one above -1.
    """
    t = width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def averaged(average: WeightAverage | None) -> contextlib.AbstractContextManager[None]:
    """The average's :meth:`WeightAverage.inside`, or nothing where there is none."""
    return contextlib.nullcontext() if average is None else average.inside()
