"""Choosing the pairs that are worth training on: features and training signals in, a :class:`Subset` out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.selection.apricot import apricot_subset
    from coreclip.selection.compose import metadata_of, parse, select
    from coreclip.selection.coresets import craig
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
    from coreclip.selection.gradients import clip_gradients
    from coreclip.selection.neighbors import neighbor_graph
    from coreclip.selection.registry import METHODS, Method
    from coreclip.selection.scores import clip_scores, clipscore, random_subset
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
    "Features": "features",
    "METHODS": "registry",
    "check_output": "subset",
    "Method": "registry",
    "Subset": "subset",
    "apricot_subset": "apricot",
    "ccs": "strata",
    "ccs_budgets": "strata",
    "classes": "strata",
    "clip_gradients": "gradients",
    "clip_scores": "scores",
    "clipscore": "scores",
    "craig": "coresets",
    "difficulty_scores": "difficulty",
    "easy": "difficulty",
    "el2n": "difficulty",
    "el2n_scores": "difficulty",
    "entropy": "uncertainty",
    "entropy_scores": "uncertainty",
    "facility_location": "facility",
    "forgetting": "difficulty",
    "forgetting_events": "difficulty",
    "grand": "difficulty",
    "grand_scores": "difficulty",
    "hard": "difficulty",
    "least_confidence": "uncertainty",
    "least_confidence_scores": "uncertainty",
    "load_signals": "signals",
    "margin": "uncertainty",
    "margin_scores": "uncertainty",
    "metadata_of": "compose",
    "neighbor_graph": "neighbors",
    "parse": "compose",
    "random_subset": "scores",
    "select": "compose",
    "semdedup": "deduplicate",
    "stratified": "strata",
    "tracin": "difficulty",
    "tracin_self_influence": "difficulty",
    "vog": "difficulty",
    "vog_scores": "difficulty",
}

__all__ = [
    "METHODS",
    "Features",
    "Method",
    "Subset",
    "apricot_subset",
    "ccs",
    "ccs_budgets",
    "check_output",
    "classes",
    "clip_gradients",
    "clip_scores",
    "clipscore",
    "craig",
    "difficulty_scores",
    "easy",
    "el2n",
    "el2n_scores",
    "entropy",
    "entropy_scores",
    "facility_location",
    "forgetting",
    "forgetting_events",
    "grand",
    "grand_scores",
    "hard",
    "least_confidence",
    "least_confidence_scores",
    "load_signals",
    "margin",
    "margin_scores",
    "metadata_of",
    "neighbor_graph",
    "parse",
    "random_subset",
    "select",
    "semdedup",
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
