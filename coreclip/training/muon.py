"""Muon: steps along orthogonalised momentum, for the matrices between a tower's first and last layer.

After Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": of the momentum's singular values only the signs, so to
say, are kept, so that directions that gradients rarely take are learned as fast as the common ones. A convolution's weight is the matrix of
its filters, a row for each. Left out: queries, keys and values by themselves, and shares of the work among processes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from coreclip.training.attention import stream

_HIDDEN = (".blocks.", ".stages.", ".mlp.")  # in the names of layers that are neither first nor last
_MOMENTUM = 0.95
_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: within five steps singular values of a hundredth up come to 0.7 to 1.2
_TINY = 1e-7


class Optimiser(Protocol):
    """What the loop asks of an optimiser."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether one of a :class:`~coreclip.training.model.Clip`'s parameters is a matrix, or a convolution, between other layers."""
    return parameter.ndim >= 2 and any(part in f".{name}" for part in _HIDDEN)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised.

    Parameters
    ----------
    groups : iterable of dict
        Of parameters with two axes or more.
    lr : float
        Root mean square of what a step changes in a row of a matrix that is wider than high, times the root of its width.
    weight_decay : float
        Share of the weights that a step at rate 1 takes off.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float = 0.02, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure
        """Take a step along every gradient that is there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
                ahead = torch.lerp(parameter.grad, momentum, _MOMENTUM)  # Nesterov's
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalised(ahead), alpha=-group["lr"])


def orthogonalised(gradient: Tensor) -> Tensor:
    """Return the nearest matrix with orthogonal rows (or columns, where there are more rows), roughly: by five Newton-Schulz steps.

    Under autocast in bfloat16, whose rounding is below what the five steps leave.

    Parameters
    ----------
    gradient : float (m, ...)
        A matrix of m rows once the other axes are one.

    Returns
    -------
    float, the shape of ``gradient``
        With singular values of 0.7 to 1.2, times the root of m / n where m rows are more than n columns.
    """
    matrix = stream(gradient.flatten(1))
    m, n = matrix.shape
    if m > n:
        matrix = matrix.T
    matrix = matrix / (torch.linalg.matrix_norm(matrix.float()).to(matrix.dtype) + _TINY)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        square = matrix @ matrix.T
        matrix = torch.addmm(matrix, torch.addmm(square, square, square, beta=b, alpha=c), matrix, beta=a)
    if m > n:
        matrix = matrix.T * (m / n) ** 0.5
    return matrix.reshape(gradient.shape).to(gradient.dtype)


class Together:
    """Several optimisers as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Let each take a step."""
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or fill them with 0."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all, by number."""
        return {str(number): part.state_dict() for number, part in enumerate(self._parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for number, part in enumerate(self._parts):
            part.load_state_dict(state[str(number)])
