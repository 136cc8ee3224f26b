"""Text towers: token rows in, one vector for each caption out. No work is done on padding.

A caption is the tokens up to and with its first end token; what comes after is padding, whatever its id: 0 is a word's piece in CLIP's
vocabulary. Left out: dropout within the towers.
"""

import torch
from torch import Tensor, nn

from coreclip.config import ModelConfig
from coreclip.training.attention import Block, LayerNorm, Mlp, Packed, Padded, run_blocks, stream


def make_text_tower(model: ModelConfig, vocab_size: int) -> nn.Module:
    """Return the tower that the configuration asks for."""
    if model.text_tower == "cbow":
        return Cbow(vocab_size, model.text_width)
    return TextTransformer(
        vocab_size,
        model.context,
        model.text_width,
        model.text_depth,
        model.heads,
        model.activation,
        is_causal=model.text_causal,
    )


def caption_lengths(tokens: Tensor, end: int) -> Tensor:
    """Return int64 (b,): the tokens of each caption, its end token included; the whole row where there is none.

    Parameters
    ----------
    tokens : int64 (b, length)
    end : int
        The end token.
    """
    is_end = tokens == end
    return torch.where(is_end.any(1), is_end.to(torch.uint8).argmax(1) + 1, tokens.shape[1])


class TextTransformer(nn.Module):
    """Pre-norm Transformer read at the end token; every token sees every other, or as in CLIP those before it."""

    def __init__(
        self, vocab_size: int, context: int, width: int, depth: int, heads: int, activation: str, *, is_causal: bool
    ) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.embedding = _embedding(vocab_size, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.01)
        self.blocks = nn.ModuleList(Block(width, heads, depth, activation) for _ in range(depth))
        self.norm = LayerNorm(width)

    def forward(self, tokens: Tensor, lengths: Tensor, *, packed: bool) -> Tensor:
        length = tokens.shape[1]
        if not packed:
            layout = Padded(lengths, length, is_causal=self.is_causal)
            x = stream(self.embedding(tokens) + self.position[:length])
            return self.norm(run_blocks(self.blocks, x, layout))
        rows = Packed(lengths.cpu(), length, tokens.device, is_causal=self.is_causal)
        x = stream(self.embedding(tokens.flatten()[rows.flat]) + self.position[rows.flat % length])
        return self.norm(run_blocks(self.blocks, x, rows))


class Cbow(nn.Module):
    """The mean of the words' embeddings, then a residual MLP (continuous bag of words, Mikolov et al. 2013)."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = _embedding(vocab_size, width)
        self.norm = LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, lengths: Tensor, *, packed: bool) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        last = lengths.to(tokens.device).unsqueeze(1) - 1
        words = ((place > 0) & (place < last)).unsqueeze(2)  # (b, length, 1): neither padding nor the two ends
        mean = (self.embedding(tokens) * words).sum(1) / words.sum(1).clamp(min=1)
        x = self.norm(mean)
        return x + self.mlp(x)


def _embedding(vocab_size: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(vocab_size, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding
