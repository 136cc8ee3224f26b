"""Choosing the pairs that are worth training on: features and training signals in, a :class:`Subset` out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.selection.apricot import apricot_subset
    from coreclip.selection.basics import basic_rules, datacomp_basic
    from coreclip.selection.bounding import GainBounds, Pruned, gain_bounds, prune_by_bounds
    from coreclip.selection.compose import select
    from coreclip.selection.contrast import negclip_scores, negcliploss
    from coreclip.selection.coresets import craig, craig_of_gradients
    from coreclip.selection.covariance import clipcov
    from coreclip.selection.datacomp import DatacompPool, datacomp_baseline, is_datacomp, read_datacomp
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
    from coreclip.selection.expression import metadata_of, needs_features, parse
    from coreclip.selection.facility import facility_location, facility_objective
    from coreclip.selection.features import Features
    from coreclip.selection.geometry import herding, k_center
    from coreclip.selection.gradients import (
        FactoredGradients,
        clip_error_norms,
        clip_factored_gradients,
        clip_gradients,
        grand_proxy,
    )
    from coreclip.selection.interchange import export_subset, form_of, import_subset
    from coreclip.selection.lookalikes import copies
    from coreclip.selection.matching import gradmatch, gradmatch_of_gradients
    from coreclip.selection.neighbors import neighbor_graph
    from coreclip.selection.partitioned import PartPicks, greedi, select_part
    from coreclip.selection.prune import d4, density
    from coreclip.selection.registry import METHODS, Method
    from coreclip.selection.robust import crust
    from coreclip.selection.scores import clip_scores, clipscore, random_subset
    from coreclip.selection.sensitivity import StreamCoreset, lightweight_sample, merge_and_reduce, sensitivity_sample
    from coreclip.selection.signals import checkpoint_signals_of, load_signals
    from coreclip.selection.strata import ccs, ccs_budgets, classes, stratified
    from coreclip.selection.streaming import sieve, sieve_streaming
    from coreclip.selection.submodular import (
        feature_based,
        graph_cut,
        max_coverage,
        mixture,
        mixture_of,
        saturated_coverage,
        sum_redundancy,
    )
    from coreclip.selection.subset import NoPairChosen, Subset, check_output
    from coreclip.selection.targets import normsim, normsim_2, normsim_inf, normsim_scores
    from coreclip.selection.uids import check_uids_output, load_uids, parse_uids, save_uids
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
    "DatacompPool": "datacomp",
    "FactoredGradients": "gradients",
    "Features": "features",
    "GainBounds": "bounding",
    "Method": "registry",
    "NoPairChosen": "subset",
    "PartPicks": "partitioned",
    "Pruned": "bounding",
    "StreamCoreset": "sensitivity",
    "Subset": "subset",
    "apricot_subset": "apricot",
    "basic_rules": "basics",
    "ccs": "strata",
    "ccs_budgets": "strata",
    "check_output": "subset",
    "check_uids_output": "uids",
    "checkpoint_signals_of": "signals",
    "classes": "strata",
    "clip_error_norms": "gradients",
    "clip_factored_gradients": "gradients",
    "clip_gradients": "gradients",
    "clip_scores": "scores",
    "clipcov": "covariance",
    "clipscore": "scores",
    "copies": "lookalikes",
    "craig": "coresets",
    "craig_of_gradients": "coresets",
    "crust": "robust",
    "d4": "prune",
    "datacomp_baseline": "datacomp",
    "datacomp_basic": "basics",
    "density": "prune",
    "difficulty_scores": "difficulty",
    "easy": "difficulty",
    "el2n": "difficulty",
    "el2n_scores": "difficulty",
    "entropy": "uncertainty",
    "entropy_scores": "uncertainty",
    "export_subset": "interchange",
    "facility_location": "facility",
    "facility_objective": "facility",
    "feature_based": "submodular",
    "forgetting": "difficulty",
    "forgetting_events": "difficulty",
    "form_of": "interchange",
    "gain_bounds": "bounding",
    "gradmatch": "matching",
    "gradmatch_of_gradients": "matching",
    "grand": "difficulty",
    "grand_proxy": "gradients",
    "grand_scores": "difficulty",
    "graph_cut": "submodular",
    "greedi": "partitioned",
    "hard": "difficulty",
    "herding": "geometry",
    "import_subset": "interchange",
    "is_datacomp": "datacomp",
    "k_center": "geometry",
    "least_confidence": "uncertainty",
    "least_confidence_scores": "uncertainty",
    "lightweight_sample": "sensitivity",
    "load_signals": "signals",
    "load_uids": "uids",
    "margin": "uncertainty",
    "margin_scores": "uncertainty",
    "max_coverage": "submodular",
    "merge_and_reduce": "sensitivity",
    "metadata_of": "expression",
    "mixture": "submodular",
    "mixture_of": "submodular",
    "needs_features": "expression",
    "negclip_scores": "contrast",
    "negcliploss": "contrast",
    "neighbor_graph": "neighbors",
    "normsim": "targets",
    "normsim_2": "targets",
    "normsim_inf": "targets",
    "normsim_scores": "targets",
    "parse": "expression",
    "parse_uids": "uids",
    "prune_by_bounds": "bounding",
    "random_subset": "scores",
    "read_datacomp": "datacomp",
    "saturated_coverage": "submodular",
    "save_uids": "uids",
    "select": "compose",
    "select_part": "partitioned",
    "semdedup": "deduplicate",
    "sensitivity_sample": "sensitivity",
    "sieve": "streaming",
    "sieve_streaming": "streaming",
    "stratified": "strata",
    "sum_redundancy": "submodular",
    "tracin": "difficulty",
    "tracin_self_influence": "difficulty",
    "vog": "difficulty",
    "vog_scores": "difficulty",
}

__all__ = [
    "METHODS",
    "DatacompPool",
    "FactoredGradients",
    "Features",
    "GainBounds",
    "Method",
    "NoPairChosen",
    "PartPicks",
    "Pruned",
    "StreamCoreset",
    "Subset",
    "apricot_subset",
    "basic_rules",
    "ccs",
    "ccs_budgets",
    "check_output",
    "check_uids_output",
    "checkpoint_signals_of",
    "classes",
    "clip_error_norms",
    "clip_factored_gradients",
    "clip_gradients",
    "clip_scores",
    "clipcov",
    "clipscore",
    "copies",
    "craig",
    "craig_of_gradients",
    "crust",
    "d4",
    "datacomp_baseline",
    "datacomp_basic",
    "density",
    "difficulty_scores",
    "easy",
    "el2n",
    "el2n_scores",
    "entropy",
    "entropy_scores",
    "export_subset",
    "facility_location",
    "facility_objective",
    "feature_based",
    "forgetting",
    "forgetting_events",
    "form_of",
    "gain_bounds",
    "gradmatch",
    "gradmatch_of_gradients",
    "grand",
    "grand_proxy",
    "grand_scores",
    "graph_cut",
    "greedi",
    "hard",
    "herding",
    "import_subset",
    "is_datacomp",
    "k_center",
    "least_confidence",
    "least_confidence_scores",
    "lightweight_sample",
    "load_signals",
    "load_uids",
    "margin",
    "margin_scores",
    "max_coverage",
    "merge_and_reduce",
    "metadata_of",
    "mixture",
    "mixture_of",
    "needs_features",
    "negclip_scores",
    "negcliploss",
    "neighbor_graph",
    "normsim",
    "normsim_2",
    "normsim_inf",
    "normsim_scores",
    "parse",
    "parse_uids",
    "prune_by_bounds",
    "random_subset",
    "read_datacomp",
    "saturated_coverage",
    "save_uids",
    "select",
    "select_part",
    "semdedup",
    "sensitivity_sample",
    "sieve",
    "sieve_streaming",
    "stratified",
    "sum_redundancy",
    "tracin",
    "tracin_self_influence",
    "vog",
    "vog_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
