"""Calls as a Python list: `[get(city='Bern', days=[1, 2])]`, of LFM2, Llama 4 and Olmo 3."""

import ast
import json
import keyword
import re
import unicodedata
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
from hearth.root.api.tools.source import Reading, Source
from hearth.root.api.tools.values import arguments_text, calls_of, is_name, object_of
from hearth.root.engine.structure.grammar import Fixed, Piece, Tag, json_rule

# Longer calls are not parsed: the time of Python's parser grows with them.
_MAX_CALLS = 1 << 18
_WORDS = {"true": True, "false": False, "null": None}
# A string in single quotes, of characters that Python and JSON read alike.
_SINGLE = r"/'([^'\\\x00-\x1f\x7f]|\\[\\'\"nrt])*'/"


@dataclass(frozen=True)
class PythonicCalls(CallFormat):
    """`open [f(a=1), g()] close`; without `open` the answer must begin with the list."""

    open: str = ""
    close: str = ""

    @property
    def triggers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.open,) if self.open else ()

    @property
    def bare(self) -> str:  # type: ignore[override]
        return "" if self.open else "["

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.open, self.close)

    def read(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        start = source.at
        if self.open:
            yield from source.skip(self.open)
        yield from source.space()
        text = yield from self._text(source)
        calls = None if text is None else _calls_of(text, tools, known=not self.open)
        if calls is None:
            source.at = start
        return calls

    def _text(self, source: Source) -> Reading[str | None]:
        if self.close:
            text = yield from source.until(self.close, _MAX_CALLS)
            if text is not None or not source.ended:
                return text
            text, source.at = source.text[source.at :], len(source.text)
            return text
        if not (yield from source.starts("[")):
            return None
        return (yield from source.brackets("\"'"))

    def tag(self, name: str, schema: Schema) -> Tag | None:
        """A call with the required arguments first. None for keys that Python does not take."""
        properties = None if copies_too_much(schema) else properties_of(schema)
        if properties is None or not all(_is_word(key) for part in properties for key in part):
            return None
        needed, others = (
            [[Fixed(f"{key}="), *_value_rule(given, schema)] for key, given in part.items()]
            for part in properties
        )
        begin = f"{self.open}[{name}("
        rule = with_commas(needed, others, "/, ?/")
        return Tag(self.open or begin, begin, rule, f")]{self.close}")

    def written(self, name: str, arguments: str) -> str:
        given = (object_of(arguments) or {}).items()
        listed = ", ".join(f"{key}={value!r}" for key, value in given)
        return f"{self.open}[{name}({listed})]{self.close}"


def _parsed(text: str) -> list[ast.expr] | None:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    listed = tree.elts if isinstance(tree, ast.List) else [tree]
    return listed if all(isinstance(each, ast.Call) for each in listed) else None


def _calls_of(text: str, tools: Tools, known: bool) -> list[ToolCall] | None:
    words = {f"hearth_{number}_": name for number, name in enumerate(tools) if not _is_path(name)}
    listed = _parsed(_with_words(text, words)) if len(text) <= _MAX_CALLS else None
    if not listed:
        return calls_of(text, tools, known=known)
    calls = [_call_of(each, words) for each in listed if isinstance(each, ast.Call)]
    if any(call is None or (known and call.name not in tools) for call in calls):
        return None
    return [call for call in calls if call is not None]


def _with_words(text: str, words: Mapping[str, str]) -> str:
    """The text with words that Python takes for names of tools that it does not take."""
    if not words or any(word in text for word in words):
        return text
    of = {name: word for word, name in words.items()}
    longest_first = "|".join(map(re.escape, sorted(of, key=len, reverse=True)))
    return re.sub(rf"(?<![\w.])(?:{longest_first})(?=\()", lambda found: of[found[0]], text)


def _call_of(node: ast.Call, words: Mapping[str, str]) -> ToolCall | None:
    try:
        name = ast.unparse(node.func)
        name = words.get(name, name)
        if node.args or not is_name(name):
            return None
        found: dict[str, Any] = {}
        for each in node.keywords:
            if each.arg is None:
                return None
            found[each.arg] = _value_of(each.value)
        arguments = arguments_text(loads(json.dumps(found)))
        for word, own in words.items():  # in strings too
            arguments = arguments.replace(word, json.dumps(own, ensure_ascii=False)[1:-1])
        return ToolCall(name, arguments)
    except (ValueError, TypeError, RecursionError):
        return None


def _value_of(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value_of(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_value_of(key): _value_of(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)


def _is_path(name: str) -> bool:
    return all(map(_is_word, name.split(".")))


def _is_word(text: str) -> bool:
    """Test whether Python reads a text as a name, and that name."""
    same = unicodedata.normalize("NFKC", text) == text
    return text.isidentifier() and same and not keyword.iskeyword(text)


def _value_rule(given: Schema, schema: Schema) -> list[Piece]:
    """Lark for a value, in JSON's syntax or in Python's."""
    choices = [json_rule(with_definitions(given, schema))]
    if is_plain(given, "string"):
        choices.append(_SINGLE)
    elif is_plain(given, "boolean"):
        choices += ['"True"', '"False"']
    return [f"({' | '.join(choices)})"]
