"""A subset of a data set as a data set of its own, its stored bytes copied: for another machine, another loader, a release.

Training needs no copy, it takes the subset itself (``make_loader(subset=...)``).
"""

import os
import time
from typing import Any

import numpy as np

from coreclip.pipeline.assemble import SHARD_BYTES, Part, assemble, check_space, layout_of
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.publishing import derived_request, new_folder
from coreclip.pipeline.subsets import checked_subset


def materialise(
    dataset: str | os.PathLike[str] | Dataset,
    subset: Any,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write the pairs of a subset as a new data set.

    Image bytes, captions and tokens are copied as they are stored. The pairs keep the order of the data set, so that it
    is read once from front to end, and are numbered anew; ``pairs.parquet`` gets the columns ``source_index`` (the index
    in ``dataset``) and ``weight``. A column of the sources with such a name is called ``source_NAME`` then.

    Parameters
    ----------
    dataset : path or Dataset
    subset : int (k,), or an object with ``indices`` and perhaps ``weights`` and ``fingerprint``
        An index that comes twice is stored once, with the sum of its weights.
    out : path
        The folder to make; must not exist.
    shard_bytes : int
        Image bytes at which a shard ends.

    Returns
    -------
    dict
        ``pairs``, ``of`` (pairs of the data set), ``shards``, ``shards_copied`` (as whole files), ``bytes_out``,
        ``fingerprint``, ``seconds``.

    Raises
    ------
    CoreclipError
        For a subset of another data set, an ``out`` that exists, and a data set that is damaged.
    """
    start = time.monotonic()
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    indices, weights = checked_subset(subset, opened)
    layout = layout_of(opened, shard_bytes)
    distinct, place = np.unique(indices, return_inverse=True)
    columns = {"source_index": distinct, "weight": np.bincount(place, weights, len(distinct))}
    part = Part(dataset=opened, indices=distinct, columns=columns)
    with new_folder(out) as folder:
        check_space(out, [part])
        request = derived_request("materialise", [opened], subset=getattr(subset, "method", None))
        info = assemble(folder, [part], layout, request=request)
    return {
        "pairs": info["pairs"],
        "of": opened.n,
        "shards": len(info["shards"]),
        "shards_copied": info["copied"],
        "bytes_out": info["bytes_out"],
        "fingerprint": info["fingerprint"],
        "seconds": round(time.monotonic() - start, 3),
    }
