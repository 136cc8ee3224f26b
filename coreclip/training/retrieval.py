"""The images of a data set that fit a text best."""

from pathlib import Path
from typing import Any

import torch

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.training.clip_model import ClipModel
from coreclip.training.features import image_features


def search(
    run: str | Path, dataset: Dataset, query: str, *, top: int = 10, workers: int = 2, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Return the ``top`` images for a text.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    dataset : Dataset
    query : str
    top : int
        At most the data set's size many are returned.
    workers : int
        Decoding threads.
    device : {"cpu", "cuda", "auto"}

    Returns
    -------
    list of dict
        Best first, a tie by the lower index: ``rank`` from 1, ``index``, ``key``, ``score`` (cosine), ``captions``.

    Raises
    ------
    CoreclipError
        For an empty query, ``top`` below 1, or a run that can't be loaded.
    """
    if not query.strip():
        raise CoreclipError("the query is empty; it must say what to look for, e.g. 'a dog on a beach'")
    try:
        query.encode("utf-8")
    except UnicodeEncodeError:
        raise CoreclipError(
            f"the query {query!r} is not UTF-8 text; type it in a terminal that is set to UTF-8"
        ) from None
    if top < 1:
        raise CoreclipError(f"top = {top} is not allowed: at least 1 image is asked for")
    clip = ClipModel.load(run, device)
    text = clip.encode_text([query])[0]
    scores = torch.cat([rows @ text for _, rows in image_features(clip, dataset, workers=workers)]).cpu()
    order = torch.argsort(scores, descending=True, stable=True)[:top].tolist()
    return [
        {
            "rank": rank,
            "index": index,
            "key": str(dataset.keys[index]),
            "score": float(scores[index]),
            "captions": dataset.captions(index),
        }
        for rank, index in enumerate(order, start=1)
    ]
