"""The methods by name, with what each needs and the parameters that it takes on the command line."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.apricot import PYTHON_SELECTORS, SELECTORS, apricot_subset, full_name
from coreclip.selection.basics import datacomp_basic
from coreclip.selection.contrast import negcliploss
from coreclip.selection.coresets import craig
from coreclip.selection.covariance import clipcov
from coreclip.selection.deduplicate import semdedup
from coreclip.selection.difficulty import easy, el2n, forgetting, grand, hard, tracin, vog
from coreclip.selection.facility import facility_location
from coreclip.selection.features import Features
from coreclip.selection.geometry import herding, k_center
from coreclip.selection.gradients import grand_proxy
from coreclip.selection.lookalikes import copies
from coreclip.selection.matching import gradmatch
from coreclip.selection.partitioned import greedi
from coreclip.selection.prune import d4, density
from coreclip.selection.robust import crust
from coreclip.selection.scores import clipscore, random_subset
from coreclip.selection.sensitivity import lightweight_sample, sensitivity_sample
from coreclip.selection.strata import ccs, classes, stratified
from coreclip.selection.streaming import sieve
from coreclip.selection.submodular import (
    feature_based,
    graph_cut,
    max_coverage,
    mixture,
    saturated_coverage,
    sum_redundancy,
)
from coreclip.selection.subset import Subset
from coreclip.selection.targets import normsim_2, normsim_inf
from coreclip.selection.uncertainty import entropy, least_confidence, margin

_SCALARS = (bool, int, float, str, types.NoneType)
_INPUTS = ("n", "features", "labels", "signals", "metadata")


class Tier(StrEnum):
    """How far a method is carried."""

    CERTIFIED = "certified"
    """At full scale, with a benchmark and its evidence."""
    REFERENCE = "reference"
    """Exact and tested by its properties, at moderate scale."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What there is to select by, of n pairs.

    Attributes
    ----------
    n : int
    features : Features or None
    labels : int64 (n,) or None
        Class of each pair.
    signals : mapping of str to array (..., n)
        Of a training run, by the names of ``RUN/signals``.
    metadata : mapping of str to array (n, ...)
        What else is known of the pairs: ``caption``, ``width``, ``height``, ``uid``, ``thumbnail`` ...
    """

    n: int
    features: Features | None = None
    labels: np.ndarray | None = None
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take(self, indices: np.ndarray) -> Self:
        """Return what there is of some of the pairs (int64 (k,)), in that order."""
        return type(self)(
            len(indices),
            None if self.features is None else self.features.take(indices),
            None if self.labels is None else self.labels[indices],
            {name: signal[..., indices] for name, signal in self.signals.items()},
            {name: column[indices] for name, column in self.metadata.items()},
        )


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method: the types that it may have, and its default."""

    kinds: tuple[type, ...]
    default: Any

    def accept(self, value: Any) -> Any:
        """Return ``value`` in the parameter's type (an integer where a float is due becomes one); TypeError for another."""
        if type(value) in self.kinds:
            return value
        if type(value) is int and float in self.kinds:
            return float(value)
        raise TypeError(" or ".join("none" if kind is types.NoneType else kind.__name__ for kind in self.kinds))


@dataclass(frozen=True)
class Method:
    """A way to select.

    Attributes
    ----------
    function : callable
        The public function. Its parameters called ``n``, ``features``, ``labels``, ``signals``, ``metadata``, ``k`` and
        ``seed`` are given what an :class:`Inputs` and the selection have of that name; the other keyword-only ones of plain
        types are what an expression may set.
    summary : str
        One line.
    tier : Tier
    higher_is_better : bool
        Whether a higher gain is kept first.
    filters : bool
        Whether it can decide by itself how many pairs to keep (its ``k`` may be None).
    metadata : tuple of str
        The columns of the metadata that it reads.
    hidden : tuple of str
        Parameters that an expression may not set.
    """

    function: Callable[..., Subset]
    summary: str
    tier: Tier
    higher_is_better: bool = True
    filters: bool = False
    metadata: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter] | None:
        """What an expression may set; None where the function takes any (apricot's, which are checked when it runs)."""
        signature = inspect.signature(self.function).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            return None
        return {name: found for name, found in parameters_of(self.function).items() if name not in self.hidden}

    def run(self, inputs: Inputs, k: int | None, seed: int, **parameters: Any) -> Subset:
        """Call the function with what it takes of the inputs.

        Raises
        ------
        CoreclipError
            For a missing input, and whatever the function refuses.
        """
        given: dict[str, Any] = {"k": k, "seed": seed} | {name: getattr(inputs, name) for name in _INPUTS}
        if parameters.get("clusters"):
            given["labels"] = None  # the clusters are asked for in place of the classes
        taken = {name: given[name] for name in _names_of(self.function) if name in given}
        if "features" in taken and taken["features"] is None and not _may_lack_features(self.function):
            raise CoreclipError("this method needs features and none are given; make them with coreclip embed")
        return self.function(**taken, **parameters)


def parameters_of(function: Callable[..., Subset]) -> dict[str, Parameter]:
    """Return the keyword-only parameters of plain types, apart from the seed."""
    hints = typing.get_type_hints(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        if parameter.kind is parameter.KEYWORD_ONLY and name != "seed" and all(kind in _SCALARS for kind in kinds):
            found[name] = Parameter(kinds, parameter.default)
    return found


def find(name: str) -> tuple[str, Method]:
    """Return the full name and the method; ``_`` stands for ``-``, and ``Selection`` of apricot's may be left out.

    Raises
    ------
    CoreclipError
        For an unknown name, with the known ones.
    """
    prefix, colon, selector = name.partition(":")
    if colon and prefix == "apricot":
        full = full_name(selector)
        if full in PYTHON_SELECTORS:
            raise CoreclipError(f"apricot:{full} takes functions as parameters; call apricot_subset from Python")
        return f"apricot:{full}", METHODS[f"apricot:{full}"]
    dashed = name.replace("_", "-")
    if dashed not in METHODS:
        raise CoreclipError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return dashed, METHODS[dashed]


def _names_of(function: Callable[..., Subset]) -> list[str]:
    return [
        name for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]  # fmt: skip


def _may_lack_features(function: Callable[..., Subset]) -> bool:
    return inspect.signature(function).parameters["features"].default is None


METHODS: dict[str, Method] = {
    "random": Method(random_subset, "random pairs, the baseline; needs no features", Tier.CERTIFIED),
    "facility-location": Method(
        facility_location,
        "every pair has a similar one among the chosen (submodular, with an upper bound)",
        Tier.CERTIFIED,
        hidden=("metric",),  # a precomputed matrix can't be given in an expression
    ),
    "feature-based": Method(
        feature_based, "much of every direction of the embedding (submodular, with an upper bound)", Tier.REFERENCE
    ),
    "max-coverage": Method(
        max_coverage, "enough of every direction of the embedding (submodular, with an upper bound)", Tier.REFERENCE
    ),
    "graph-cut": Method(
        graph_cut, "pairs like many others and unlike each other (submodular), up to 10,000", Tier.REFERENCE
    ),
    "saturated-coverage": Method(
        saturated_coverage, "every pair is covered up to a share (submodular), up to 10,000 pairs", Tier.REFERENCE
    ),
    "sum-redundancy": Method(sum_redundancy, "pairs least like each other, up to 10,000", Tier.REFERENCE),
    "mixture": Method(
        mixture, "several of the submodular functions at once, with weights, up to 10,000 pairs", Tier.REFERENCE
    ),
    "greedi": Method(
        greedi, "facility location in parts, then among their picks: for more pairs than fit", Tier.REFERENCE
    ),
    "sieve": Method(
        sieve, "facility location over a sample of the pairs, in one pass over all of them", Tier.REFERENCE
    ),
    "clipscore": Method(clipscore, "pairs whose image and text agree best", Tier.REFERENCE),
    "craig": Method(craig, "weighted pairs whose gradients add up to those of all", Tier.CERTIFIED),
    "gradmatch": Method(gradmatch, "few weighted pairs fitted so that their gradients add up to all", Tier.CERTIFIED),
    "crust": Method(crust, "medoids of the gradients, weighted by how many are near: for wrong labels", Tier.REFERENCE),
    "grand-proxy": Method(grand_proxy, "pairs whose embeddings get the longest gradients, the hardest", Tier.REFERENCE),
    "k-center": Method(k_center, "no pair is far from a chosen one (within twice the best radius)", Tier.CERTIFIED),
    "herding": Method(herding, "the mean of the chosen pairs stays near the mean of all", Tier.REFERENCE),
    "sensitivity": Method(
        sensitivity_sample, "a weighted sample that k-means costs are the same on, by sensitivities", Tier.REFERENCE
    ),
    "lightweight": Method(
        lightweight_sample, "a weighted sample that k-means costs are the same on, by the mean", Tier.REFERENCE
    ),
    "semdedup": Method(
        semdedup, "drops near-duplicates, by eps or down to the number asked for", Tier.CERTIFIED, filters=True
    ),
    "copies": Method(
        copies,
        "drops copies of a picture, by its pixels; needs no features",
        Tier.REFERENCE,
        filters=True,
        metadata=("thumbnail",),
    ),
    "el2n": Method(el2n, "pairs whose error was largest early in training (signals)", Tier.REFERENCE),
    "grand": Method(grand, "pairs whose loss had the largest gradients (signals)", Tier.REFERENCE),
    "forgetting": Method(
        forgetting, "pairs that training forgot most often, never learned ones first (signals)", Tier.REFERENCE
    ),
    "vog": Method(vog, "pairs whose pixel gradients varied most during training (signals)", Tier.REFERENCE),
    "tracin": Method(tracin, "pairs with the largest influence on their own loss (signals)", Tier.REFERENCE),
    "easy": Method(easy, "the easiest pairs, by the loss or another signal", Tier.REFERENCE, higher_is_better=False),
    "hard": Method(hard, "the hardest pairs, by the loss or another signal", Tier.REFERENCE),
    "least-confidence": Method(
        least_confidence, "pairs whose most probable class is least probable (signals)", Tier.REFERENCE
    ),
    "margin": Method(
        margin, "pairs whose two most probable classes are nearest to each other (signals)", Tier.REFERENCE
    ),
    "entropy": Method(entropy, "pairs whose predicted classes are most evenly probable (signals)", Tier.REFERENCE),
    "stratified": Method(
        stratified, "random pairs, each label or bin of a signal in proportion to its size", Tier.REFERENCE
    ),
    "ccs": Method(
        ccs, "random pairs, evenly over bins of difficulty without the hardest (signals or features)", Tier.CERTIFIED
    ),
    "classes": Method(
        classes, "the pairs of some of the classes, half of them by default", Tier.REFERENCE, filters=True
    ),
    "negcliploss": Method(
        negcliploss, "pairs with the lowest contrastive loss by their own embeddings", Tier.CERTIFIED
    ),
    "normsim-2": Method(normsim_2, "images most like all of a target's, or of the pool's", Tier.REFERENCE),
    "normsim-inf": Method(normsim_inf, "images most like one of a target's, or of the pool's", Tier.REFERENCE),
    "clipcov": Method(clipcov, "pairs that keep each class's image-text cross-covariance", Tier.CERTIFIED),
    "density": Method(density, "more pairs of clusters that are spread out and lie apart", Tier.REFERENCE),
    "d4": Method(
        d4, "drops near-duplicates, then what is nearest to its cluster's centre", Tier.REFERENCE, filters=True
    ),
    "datacomp-basic": Method(
        datacomp_basic,
        "DataComp's filter: English captions and images large enough",
        Tier.REFERENCE,
        filters=True,
        metadata=("caption", "width", "height"),
    ),
    **{
        f"apricot:{name}": Method(
            functools.partial(apricot_subset, name), f"apricot's {name}, up to 20,000 pairs", Tier.REFERENCE
        )
        for name in SELECTORS
    },
}
