"""Tensors of one format of CLIP beside those of another: which is which, and what must be stacked, cut or transposed.

A format is a list of :class:`Tie`. Read from left to right it writes a checkpoint, from right to left it reads one, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coreclip.errors import CoreclipError


@dataclass(frozen=True)
class Tie:
    """One of our tensors and its counterpart.

    Attributes
    ----------
    ours : str
    theirs : tuple of str
        Several are stacked to make ours: queries, keys and values.
    is_transposed : bool
        Whether a matrix is stored as (in, out) there.
    """

    ours: str
    theirs: tuple[str, ...]
    is_transposed: bool = False


def tie(ours: str, *theirs: str, is_transposed: bool = False) -> list[Tie]:
    """Return the tie of single tensors."""
    return [Tie(ours, theirs, is_transposed)]


def tie_layer(ours: str, *theirs: str) -> list[Tie]:
    """Return the ties of a layer's weight and bias."""
    return [Tie(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs)) for part in ("weight", "bias")]


def tie_norm(ours: str, theirs: str) -> list[Tie]:
    """Return the ties of a batch normalisation: weight, bias and statistics."""
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [Tie(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in names]


def tie_blocks(
    ours: str, theirs: str, depth: int, layers: Mapping[str, str], qkv: Callable[[str, str], list[Tie]]
) -> list[Tie]:
    """Return the ties of a Transformer's blocks.

    Parameters
    ----------
    ours : str
        Our tower.
    theirs : str
        What their blocks' numbers follow.
    depth : int
    layers : mapping of str to str
        Our layers' names within a block to theirs.
    qkv : callable
        Returns the ties of queries, keys and values, given the names of our layer and of their block.
    """
    ties: list[Tie] = []
    for number in range(depth):
        block, other = f"{ours}.blocks.{number}", f"{theirs}.{number}"
        ties += qkv(f"{block}.qkv", other)
        for name, their_name in layers.items():
            ties += tie_layer(f"{block}.{name}", f"{other}.{their_name}")
    return ties


def to_ours(
    where: str, tensors: Mapping[str, Tensor], ties: Iterable[Tie], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under our names, floating point as float32.

    Parameters
    ----------
    where : str
        The checkpoint's name, for messages.
    tensors : mapping of str to tensor
    ties : iterable of Tie
    shapes : mapping of str to torch.Size
        Of our model.

    Raises
    ------
    CoreclipError
        For a tensor that is missing, of another shape, not finite, or left over.
    """
    left = dict(tensors)
    state = {}
    for one in ties:
        # Count of a batch normalisation's updates, which some formats drop: nothing here reads it.
        if one.ours.endswith("num_batches_tracked") and one.theirs[0] not in left:
            state[one.ours] = torch.zeros((), dtype=torch.int64)
            continue
        parts = []
        for name in one.theirs:
            if name not in left:
                raise CoreclipError(f"{where} lacks the tensor {name}: it is not a CLIP of this kind, or damaged")
            parts.append(left.pop(name))
        state[one.ours] = _joined(where, one, parts, shapes[one.ours])
    if left:
        raise CoreclipError(
            f"{where} holds the tensor {min(left)} (and {len(left) - 1} more), which no CLIP that is supported has; "
            "its architecture is another one: take a ViT or ResNet CLIP of OpenAI's shapes"
        )
    return state


def _joined(where: str, one: Tie, parts: list[Tensor], shape: torch.Size) -> Tensor:
    stacked = parts[0] if len(parts) == 1 else torch.cat(parts) if all(part.ndim for part in parts) else None
    if stacked is not None and one.is_transposed and stacked.ndim == 2:
        stacked = stacked.T
    if stacked is not None and stacked.numel() == 1 == shape.numel():
        stacked = stacked.reshape(shape)  # a temperature is stored as a number or as a row of one
    if stacked is None or stacked.shape != shape:
        found = ", ".join(str(tuple(part.shape)) for part in parts)
        raise CoreclipError(
            f"{where} does not fit its configuration: {one.theirs[0]} has the shape {found}, which stands for "
            f"{one.ours} {tuple(shape)}; its files belong to different models"
        )
    if not stacked.is_floating_point():
        if not one.ours.endswith("num_batches_tracked"):
            raise CoreclipError(
                f"{where} holds {stacked.dtype} in {one.theirs[0]}; weights are floating point; save it unquantised"
            )
        return stacked.contiguous()
    stacked = stacked.to(torch.float32).contiguous()
    if not bool(stacked.isfinite().all()):
        raise CoreclipError(f"{where} holds numbers that are not finite in {one.theirs[0]}; copy it anew")
    return stacked


def to_theirs(state: Mapping[str, Tensor], ties: Iterable[Tie]) -> dict[str, Tensor]:
    """Return our tensors under a format's names, each with memory of its own."""
    tensors = {}
    for one in ties:
        whole = state[one.ours].detach().cpu()
        if one.is_transposed:
            whole = whole.T
        for name, part in zip(one.theirs, whole.chunk(len(one.theirs)) if whole.ndim else [whole], strict=True):
            tensors[name] = part.clone(memory_format=torch.contiguous_format)
    return tensors
