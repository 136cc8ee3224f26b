"""The two towers of a compact CLIP.

Convolutional image towers win at small data, small ViTs come next ("Scaling (Down) CLIP", Li et al. 2024, arXiv 2404.08197); the
loss's learned temperature is CLIP's (Radford et al. 2021). Shapes and layouts are chosen for training speed on a CPU: a stem of
stride 4, channels last, batch normalisation, and no work on padding tokens. Left out: dropout, causal masks, pretrained weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreclip.config import Config, ModelConfig

PAD, START, END, UNKNOWN = range(4)
MAX_LOGIT_SCALE = math.log(100)
_STAGES = 4
_MOMENTUM = 0.1  # of batch normalisation's running statistics


class Clip(nn.Module):
    """Image tower, text tower, linear projections to a common space, learned temperature.

    Parameters
    ----------
    model : ModelConfig
    image_size : int
        Side of the images, pixels.
    vocab_size : int
        Of the tokenizer.
    temperature : float
        First value; ``logit_scale`` starts at ``ln(1 / temperature)``.

    Attributes
    ----------
    logit_scale : float32 ()
        Natural logarithm of the factor on the cosine similarities, at most ``ln 100``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig, *, image_size: int, vocab_size: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.image: nn.Module
        self.text: nn.Module
        if model.image_tower == "cnn":
            self.image = _Cnn(model.image_width, model.image_depth)
            image_width = _cnn_widths(model.image_width)[-1]
        else:
            self.image = _Vit(model.image_width, model.image_depth, model.heads, model.patch_size, image_size)
            image_width = model.image_width
        if model.text_tower == "transformer":
            self.text = _Transformer(vocab_size, model.context, model.text_width, model.text_depth, model.heads)
        else:
            self.text = _Cbow(vocab_size, model.text_width)
        self.image_projection = nn.Linear(image_width, model.embed_dim, bias=False)
        self.text_projection = nn.Linear(model.text_width, model.embed_dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=image_width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=model.text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        # ImageNet's mean and standard deviation per channel, in units of a uint8.
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1))
        self.context = model.context
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed uint8 images (b, 3, size, size) as float32 (b, d) of unit norm."""
        return F.normalize(self.image_projection(self.image(self.pixels(images))).float(), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed token rows, int64 (b, length), padded with 0 on the right, as float32 (b, d) of unit norm.

        Captions longer than ``context`` are cut, and end with the end token then as all others do.
        """
        return F.normalize(self.text_projection(self.text_hidden(tokens)).float(), dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Return uint8 images (b, 3, size, size) as the image tower sees them: float, standardised per channel."""
        return images.to(self.mean.dtype, memory_format=torch.channels_last).sub_(self.mean).div_(self.std)

    def text_hidden(self, tokens: Tensor) -> Tensor:
        """Return what the text's projection is given of token rows, (b, text_width)."""
        if tokens.shape[1] > self.context:
            tokens = tokens[:, : self.context].clone()
            tokens[:, -1] = torch.where(tokens[:, -1] == PAD, PAD, END)
        return self.text(cut_padding(tokens))

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return image features, text features (both float32 (b, d), unit norm) and the clamped ``logit_scale``."""
        return self.encode_image(images), self.encode_text(tokens), self.logit_scale.clamp(max=MAX_LOGIT_SCALE)


def build_model(config: Config, *, vocab_size: int, seed: int) -> Clip:
    """Return a freshly initialised model, a pure function of the arguments (torch's global generator is left as it was)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Clip(
            config.model,
            image_size=config.data.image_size,
            vocab_size=vocab_size,
            temperature=config.train.temperature,
        )


def set_statistics_share(model: Clip, share: float) -> None:
    """Let a batch count in the running statistics by its share of a whole one: a last batch of a few rows says little."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _MOMENTUM * min(share, 1.0)


def cut_padding(tokens: Tensor) -> Tensor:
    """Cut int64 (b, context) to the longest caption of the batch, at least one column; nothing but padding is lost."""
    used = (tokens != PAD).any(0).nonzero()
    return tokens[:, : int(used[-1]) + 1 if len(used) else 1]


# ---------------------------------------------------------------------------------------------------------------- image towers


def _cnn_widths(width: int) -> list[int]:
    return [width << stage for stage in range(_STAGES)]


class _Cnn(nn.Module):
    """A small residual network (He et al. 2016): a 7x7 stem of stride 4, four stages, global average."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, stride=4, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        previous = width
        for stage, out in enumerate(_cnn_widths(width)):
            for block in range(depth):
                blocks.append(_Residual(previous, out, stride=2 if stage and not block else 1))
                previous = out
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.norm(self.stem(x)), inplace=True)).mean((2, 3))


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is averaged before its 1x1 convolution where the block halves the side
    (He et al. 2019, "Bag of tricks", ResNet-D)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        nn.init.zeros_(self.norm2.weight)  # each block starts as its shortcut
        self.pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        same = width == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # On a 1x1 image strides 1 and 2 are the same, but oneDNN's bfloat16 weight gradient of the latter is garbage (torch 2.13).
        stride = self.stride if x.shape[2] > 1 else 1
        y = F.conv2d(x, self.conv1.weight, stride=stride, padding=1)
        y = F.relu(self.norm1(y), inplace=True)
        return F.relu(self.norm2(self.conv2(y)).add_(self.shortcut(self.pool(x))), inplace=True)


class _Vit(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021) with pre-norm and the mean of the patches in place of a class token."""

    def __init__(self, width: int, depth: int, heads: int, patch_size: int, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.randn((image_size // patch_size) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position  # (b, patches, width)
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x).mean(1)


# ----------------------------------------------------------------------------------------------------------------- text towers


class _Packing:
    """Where the real tokens of a padded (b, length) matrix lie, so that only they are worked on."""

    def __init__(self, tokens: Tensor) -> None:
        keep = tokens != PAD
        keep[:, 0] = True  # a row of padding alone would leave attention without a key
        self.shape = tokens.shape
        self.keep = keep
        self.flat = keep.flatten().nonzero().squeeze(1)  # int64 (t,)
        self.lengths = keep.sum(1)
        self.last = self.lengths.cumsum(0) - 1  # int64 (b,), into the packed tokens

    def pack(self, x: Tensor) -> Tensor:
        """Return the real tokens' rows (t, width) of (b, length, width)."""
        return x.flatten(0, 1).index_select(0, self.flat)

    def unpack(self, x: Tensor) -> Tensor:
        """Return (b, length, width), zero at the padding, of (t, width)."""
        rows = x.new_zeros(self.shape.numel(), x.shape[1]).index_copy(0, self.flat, x)
        return rows.view(*self.shape, x.shape[1])


class _Transformer(nn.Module):
    """Pre-norm Transformer read at the end token; every token sees every other (no generation is asked of it)."""

    def __init__(self, vocab_size: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = _embedding(vocab_size, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.01)
        self.blocks = nn.ModuleList(_Block(width, heads, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        packing = _Packing(tokens)
        x = packing.pack(self.embedding(tokens) + self.position[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, packing)
        return self.norm(x[packing.last])


class _Cbow(nn.Module):
    """The mean of the words' embeddings, then a residual MLP (continuous bag of words, Mikolov et al. 2013)."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = _embedding(vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = _Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        words = (tokens > END).unsqueeze(2)  # (b, length, 1): neither padding nor the two ends
        mean = (self.embedding(tokens) * words).sum(1) / words.sum(1).clamp(min=1)
        x = self.norm(mean)
        return x + self.mlp(x)


class _Block(nn.Module):
    """Pre-norm attention and MLP; on packed tokens (t, width) with a packing, else on (b, length, width)."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)
        # Width and depth set the spread, so that the sum over the residual branches neither grows nor fades (Radford et al. 2021).
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=(2 * depth * width) ** -0.5)
        nn.init.normal_(self.mlp.out.weight, std=(2 * depth * 4 * width) ** -0.5)
        for bias in (self.qkv.bias, self.out.bias, self.mlp.out.bias):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor, packing: _Packing | None) -> Tensor:
        x = x + self.out(self._attend(self.qkv(self.norm1(x)), packing))
        return x + self.mlp(self.norm2(x))

    def _attend(self, qkv: Tensor, packing: _Packing | None) -> Tensor:
        mask = None
        if packing is not None:
            qkv, mask = packing.unpack(qkv), packing.keep[:, None, None]  # mask (b, 1, 1, length): keys
        b, length, width = qkv.shape
        q, k, v = qkv.view(b, length, 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )  # each (b, heads, length, width / heads)
        y = _attention(q, k, v, mask).transpose(1, 2).reshape(b, length, width // 3)
        return y if packing is None else packing.pack(y)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # torch's fused CPU kernel takes 3 to 5 times as long in bfloat16 at these lengths (torch 2.13; its backward pass above all).
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(3) @ v


def _embedding(vocab_size: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(vocab_size, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.wide(x)))
