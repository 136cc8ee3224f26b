"""Batches to a compact CLIP: model, loss, training, features, metrics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.training.attribution import checkpoint_signals, explain, influence
    from coreclip.training.classification import classification_loss
    from coreclip.training.clip_model import ClipModel
    from coreclip.training.device import resolve_device
    from coreclip.training.distillation import affinity_loss
    from coreclip.training.distributed import processes
    from coreclip.training.evaluation import evaluate, recall_at
    from coreclip.training.features import EmbedReport, embed
    from coreclip.training.jest import jest_rows
    from coreclip.training.loss import contrastive_loss
    from coreclip.training.model import Clip, build_model
    from coreclip.training.retrieval import search
    from coreclip.training.sigmoid import sigmoid_loss
    from coreclip.training.steps import MeasuredStep, make_step
    from coreclip.training.trainer import TrainReport, train
    from coreclip.training.watch import Watch

_MODULES = {
    "Clip": "model",
    "ClipModel": "clip_model",
    "EmbedReport": "features",
    "MeasuredStep": "steps",
    "TrainReport": "trainer",
    "Watch": "watch",
    "affinity_loss": "distillation",
    "build_model": "model",
    "checkpoint_signals": "attribution",
    "classification_loss": "classification",
    "contrastive_loss": "loss",
    "embed": "features",
    "evaluate": "evaluation",
    "explain": "attribution",
    "influence": "attribution",
    "jest_rows": "jest",
    "make_step": "steps",
    "processes": "distributed",
    "recall_at": "evaluation",
    "resolve_device": "device",
    "search": "retrieval",
    "sigmoid_loss": "sigmoid",
    "train": "trainer",
}

__all__ = [
    "Clip",
    "ClipModel",
    "EmbedReport",
    "MeasuredStep",
    "TrainReport",
    "Watch",
    "affinity_loss",
    "build_model",
    "checkpoint_signals",
    "classification_loss",
    "contrastive_loss",
    "embed",
    "evaluate",
    "explain",
    "influence",
    "jest_rows",
    "make_step",
    "processes",
    "recall_at",
    "resolve_device",
    "search",
    "sigmoid_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
