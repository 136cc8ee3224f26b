"""Choosing the pairs that are worth training on: features and training signals in, a :class:`Subset` out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.selection.apricot import apricot_subset
    from coreclip.selection.compose import metadata_of, parse, select
    from coreclip.selection.coresets import craig
    from coreclip.selection.deduplicate import semdedup
    from coreclip.selection.facility import facility_location
    from coreclip.selection.features import Features
    from coreclip.selection.gradients import clip_gradients
    from coreclip.selection.neighbors import neighbor_graph
    from coreclip.selection.registry import METHODS, Method
    from coreclip.selection.scores import clip_scores, clipscore, random_subset
    from coreclip.selection.signals import checkpoint_signals_of, load_signals
    from coreclip.selection.subset import Subset, check_output

# No module has the name of something exported: importing it would put the module in that name's place.
_MODULES = {
    "Features": "features",
    "METHODS": "registry",
    "check_output": "subset",
    "Method": "registry",
    "Subset": "subset",
    "apricot_subset": "apricot",
    "checkpoint_signals_of": "signals",
    "clip_gradients": "gradients",
    "clip_scores": "scores",
    "clipscore": "scores",
    "craig": "coresets",
    "facility_location": "facility",
    "load_signals": "signals",
    "metadata_of": "compose",
    "neighbor_graph": "neighbors",
    "parse": "compose",
    "random_subset": "scores",
    "select": "compose",
    "semdedup": "deduplicate",
}

__all__ = [
    "METHODS",
    "Features",
    "Method",
    "Subset",
    "apricot_subset",
    "check_output",
    "checkpoint_signals_of",
    "clip_gradients",
    "clip_scores",
    "clipscore",
    "craig",
    "facility_location",
    "load_signals",
    "metadata_of",
    "neighbor_graph",
    "parse",
    "random_subset",
    "select",
    "semdedup",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
