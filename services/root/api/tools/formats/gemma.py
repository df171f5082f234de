"""Gemma's calls: `<|tool_call>call:NAME{key:<|"|>text<|"|>,other:[1,true]}<tool_call|>`.

Values may also be JSON, strings in its quotes among them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hearth.root.api.json_text import loads
from hearth.root.api.tools.events import ToolCall, Tools
from hearth.root.api.tools.formats.arguments import (
    copies_too_much,
    is_plain,
    properties_of,
    with_commas,
    with_definitions,
)
from hearth.root.api.tools.formats.base import CallFormat, Schema
from hearth.root.api.tools.source import MAX_DEPTH, Reading, Source
from hearth.root.api.tools.values import arguments_text, is_name, object_of
from hearth.root.engine.structure.grammar import Fixed, Piece, Tag, UpTo, json_rule

_HEAD = re.compile(r"\s*call:\s*(?P<name>[^\s{]+)\s*")
_PLAIN = re.compile(r"[^,\[\]{}]*")
_KEY = re.compile(r"([^:,{}\[\]]*+):")
_SPACE = re.compile(r"\s*")
# Lark.
_COMMA = "/, ?/"
_OBJECT = ("properties", "required", "additionalProperties")
_JSON = json.JSONDecoder()
# Keys that stand without quotes.
_SIMPLE_KEY = re.compile(r"[\w.$-]+")


@dataclass(frozen=True)
class GemmaCalls(CallFormat):
    """Gemma 4's texts by default; FunctionGemma has others."""

    open: str = "<|tool_call>"
    close: str = "<tool_call|>"
    quote: str = '<|"|>'

    @property
    def triggers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.open,)

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.open, self.close, self.quote)

    def read(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        start = source.at
        yield from source.skip(self.open)
        text = yield from source.until(self.close)
        if text is None and source.ended:
            text, source.at = source.text[source.at :], len(source.text)
        call = None if text is None else self._call_of(text)
        if call is None:
            source.at = start
            return None
        return [call]

    def _call_of(self, text: str) -> ToolCall | None:
        head = _HEAD.match(text)
        if head is None or not is_name(head["name"]):
            return None
        try:
            value, end = self._value(text, head.end(), 0)
        except (ValueError, IndexError, RecursionError):
            return None
        if not isinstance(value, dict) or text[end:].strip():
            return None
        return ToolCall(head["name"], arguments_text(value))

    def _value(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        """The value at a place and its end. Raises ValueError, IndexError."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        at = _after_space(text, at)
        if text.startswith(self.quote, at):
            end = text.index(self.quote, at + len(self.quote))
            return text[at + len(self.quote) : end], end + len(self.quote)
        if text[at] == "{":
            return self._object(text, at + 1, depth)
        if text[at] == "[":
            return self._list(text, at + 1, depth)
        if (string := _json_string(text, at)) is not None:
            return string
        found = _PLAIN.match(text, at)
        plain = found[0].strip() if found else ""
        try:
            return loads(plain, nearest=True), at + len(found[0] if found else "")
        except ValueError:
            if not plain:
                raise
            return plain, at + len(found[0] if found else "")

    def _object(self, text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        at = _after_space(text, at)
        while text[at] != "}":
            if text.startswith(self.quote, at):
                key, at = self._value(text, at, depth)
                at = text.index(":", at) + 1
            elif (string := _json_string(text, at)) is not None:
                key, at = string[0], text.index(":", string[1]) + 1
            else:
                match = _KEY.match(text, at)
                if match is None:
                    raise ValueError("a key without a value")
                key, at = match[1].strip().strip('"'), match.end()
            found[key], at = self._value(text, at, depth + 1)
            at = _after_comma(text, at, "}")
        return found, at + 1

    def _list(self, text: str, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        at = _after_space(text, at)
        while text[at] != "]":
            value, at = self._value(text, at, depth + 1)
            found.append(value)
            at = _after_comma(text, at, "]")
        return found, at + 1

    def tag(self, name: str, schema: Schema) -> Tag | None:
        """A call with the required arguments first."""
        if copies_too_much(schema) or properties_of(schema) is None:
            return None
        rule = self._object_rule(schema, schema)
        return Tag(self.open, f"{self.open}call:{name}", rule, self.close)

    def _object_rule(self, given: Schema, schema: Schema) -> list[Piece]:
        needed, others = (
            [[Fixed(f"{_key(key)}:"), *self._rule(each, schema)] for key, each in part.items()]
            for part in properties_of(given) or ({}, {})
        )
        return ['"{"', *with_commas(needed, others, _COMMA), '"}"']

    def _rule(self, given: Schema, schema: Schema) -> list[Piece]:
        """Lark for a value: as the model writes it, where that keeps the schema, else as JSON."""
        text: list[Piece] = [Fixed(self.quote), UpTo(self.quote)]
        if is_plain(given, "string"):
            return text
        if given.get("type") == "string" and (choices := self._texts(given.get("enum"))):
            listed = " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
            return [Fixed(self.quote), f"({listed})", Fixed(self.quote)]
        if is_plain(given, "array", "items") and is_plain(_schema(given.get("items")), "string"):
            return ['"["', "(", *text, "(", _COMMA, *text, ")*", ")?", '"]"']
        plain_object = "properties" in given and is_plain(given, "object", *_OBJECT)
        if plain_object and properties_of(given) is not None:
            return self._object_rule(given, schema)
        return [json_rule(with_definitions(given, schema))]

    def _texts(self, choices: object) -> list[str]:
        """The choices that are texts without a quote."""
        listed = choices if isinstance(choices, list) else []
        return [each for each in listed if isinstance(each, str) and self.quote not in each]

    def written(self, name: str, arguments: str) -> str:
        return f"{self.open}call:{name}{self._text(object_of(arguments) or {})}{self.close}"

    def _text(self, value: Any) -> str:
        match value:
            case str():
                return f"{self.quote}{value}{self.quote}"
            case dict():
                return "{" + ",".join(f"{_key(k)}:{self._text(v)}" for k, v in value.items()) + "}"
            case list():
                return "[" + ",".join(map(self._text, value)) + "]"
        return arguments_text(value)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _after_comma(text: str, at: int, end: str) -> int:
    at = _after_space(text, at)
    if text[at] == ",":
        return _after_space(text, at + 1)
    if text[at] != end:
        raise ValueError("neither a comma nor the end")
    return at


def _key(key: str) -> str:
    return key if _SIMPLE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _schema(given: object) -> Schema:
    return given if isinstance(given, Mapping) else {}


def _json_string(text: str, at: int) -> tuple[str, int] | None:
    """A string of JSON and its end; None where it is not one, or plain text follows it."""
    if text[at] != '"':
        return None
    try:
        value, end = _JSON.raw_decode(text, at)
    except ValueError:
        return None
    after = _after_space(text, end)
    return (value, end) if text[after : after + 1] in ("", *",:{}[]") else None
