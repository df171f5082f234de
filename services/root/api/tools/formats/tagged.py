"""Calls with a pair of tags around each argument: Qwen3-Coder, GLM, MiniMax, Seed, DeepSeek V3.2.

Values of strings are plain text; other values are JSON.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hearth.root.api.tools.events import ToolCall, Tools
from hearth.root.api.tools.formats.arguments import copies_too_much, with_definitions
from hearth.root.api.tools.formats.base import CallFormat, Schema
from hearth.root.api.tools.source import Reading, Source
from hearth.root.api.tools.values import arguments_text, is_name, object_of, value_of
from hearth.root.engine.structure.grammar import Fixed, Piece, Tag, UpTo, json_rule

_MAX_NAME = 256
_NAME_END = re.compile(r"[\s<\[]")
_LAST_TAG = re.compile(r"<[^<>]*$|\[[^\[\]]*$")


@dataclass(frozen=True)
class TaggedCalls(CallFormat):
    """`open NAME named (key_open KEY key_close VALUE value_close)* close`, in a section if it has.

    named: the text that ends a name. key_close: as for a string; where `key_close_other` differs,
    it is that of other values. Line breaks that `key_close` and `value_close` have next to a value
    are not part of it.
    """

    open: str
    named: str
    key_open: str
    key_close: str
    value_close: str
    close: str
    section_open: str = ""
    section_close: str = ""
    key_close_other: str = ""
    # Where `open` has several tags, the last: models leave out the first ones.
    _short: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        last = _LAST_TAG.search(self.open)
        short = self.open[last.start() :].strip() if last else ""
        object.__setattr__(self, "_short", short if short != self.open.strip() else "")

    @property
    def triggers(self) -> tuple[str, ...]:  # type: ignore[override]
        first = (self.section_open or self.open).strip()
        if self.section_open or not self._short:
            return (first,)
        return (self.open.strip().removesuffix(self._short).strip(), self._short)

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (
            *(self.open, self.named, self.key_open, self.key_close, self.value_close, self.close),
            *(self.section_open, self.section_close, self.key_close_other),
        )

    def read(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        calls: list[ToolCall] = []
        section_open, section_close = self.section_open.strip(), self.section_close.strip()
        section = bool(section_open) and (yield from source.skip(section_open))
        while True:
            if section and (yield from source.skip_after_space(section_close)):
                return calls or None
            found = yield from self._one(source, tools)
            if found is None:
                return calls or None
            calls.append(found)
            if not section:
                return calls

    def _one(self, source: Source, tools: Tools) -> Reading[ToolCall | None]:
        start = source.at
        name = yield from self._name(source)
        if name is not None and is_name(name):
            arguments = yield from self._arguments(source, tools.get(name, {}))
            if arguments is not None and (yield from self._closed(source)):
                return ToolCall(name, arguments_text(arguments))
        source.at = start
        return None

    def _name(self, source: Source) -> Reading[str | None]:
        opened = False
        for part in _tags(self.open.removesuffix(self._short)):
            opened = (yield from source.skip_after_space(part)) or opened
        if self._short:
            opened = yield from source.skip_after_space(self._short)
        if not opened:
            return None
        if named := self.named.strip():
            return _stripped((yield from source.until(named, _MAX_NAME)))
        # The name ends at the first argument, or at the end of the call.
        yield from source.space()
        begin = source.at
        while True:
            found = _NAME_END.search(source.text, begin)
            if found is not None or source.ended:
                end = found.start() if found else len(source.text)
                name, source.at = source.text[begin:end], end
                return name
            if len(source.text) - begin > _MAX_NAME:
                return None
            yield

    def _arguments(self, source: Source, schema: Any) -> Reading[dict[str, Any] | None]:
        arguments: dict[str, Any] = {}
        while (yield from source.skip_after_space(self.key_open.strip())):
            found_key, string = yield from self._key(source)
            if found_key is None:
                return None
            key = found_key
            found = yield from source.until(self.value_close.strip())
            if found is None:
                return None
            value = found
            if self.key_close.endswith("\n"):
                value = value.removeprefix("\n")
            if self.value_close.startswith("\n"):
                value = value.removesuffix("\n")
            arguments[key] = value if string else value_of(value, schema, key)
        return arguments

    def _key(self, source: Source) -> Reading[tuple[str | None, bool]]:
        """A key, read with the tag that opens its value; True where that tag says "string"."""
        if self.key_close_other and self.key_close_other != self.key_close:
            text = yield from source.until(">", _MAX_NAME)
            if text is None:
                return None, False
            # As in key" string="true">.
            name, quote, rest = text.partition(self.key_close[:1])
            return name.strip(), f"{quote}{rest}>" == self.key_close.strip()
        first, *others = _tags(self.key_close)
        key = _stripped((yield from source.until(first, _MAX_NAME)))
        for tag in others:
            yield from source.skip_after_space(tag)
        return key, False

    def _closed(self, source: Source) -> Reading[bool]:
        """Reads the closing tags; models leave some out, or the answer ends before them."""
        closed = False
        for part in _tags(self.close):
            closed = (yield from source.skip_after_space(part)) or closed
        return closed or not _tags(self.close)

    def tag(self, name: str, schema: Schema) -> Tag | None:
        """A call whose arguments come in the schema's order."""
        begin = "".join([self.section_open, self.open, name, self.named])
        properties = schema.get("properties")
        if schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"} and not properties:
            return None
        if copies_too_much(schema):
            return None
        required = schema.get("required")
        rule: list[Piece] = []
        for key, given in properties.items() if isinstance(properties, Mapping) else ():
            argument = self._argument(key, given if isinstance(given, Mapping) else {}, schema)
            needed = isinstance(required, Sequence) and key in required
            rule += argument if needed else ["(", *argument, ")?"]
        trigger = (self.section_open or self.open).strip()
        if not begin.startswith(trigger):
            return None
        return Tag(trigger, begin, rule, f"{self.close}{self.section_close}")

    def _argument(self, key: str, given: Schema, schema: Schema) -> list[Piece]:
        """Lark for one argument."""
        choices = given.get("enum")
        close, after = self.key_close, self.value_close
        if given.get("type") != "string":
            close = self.key_close_other or close
            value: list[Piece] = [json_rule(with_definitions(given, schema)), Fixed(after)]
        elif isinstance(choices, Sequence) and all(isinstance(each, str) for each in choices):
            listed = " | ".join(json.dumps(each) for each in choices)
            value = [f"({listed})", Fixed(after)]
        else:
            # Any text without the closing tag, with which the reader ends it too. A line break
            # before the tag is a part of that text.
            tag = after.strip()
            value = [UpTo(tag), Fixed(after[after.index(tag) + len(tag) :])]
        return [Fixed(f"{self.key_open}{key}{close}"), *value]

    def written(self, name: str, arguments: str) -> str:
        parts = [self.section_open, self.open, name, self.named]
        for key, value in (object_of(arguments) or {}).items():
            close = self.key_close if isinstance(value, str) else self.key_close_other
            text = value if isinstance(value, str) else arguments_text(value)
            parts += [self.key_open, key, close or self.key_close, text, self.value_close]
        return "".join([*parts, self.close, self.section_close])


def _stripped(text: str | None) -> str | None:
    return None if text is None else text.strip()


def _tags(text: str) -> list[str]:
    """The tags of a text, one by one."""
    return [part for part in re.split(r"\s+|(?<=>)(?=<)|(?<=\])(?=\[)", text.strip()) if part]
