"""Words that are left out of captions while training: a text tower of few captions learns them by heart otherwise.

After word dropout (Iyyer et al. 2015, "Deep averaging networks"), with the words' places closed up, so that any text tower can read what
is left. Targets do not know of it: captions that were equal stay equal. Left out: masks in place of words, and words of other captions.
"""

import numpy as np
import torch
from torch import Tensor

from coreclip.randomness import uniform
from coreclip.training import streams
from coreclip.training.device import send


def drop_words(
    tokens: Tensor, lengths: Tensor, index: np.ndarray, *, share: float, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Leave each word of each caption out with probability ``share``; a caption that would lose all of them keeps all.

    Parameters
    ----------
    tokens : int64 (b, length)
        On any device. The first and the last token of a caption are no words, and stay.
    lengths : int64 (b,), on the CPU
        As :func:`coreclip.training.text_towers.caption_lengths` counts them.
    index : int64 (b,)
        Which pairs they are: what a caption loses is a function of (seed, step, pair).
    share : float
        0 to below 1.
    seed, step : int

    Returns
    -------
    tokens : int64 (b, length)
        What came after the caption's end, and what was left out, is padding now.
    lengths : int64 (b,), on the CPU
    """
    if share == 0:
        return tokens, lengths
    place = np.arange(tokens.shape[1])
    is_word = (place > 0) & (place < lengths.numpy()[:, None] - 1)
    is_dropped = is_word & (uniform(seed, step, index[:, None] * len(place) + place, streams.WORDS) < share)
    is_dropped[(is_dropped == is_word).all(1)] = False
    order = torch.from_numpy(np.argsort(is_dropped, axis=1, kind="stable"))
    left = lengths - torch.from_numpy(is_dropped.sum(1))
    return tokens.gather(1, send(order, tokens.device)), left
