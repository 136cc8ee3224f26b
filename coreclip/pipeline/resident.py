"""Decoded images that stay on a device as one tensor, as the CIFAR speed runs keep them: a batch is an index and a crop.

After ``airbench`` (Jordan, 2024) for the shifts; random resized crops are matrix products with the weights that the
decoder's own resize uses, so that both show the same picture. Left out: colours, which only the decoder changes.
"""

from typing import TYPE_CHECKING

import numpy as np

from coreclip.pipeline import streams
from coreclip.pipeline.feeds import Images
from coreclip.randomness import uniform

if TYPE_CHECKING:
    import torch

SHIFT = 8
"""Shifted images move by up to 1 / SHIFT of their side."""


class DevicePixels:
    """Square images of one size on a device.

    Parameters
    ----------
    images : Images
        Raw pixels in memory, see :func:`coreclip.pipeline.feeds.resident_images`.
    device : torch.device

    Attributes
    ----------
    images : Images
        Their rows; the pixels are only on the device.
    pixels : uint8 torch (m, 3, side, side)
    valid : bool (m,)
    """

    def __init__(self, images: Images, device: "torch.device") -> None:
        import torch

        pixels = images.owner
        assert isinstance(pixels, np.ndarray)
        self.valid = images.n_bytes > 0
        self.pixels = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()
        images.owner = self.pixels
        self.images = images

    def exact(self, rows: np.ndarray) -> "torch.Tensor":
        """Return images as they are, uint8 torch (b, 3, side, side); channels last in memory, as all that follow."""
        return self._of(rows).contiguous(memory_format=_channels_last())

    def shifted(self, rows: np.ndarray, keys: np.ndarray, seed: int, epoch: int, flip: float) -> "torch.Tensor":
        """Return images moved by whole pixels across and down, the free border filled by reflection.

        Parameters
        ----------
        rows, keys : int64 (b,)
            Which images, and the keys of their random numbers.
        seed, epoch : int
        flip : float
            Probability that an image is mirrored, after the shift.

        Returns
        -------
        uint8 torch (b, 3, side, side)
        """
        import torch

        side = self.pixels.shape[2]
        most = side // SHIFT
        x, y = (
            np.arange(side)
            + (uniform(seed, epoch, keys, streams.SHIFT + axis) * (2 * most + 1)).astype(np.int64)[:, None]
            - most
            for axis in (0, 1)
        )  # (b, side), -most .. side - 1 + most
        mirrored = uniform(seed, epoch, keys, streams.FLIP) < flip
        x[mirrored] = x[mirrored, ::-1]
        x, y = (side - 1 - np.abs(side - 1 - np.abs(where)) for where in (x, y))
        device = self.pixels.device
        at = [torch.from_numpy(where).to(device) for where in (rows, y, x)]
        return self.pixels.permute(0, 2, 3, 1)[at[0][:, None, None], at[1][:, :, None], at[2][:, None, :]].permute(
            0, 3, 1, 2
        )

    def resized(self, rows: np.ndarray, boxes: np.ndarray, size: int) -> "torch.Tensor":
        """Return crops of images, resized with antialiased bicubic weights.

        Parameters
        ----------
        rows : int64 (b,)
        boxes : float64 (b, 4)
            left, top, right, bottom, pixels; mirrored where right is below left.
        size : int
            Side of the output.

        Returns
        -------
        uint8 torch (b, 3, size, size)
        """
        import torch

        side, device = self.pixels.shape[2], self.pixels.device
        edges = torch.from_numpy(boxes.astype(np.float32)).to(device)
        across = _weights(torch.minimum(edges[:, 0], edges[:, 2]), torch.maximum(edges[:, 0], edges[:, 2]), side, size)
        mirrored = (edges[:, 2] < edges[:, 0])[:, None, None]
        across = torch.where(mirrored, across.flip(1), across)
        down = _weights(edges[:, 1], edges[:, 3], side, size)
        images = self._of(rows).float()  # (b, 3, side, side)
        images = down[:, None] @ images @ across.transpose(1, 2)[:, None]  # (b, 3, size, size)
        images = images.add_(0.5).clamp_(0, 255).to(torch.uint8)
        return images.contiguous(memory_format=_channels_last())

    def _of(self, rows: np.ndarray) -> "torch.Tensor":
        import torch

        return self.pixels[torch.from_numpy(rows).to(self.pixels.device)]


def _channels_last() -> "torch.memory_format":
    import torch

    return torch.channels_last


def _weights(low: "torch.Tensor", high: "torch.Tensor", n_in: int, n_out: int) -> "torch.Tensor":
    """Return the matrices float32 (b, n_out, n_in) that resize ``low`` .. ``high`` (float32 (b,)) of an axis.

    See :func:`coreclip.pipeline.resize.resize_weights`.
    """
    import torch

    scale = ((high - low) / n_out)[:, None]  # (b, 1)
    stretch = scale.clamp(min=1.0)[:, :, None]
    centre = (low[:, None] + (torch.arange(n_out, device=low.device) + 0.5) * scale)[:, :, None]  # (b, n_out, 1)
    x = ((torch.arange(n_in, device=low.device) + 0.5 - centre) / stretch).abs_()  # (b, n_out, n_in)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
    return weights / weights.sum(2, keepdim=True)
