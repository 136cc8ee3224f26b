"""Batches to a compact CLIP: model, loss, training, features, metrics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coreclip.watch import Watch

if TYPE_CHECKING:
    from coreclip.training.attribution import checkpoint_signals, explain, influence
    from coreclip.training.class_softmax import classification_loss
    from coreclip.training.clip_model import ClipModel
    from coreclip.training.compile_report import compile_text, explain_compile
    from coreclip.training.device import resolve_device, torch_threads
    from coreclip.training.distillation import affinity_loss
    from coreclip.training.distributed import processes
    from coreclip.training.evaluation import evaluate
    from coreclip.training.export_formats import FORMATS
    from coreclip.training.exported_model import ExportedModel
    from coreclip.training.exporting import ExportReport, export
    from coreclip.training.features import EmbedReport, embed
    from coreclip.training.hf import save_hf
    from coreclip.training.jest import jest_rows
    from coreclip.training.loss import contrastive_loss
    from coreclip.training.model import Clip, build_model
    from coreclip.training.open_clip import save_open_clip
    from coreclip.training.outside import classify, rerank
    from coreclip.training.prompts import TEMPLATE_SETS, read_templates
    from coreclip.training.ranking import recall_at
    from coreclip.training.retrieval import search, search_all
    from coreclip.training.runtimes import compare_runtimes, runtimes_table
    from coreclip.training.sigmoid import sigmoid_loss
    from coreclip.training.steps import MeasuredStep, make_step
    from coreclip.training.store import config_of
    from coreclip.training.trainer import TrainReport, train
    from coreclip.training.triton import check_repository

_MODULES = {
    "Clip": "model",
    "ClipModel": "clip_model",
    "EmbedReport": "features",
    "ExportReport": "exporting",
    "ExportedModel": "exported_model",
    "FORMATS": "export_formats",
    "MeasuredStep": "steps",
    "TEMPLATE_SETS": "prompts",
    "TrainReport": "trainer",
    "affinity_loss": "distillation",
    "build_model": "model",
    "check_repository": "triton",
    "checkpoint_signals": "attribution",
    "classification_loss": "class_softmax",
    "classify": "outside",
    "compare_runtimes": "runtimes",
    "compile_text": "compile_report",
    "config_of": "store",
    "contrastive_loss": "loss",
    "embed": "features",
    "evaluate": "evaluation",
    "explain": "attribution",
    "explain_compile": "compile_report",
    "export": "exporting",
    "influence": "attribution",
    "jest_rows": "jest",
    "make_step": "steps",
    "processes": "distributed",
    "read_templates": "prompts",
    "recall_at": "ranking",
    "rerank": "outside",
    "resolve_device": "device",
    "torch_threads": "device",
    "runtimes_table": "runtimes",
    "save_hf": "hf",
    "save_open_clip": "open_clip",
    "search": "retrieval",
    "search_all": "retrieval",
    "sigmoid_loss": "sigmoid",
    "train": "trainer",
}

__all__ = [
    "FORMATS",
    "TEMPLATE_SETS",
    "Clip",
    "ClipModel",
    "EmbedReport",
    "ExportReport",
    "ExportedModel",
    "MeasuredStep",
    "TrainReport",
    "Watch",
    "affinity_loss",
    "build_model",
    "check_repository",
    "checkpoint_signals",
    "classification_loss",
    "classify",
    "compare_runtimes",
    "compile_text",
    "config_of",
    "contrastive_loss",
    "embed",
    "evaluate",
    "explain",
    "explain_compile",
    "export",
    "influence",
    "jest_rows",
    "make_step",
    "processes",
    "read_templates",
    "recall_at",
    "rerank",
    "resolve_device",
    "runtimes_table",
    "save_hf",
    "save_open_clip",
    "search",
    "search_all",
    "sigmoid_loss",
    "torch_threads",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
