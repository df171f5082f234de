"""Calls as JSON objects or lists between markers: Hermes, Qwen, Mistral Nemo, Granite, Llama 3."""

import json
from dataclasses import dataclass

from hearth.root.api.tools.events import ToolCall, Tools
from hearth.root.api.tools.formats.base import CallFormat, Schema
from hearth.root.api.tools.source import Reading, Source
from hearth.root.api.tools.values import calls_of
from hearth.root.engine.structure.grammar import Tag, json_rule


@dataclass(frozen=True)
class JsonCalls(CallFormat):
    """`section_open (open JSON close)* section_close`, white space between them.

    All four texts may be empty; without an opening one, the answer must begin with the JSON, and
    only names of known tools count. others: further texts that may stand for `open`. listed: one
    JSON list holds all calls. by_name: a call is {NAME: arguments}.
    """

    open: str = ""
    close: str = ""
    section_open: str = ""
    section_close: str = ""
    others: tuple[str, ...] = ()
    listed: bool = False
    name_key: str = "name"
    arguments_key: str = "arguments"
    by_name: bool = False
    # Between the opening text and the JSON.
    gap: str = "\n"

    @property
    def triggers(self) -> tuple[str, ...]:  # type: ignore[override]
        first = self.section_open or self.open
        return (*((first,) if first else ()), *self.others)

    @property
    def bare(self) -> str:  # type: ignore[override]
        return "" if self.section_open or self.open else "{["

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.open, self.close, self.section_open, self.section_close, *self.others)

    def read(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        calls: list[ToolCall] = []
        section = bool(self.section_open) and (yield from source.skip(self.section_open))
        while True:
            if section and (yield from source.skip_after_space(self.section_close)):
                return calls or None
            found = yield from self._one(source, tools)
            if found is None:
                return calls or None
            calls += found
            if not section:
                return calls

    def _one(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        start = source.at
        marked = bool(self.section_open)
        for opening in (self.open, *self.others):
            if opening and (yield from source.skip_after_space(opening)):
                marked = True
                break
        yield from source.space()
        for bracket in "{[":
            if (yield from source.starts(bracket)):
                text = yield from source.brackets()
                calls = None if text is None else calls_of(text, tools, known=not marked)
                if calls is not None:
                    yield from source.skip_after_space(self.close)
                    return calls
        source.at = start
        return None

    def written(self, name: str, arguments: str) -> str:
        before, after = self._around(name)
        return f"{before}{arguments}{after}"

    def tag(self, name: str, schema: Schema) -> Tag | None:
        before, after = self._around(name)
        trigger = self.section_open or self.open or before
        return Tag(trigger, before, [json_rule(schema)], after)

    def _around(self, name: str) -> tuple[str, str]:
        """The texts before and after the arguments of a call."""
        key = json.dumps(name)
        if not self.by_name:
            key = f"{json.dumps(self.name_key)}: {key}, {json.dumps(self.arguments_key)}"
        before, after = f"{{{key}: ", "}"
        if self.listed:
            before, after = f"[{before}", f"{after}]"
        opened = [text for text in (self.section_open, self.open) if text]
        closed = [text for text in (self.close, self.section_close) if text]
        return self.gap.join([*opened, before]), self.gap.join([after, *closed])


# For templates that know no tools: the most common form.
PLAIN = JsonCalls("<tool_call>", "</tool_call>")
