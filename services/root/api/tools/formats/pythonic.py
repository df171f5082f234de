"""Calls as a Python list: `[get(city='Bern', days=[1, 2])]`, of LFM2, Llama 4 and Olmo 3."""

import ast
import json
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hearth.root.api.json_text import loads, nearest_finite
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
# Keys that a call in Python's syntax may have, beyond those that Python itself takes.
_KEY = re.compile(r"""[^\s"'`()\[\]{}=,\\]+""")
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
        """A call with the required arguments first. None for keys that end or split a call."""
        properties = None if copies_too_much(schema) else properties_of(schema)
        if properties is None or not all(
            _KEY.fullmatch(key) for part in properties for key in part
        ):
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
    names = [name for name in tools if not _is_path(name)]
    keys = [key for schema in tools.values() for key in _odd_keys(schema)]
    words = _Words(text, dict.fromkeys((*names, *keys)))
    listed = None
    if len(text) <= _MAX_CALLS:
        called = words.put(text, names, r"(?<![\w.])", r"(?=\()")
        listed = _parsed(words.put(called, keys, r"(?<=[(,\s])", r"(?=\s*=)"))
    if not listed:
        return calls_of(text, tools, known=known)
    calls = [_call_of(each, words) for each in listed if isinstance(each, ast.Call)]
    if any(call is None or (known and call.name not in tools) for call in calls):
        return None
    return [call for call in calls if call is not None]


class _Words:
    """Words that Python takes, for names of tools and arguments that it does not take."""

    def __init__(self, text: str, names: Iterable[str]) -> None:
        """text: where the names will be put; it must have none of the words, or none is used."""
        of = {name: f"hearth_{number}_" for number, name in enumerate(names)}
        self._of = {} if any(word in text for word in of.values()) else of

    def put(self, text: str, names: Iterable[str], before: str, after: str) -> str:
        """The text with words for these names. before, after: assertions of a pattern."""
        known = [name for name in names if name in self._of]
        if not known:
            return text
        longest_first = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
        pattern = f"{before}(?:{longest_first}){after}"
        return re.sub(pattern, lambda found: self._of[found[0]], text)

    def name(self, text: str) -> str:
        """The name for which a text stands; else the text."""
        return next((name for name, word in self._of.items() if word == text), text)

    def taken_back(self, text: str) -> str:
        """A text of JSON with the names again, also in strings."""
        for name, word in self._of.items():
            text = text.replace(word, json.dumps(name, ensure_ascii=False)[1:-1])
        return text


def _odd_keys(schema: Schema) -> Iterator[str]:
    """The arguments of a tool whose names are not names for Python."""
    properties = schema.get("properties")
    for key in properties if isinstance(properties, Mapping) else ():
        if isinstance(key, str) and _KEY.fullmatch(key) and not _is_word(key):
            yield key


def _call_of(node: ast.Call, words: _Words) -> ToolCall | None:
    try:
        name = words.name(ast.unparse(node.func))
        if node.args or not is_name(name):
            return None
        found: dict[str, Any] = {}
        for each in node.keywords:
            if each.arg is None:
                return None
            found[each.arg] = _value_of(each.value)
        arguments = arguments_text(loads(json.dumps(found)))
        return ToolCall(name, words.taken_back(arguments))
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
    value = ast.literal_eval(node)
    return nearest_finite(value) if isinstance(value, int | float) else value


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
