"""The methods by name, with what each needs and the parameters that it takes on the command line."""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.apricot import PYTHON_SELECTORS, SELECTORS, apricot_subset, full_name
from coreclip.selection.coresets import craig
from coreclip.selection.deduplicate import semdedup
from coreclip.selection.facility import facility_location
from coreclip.selection.features import Features
from coreclip.selection.scores import clipscore, random_subset
from coreclip.selection.subset import Subset

_SCALARS = (bool, int, float, str, types.NoneType)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What there is to select by: of ``n`` pairs the features, and the class labels (int64 (n,)) where there are any."""

    n: int
    features: Features | None = None
    labels: np.ndarray | None = None


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
        The public function.
    run : callable
        ``run(inputs, k, seed, **parameters) -> Subset``; k is None only where ``filters``.
    summary : str
        One line.
    needs : tuple of str
        Of ``"image"`` and ``"text"``.
    higher_is_better : bool
        Whether a higher gain is kept first.
    filters : bool
        Whether it can decide by itself how many pairs to keep.
    parameters : dict of str to Parameter, or None
        What an expression may set; None for apricot's, which are checked when it runs.
    """

    function: Callable[..., Subset]
    run: Callable[..., Subset]
    summary: str
    needs: tuple[str, ...]
    parameters: dict[str, Parameter] | None
    higher_is_better: bool = True
    filters: bool = False


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


def _random(inputs: Inputs, k: int, seed: int) -> Subset:
    return random_subset(inputs.n, k, seed)


def _facility_location(inputs: Inputs, k: int, seed: int, **parameters: Any) -> Subset:
    return facility_location(_features(inputs), k, seed=seed, **parameters)


def _clipscore(inputs: Inputs, k: int, seed: int) -> Subset:
    return clipscore(_features(inputs), k)


def _craig(inputs: Inputs, k: int, seed: int, **parameters: Any) -> Subset:
    labels = None if parameters.get("clusters") else inputs.labels
    return craig(_features(inputs), k, labels=labels, seed=seed, **parameters)


def _semdedup(inputs: Inputs, k: int | None, seed: int, **parameters: Any) -> Subset:
    return semdedup(_features(inputs), k, seed=seed, **parameters)


def _apricot(selector: str) -> Callable[..., Subset]:
    def run(inputs: Inputs, k: int, seed: int, **parameters: Any) -> Subset:
        return apricot_subset(selector, _features(inputs), k, seed=seed, **parameters)

    return run


def _features(inputs: Inputs) -> Features:
    if inputs.features is None:
        raise CoreclipError("this method needs features and none are given; make them with coreclip embed")
    return inputs.features


def _without(parameters: dict[str, Parameter], name: str) -> dict[str, Parameter]:
    return {key: value for key, value in parameters.items() if key != name}


METHODS: dict[str, Method] = {
    "random": Method(random_subset, _random, "random pairs, the baseline; needs no features", (), {}),
    "facility-location": Method(
        facility_location,
        _facility_location,
        "every pair has a similar one among the chosen (submodular, with an upper bound)",
        ("image",),
        _without(parameters_of(facility_location), "metric"),  # a precomputed matrix can't be given in an expression
    ),
    "clipscore": Method(clipscore, _clipscore, "pairs whose image and text agree best", ("image", "text"), {}),
    "craig": Method(
        craig,
        _craig,
        "weighted pairs whose gradients add up to those of all",
        ("image", "text"),
        parameters_of(craig),
    ),
    "semdedup": Method(
        semdedup,
        _semdedup,
        "drops near-duplicates, by eps or down to the number asked for",
        ("image",),
        parameters_of(semdedup),
        filters=True,
    ),
    **{
        f"apricot:{name}": Method(
            apricot_subset, _apricot(name), f"apricot's {name}, up to 20,000 pairs", ("image",), None
        )
        for name in SELECTORS
    },
}
