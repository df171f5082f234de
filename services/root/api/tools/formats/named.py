"""Calls as a name, then its arguments in JSON: Mistral Small, DeepSeek, functionary, Kimi."""

import re
from dataclasses import dataclass, field

from hearth.root.api.tools.events import ToolCall, Tools
from hearth.root.api.tools.formats.base import CallFormat, Schema
from hearth.root.api.tools.source import Reading, Source
from hearth.root.api.tools.values import arguments_text, is_name, object_of
from hearth.root.engine.structure.grammar import Tag, json_rule

# Characters between the beginning of a call and its arguments.
_MAX_HEAD = 512
# The place of a call's id in `open` and `middle`.
ID = "\x00"
_SOME_ID = "hearth000"


@dataclass(frozen=True)
class NamedCalls(CallFormat):
    """`section_open (open NAME middle JSON close)* section_close`.

    `open` and `middle` may hold ID, for an id that the model makes up, and numbers of any value.
    """

    open: str
    middle: str
    close: str = ""
    section_open: str = ""
    section_close: str = ""
    _head: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        head = rf"\s*{_pattern(self.open)}(?P<name>[^\s<\[]+?)\s*{_pattern(self.middle)}\s*"
        object.__setattr__(self, "_head", re.compile(head))

    @property
    def triggers(self) -> tuple[str, ...]:  # type: ignore[override]
        first = self.section_open or self.open.partition(ID)[0]
        return (first,) if first else ()

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        texts = (self.section_open, self.open, self.middle, self.close, self.section_close)
        return tuple(part for text in texts for part in text.split(ID))

    def read(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        calls: list[ToolCall] = []
        section = bool(self.section_open) and (yield from source.skip(self.section_open))
        while True:
            if section and (yield from source.skip_after_space(self.section_close)):
                return calls or None
            found = yield from self._one(source)
            if found is None:
                return calls or None
            calls.append(found)
            if not section:
                return calls

    def _one(self, source: Source) -> Reading[ToolCall | None]:
        start = source.at
        head = yield from source.until("{", _MAX_HEAD)
        if head is not None:
            source.at -= 1
            match = self._head.fullmatch(head)
            if match is not None and is_name(match["name"]):
                text = yield from source.brackets()
                arguments = None if text is None else object_of(text)
                if arguments is not None:
                    yield from source.skip_after_space(self.close.strip())
                    return ToolCall(match["name"], arguments_text(arguments))
        source.at = start
        return None

    def written(self, name: str, arguments: str) -> str:
        before, after = self._around(name)
        return f"{before}{arguments}{after}"

    def tag(self, name: str, schema: Schema) -> Tag | None:
        before, after = self._around(name)
        trigger = self.section_open or self.open.partition(ID)[0]
        return Tag(trigger, before, [json_rule(schema)], after) if trigger else None

    def _around(self, name: str) -> tuple[str, str]:
        """The texts before and after the arguments of a call."""
        before = f"{self.section_open}{self.open}{name}{self.middle}"
        gap = "\n" if self.middle.endswith("\n") else ""
        return before.replace(ID, _SOME_ID), f"{gap}{self.close}{self.section_close}"


def _pattern(text: str) -> str:
    """A pattern of a fixed text: an id, and the marker before it, may be absent."""
    before, id, after = text.partition(ID)
    if id and after:
        return rf"(?:{_fixed(before)}[^\s<\[{{]*)?{_fixed(after)}"
    return _fixed(before) + (r"[^\s<\[{]*" if id else "")


def _fixed(text: str) -> str:
    words = [re.escape(word) for word in text.split()]
    return r"\s*" + re.sub(r"\d+", r"\\d+", r"\s*".join(words)) if words else ""
