"""Choosing the pairs that are worth training on: features and training signals in, a :class:`Subset` out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.selection.apricot import apricot_subset
    from coreclip.selection.compose import metadata_of, parse, select
    from coreclip.selection.coresets import craig, craig_of_gradients
    from coreclip.selection.deduplicate import semdedup
    from coreclip.selection.difficulty import (
        difficulty_scores,
        easy,
        el2n,
        el2n_scores,
        forgetting,
        forgetting_events,
        grand,
        grand_scores,
        hard,
        tracin,
        tracin_self_influence,
        vog,
        vog_scores,
    )
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
    from coreclip.selection.strata import ccs, ccs_budgets, classes, stratified
    from coreclip.selection.subset import Subset, check_output
    from coreclip.selection.uncertainty import (
        entropy,
        entropy_scores,
        least_confidence,
        least_confidence_scores,
        margin,
        margin_scores,
    )

# No module has the name of something exported: importing it would put the module in that name's place.
_MODULES = {
    "METHODS": "registry",
    "FactoredGradients": "gradients",
    "Features": "features",
    "Method": "registry",
    "StreamCoreset": "sensitivity",
    "Subset": "subset",
    "apricot_subset": "apricot",
    "ccs": "strata",
    "ccs_budgets": "strata",
    "check_output": "subset",
    "classes": "strata",
    "clip_error_norms": "gradients",
    "clip_factored_gradients": "gradients",
    "clip_gradients": "gradients",
    "clip_scores": "scores",
    "clipscore": "scores",
    "craig": "coresets",
    "craig_of_gradients": "coresets",
    "crust": "robust",
    "difficulty_scores": "difficulty",
    "easy": "difficulty",
    "el2n": "difficulty",
    "el2n_scores": "difficulty",
    "entropy": "uncertainty",
    "entropy_scores": "uncertainty",
    "facility_location": "facility",
    "forgetting": "difficulty",
    "forgetting_events": "difficulty",
    "gradmatch": "matching",
    "gradmatch_of_gradients": "matching",
    "grand": "difficulty",
    "grand_proxy": "gradients",
    "grand_scores": "difficulty",
    "hard": "difficulty",
    "herding": "geometry",
    "k_center": "geometry",
    "least_confidence": "uncertainty",
    "least_confidence_scores": "uncertainty",
    "lightweight_sample": "sensitivity",
    "load_signals": "signals",
    "margin": "uncertainty",
    "margin_scores": "uncertainty",
    "merge_and_reduce": "sensitivity",
    "metadata_of": "compose",
    "neighbor_graph": "neighbors",
    "parse": "compose",
    "random_subset": "scores",
    "select": "compose",
    "semdedup": "deduplicate",
    "sensitivity_sample": "sensitivity",
    "stratified": "strata",
    "tracin": "difficulty",
    "tracin_self_influence": "difficulty",
    "vog": "difficulty",
    "vog_scores": "difficulty",
}

__all__ = [
    "METHODS",
    "FactoredGradients",
    "Features",
    "Method",
    "StreamCoreset",
    "Subset",
    "apricot_subset",
    "ccs",
    "ccs_budgets",
    "check_output",
    "classes",
    "clip_error_norms",
    "clip_factored_gradients",
    "clip_gradients",
    "clip_scores",
    "clipscore",
    "craig",
    "craig_of_gradients",
    "crust",
    "difficulty_scores",
    "easy",
    "el2n",
    "el2n_scores",
    "entropy",
    "entropy_scores",
    "facility_location",
    "forgetting",
    "forgetting_events",
    "gradmatch",
    "gradmatch_of_gradients",
    "grand",
    "grand_proxy",
    "grand_scores",
    "hard",
    "herding",
    "k_center",
    "least_confidence",
    "least_confidence_scores",
    "lightweight_sample",
    "load_signals",
    "margin",
    "margin_scores",
    "merge_and_reduce",
    "metadata_of",
    "neighbor_graph",
    "parse",
    "random_subset",
    "select",
    "semdedup",
    "sensitivity_sample",
    "stratified",
    "tracin",
    "tracin_self_influence",
    "vog",
    "vog_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
