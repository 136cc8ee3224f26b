"""A trained model for use: images and texts in, features out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Tokenizer
from coreclip.pipeline.image_files import Source, resize_images, see_images, shown_path
from coreclip.training.device import resolve_device
from coreclip.training.model import MAX_LOGIT_SCALE, Clip
from coreclip.training.store import load_run

_TEXTS_PER_BATCH = 1024
_SCORE_BYTES = 1 << 28  # of attention's scores, which a processor holds for all rows of a batch at once

Images = Tensor | np.ndarray | Sequence[Source]


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
    >>> model.similarity(["beach.jpg", "city.png"], ["a dog", "a street"])  # doctest: +SKIP
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
    def encode_image(self, images: Images) -> Tensor:
        """Embed images.

        Parameters
        ----------
        images : uint8 (b, 3, h, w), or a list of paths, bytes of image files or pixels uint8 (h, w, 3)
            RGB. What has another size than ``image_size`` is resized by the shorter side (bicubic) and cropped at the centre, as the
            loader does in evaluation; a file gives the very features that a data set made of it would have.

        Returns
        -------
        float32 (b, d), unit norm

        Raises
        ------
        CoreclipError
            For arrays of another shape or type, and for the first file that can't be read.
        """
        if isinstance(images, (str, bytes, os.PathLike)):
            raise CoreclipError("images is a single file; a list of them is needed; write [file]")
        if isinstance(images, (list, tuple)):
            return self._encode_sources(images)
        pixels = torch.as_tensor(images)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise CoreclipError(
                f"images are {pixels.dtype} {tuple(pixels.shape)}; they must be uint8 (b, 3, h, w); "
                "put the channels second, e.g. with permute(0, 3, 1, 2)"
            )
        return self._encode_pixels(pixels)

    def _encode_sources(self, sources: Sequence[Source]) -> Tensor:
        for i, source in enumerate(sources):
            if isinstance(source, np.ndarray) and (
                source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape
            ):
                raise CoreclipError(
                    f"image {i} of the list is {source.dtype} {source.shape}; pixels in a list must be uint8 (h, w, 3)"
                )
        features = torch.empty(len(sources), self.dim, device=self.network.mean.device)
        for seen in see_images(sources, self.image_size):
            if seen.failed:
                place, reason = seen.failed[0]
                source = sources[place]
                name = shown_path(source) if isinstance(source, (str, os.PathLike)) else f"image {place} of the list"
                raise CoreclipError(f"{name} can't be read: {reason}; leave it out or mend it")
            pixels = torch.from_numpy(seen.pixels).permute(0, 3, 1, 2)
            features[torch.from_numpy(seen.places)] = self._encode_pixels(pixels)
        return features

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        model, device = self.config.model, self.network.mean.device
        rows = max(len(pixels), 1)
        if model.image_tower == "vit" and device.type == "cpu":
            rows = _rows_at_a_time((self.image_size // model.patch_size) ** 2 + 1, model.resolved_image_heads)
        parts = [_resized(part, self.image_size).to(device) for part in pixels.split(rows)]
        return torch.cat([self.network.encode_image(part) for part in parts])

    def similarity(self, images: Images, texts: list[str]) -> Tensor:
        """Return the cosine of each image (as :meth:`encode_image` takes them) with each text, float32 (images, texts)."""
        return self.encode_image(images) @ self.encode_text(texts).T

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts with the run's tokenizer; returns float32 (len(texts), d), unit norm."""
        if isinstance(texts, str):
            raise CoreclipError(f"texts = {texts!r} is one string; a list of them is needed; write [{texts!r}]")
        features = torch.empty(len(texts), self.dim, device=self.network.mean.device)
        model, rows = self.config.model, _TEXTS_PER_BATCH
        if model.text_tower == "transformer" and features.device.type == "cpu":
            rows = min(rows, _rows_at_a_time(model.context, model.heads))
        for begin in range(0, len(texts), rows):
            some = texts[begin : begin + rows]
            tokens = torch.from_numpy(self.tokenizer.encode(some, model.context))
            features[begin : begin + len(some)] = self.network.encode_text(tokens.to(features.device))
        return features


def _rows_at_a_time(length: int, heads: int) -> int:
    """Return how many rows of so many tokens attend within :data:`_SCORE_BYTES`: scores, their softmax and what is between."""
    return max(_SCORE_BYTES // (3 * 4 * heads * length**2), 1)


def _resized(images: Tensor, size: int) -> Tensor:
    """Return uint8 (b, 3, size, size), by the loader's kernels, or on a GPU by torch's."""
    if images.shape[2:] == (size, size):
        return images
    if images.is_cuda:
        return _resized_by_torch(images, size)
    return torch.from_numpy(resize_images(images.permute(0, 2, 3, 1).numpy(), size)).permute(0, 3, 1, 2)


def _resized_by_torch(images: Tensor, size: int) -> Tensor:
    """Return what the loader's kernels do but for rounding, where the images lie."""
    shorter = min(images.shape[2:])
    height, width = (size if side == shorter else int(size * side / shorter) for side in images.shape[2:])
    resized = F.interpolate(images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[:, :, top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8)
