"""The two towers as ``torch.export`` programs (``.pt2``), which torch alone loads and runs.

A program holds ATen operations and weights, and no class of coreclip. On a GPU: ``torch.export.passes.move_to_device_pass``.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.training.export_job import TOWERS, ExportJob, Runner
from coreclip.training.towers_for_export import exported_program, make_tower


def write_torch_export(job: ExportJob) -> dict[str, Any]:
    """Write ``image_tower.pt2`` and ``text_tower.pt2``; as a format's ``write``."""
    files = {tower: f"{tower}.pt2" for tower in TOWERS}
    for tower, file in files.items():
        example = job.example(tower)
        dtype = torch.float16 if job.precision == "fp16" else torch.float32
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor found")  # of weights on a GPU
            torch.export.save(exported_program(make_tower(tower, job.clip.network, dtype), example), job.folder / file)
    return {"files": files}


def open_torch_export(folder: Path, description: dict[str, Any], threads: int | None) -> Runner:
    """Return the towers of an export; as a format's ``open``. Threads are torch's own."""
    return {tower: as_numpy(torch.export.load(folder / description["files"][tower]).module()) for tower in TOWERS}


def as_numpy(module: Any) -> Any:
    """Return a module of tensors as a callable of arrays, without gradients."""

    @torch.inference_mode()
    def run(rows: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(rows)).numpy()

    return run
