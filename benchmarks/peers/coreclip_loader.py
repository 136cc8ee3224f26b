"""Our loader with the tasks of ``ffcv_loader.py``, where each contestant needs a fresh process; runs in our environment."""

from collections.abc import Callable
from typing import Any

import torch  # noqa: F401  (before the count of memory begins, as for FFCV)
from serving import serve

from coreclip.pipeline import Dataset, make_loader


def prepare(task: str, dataset: str, size: int, low: float, threads: int, batch_size: int) -> Callable[[], Any]:
    def start() -> Any:
        return make_loader(
            Dataset(dataset), batch_size=batch_size, image_size=size, crop_scale=(low, 1.0), workers=threads
        )

    if task == "first_batch":
        batches = iter(start())
        next(batches)
        return lambda: 1 + sum(1 for _ in batches)
    return lambda: sum(len(batch) for batch in start())


if __name__ == "__main__":
    serve(prepare, "coreclip")
