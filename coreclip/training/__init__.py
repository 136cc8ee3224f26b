"""Batches to a compact CLIP: model, loss, training, features, metrics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.training.attribution import checkpoint_signals, explain, influence
    from coreclip.training.clip_model import ClipModel
    from coreclip.training.device import resolve_device
    from coreclip.training.evaluation import evaluate, recall_at
    from coreclip.training.features import EmbedReport, embed
    from coreclip.training.hf import save_hf
    from coreclip.training.jest import jest_rows
    from coreclip.training.loss import contrastive_loss
    from coreclip.training.model import Clip, build_model
    from coreclip.training.open_clip import save_open_clip
    from coreclip.training.retrieval import search
    from coreclip.training.steps import MeasuredStep, make_step
    from coreclip.training.store import config_of
    from coreclip.training.trainer import TrainReport, train
    from coreclip.training.watch import Watch

_MODULES = {
    "Clip": "model",
    "ClipModel": "clip_model",
    "EmbedReport": "features",
    "MeasuredStep": "steps",
    "TrainReport": "trainer",
    "Watch": "watch",
    "build_model": "model",
    "checkpoint_signals": "attribution",
    "config_of": "store",
    "contrastive_loss": "loss",
    "embed": "features",
    "evaluate": "evaluation",
    "explain": "attribution",
    "influence": "attribution",
    "jest_rows": "jest",
    "make_step": "steps",
    "recall_at": "evaluation",
    "resolve_device": "device",
    "save_hf": "hf",
    "save_open_clip": "open_clip",
    "search": "retrieval",
    "train": "trainer",
}

__all__ = [
    "Clip",
    "ClipModel",
    "EmbedReport",
    "MeasuredStep",
    "TrainReport",
    "Watch",
    "build_model",
    "checkpoint_signals",
    "config_of",
    "contrastive_loss",
    "embed",
    "evaluate",
    "explain",
    "influence",
    "jest_rows",
    "make_step",
    "recall_at",
    "resolve_device",
    "save_hf",
    "save_open_clip",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
