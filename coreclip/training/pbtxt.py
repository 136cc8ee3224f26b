"""Protocol buffers' text format, read into dicts by a table of fields.

After the language's own description (protobuf.dev, "Text Format Language Specification"). Left out: extensions, ``Any``, bytes,
groups of ``oneof``, octal and hexadecimal numbers, which no configuration that is read here uses.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from coreclip.errors import CoreclipError

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?)
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<mark>[:{}<>\[\],;])""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}


@dataclass(frozen=True)
class Field:
    """A field of a message.

    Attributes
    ----------
    kind : str
        ``string``, ``int``, ``float``, ``bool``, ``enum`` or ``message``.
    repeated : bool
    values : tuple of str
        An enum's names.
    message : dict of Field
        A message's fields, by name.
    """

    kind: str
    repeated: bool = False
    values: tuple[str, ...] = ()
    message: dict[str, "Field"] = field(default_factory=dict)


def parse(text: str, fields: dict[str, Field], what: str) -> dict[str, Any]:
    """Read a message.

    Parameters
    ----------
    text : str
    fields : dict of Field
        Those that the message may have.
    what : str
        Names the text in errors.

    Returns
    -------
    dict
        Values by name: str, int, float, bool, dict, and lists of them for repeated fields. Absent fields are absent.

    Raises
    ------
    CoreclipError
        For a text that is no message of these fields, with its line.
    """
    reader = _Reader(text, what)
    message = _message(reader, fields, end=None)
    return message


class _Reader:
    """The tokens of a text, one ahead."""

    def __init__(self, text: str, what: str) -> None:
        self.what, self.tokens = what, []
        place, line = 0, 1
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise CoreclipError(
                    f"{what}, line {line}: {text[place : place + 10]!r} is no text format; mend that line"
                )
            if match.lastgroup != "space":
                self.tokens.append((str(match.lastgroup), match.group(), line))
            line += match.group().count("\n")
            place = match.end()
        self.tokens.append(("end", "", line))
        self.place = 0

    def look(self) -> str:
        return self.tokens[self.place][1]

    def kind(self) -> str:
        return self.tokens[self.place][0]

    def take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1][1]

    def took(self, *marks: str) -> bool:
        if self.kind() == "mark" and self.look() in marks:
            self.place += 1
            return True
        return False

    def error(self, message: str) -> CoreclipError:
        return CoreclipError(f"{self.what}, line {self.tokens[self.place][2]}: {message}; mend that line")


def _message(reader: _Reader, fields: dict[str, Field], end: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while not (reader.kind() == "end" if end is None else reader.took(end)):
        if reader.kind() != "name":
            raise reader.error(f"{reader.look() or 'the end'!r} where a field or {end or 'the end'!r} is needed")
        name = reader.look()
        if name not in fields:
            raise reader.error(f"there is no field {name!r} here, but {', '.join(sorted(fields))}")
        if name in found and not fields[name].repeated:
            raise reader.error(f"{name} is given twice, and may be once")
        reader.take()
        _take_field(reader, fields[name], name, found)
        reader.took(",", ";")
    return found


def _take_field(reader: _Reader, rule: Field, name: str, found: dict[str, Any]) -> None:
    colon = reader.took(":")
    if rule.kind != "message" and not colon:
        raise reader.error(f"{name} needs a colon before its value")
    if rule.repeated and reader.took("["):
        values = found.setdefault(name, [])
        while not reader.took("]"):
            values.append(_value(reader, rule, name))
            if not reader.took(",") and reader.look() != "]":
                raise reader.error(f"the list of {name} needs a comma or its end")
    elif rule.repeated:
        found.setdefault(name, []).append(_value(reader, rule, name))
    else:
        found[name] = _value(reader, rule, name)


def _value(reader: _Reader, rule: Field, name: str) -> Any:
    if rule.kind == "message":
        for begin, end in ("{}", "<>"):
            if reader.took(begin):
                return _message(reader, rule.message, end)
        raise reader.error(f"{name} is a message and needs braces")
    kind, token = reader.kind(), reader.look()
    value: Any = None
    if rule.kind == "string" and kind == "text":
        value = ""
        while reader.kind() == "text":  # texts beside each other are one
            value += re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), reader.take()[1:-1])
        return value
    if rule.kind == "bool" and token in ("true", "false"):
        value = token == "true"
    elif rule.kind == "int" and re.fullmatch(r"-?\d+", token):
        value = int(token)
    elif rule.kind == "float" and kind == "number":
        value = float(token.rstrip("fF"))
    elif rule.kind == "enum" and token in rule.values:
        value = token
    if value is None:
        wanted = f"one of {', '.join(rule.values)}" if rule.kind == "enum" else f"a value of type {rule.kind}"
        raise reader.error(f"{name} is {token or 'nothing'}, and must be {wanted}")
    reader.take()
    return value
