"""Selections in stages: ``semdedup(eps=0.05) | clipscore(keep=0.6) | facility-location``.

Each stage chooses among the survivors of the one before. ``keep=`` (a fraction of what comes in) or ``k=`` says how many a stage
leaves; the last one leaves the fraction or k of the whole selection. Left out: intersections and quotas.
"""

import inspect
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.features import Features
from coreclip.selection.registry import Inputs, Method, find
from coreclip.selection.subset import Subset

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<word>[A-Za-z_][\w:-]*)|(?P<text>'[^']*'|\"[^\"]*\")|(?P<mark>[(),=|]))"
)
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Stage:
    """One step of a selection: a method, its parameters, and how many pairs it leaves (None where it is not said)."""

    name: str
    method: Method
    parameters: dict[str, Any] = field(default_factory=dict)
    keep: float | None = None
    k: int | None = None
    column: int = 0

    def describe(self) -> str:
        """Return the stage as it is written."""
        given = {"keep": self.keep, "k": self.k}
        shown = {name: value for name, value in given.items() if value is not None} | self.parameters
        return self.name + (f"({', '.join(f'{name}={value}' for name, value in shown.items())})" if shown else "")

    def size(self, incoming: int) -> int | None:
        """Return how many pairs of ``incoming`` its own ``keep`` or ``k`` leaves; None without either."""
        if self.keep is not None:
            return count_of(self.keep, incoming)
        return None if self.k is None else min(self.k, incoming)


def parse(expression: str) -> list[Stage]:
    """Read an expression of stages.

    Parameters
    ----------
    expression : str
        ``a(x=1, y=0.5) | b(keep=0.6) | c``; values are numbers, true, false, none, words or quoted text.

    Returns
    -------
    list of Stage

    Raises
    ------
    CoreclipError
        With the place marked by a caret below the expression.
    """
    return _Parser(expression).stages()


def select(
    features: Features | None,
    n: int,
    *,
    method: str,
    fraction: float | None = None,
    k: int | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
) -> Subset:
    """Run one method, or several in stages.

    Parameters
    ----------
    features : Features or None
        Of the n pairs; None is enough for ``random``.
    n : int
        Pairs of the data set.
    method : str
        See :func:`parse`.
    fraction : float or None
        Of the n pairs to choose, above 0, at most 1.
    k : int or None
        Pairs to choose, 1 to n; instead of ``fraction``. Neither is needed where the last stage says how many it keeps.
    signals : mapping of str to array, or None
        Of a training run, the last axis being the pairs.
    metadata : mapping of str to array (n,), or None
        What else is known of the pairs: ``caption``, ``width``, ``height``, ``uid`` ...
    labels : int (n,) or None
        Class of each pair.
    seed : int
    fingerprint : str or None
        The data set's; must agree with the features' where both are known.

    Returns
    -------
    Subset
        Weights, gains, objective and upper bound are those of the last stage, over the pairs that reached it. With several stages
        ``parameters["stages"]`` lists each one's numbers; ``parameters["note"]`` says so when fewer pairs than asked for were left.

    Raises
    ------
    CoreclipError
        For a wrong expression, a wrong number of pairs, and whatever the methods refuse.
    """
    start = time.perf_counter()
    stages = parse(method)
    inputs = _check_inputs(features, n, signals or {}, metadata or {}, labels, fingerprint)
    asked = _check_budget(method, stages, n, fraction, k)
    survivors: np.ndarray | None = None  # None for all: no copy of the features is made then
    reports: list[dict[str, Any]] = []
    for position, stage in enumerate(stages):
        here = inputs if survivors is None else inputs.take(survivors)
        size = stage.size(here.n)
        if position == len(stages) - 1 and asked is not None:
            size = min(asked, here.n) if size is None else min(asked, size)
        chosen = stage.method.run(here, size, seed, **stage.parameters)
        survivors = chosen.indices if survivors is None else survivors[chosen.indices]
        reports.append(
            {
                "method": stage.name,
                "n": here.n,
                "k": chosen.k,
                "seconds": chosen.seconds,
                "parameters": chosen.parameters,
            }
        )
    assert survivors is not None
    return Subset(
        indices=survivors,
        weights=chosen.weights,
        gains=chosen.gains,
        objective=chosen.objective,
        upper_bound=chosen.upper_bound,
        method=" | ".join(stage.describe() for stage in stages),
        parameters=_report(reports, asked, len(survivors)),
        seed=seed,
        n=n,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint or (features.fingerprint if features is not None else None),
    )


def metadata_of(expression: str) -> set[str]:
    """Return the names of the metadata that an expression's methods read."""
    return {name for stage in parse(expression) for name in stage.method.metadata}


def needs_features(expression: str) -> bool:
    """Return whether any of an expression's methods takes features."""
    return any("features" in inspect.signature(stage.method.function).parameters for stage in parse(expression))


def count_of(fraction: float, n: int) -> int:
    """Return the nearest whole number of pairs to a fraction of n, at least 1."""
    return max(1, math.floor(fraction * n + 0.5))


def _report(reports: list[dict[str, Any]], asked: int | None, left: int) -> dict[str, Any]:
    parameters = reports[0]["parameters"] if len(reports) == 1 else {"stages": reports}
    if asked is not None and left < asked:
        # A method that knows why says it better.
        return {"note": f"{left} pairs instead of the {asked} asked for: the stages left no more", **parameters}
    return parameters


def _check_inputs(
    features: Features | None,
    n: int,
    signals: Mapping[str, np.ndarray],
    metadata: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    fingerprint: str | None,
) -> Inputs:
    if features is not None and features.n != n:
        raise CoreclipError(f"the features are of {features.n} pairs, the data set has {n}; embed this data set")
    if features is not None and None not in (features.fingerprint, fingerprint) and features.fingerprint != fingerprint:
        raise CoreclipError(
            f"the features were made from the data set with fingerprint {features.fingerprint}, this one has {fingerprint}; "
            f"embed this data set"
        )
    if labels is not None and np.shape(labels) != (n,):
        raise CoreclipError(f"labels have shape {np.shape(labels)}; it must be ({n},), one for each pair")
    for name, signal in signals.items():
        if np.shape(signal)[-1:] != (n,):
            raise CoreclipError(f"signal {name} has shape {np.shape(signal)}; its last axis must be the {n} pairs")
    for name, column in metadata.items():
        if np.shape(column) != (n,):
            raise CoreclipError(f"metadata {name} have shape {np.shape(column)}; it must be ({n},), one for each pair")
    return Inputs(n, features, None if labels is None else np.asarray(labels), signals, metadata)


def _check_budget(method: str, stages: list[Stage], n: int, fraction: float | None, k: int | None) -> int | None:
    if fraction is not None and k is not None:
        raise CoreclipError(f"fraction = {fraction} and k = {k} are both given; give one of them")
    if fraction is not None and not 0 < fraction <= 1:
        raise CoreclipError(f"fraction = {fraction} is not allowed: above 0, at most 1")
    if k is not None and not 1 <= k <= n:
        raise CoreclipError(f"k = {k} of {n} pairs is not allowed: 1 to {n}")
    asked = count_of(fraction, n) if fraction is not None else k
    for stage in stages if asked is None else stages[:-1]:
        if stage.keep is None and stage.k is None and not stage.method.filters:
            last = stage is stages[-1]
            remedy = "give a fraction or k" if last else f"write {stage.name}(keep=0.5) or {stage.name}(k=1000)"
            _fail(method, stage.column, f"{stage.name} does not say how many pairs it leaves; {remedy}")
    return asked


class _Parser:
    """Recursive descent over the tokens of one expression; holds the place for error messages."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.at = 0
        self.column = 0
        self._advance()

    def stages(self) -> list[Stage]:
        found = [self._stage()]
        while self.token == "|":
            self._advance()
            found.append(self._stage())
        if self.kind != "end":
            self._fail("expected | or the end")
        return found

    def _stage(self) -> Stage:
        if self.kind != "word":
            self._fail("expected the name of a method")
        column = self.column
        try:
            name, method = find(self.token)
        except CoreclipError as error:
            self._fail(str(error))
        self._advance()
        arguments = self._arguments(name, method) if self.token == "(" else {}
        keep, k = arguments.pop("keep", None), arguments.pop("k", None)
        if keep is not None and k is not None:
            _fail(self.expression, column, f"{name} has both keep= and k=; give one of them")
        return Stage(name, method, arguments, keep, k, column)

    def _arguments(self, name: str, method: Method) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        self._advance()
        while self.token != ")":
            if self.kind != "word":
                self._fail("expected parameter=value or )")
            key, column = self.token.replace("-", "_"), self.column
            if key in arguments:
                self._fail(f"{key} is given twice")
            self._advance()
            if self.token != "=":
                self._fail(f"expected = after {key}")
            self._advance()
            arguments[key] = _check_argument(self.expression, column, name, method, key, self._value())
            if self.token == ",":
                self._advance()
            elif self.token != ")":
                self._fail("expected , or )")
        self._advance()
        return arguments

    def _value(self) -> Any:
        kind, token = self.kind, self.token
        if kind not in ("number", "word", "text"):
            self._fail("expected a value")
        self._advance()
        if kind == "number":
            return int(token) if re.fullmatch(r"[+-]?\d+", token) else float(token)
        return token[1:-1] if kind == "text" else _WORDS.get(token.lower(), token)

    def _advance(self) -> None:
        """Read the next token into ``kind``, ``token`` and ``column``."""
        match = _TOKEN.match(self.expression, self.at)
        if match is None:
            rest = self.expression[self.at :]
            self.kind, self.token = "end", ""
            self.column = self.at + len(rest) - len(rest.lstrip())
            if rest.strip():
                self._fail(f"unexpected {rest.lstrip()[0]!r}")
            return
        self.kind = str(match.lastgroup)
        self.token = match[self.kind]
        self.column, self.at = match.start(self.kind), match.end()

    def _fail(self, message: str) -> NoReturn:
        _fail(self.expression, self.column, message)


def _check_argument(expression: str, column: int, name: str, method: Method, key: str, value: Any) -> Any:
    if key == "keep":
        if type(value) not in (int, float) or not 0 < value <= 1:
            _fail(
                expression, column, f"keep = {value!r} is not allowed: a fraction of what comes in, above 0, at most 1"
            )
        return float(value)
    if key == "k":
        if type(value) is not int or value < 1:
            _fail(expression, column, f"k = {value!r} is not allowed: a whole number of pairs, at least 1")
        return value
    if method.parameters is None:
        return value
    if key not in method.parameters:
        known = ", ".join(["keep", "k", *method.parameters])
        _fail(expression, column, f"{name} has no parameter {key!r}; known: {known}")
    try:
        return method.parameters[key].accept(value)
    except TypeError as error:
        _fail(expression, column, f"{key} = {value!r} must be of type {error}")


def _fail(expression: str, column: int, message: str) -> NoReturn:
    raise CoreclipError(f"{message}\n  {expression}\n  {' ' * column}^") from None
