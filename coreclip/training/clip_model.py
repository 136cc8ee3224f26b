"""A trained model for use: images and texts in, features out."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Tokenizer
from coreclip.training.device import resolve_device
from coreclip.training.model import MAX_LOGIT_SCALE, Clip
from coreclip.training.store import load_run

_TEXTS_PER_BATCH = 1024


class ClipModel:
    """The two towers of a run with its own tokenizer, on one device; made by :meth:`load`.

    Attributes
    ----------
    network : Clip
    tokenizer : Tokenizer
    config : Config
        Of the run.
    image_size : int
        Side of the images that the image tower sees, pixels.
    logit_scale : float
        Natural logarithm of the factor on the cosine similarities.

    Examples
    --------
    >>> model = ClipModel.load("run")  # doctest: +SKIP
    >>> model.encode_image(images) @ model.encode_text(["a dog"]).T  # doctest: +SKIP
    """

    def __init__(self, network: Clip, tokenizer: Tokenizer, config: Config) -> None:
        self.network, self.tokenizer, self.config = network, tokenizer, config
        self.image_size = config.data.image_size
        self.dim = config.model.embed_dim
        self.logit_scale = min(network.logit_scale.item(), MAX_LOGIT_SCALE)

    @classmethod
    def load(cls, run: str | Path, device: str = "cpu") -> Self:
        """Read a finished run, or a checkpoint of another tool: ``hf:FOLDER``, ``open_clip:FILE``.

        Raises
        ------
        CoreclipError
            For a run that is missing, unfinished or damaged, or a device that is not there.
        """
        return cls(*load_run(run, resolve_device(device)))

    @torch.inference_mode()
    def encode_image(self, images: Tensor | np.ndarray) -> Tensor:
        """Embed images.

        Parameters
        ----------
        images : uint8 (b, 3, h, w)
            RGB. Other sizes than ``image_size`` are resized by the shorter side and cropped at the centre.

        Returns
        -------
        float32 (b, d), unit norm
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise CoreclipError(
                f"images are {images.dtype} {tuple(images.shape)}; they must be uint8 (b, 3, h, w); "
                "put the channels second, e.g. with permute(0, 3, 1, 2)"
            )
        images = images.to(self.network.mean.device)
        return self.network.encode_image(_resize(images, self.image_size))

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts with the run's tokenizer; returns float32 (len(texts), d), unit norm."""
        if isinstance(texts, str):
            raise CoreclipError(f"texts = {texts!r} is one string; a list of them is needed; write [{texts!r}]")
        features = torch.empty(len(texts), self.dim, device=self.network.mean.device)
        for begin in range(0, len(texts), _TEXTS_PER_BATCH):
            some = texts[begin : begin + _TEXTS_PER_BATCH]
            tokens = torch.from_numpy(self.tokenizer.encode(some, self.config.model.context))
            features[begin : begin + len(some)] = self.network.encode_text(tokens.to(features.device))
        return features


def _resize(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[2:]
    if height == width == size:
        return images
    # Crop to the centre square first: the same pixels as resizing first, with less work.
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side].float()
    resized = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
