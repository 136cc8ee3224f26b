"""Another image size for a trained image tower: its learned positions are interpolated (Dosovitskiy et al. 2021, section 3.2).

As open_clip does it: bicubic with antialiasing, the first position, which is no place's, left as it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from coreclip.config import Config
from coreclip.training.model import Clip


def resize_positions(position: Tensor, side: int) -> Tensor:
    """Interpolate positions to another grid.

    Parameters
    ----------
    position : float32 (1 + rows * rows, width)
        The first one belongs to no place.
    side : int
        Rows of the new grid.

    Returns
    -------
    float32 (1 + side * side, width)
    """
    first, grid = position[:1], position[1:]
    rows = round(len(grid) ** 0.5)
    if rows == side:
        return position
    image = grid.T.reshape(1, -1, rows, rows)
    image = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, image.reshape(grid.shape[1], -1).T])


def with_image_size(model: Clip, config: Config, image_size: int) -> Clip:
    """Return a trained model for images of another size; all but the positions stays.

    Parameters
    ----------
    model : Clip
    config : Config
        Its own.
    image_size : int
        Pixels; one that the tower can have.
    """
    state = model.state_dict()
    vocab_size = model.text.embedding.num_embeddings  # type: ignore[union-attr]  # both text towers have one
    with torch.device("meta"):
        resized = Clip(config.model, image_size=image_size, vocab_size=vocab_size, end=model.end)  # type: ignore[arg-type]
    resized.logit_bias = model.logit_bias  # which only some models have
    for name, tensor in resized.state_dict().items():
        if name.startswith("image.") and name.endswith("position"):
            side = round((len(tensor) - 1) ** 0.5)
            state[name] = resize_positions(state[name], side).contiguous()
    resized.load_state_dict(state, assign=True)
    return resized.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
