"""A compact CLIP: two towers, projections to a common space, a learned temperature (Radford et al. 2021)."""

import math
from collections.abc import Callable
from functools import cache
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreclip.config import Config, ModelConfig
from coreclip.pipeline import Tokenizer
from coreclip.training.image_towers import make_image_tower
from coreclip.training.sigmoid import first_bias
from coreclip.training.text_towers import caption_lengths, make_text_tower

END = 2  # of coreclip's own tokenizers
MAX_LOGIT_SCALE = math.log(100)
_MOMENTUM = 0.1  # of batch normalisation's running statistics
# ImageNet's mean and standard deviation per channel, in units of a uint8.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Clip(nn.Module):
    """Image tower, text tower, linear projections to a common space, learned temperature.

    Parameters
    ----------
    model : ModelConfig
    image_size : int
        Side of the images, pixels.
    vocab_size : int
        Of the tokenizer.
    end : int
        The tokenizer's end token.
    temperature : float
        First value; ``logit_scale`` starts at ``ln(1 / temperature)``.

    Attributes
    ----------
    logit_scale : float32 ()
        Natural logarithm of the factor on the cosine similarities, at most ``ln 100``.
    logit_bias : float32 () or None
        Is added to the scaled cosines by the sigmoid loss; None, and not in the state, for other objectives.
    dropout : float
        Share of the channels of both towers' vectors that are left out before the projections while training.
    """

    mean: Tensor
    std: Tensor
    logit_bias: nn.Parameter | None

    def __init__(
        self, model: ModelConfig, *, image_size: int, vocab_size: int, end: int = END, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.image, self.image_projection = make_image_tower(model, image_size)
        self.text = make_text_tower(model, vocab_size)
        self.text_projection = nn.Linear(model.text_width, model.embed_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=model.text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.register_parameter("logit_bias", None)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.context, self.end = model.context, end
        self.is_compiled, self.dropout = False, 0.0
        self._frozen = ""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def freeze(self, tower: str) -> None:
        """Leave a tower ("image" or "text") with its projection as it is: no gradients, and no new statistics of batches."""
        self._frozen = tower
        for module in (getattr(self, tower), getattr(self, f"{tower}_projection")):
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As of any module; a frozen tower stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            getattr(self, self._frozen).eval()
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed uint8 images (b, 3, size, size) as float32 (b, d) of unit norm."""
        return F.normalize(self.image_projection(self._dropped(self.image(self.pixels(images)))).float(), dim=1)

    def encode_text(self, tokens: Tensor, lengths: Tensor | None = None, *, packed: bool = True) -> Tensor:
        """Embed token rows, int64 (b, length), as float32 (b, d) of unit norm.

        A caption ends with its first end token; what comes after is padding. One longer than ``context`` is cut, and ends with the
        end token then as all others do.

        Parameters
        ----------
        tokens : int64 (b, length)
        lengths : int64 (b,), on the CPU, optional
            Of the captions, as :func:`coreclip.training.text_towers.caption_lengths` counts them; where they are known, a
            device is not waited for.
        packed : bool
            Whether padding is cut away, which makes shapes depend on values; exports do without.
        """
        hidden = self._dropped(self.text_hidden(tokens, lengths, packed=packed))
        return F.normalize(self.text_projection(hidden).float(), dim=1)

    def _dropped(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.dropout) if self.training and self.dropout else vectors

    def pixels(self, images: Tensor) -> Tensor:
        """Return uint8 images (b, 3, size, size) as the image tower sees them: float, standardised per channel."""
        standardise = _compiled_standardised() if self.is_compiled else _standardised
        return standardise(images, self.mean, self.std)

    def text_hidden(self, tokens: Tensor, lengths: Tensor | None = None, *, packed: bool = True) -> Tensor:
        """Return what the text's projection is given of token rows, (b, text_width)."""
        if lengths is None:
            lengths = caption_lengths(tokens, self.end)
        if tokens.shape[1] > self.context:
            tokens = tokens[:, : self.context].clone()
            cut = lengths.to(tokens.device) > self.context
            tokens[:, -1] = torch.where(cut, self.end, tokens[:, -1])
            lengths = lengths.clamp(max=self.context)
        if packed:
            lengths = lengths.cpu()
            tokens = tokens[:, : int(lengths.max()) if len(lengths) else 1]
        return self.text(tokens, lengths, packed=packed)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Bring ``logit_scale`` back to the bound that it is read with: beyond it there is no gradient."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return image features, text features (both float32 (b, d), unit norm) and the clamped ``logit_scale``."""
        texts = self.encode_text(tokens, lengths)
        return self.encode_image(images), texts, self.logit_scale.clamp(max=MAX_LOGIT_SCALE)


def _standardised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return images.to(mean.dtype, memory_format=torch.channels_last).sub_(mean).div_(std)


@cache
def _compiled_standardised() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_standardised)


def build_model(config: Config, *, vocab_size: int, seed: int, end: int = END) -> Clip:
    """Return a freshly initialised model, a pure function of the arguments (torch's global generator is left as it was)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Clip(
            config.model,
            image_size=config.data.image_size,
            vocab_size=vocab_size,
            end=end,
            temperature=config.train.temperature,
        )
    fit_to_training(model, config)
    return model


def fit_to_training(model: Clip, config: Config) -> None:
    """Give the model what its training asks for: its share of dropout, and the bias of the sigmoid loss where it has none yet;
    other objectives have no bias; a temperature within its bound."""
    model.limit_scale()
    model.dropout = config.train.dropout
    if config.train.objective != "sigmoid":
        model.logit_bias = None
    elif model.logit_bias is None:
        model.logit_bias = nn.Parameter(torch.tensor(first_bias(config.data.batch_size)))


def new_model(config: Config, tokenizer: Tokenizer) -> Clip:
    """Return the model that a run with this configuration and tokenizer starts from."""
    return build_model(config, vocab_size=tokenizer.vocab_size, end=tokenizer.end, seed=config.train.seed)


def set_statistics_share(model: Clip, share: float) -> None:
    """Let a batch count in the running statistics by its share of a whole one: a last batch of a few rows says little."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _MOMENTUM * min(share, 1.0)
