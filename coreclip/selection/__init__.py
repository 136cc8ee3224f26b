"""Choosing the pairs that are worth training on: features and training signals in, a :class:`Subset` out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.selection.apricot import apricot_subset
    from coreclip.selection.compose import metadata_of, parse, select
    from coreclip.selection.coresets import craig, craig_of_gradients
    from coreclip.selection.deduplicate import semdedup
    from coreclip.selection.facility import facility_location
    from coreclip.selection.features import Features
    from coreclip.selection.geometry import herding, k_center
    from coreclip.selection.gradients import (
        FactoredGradients,
        clip_error_norms,
        clip_factored_gradients,
        clip_gradients,
        grand_proxy,
    )
    from coreclip.selection.matching import gradmatch, gradmatch_of_gradients
    from coreclip.selection.neighbors import neighbor_graph
    from coreclip.selection.registry import METHODS, Method
    from coreclip.selection.robust import crust
    from coreclip.selection.scores import clip_scores, clipscore, random_subset
    from coreclip.selection.sensitivity import StreamCoreset, lightweight_sample, merge_and_reduce, sensitivity_sample
    from coreclip.selection.signals import load_signals
    from coreclip.selection.subset import Subset, check_output

# No module has the name of something exported: importing it would put the module in that name's place.
_MODULES = {
    "METHODS": "registry",
    "FactoredGradients": "gradients",
    "Features": "features",
    "Method": "registry",
    "StreamCoreset": "sensitivity",
    "Subset": "subset",
    "apricot_subset": "apricot",
    "check_output": "subset",
    "clip_error_norms": "gradients",
    "clip_factored_gradients": "gradients",
    "clip_gradients": "gradients",
    "clip_scores": "scores",
    "clipscore": "scores",
    "craig": "coresets",
    "craig_of_gradients": "coresets",
    "crust": "robust",
    "facility_location": "facility",
    "gradmatch": "matching",
    "gradmatch_of_gradients": "matching",
    "grand_proxy": "gradients",
    "herding": "geometry",
    "k_center": "geometry",
    "lightweight_sample": "sensitivity",
    "load_signals": "signals",
    "merge_and_reduce": "sensitivity",
    "metadata_of": "compose",
    "neighbor_graph": "neighbors",
    "parse": "compose",
    "random_subset": "scores",
    "select": "compose",
    "semdedup": "deduplicate",
    "sensitivity_sample": "sensitivity",
}

__all__ = [
    "METHODS",
    "FactoredGradients",
    "Features",
    "Method",
    "StreamCoreset",
    "Subset",
    "apricot_subset",
    "check_output",
    "clip_error_norms",
    "clip_factored_gradients",
    "clip_gradients",
    "clip_scores",
    "clipscore",
    "craig",
    "craig_of_gradients",
    "crust",
    "facility_location",
    "gradmatch",
    "gradmatch_of_gradients",
    "grand_proxy",
    "herding",
    "k_center",
    "lightweight_sample",
    "load_signals",
    "merge_and_reduce",
    "metadata_of",
    "neighbor_graph",
    "parse",
    "random_subset",
    "select",
    "semdedup",
    "sensitivity_sample",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
