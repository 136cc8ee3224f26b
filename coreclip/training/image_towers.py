"""Image towers: standardised pixels in, one vector for each image out.

Convolutional towers win at small data, small ViTs come next ("Scaling (Down) CLIP", Li et al. 2024, arXiv 2404.08197). The small CNN's
shapes are chosen for training speed on a CPU: a stem with a stride, channels last, batch normalisation. The ResNet and the ViT are CLIP's
(Radford et al. 2021), so that its checkpoints fit them. Left out: dropout within the towers, stochastic depth.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreclip.config import ModelConfig
from coreclip.training.attention import Block, LayerNorm, Whole, normalised, run_blocks

STAGES = 4
RESNET_STRIDE = 32


def make_image_tower(model: ModelConfig, image_size: int) -> tuple[nn.Module, nn.Linear]:
    """Return the tower, and the projection of its vectors to the common space (with a bias where CLIP's has one)."""
    if model.image_tower == "cnn":
        return SmallCnn(model.image_width, model.image_depth, model.image_stride), _projection(
            model.image_width << (STAGES - 1), model, bias=False
        )
    if model.image_tower == "resnet":
        width = model.image_width * RESNET_STRIDE
        tower: nn.Module = ResNet(model.image_width, model.resnet_blocks, model.resolved_image_heads, image_size)
        return tower, _projection(width, model, bias=True)
    tower = Vit(
        model.image_width,
        model.image_depth,
        model.resolved_image_heads,
        model.patch_size,
        image_size,
        model.activation,
    )
    return tower, _projection(model.image_width, model, bias=False)


def _projection(width: int, model: ModelConfig, *, bias: bool) -> nn.Linear:
    projection = nn.Linear(width, model.embed_dim, bias=bias)
    nn.init.normal_(projection.weight, std=width**-0.5)
    if bias:
        nn.init.zeros_(projection.bias)
    return projection


class SmallCnn(nn.Module):
    """A small residual network (He et al. 2016): a stem of stride 4 (7x7) or 2 (3x3), four stages, global average."""

    def __init__(self, width: int, depth: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2 * stride - 1, stride=stride, padding=stride - 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        previous = width
        for stage, out in enumerate(width << stage for stage in range(STAGES)):
            for block in range(depth):
                blocks.append(Residual(previous, out, stride=2 if stage and not block else 1))
                previous = out
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.norm(self.stem(x)), inplace=True)).mean((2, 3))


class Residual(nn.Module):
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


class ResNet(nn.Module):
    """CLIP's ResNet: a stem of three 3x3 convolutions, average pooling in place of strides, and a pooling by attention at the end.

    Parameters
    ----------
    width : int
        Channels after the stem; the last stage has 32 times as many.
    blocks : (int, int, int, int)
        Bottlenecks of each stage.
    heads : int
        Of the pooling.
    image_size : int
        A multiple of 32: each of the last stage's places has a position.
    """

    def __init__(self, width: int, blocks: tuple[int, int, int, int], heads: int, image_size: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        previous = width
        for number, count in enumerate(blocks):
            planes = width << number
            stage = [_Bottleneck(previous, planes, stride=2 if number else 1)]
            stage += [_Bottleneck(4 * planes, planes, stride=1) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*stage))
            previous = 4 * planes
        self.pool = _AttentionPool(width * RESNET_STRIDE, heads, image_size // RESNET_STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            x = F.relu(norm(conv(x)), inplace=True)
        x = F.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
        return self.pool(x)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; both are averaged where the block halves the side."""

    def __init__(self, width: int, planes: int, stride: int) -> None:
        super().__init__()
        out = 4 * planes
        self.stride = stride
        self.conv1 = nn.Conv2d(width, planes, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        nn.init.zeros_(self.norm3.weight)  # each block starts as its shortcut
        self.has_shortcut = stride > 1 or width != out
        if self.has_shortcut:
            self.shortcut = nn.Conv2d(width, out, 1, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        if self.has_shortcut:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(self.norm3(self.conv3(y)) + x, inplace=True)


class _AttentionPool(nn.Module):
    """One query, the mean of all places, attends to them and to itself. The projection after it is the model's own."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(side * side + 1, width) * width**-0.5)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        for layer in (self.q, self.kv):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (b, places, width)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.position
        return Whole().attend_read(self.q(x[:, 0]), self.kv(x), self.heads)


class Vit(nn.Module):
    """CLIP's Vision Transformer: a class token before the patches, normalised before and after the blocks."""

    def __init__(self, width: int, depth: int, heads: int, patch_size: int, image_size: int, activation: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.first = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.randn((image_size // patch_size) ** 2 + 1, width) * width**-0.5)
        self.norm_before = LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, depth, activation) for _ in range(depth))
        self.norm = LayerNorm(width)

        self.is_compiled = False

    def forward(self, x: Tensor) -> Tensor:
        make_tokens = _compiled_tokens() if self.is_compiled else _tokens
        weights = (self.patches.weight, self.first, self.position, self.norm_before.weight, self.norm_before.bias)
        return self.norm(run_blocks(self.blocks, make_tokens(x, *weights), Whole()))


def _tokens(x: Tensor, patches: Tensor, first: Tensor, position: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return what a ViT's blocks are given, (b, 1 + patches, width), of pixels (b, 3, size, size)."""
    b, channels, height, width = x.shape
    side = patches.shape[2]
    # Patches do not overlap: cut out, they are the rows of a matrix product.
    x = x.view(b, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    x = F.linear(x.reshape(b, -1, channels * side * side), patches.flatten(1))
    x = torch.cat([first.to(x.dtype).expand(b, 1, -1), x], dim=1) + position.to(x.dtype)
    return normalised(x, gain, bias)


@cache
def _compiled_tokens() -> Callable[..., Tensor]:
    return torch.compile(_tokens)
