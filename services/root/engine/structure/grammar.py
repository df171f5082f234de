"""Constraints as llguidance's grammars: JSON with one Lark grammar or JSON Schema for each part.

Lark's rules, `%json`, special tokens as `<[id]>` and lazy rules are described in llguidance's
docs/syntax.md. Grammars of code are written with `json_rule` and `tagged`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hearth.converter.tokenizers.base import any_of
from hearth.root.engine.structure.constraint import Constraint, Kind

# Between the tokens of JSON: a space, or up to two line ends with an indent. Without an upper bound
# a small model can write blanks until its answer is full.
WHITESPACE = r" |\r?\n{1,2}[ \t]{0,40}"
# The model chooses how forced text is cut into tokens, as it does for free text.
HEADER = '%llguidance {"no_forcing": true}\n'
# The converter of GBNF looks through all rules for each of them, in the worst case.
MAX_GBNF_RULES = 1000
MAX_GBNF_BYTES = 64 << 10
_FREE = r"/(.|\n)*/"
# At the start of a line, as in llama.cpp. (Without `\s*`, which reads all blank lines at each one.)
_LARK = re.compile(r"^[ \t]*(%llguidance\b|start[ \t]*:(?!:))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A text that must follow; names of control tokens in it stand for these."""

    text: str


@dataclass(frozen=True, slots=True)
class UpTo:
    """Free text up to and with `end`, where it is met first."""

    end: str


@dataclass(frozen=True, slots=True)
class Shared:
    """Pieces that may stand in many places: they are written once, as a rule."""

    rule: tuple[Piece, ...]


# Lark, the right side of a rule, in pieces; texts are Lark as it stands.
Piece: TypeAlias = "str | Fixed | UpTo | Shared"


@dataclass(frozen=True, slots=True)
class Tag:
    """A marked part of an answer, as a tool call is: `begin`, then `rule`, then `end`.

    trigger: the first part of `begin`; once free text has it, the rest of the tag must follow.
    rule: Lark, the right side of a rule (nothing for none).
    """

    trigger: str
    begin: str
    rule: Sequence[Piece] = ()
    end: str = ""

    def __post_init__(self) -> None:
        if not self.trigger or not self.begin.startswith(self.trigger):
            raise ValueError(f"the tag {self.begin!r} does not begin with {self.trigger!r}")


class _Writer:
    """Lark of a grammar's pieces, with the rules that they need. For one vocabulary."""

    def __init__(self, control_ids: Mapping[str, int]) -> None:
        self._control_ids = control_ids
        self._names = any_of(control_ids)  # once: there may be a thousand names, and tools
        self.rules: dict[str, str] = {}
        self._ends: dict[str, str] = {}
        self._shared: dict[str, str] = {}

    def literal(self, text: str) -> str:
        parts: list[str] = []
        place = 0
        for found in self._names.finditer(text) if self._names is not None else ():
            id = self._control_ids[found.group()]
            parts += [_quoted(text[place : found.start()]), f"<[{id}]>"]
            place = found.end()
        return _joined(*parts, _quoted(text[place:]))

    def up_to(self, end: str) -> str:
        """The name of a rule for free text up to and with `end`."""
        name = self._ends.setdefault(end, f"up_to_{len(self._ends)}")
        if name not in self.rules:
            rule = self.literal(end)
            # A control token is never a part of free text.
            lazy = "[lazy]" if rule == _quoted(end) else ""
            self.rules[name] = f"{name}{lazy}: {_FREE} {rule}"
        return name

    def shared(self, piece: Shared) -> str:
        """The name of a rule for shared pieces."""
        text = self.written(piece.rule)
        name = self._shared.setdefault(text, f"part_{len(self._shared)}")
        self.rules[name] = f"{name}: {text}"
        return name

    def written(self, pieces: Sequence[Piece]) -> str:
        found: list[str] = []
        for piece in pieces:
            match piece:
                case Fixed(text):
                    found.append(self.literal(text))
                case UpTo(end):
                    found.append(self.up_to(end))
                case Shared():
                    found.append(self.shared(piece))
                case _:
                    found.append(piece)
        return _joined(*found)


def literal(text: str, control_ids: Mapping[str, int]) -> str:
    """Lark for a text, in which names of control tokens stand for these; "" for no text."""
    return _Writer(control_ids).literal(text)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Lark for a document that a JSON Schema accepts."""
    return "%json " + json.dumps(_bounded(schema))


def tagged(
    tags: Sequence[Tag],
    control_ids: Mapping[str, int],
    *,
    free: bool = True,
    least: int = 0,
    most: int | None = None,
) -> str:
    """Lark for an answer with `least` to `most` tags; None for any number.

    free: any text may stand before, between and after the tags. In it the trigger of a tag begins
    one, as long as more tags are allowed.
    """
    writer = _Writer(control_ids)
    groups: dict[str, list[str]] = {}
    for tag in tags:
        trigger = tag.trigger if free else ""
        begin, end = (writer.literal(x) for x in (tag.begin[len(trigger) :], tag.end))
        body = _joined(begin, writer.written(tag.rule), end) or '""'
        groups.setdefault(trigger, []).append(body)
    rules: list[str] = []
    for number, (trigger, bodies) in enumerate(groups.items()):
        head = f"{writer.up_to(trigger)} " if trigger else ""
        rules.append(f"tag_{number}: {head}({' | '.join(bodies)})")
    choice = " | ".join(f"tag_{number}" for number in range(len(groups)))
    times = f"{{{least},{'' if most is None else most}}}"
    start = _joined(f"start: ({choice}){times}", _FREE if free else "")
    return HEADER + "\n".join([start, *rules, *writer.rules.values()]) + "\n"


def of(constraint: Constraint, control_ids: Mapping[str, int]) -> str:
    """The grammar of a constraint, for llguidance. Raises HearthError INVALID_ARGUMENT."""
    match constraint.kind:
        case Kind.JSON_OBJECT:
            body: dict[str, Any] = {"json_schema": _bounded({"type": "object"})}
        case Kind.JSON_SCHEMA:
            body = {"json_schema": _bounded(_schema(constraint))}
        case Kind.REGEX:
            from llguidance import regex_to_lark

            if (len(constraint.text) - len(constraint.text.rstrip("\\"))) % 2:
                raise constraint.refused("it ends in a backslash")
            body = {"lark_grammar": f"{HEADER}start: /{regex_to_lark(constraint.text, '')}/\n"}
        case Kind.GRAMMAR:
            body = {"lark_grammar": HEADER + _lark(constraint)}
    writer = _Writer(control_ids)
    before = f"{writer.up_to(constraint.after)} " if constraint.after else ""
    whole = "\n".join([f"{HEADER}start: {before}@body", *writer.rules.values()]) + "\n"
    return json.dumps({"grammars": [{"lark_grammar": whole}, body | {"name": "body"}]})


def _bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with llguidance's own options: bounded blanks, and no keyword is passed over."""
    return {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}


def _schema(constraint: Constraint) -> Mapping[str, Any]:
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError) as error:
        problem = str(error)
        if isinstance(error, RecursionError):
            problem = "nested too deeply"
        elif isinstance(error, IndexError):
            problem = "it ends within a string or a rule"
        raise constraint.refused(f"it cannot be read as JSON: {problem}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise constraint.refused("a JSON Schema is a JSON object")
    return schema


def _lark(constraint: Constraint) -> str:
    text = constraint.text
    if _LARK.search(text):
        return text
    size, rules = len(text.encode()), text.count("::=")
    if size > MAX_GBNF_BYTES or rules > MAX_GBNF_RULES:
        raise constraint.refused(
            f"it has {size} bytes and {rules} rules; GBNF may have {MAX_GBNF_BYTES} and "
            f"{MAX_GBNF_RULES}"
        )
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as error:  # of several kinds, also plain ones
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise constraint.refused(f"it is neither GBNF nor Lark: {problem[:300]}") from None


def _quoted(text: str) -> str:
    """A string of Lark, which has JSON's escapes; "" for no text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") if text else ""


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))
