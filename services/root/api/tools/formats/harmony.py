"""gpt-oss's channels: analysis is reasoning, final is the answer, commentary holds calls.

<|channel|>analysis<|message|>TEXT<|end|>
<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{}<|call|>
<|start|>assistant<|channel|>final<|message|>TEXT<|return|>
"""

import re
from collections.abc import Callable

from hearth.root.api.tools.events import Event, Reasoning, Text, ToolCall, Tools
from hearth.root.api.tools.formats.base import Schema
from hearth.root.api.tools.source import Reading, Source, longest_beginning
from hearth.root.api.tools.values import arguments_text, is_name, object_of
from hearth.root.engine.structure.grammar import Tag, json_rule

MESSAGE, CALL = "<|message|>", "<|call|>"
ENDS = ("<|end|>", CALL, "<|return|>", "<|start|>")
MARKERS = (MESSAGE, *ENDS, "<|channel|>", "<|constrain|>")
_MAX_HEAD = 256
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")
_END = re.compile("|".join(map(re.escape, ENDS)))
# A call may end where the next channel begins.
_CALL_END = re.compile(_END.pattern + r"|(?=<\|channel\|>)")


def read_channels(source: Source, tools: Tools, emit: Callable[[Event], None]) -> Reading[None]:
    """Reads a whole answer; text outside of all channels is part of it."""
    while True:
        yield from source.space()
        if not (yield from source.more(source.at)):
            return
        head = yield from source.until(MESSAGE, _MAX_HEAD)
        if head is None:
            yield from _body(source, Text, emit)
            continue
        channel = _CHANNEL.search(head)
        recipient = _RECIPIENT.search(head)
        if recipient is not None:
            yield from _call(source, recipient[1], emit if tools else _as_text(emit))
        elif channel is not None and channel[1] == "analysis":
            yield from _body(source, Reasoning, emit)
        else:
            yield from _body(source, Text, emit)


def tag(name: str, schema: Schema) -> Tag:
    """The part of an answer that is a call, to force it."""
    trigger = "<|channel|>commentary to=functions."
    begin = f"{trigger}{name} <|constrain|>json<|message|>"
    return Tag(trigger, begin, [json_rule(schema)])


def _as_text(emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """Calls as text, where the request has no tools."""

    def changed(event: Event) -> None:
        emit(Text(event.arguments) if isinstance(event, ToolCall) else event)

    return changed


def _body(
    source: Source, kind: type[Text] | type[Reasoning], emit: Callable[[Event], None]
) -> Reading[None]:
    """Passes a message's text on as it comes, and reads its end."""
    while True:
        found = _END.search(source.text, source.at)
        end = found.start() if found else len(source.text)
        if found is None and not source.ended:
            end -= longest_beginning(source.text, source.at, ENDS)
        if end > source.at:
            emit(kind(source.text[source.at : end]))
            source.at = end
        if found is not None:
            source.at = found.end()
            return
        if source.ended:
            return
        source.forget()
        yield


def _call(source: Source, name: str, emit: Callable[[Event], None]) -> Reading[None]:
    searched = source.at
    while True:
        found = _CALL_END.search(source.text, searched)
        if found is not None or source.ended:
            break
        searched = max(source.at, len(source.text) - 16)
        yield
    end = found.start() if found else len(source.text)
    text, source.at = source.text[source.at : end], found.end() if found else end
    arguments = object_of(text)
    if arguments is None or not is_name(name):
        emit(Text(text))
    else:
        emit(ToolCall(name, arguments_text(arguments)))
