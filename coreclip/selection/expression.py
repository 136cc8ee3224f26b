"""The language of selections: ``semdedup(eps=0.05) | clipscore(keep=0.6) & random(keep=0.5) | facility-location @ class``.

::

    stages  = union { "|" union }             each chooses among the survivors of the one before
    union   = both { "+" both }               pairs that any of them chooses
    both    = stage { "&" stage }             pairs that all of them choose
    stage   = method [ "@" groups ] | "(" stages ")"
    method  = NAME [ "(" [ NAME "=" VALUE { "," NAME "=" VALUE } ] ")" ]
    groups  = "class" [ "(" "equal" ")" ] | "cluster" [ "(" ( NUMBER [ "," "equal" ] | "equal" ) ")" ]

Names and parameters are held against the registry while reading. Left out: running, which is in ``compose``.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from coreclip.errors import CoreclipError
from coreclip.selection.registry import Method, find

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+(?![\w.]))"
    r"|(?P<word>[A-Za-z_][\w:-]*)|(?P<text>'[^']*'|\"[^\"]*\")|(?P<mark>[(),=|&+@]))"
)
_WORD = re.compile(r"[A-Za-z_][\w:-]*")
_WORDS = {"true": True, "false": False, "none": None}
_DEEPEST = 20  # parentheses within parentheses


@dataclass(frozen=True)
class Groups:
    """Groups of pairs that a method runs in, one after the other.

    Attributes
    ----------
    by : {"class", "cluster"}
        The labels, or k-means of the images.
    clusters : int or None
        Their number; None for the square root of the pairs that come in.
    equal : bool
        Groups get equal budgets, not budgets in proportion to their sizes.
    column : int
        Where it is written.
    """

    by: str
    clusters: int | None = None
    equal: bool = False
    column: int = field(default=0, compare=False)

    def describe(self) -> str:
        """Return the groups as they are written."""
        given = ([str(self.clusters)] if self.clusters is not None else []) + (["equal"] if self.equal else [])
        return self.by + (f"({', '.join(given)})" if given else "")


@dataclass(frozen=True)
class Stage:
    """One step of a selection: a method, its parameters, and how many pairs it leaves (None where it is not said)."""

    name: str
    method: Method
    parameters: dict[str, Any] = field(default_factory=dict)
    keep: float | None = None
    k: int | None = None
    groups: Groups | None = None
    column: int = field(default=0, compare=False)

    def describe(self) -> str:
        """Return the stage as it is written."""
        given = {"keep": self.keep, "k": self.k}
        shown = {name: value for name, value in given.items() if value is not None} | self.parameters
        text = self.name + (
            f"({', '.join(f'{name}={_written(value)}' for name, value in shown.items())})" if shown else ""
        )
        return text if self.groups is None else f"{text} @ {self.groups.describe()}"

    def size(self, incoming: int) -> int | None:
        """Return how many pairs of ``incoming`` its own ``keep`` or ``k`` leaves; None without either."""
        if self.keep is not None:
            return count_of(self.keep, incoming)
        return None if self.k is None else min(self.k, incoming)


@dataclass(frozen=True)
class Combination:
    """Several selections among the same pairs, of which the pairs are taken that all (``&``) or any (``+``) choose."""

    mark: str
    operands: tuple[tuple["Stage | Combination", ...], ...]
    column: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """``intersection`` or ``union``."""
        return "intersection" if self.mark == "&" else "union"

    def describe(self) -> str:
        """Return the combination as it is written."""
        return f" {self.mark} ".join(map(self._describe_operand, self.operands))

    def _describe_operand(self, operand: tuple["Stage | Combination", ...]) -> str:
        looser = len(operand) > 1 or (isinstance(operand[0], Combination) and self.mark == "&")
        return f"({describe(operand)})" if looser else describe(operand)


Node = Stage | Combination


def parse(expression: str) -> list[Node]:
    """Read an expression of stages.

    Parameters
    ----------
    expression : str
        ``a(x=1, y=0.5) | b(keep=0.6) & c(k=100) | d @ class``, see the module; values are numbers, true, false, none, words or
        quoted text.

    Returns
    -------
    list of Stage or Combination
        Parentheses that change nothing are gone.

    Raises
    ------
    CoreclipError
        With the place marked by a caret below the expression.
    """
    return list(_Parser(expression).whole())


def describe(nodes: Sequence[Node]) -> str:
    """Return stages as an expression that :func:`parse` reads as the same stages."""
    return " | ".join(node.describe() for node in nodes)


def stages_of(nodes: Sequence[Node]) -> Iterator[Stage]:
    """Yield every method's stage, from left to right, also those within combinations."""
    for node in nodes:
        if isinstance(node, Stage):
            yield node
        else:
            for operand in node.operands:
                yield from stages_of(operand)


def needs_features(expression: str) -> bool:
    """Return whether any of an expression's methods takes features."""
    return any(
        "features" in inspect.signature(stage.method.function).parameters for stage in stages_of(parse(expression))
    )


def metadata_of(expression: str) -> set[str]:
    """Return the names of the metadata that an expression's methods read."""
    return {name for stage in stages_of(parse(expression)) for name in stage.method.metadata}


def count_of(fraction: float, n: int) -> int:
    """Return the nearest whole number of pairs to a fraction of n, at least 1."""
    return max(1, math.floor(fraction * n + 0.5))


def fail(expression: str, column: int, message: str) -> NoReturn:
    """Raise CoreclipError with the expression and a caret below its ``column``."""
    shown = re.sub(r"\s", " ", expression)  # a line break would move the caret
    raise CoreclipError(f"{message}\n  {shown}\n  {' ' * column}^") from None


class _Parser:
    """Recursive descent over the tokens of one expression; holds the place for error messages."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.at = 0
        self.column = 0
        self.depth = 0
        self._advance()

    def whole(self) -> tuple[Node, ...]:
        found = self._stages()
        if self.kind != "end":
            self._fail("expected |, &, + or the end")
        return found

    def _stages(self) -> tuple[Node, ...]:
        found = self._union()
        while self.token == "|":
            self._advance()
            found += self._union()
        return found

    def _union(self) -> tuple[Node, ...]:
        return self._combined("+", self._both)

    def _both(self) -> tuple[Node, ...]:
        return self._combined("&", self._operand)

    def _combined(self, mark: str, read: Callable[[], tuple[Node, ...]]) -> tuple[Node, ...]:
        operands, column = [read()], self.column
        while self.token == mark:
            self._advance()
            operands.append(read())
        if len(operands) == 1:
            return operands[0]
        flat: list[tuple[Node, ...]] = []
        for operand in operands:
            inner = operand[0]
            same = len(operand) == 1 and isinstance(inner, Combination) and inner.mark == mark
            flat += inner.operands if same and isinstance(inner, Combination) else [operand]
        return (Combination(mark, tuple(flat), column),)

    def _operand(self) -> tuple[Node, ...]:
        if self.token != "(":
            return (self._stage(),)
        self.depth += 1
        if self.depth > _DEEPEST:
            self._fail(f"parentheses are more than {_DEEPEST} deep; write fewer")
        self._advance()
        found = self._stages()
        if self.token != ")":
            self._fail("expected |, &, + or )")
        self._advance()
        self.depth -= 1
        if self.token == "@":
            self._fail("@ belongs to a method; write it behind the methods within the parentheses")
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
            fail(self.expression, column, f"{name} has both keep= and k=; give one of them")
        return Stage(name, method, arguments, keep, k, self._groups() if self.token == "@" else None, column)

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

    def _groups(self) -> Groups:
        self._advance()
        column, by = self.column, self.token
        if by not in ("class", "cluster"):
            self._fail("expected class or cluster after @, e.g. @ class or @ cluster(64, equal)")
        self._advance()
        clusters, equal = None, False
        if self.token == "(":
            self._advance()
            if self.kind == "number":
                clusters = self._clusters(by)
                if self.token not in (",", ")"):
                    self._fail("expected , or )")
            if clusters is None or self.token == ",":
                equal = self._equal(by, clusters)
            if self.token != ")":
                self._fail("expected )")
            self._advance()
        return Groups(by, clusters, equal, column)

    def _equal(self, by: str, clusters: int | None) -> bool:
        if clusters is not None:
            self._advance()
        if self.token != "equal":
            self._fail("expected equal" if by == "class" or clusters is not None else "expected a number or equal")
        self._advance()
        return True

    def _clusters(self, by: str) -> int:
        column, number = self.column, self._value()
        if by == "class":
            fail(self.expression, column, "class takes no number, the labels make the groups; write @ cluster(...)")
        if type(number) is not int or number < 1:
            fail(self.expression, column, f"{number} clusters are not possible: a whole number, at least 1")
        return number

    def _value(self) -> Any:
        kind, token = self.kind, self.token
        if kind not in ("number", "word", "text"):
            self._fail("expected a value")
        number = self._number(token) if kind == "number" else None
        self._advance()
        if kind == "number":
            return number
        return token[1:-1] if kind == "text" else _WORDS.get(token.lower(), token)

    def _number(self, token: str) -> int | float:
        whole, number = re.fullmatch(r"[+-]?\d+", token) is not None, float(token)
        if math.isinf(number) or (whole and (abs(number) >= 2**63 or len(token) > 100)):
            self._fail("this number is too large: whole ones must be below 2^63, others below 1.8e308")
        return int(token) if whole else number

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
        fail(self.expression, self.column, message)


def _check_argument(expression: str, column: int, name: str, method: Method, key: str, value: Any) -> Any:
    if key == "keep":
        if type(value) not in (int, float) or not 0 < value <= 1:
            fail(
                expression, column, f"keep = {value!r} is not allowed: a fraction of what comes in, above 0, at most 1"
            )
        return float(value)
    if key == "k":
        if type(value) is not int or value < 1:
            fail(expression, column, f"k = {value!r} is not allowed: a whole number of pairs, at least 1")
        return value
    if method.parameters is None:
        return value
    if key not in method.parameters:
        known = ", ".join(["keep", "k", *method.parameters])
        fail(expression, column, f"{name} has no parameter {key!r}; known: {known}")
    try:
        return method.parameters[key].accept(value)
    except TypeError as error:
        fail(expression, column, f"{key} = {value!r} must be of type {error}")


def _written(value: Any) -> str:
    """Return a value so that it is read back as the same one: text in quotes where it would not be taken for a word."""
    if not isinstance(value, str) or (_WORD.fullmatch(value) and value.lower() not in _WORDS):
        return str(value)
    return f'"{value}"' if "'" in value else f"'{value}'"
