"""Exact neighbours by torch, for a GPU: each row's t largest cosines, by products of blocks and a running top-t.

Left out: everything after the graph, which is sparse and stays on the processor.
"""

from typing import TYPE_CHECKING

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.progress import Progress

if TYPE_CHECKING:
    import torch

_ROWS, _COLUMNS = 4096, 65_536  # a block of float32 products takes 1 GiB


def device_graph(x: np.ndarray, t: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the t most similar rows of each row, itself first.

    Parameters
    ----------
    x : float32 (n, d)
        Unit rows; they must fit on the device.
    t : int
        At least 1; cut to what there is.
    device : str
        Of torch, as ``"cuda"``.

    Returns
    -------
    indices : int32 (n, t)
        Most similar first. Of equal cosines the lower index comes first, but which of them the last places go to is torch's
        choice.
    values : float32 (n, t)
        In full float32: no TF32.

    Raises
    ------
    CoreclipError
        For a device that torch does not have here.
    """
    import torch

    try:
        rows = torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CoreclipError(
            f"device = {device!r} can't be used ({reason}); leave it out to use the processor"
        ) from None
    n = len(x)
    others = min(t, n) - 1
    indices, values = np.empty((n, others + 1), np.int32), np.empty((n, others + 1), np.float32)
    indices[:, 0], values[:, 0] = np.arange(n), 1.0
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with Progress(n, "neighbours", "pairs") as progress, torch.inference_mode():
            for start in range(0, n if others else 0, _ROWS):
                stop = min(start + _ROWS, n)
                best, names = _nearest_others(rows, start, stop, others)
                order = np.lexsort((names, -best), axis=1)
                values[start:stop, 1:] = np.take_along_axis(best, order, 1)
                indices[start:stop, 1:] = np.take_along_axis(names, order, 1)
                progress.advance(stop - start)
    finally:
        torch.set_float32_matmul_precision(precision)
    return indices, values


def _nearest_others(rows: "torch.Tensor", start: int, stop: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    mine = rows[start:stop]
    best = torch.full((stop - start, 0), 0.0, device=rows.device)
    names = torch.zeros((stop - start, 0), dtype=torch.int64, device=rows.device)
    for left in range(0, len(rows), _COLUMNS):
        right = min(left + _COLUMNS, len(rows))
        cosines = (mine @ rows[left:right].T).clamp_(0, 1)
        own = torch.arange(max(start, left), min(stop, right), device=rows.device)
        cosines[own - start, own - left] = -1.0
        best = torch.cat([best, cosines], dim=1)
        names = torch.cat([names, torch.arange(left, right, device=rows.device).expand(stop - start, -1)], dim=1)
        best, places = best.topk(min(t, best.shape[1]), dim=1)
        names = names.gather(1, places)
    return best.cpu().numpy(), names.cpu().numpy()
