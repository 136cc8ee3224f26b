"""Small pictures of a data set, for what looks at pixels and needs few of them, such as the search for copies."""

import numpy as np

from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.loader import make_loader
from coreclip.progress import Progress

_BATCH = 512


def thumbnails(dataset: Dataset, *, size: int = 24, workers: int = 2) -> np.ndarray:
    """Return every pair's picture in small: the shorter side to ``size`` (bicubic), the square at the centre.

    Parameters
    ----------
    dataset : Dataset
    size : int
        Side, pixels.
    workers : int
        Decoding threads.

    Returns
    -------
    uint8 (n, size, size, 3)
        RGB, by index; 1.7 kB a pair at 24 pixels.

    Raises
    ------
    CoreclipError
        For an image that can't be decoded.
    """
    result = np.empty((dataset.n, size, size, 3), np.uint8)
    loader = make_loader(dataset, batch_size=_BATCH, image_size=size, train=False, workers=workers)
    with Progress(dataset.n, "shrinking images") as progress:
        for batch in loader:
            batch.check_decoded(dataset)
            result[batch.index.numpy()] = batch.images.permute(0, 2, 3, 1).numpy()
            progress.advance(len(batch))
    return result
