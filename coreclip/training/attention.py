"""Pre-norm attention blocks, and the layouts of tokens that they run on.

The block is that of CLIP's two Transformers (Radford et al. 2021). The last block of a tower that is read at one token computes only
what that token needs: keys and values of all tokens, the rest for the one; the output is the same. Left out: dropout
within the blocks, caches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreclip.training.device import send


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIPs were trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Layout(Protocol):
    """Where the tokens of a batch lie, and which one of each row is read."""

    def spread(self, x: Tensor) -> Tensor:
        """Return (b, length, width) of the tokens as they are stored."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Undo :meth:`spread`."""
        ...

    def read(self, x: Tensor) -> Tensor:
        """Return the read tokens (b, width) of the stored ones."""
        ...

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """Return what all stored tokens attend to, of their queries, keys and values side by side."""
        ...

    def attend_read(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        """Return (b, width): what the read tokens with the queries q (b, width) attend to."""
        ...


class Whole:
    """Tokens (b, length, width) without padding, all seeing all; the first is read. Images' patches after a class token."""

    mask: Tensor | None = None
    is_causal = False

    def spread(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x

    def read(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        rows = self.spread(qkv)
        b, length, width = rows.shape
        q, k, v = rows.view(b, length, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each (b, heads, length, width / heads)
        y = _attention(q, k, v, self.mask, is_causal=self.is_causal)
        return self.gather(y.transpose(1, 2).reshape(b, length, width // 3))

    def attend_read(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        rows = self.spread(kv)
        b, length, width = rows.shape
        k, v = rows.view(b, length, 2, heads, -1).permute(2, 0, 3, 1, 4)
        # The read token is the last of its row, or sees all: the mask of the padding is the whole mask.
        y = _attention(q.view(b, heads, 1, -1), k, v, self.mask, is_causal=False)
        return y.reshape(b, width // 2)


class Padded(Whole):
    """Tokens (b, length, width) of which the first ``lengths`` (b,) of each row count, and the last of those is read.

    No shape depends on the values, so this is what is exported.
    """

    def __init__(self, lengths: Tensor, length: int, *, is_causal: bool) -> None:
        self.last = lengths - 1
        self.mask = (torch.arange(length, device=lengths.device) < lengths.unsqueeze(1))[:, None, None]  # keys
        self.is_causal = is_causal

    def read(self, x: Tensor) -> Tensor:
        at = self.last.view(-1, 1, 1).expand(-1, 1, x.shape[2])
        return x.gather(1, at).squeeze(1)


class Packed(Whole):
    """Only the tokens that count, (t, width) row after row: no work is done on padding.

    Parameters
    ----------
    lengths : int64 (b,)
        Of the rows, each at least 1. On the CPU: where the tokens lie is worked out there, and a device is not waited for.
    length : int
        Of the padded rows.
    device : torch.device
        Of the tokens.
    is_causal : bool
        Whether a token sees only those before it.
    """

    def __init__(self, lengths: Tensor, length: int, device: torch.device, *, is_causal: bool) -> None:
        b = len(lengths)
        counted = torch.arange(length) < lengths.unsqueeze(1)  # (b, length)
        ends = lengths.cumsum(0)
        self.b, self.length = b, length
        self.flat = send(counted.flatten().nonzero().squeeze(1), device)  # int64 (t,)
        self.last = send(ends - 1, device)  # int64 (b,), into the packed tokens
        self.is_causal = is_causal
        # Of the keys; the read token of a causal row needs it too.
        self.mask = send(counted, device)[:, None, None]
        self.begins: Tensor | None = None  # int32 (b + 1,): for kernels that attend within packed rows
        if device.type == "cuda":
            self.begins = send(F.pad(ends, (1, 0)).to(torch.int32), device)

    def pack(self, x: Tensor) -> Tensor:
        """Return the tokens that count of (b, length, width)."""
        return x.flatten(0, 1).index_select(0, self.flat)

    def spread(self, x: Tensor) -> Tensor:
        rows = x.new_zeros(self.b * self.length, x.shape[1]).index_copy(0, self.flat, x)
        return rows.view(self.b, self.length, x.shape[1])

    def gather(self, x: Tensor) -> Tensor:
        return self.pack(x)

    def read(self, x: Tensor) -> Tensor:
        return x[self.last]

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        if self.begins is None or qkv.dtype not in (torch.bfloat16, torch.float16):
            return super().attend(qkv, heads)
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # each (t, heads, width / heads)
        window = (-1, 0) if self.is_causal else (-1, -1)
        y = varlen_attn(q, k, v, self.begins, self.begins, self.length, self.length, window_size=window)
        assert isinstance(y, Tensor)  # it returns a pair only where that is asked for
        return y.flatten(1)


def stream(x: Tensor) -> Tensor:
    """Return x in the type that matrix products have here, which the sums over a tower's residual branches are kept in."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation that returns the type that it was given; autocast computes it in full precision."""
    return F.layer_norm(x, weight.shape, weight, bias).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """:func:`normalised` with weights of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x, self.weight, self.bias)


class Block(nn.Module):
    """Attention and an MLP, each normalised before and added to its input.

    Parameters
    ----------
    width, heads : int
    depth : int
        Of the tower; it sets the first weights' spread, so that the sum over the residual branches neither grows nor fades.
    activation : {"gelu", "quick_gelu"}
    """

    def __init__(self, width: int, heads: int, depth: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, activation)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=(2 * depth * width) ** -0.5)
        nn.init.normal_(self.mlp.out.weight, std=(2 * depth * 4 * width) ** -0.5)
        for bias in (self.qkv.bias, self.out.bias, self.mlp.out.bias):
            nn.init.zeros_(bias)
        self.is_compiled = False  # attention within packed rows has kernels of its own, between two compiled parts

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return all stored tokens after the block."""
        parts = _compiled_parts(self.heads, self.mlp.activation) if self.is_compiled else None
        if parts is None:
            qkv = self.qkv(self.norm1(x))
            x = x + self.out(layout.attend(qkv, self.heads))
            return x + self.mlp(self.norm2(x))
        before, after = self._weights()
        if type(layout) is Whole:
            return parts.whole(x, before, after)
        return parts.after(x, layout.attend(parts.before(x, before), self.heads), after)

    def read(self, x: Tensor, layout: Layout) -> Tensor:
        """Return (b, width): the read tokens after the block, which is all that a last block is asked for."""
        width = x.shape[-1]
        y = self.norm1(x)
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(layout.read(y), weight[:width], bias[:width])
        kv = F.linear(y, weight[width:], bias[width:])
        z = layout.read(x) + self.out(layout.attend_read(q, kv, self.heads))
        return z + self.mlp(self.norm2(z))

    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """What is applied before and after the attention, in order."""
        before: tuple[nn.Module, ...] = (self.norm1, self.qkv)
        after = (self.out, self.norm2, self.mlp.wide, self.mlp.out)
        return tuple([t for m in modules for t in (m.weight, m.bias)] for modules in (before, after))  # type: ignore


class Mlp(nn.Module):
    """A hidden layer of four times the width."""

    def __init__(self, width: int, activation: str = "gelu") -> None:
        super().__init__()
        self.wide = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.out(ACTIVATIONS[self.activation](self.wide(x)))


@dataclass(frozen=True)
class _Parts:
    """A block's compiled parts. They are given weights, not modules, whose checks would take longer than a short kernel."""

    before: Callable[[Tensor, list[Tensor]], Tensor]
    after: Callable[[Tensor, Tensor, list[Tensor]], Tensor]
    whole: Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]


@cache
def _compiled_parts(heads: int, activation: str) -> _Parts:
    """Return the parts for all blocks with these; their code is compiled for each shape that comes."""
    act = ACTIVATIONS[activation]

    def before(x: Tensor, weights: list[Tensor]) -> Tensor:
        return F.linear(normalised(x, *weights[:2]), *weights[2:])

    def after(x: Tensor, y: Tensor, weights: list[Tensor]) -> Tensor:
        x = x + F.linear(y, *weights[:2])
        return x + F.linear(act(F.linear(normalised(x, *weights[2:4]), *weights[4:6])), *weights[6:])

    def whole(x: Tensor, first: list[Tensor], last: list[Tensor]) -> Tensor:
        return after(x, Whole().attend(before(x, first), heads), last)

    return _Parts(torch.compile(before), torch.compile(after), torch.compile(whole))


def run_blocks(blocks: nn.ModuleList, x: Tensor, layout: Layout) -> Tensor:
    """Return the read tokens (b, width) after all blocks."""
    for block in list(blocks)[:-1]:
        x = block(x, layout)
    last = blocks[len(blocks) - 1]
    assert isinstance(last, Block)
    return last.read(x, layout)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
    if q.is_cuda or torch.compiler.is_exporting():
        # Padding comes last: where a token sees only those before it, no token that counts sees padding.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if is_causal else mask, is_causal=is_causal)
    # torch's fused CPU kernel takes 3 to 5 times as long in bfloat16 at these lengths (torch 2.13; its backward pass above all).
    scores = q @ k.transpose(2, 3) * (1 / math.sqrt(q.shape[3]))
    if is_causal:
        length = k.shape[2]
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(3) @ v
