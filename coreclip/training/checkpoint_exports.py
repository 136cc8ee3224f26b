"""Exports that other libraries load as their own checkpoints: Hugging Face's folder and open_clip's.

What is compared with the model, and what ``ExportedModel`` runs, is the checkpoint as coreclip reads it back.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coreclip.config import Config
from coreclip.pipeline import Tokenizer
from coreclip.training.export_job import TOWERS, ExportJob, Runner
from coreclip.training.hf import save_hf
from coreclip.training.model import Clip
from coreclip.training.open_clip import save_open_clip
from coreclip.training.pretrained import load_pretrained
from coreclip.training.torch_export import as_numpy

_PART = "checkpoint"


def write_hf(job: ExportJob) -> dict[str, Any]:
    """Write what ``transformers.CLIPModel.from_pretrained`` reads; as a format's ``write``."""
    return _write(job, save_hf, "model.safetensors", "hf:")


def write_open_clip(job: ExportJob) -> dict[str, Any]:
    """Write what ``open_clip.create_model("local-dir:OUT")`` reads; as a format's ``write``."""
    return _write(job, save_open_clip, "open_clip_model.safetensors", "open_clip:")


def open_checkpoint(folder: Path, description: dict[str, Any], threads: int | None) -> Runner:
    """Return the towers of an export; as a format's ``open``. Threads are torch's own."""
    network, _, _ = load_pretrained(description["scheme"] + str(folder))
    return {"image_tower": as_numpy(network.encode_image), "text_tower": as_numpy(network.encode_text)}


def _write(
    job: ExportJob, save: Callable[[Clip, Tokenizer, Config, Path], None], weights: str, scheme: str
) -> dict[str, Any]:
    clip = job.clip
    save(clip.network, clip.tokenizer, clip.config, job.folder / _PART)
    for path in (job.folder / _PART).iterdir():
        path.replace(job.folder / path.name)  # the tokenizer.json is the same
    (job.folder / _PART).rmdir()
    return {"files": dict.fromkeys(TOWERS, weights), "scheme": scheme}
