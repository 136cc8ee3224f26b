"""Choosing the pairs that are worth training on: features and training signals in, a :class:`Subset` out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.selection.apricot import apricot_subset
    from coreclip.selection.basics import basic_rules, datacomp_basic
    from coreclip.selection.compose import metadata_of, needs_features, parse, select
    from coreclip.selection.contrast import negclip_scores, negcliploss
    from coreclip.selection.coresets import craig
    from coreclip.selection.covariance import clipcov
    from coreclip.selection.datacomp import DatacompPool, datacomp_baseline, is_datacomp, read_datacomp
    from coreclip.selection.deduplicate import semdedup
    from coreclip.selection.facility import facility_location
    from coreclip.selection.features import Features
    from coreclip.selection.gradients import clip_gradients
    from coreclip.selection.neighbors import neighbor_graph
    from coreclip.selection.prune import d4, density
    from coreclip.selection.registry import METHODS, Method
    from coreclip.selection.scores import clip_scores, clipscore, random_subset
    from coreclip.selection.signals import load_signals
    from coreclip.selection.subset import Subset, check_output
    from coreclip.selection.targets import normsim, normsim_2, normsim_inf, normsim_scores
    from coreclip.selection.uids import check_uids_output, load_uids, parse_uids, save_uids

# No module has the name of something exported: importing it would put the module in that name's place.
_MODULES = {
    "apricot_subset": "apricot",
    "basic_rules": "basics",
    "check_output": "subset",
    "check_uids_output": "uids",
    "clip_gradients": "gradients",
    "clip_scores": "scores",
    "clipcov": "covariance",
    "clipscore": "scores",
    "craig": "coresets",
    "d4": "prune",
    "datacomp_baseline": "datacomp",
    "datacomp_basic": "basics",
    "DatacompPool": "datacomp",
    "density": "prune",
    "facility_location": "facility",
    "Features": "features",
    "is_datacomp": "datacomp",
    "load_signals": "signals",
    "load_uids": "uids",
    "metadata_of": "compose",
    "Method": "registry",
    "METHODS": "registry",
    "needs_features": "compose",
    "negclip_scores": "contrast",
    "negcliploss": "contrast",
    "neighbor_graph": "neighbors",
    "normsim": "targets",
    "normsim_2": "targets",
    "normsim_inf": "targets",
    "normsim_scores": "targets",
    "parse": "compose",
    "parse_uids": "uids",
    "random_subset": "scores",
    "read_datacomp": "datacomp",
    "save_uids": "uids",
    "select": "compose",
    "semdedup": "deduplicate",
    "Subset": "subset",
}

__all__ = [
    "METHODS",
    "DatacompPool",
    "Features",
    "Method",
    "Subset",
    "apricot_subset",
    "basic_rules",
    "check_output",
    "check_uids_output",
    "clip_gradients",
    "clip_scores",
    "clipcov",
    "clipscore",
    "craig",
    "d4",
    "datacomp_baseline",
    "datacomp_basic",
    "density",
    "facility_location",
    "is_datacomp",
    "load_signals",
    "load_uids",
    "metadata_of",
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
    "random_subset",
    "read_datacomp",
    "save_uids",
    "select",
    "semdedup",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
