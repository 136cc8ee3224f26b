"""Exact gradients of a large batch with the memory of a small one.

GradCache (Gao et al. 2021, arXiv 2101.06983): the batch goes through the towers in pieces without a graph, the loss of the whole batch
gives the gradient with respect to every feature (and to temperature and bias), and each piece goes through the towers again to be
given its features' gradients. Randomness is replayed. Layers that look at other rows of the batch, batch normalisation, see a
piece's rows, the same in both passes: the gradient is exact for what was computed, which is not what the whole batch at once would
give. Their running statistics move in the second pass alone, by each piece's share.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from coreclip.training.model import Clip, set_statistics_share

Encode = Callable[..., Tensor]


@dataclass
class Towers:
    """The towers' features of some inputs; what came in one piece keeps its graph, the rest is computed twice.

    Parameters
    ----------
    model : Clip
    inputs : dict of str to (encode, rows)
        What makes features (n, d) of one or more tensors (n, ...), the first of which lies on the model's device.
    piece : int
        Rows that go through a tower at once; 0: all.
    share : float
        Of the rows in a whole batch, for running statistics.
    bf16 : bool
    """

    model: Clip
    inputs: dict[str, tuple[Encode, tuple[Tensor, ...]]]
    piece: int
    share: float
    bf16: bool
    _graphs: dict[str, Tensor] = field(default_factory=dict)
    _randomness: dict[str, list["_Randomness"]] = field(default_factory=dict)

    def features(self) -> dict[str, Tensor]:
        """Return the features of each input, detached."""
        found = {}
        for name, (encode, rows) in self.inputs.items():
            pieces = _pieces(rows, self.piece)
            if len(pieces) == 1:
                self._graphs[name] = self._encode(encode, rows, self.share)
                found[name] = self._graphs[name].detach()
                continue
            self._randomness[name], parts = [], []
            with torch.no_grad(), _frozen_statistics(self.model):
                for part in pieces:
                    self._randomness[name].append(_Randomness(rows[0].device))
                    parts.append(self._encode(encode, part, self.share))
            found[name] = torch.cat(parts)
        return found

    def backward(self, gradients: dict[str, Tensor]) -> None:
        """Add to the parameters' gradients what these gradients of the features make of them."""
        for name, (encode, rows) in self.inputs.items():
            if name in self._graphs:
                graph = self._graphs.pop(name)
                if graph.requires_grad:  # not of a frozen tower
                    graph.backward(gradients[name])
                continue
            pieces = _pieces(rows, self.piece)
            parts = gradients[name].split([len(part[0]) for part in pieces])
            for randomness, part, gradient in zip(self._randomness[name], pieces, parts, strict=True):
                with randomness.replayed():
                    again = self._encode(encode, part, self.share * len(part[0]) / len(rows[0]))
                if not again.requires_grad:
                    break  # a frozen tower: nothing is to be learned by it
                again.backward(gradient)

    def _encode(self, encode: Encode, rows: tuple[Tensor, ...], share: float) -> Tensor:
        set_statistics_share(self.model, share)
        with torch.autocast(rows[0].device.type, torch.bfloat16, enabled=self.bf16):
            return encode(*rows)


def _pieces(rows: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """Cut rows into pieces of nearly equal length, ``size`` at most: a last one of one row would have no statistics."""
    n = len(rows[0])
    return list(zip(*(part.tensor_split(-(-n // size)) for part in rows), strict=True)) if 0 < size < n else [rows]


@contextlib.contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch normalisation normalise by the batch as in training, and keep nothing of it."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class _Randomness:
    """The state of torch's generators, to be gone back to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw what was drawn after this state; the generators are then as they were before."""
        with torch.random.fork_rng(devices=[] if self._cuda is None else [self._device]):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield
