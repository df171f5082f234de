"""Conversations of the faces, repaired for chat templates, which expect strict turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.json_text import loads

Message = dict[str, Any]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# Types of content parts that are text, and the field that holds it.
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_BETWEEN = "\n\n"


def text_of(owner: Fields, name: str = "content") -> str:
    """Text of a field: a string, null, or a list of parts. Raises HttpError for other media."""
    value = owner.values.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    texts: list[str] = []
    for index, part in enumerate(owner.items(name)):
        place = f"{owner.place(name)}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise bad_request(f"{place} must be a string or an object with a type", place)
        fields = Fields(part, place)
        kind = fields.text("type", "text")
        if kind == "document":
            texts.append(document_of(fields))
            continue
        if kind not in _TEXT_PARTS:
            raise bad_request(
                f"{place} is of type {kind[:40]!r}: this model reads text only, no images, "
                "sound or files",
                place,
            )
        texts.append(fields.text(_TEXT_PARTS[kind]))
    return "\n".join(texts)


def document_of(fields: Fields) -> str:
    """The text of Anthropic's document, behind its title and context. Raises HttpError."""
    source = fields.child("source")
    if source is None:
        raise bad_request(f"{fields.place('source')} is missing", fields.place("source"))
    kind = source.text("type")
    if kind not in ("text", "content"):
        place = source.place("type")
        raise bad_request(
            f"{place} is {kind[:40]!r}: this model reads documents of plain text only", place
        )
    text = source.text("data") if kind == "text" else text_of(source)
    return "\n".join(each for each in (fields.text("title"), fields.text("context"), text) if each)


def message_of(fields: Fields) -> Message:
    """A message of OpenAI's chat: role, content, tool calls and results."""
    role = fields.text("role")
    if role not in _ROLES:
        raise bad_request(
            f"{fields.place('role')} is {role[:40]!r}; it must be one of {', '.join(_ROLES)}",
            fields.place("role"),
        )
    message: Message = {"role": _ROLES[role], "content": text_of(fields)}
    if message["role"] == "assistant":
        calls = [_tool_call(each) for each in fields.objects("tool_calls")]
        if old := fields.child("function_call"):
            calls.append(_called(old))
        if calls:
            message["tool_calls"] = calls
        if reasoning := fields.text("reasoning_content"):
            message["reasoning_content"] = reasoning
    if message["role"] == "tool":
        for name in ("name", "tool_call_id"):
            if given := fields.text(name):
                message[name] = given
    return message


def call_of(name: str, arguments: object, id: str = "") -> dict[str, Any]:
    """A tool call as chat templates take it: with its arguments as an object where they are one."""
    if isinstance(arguments, str):
        try:
            parsed = loads(arguments or "{}")
        except (ValueError, RecursionError):
            parsed = arguments
        arguments = parsed if isinstance(parsed, dict) else arguments
    found: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return {"id": id, **found} if id else found


def _tool_call(fields: Fields) -> dict[str, Any]:
    function = fields.child("function")
    if function is None:
        place = fields.place("function")
        raise bad_request(f"{place} is missing; a tool call needs a function", place)
    return _called(function, fields.text("id"))


def _called(function: Fields, id: str = "") -> dict[str, Any]:
    arguments = function.raw("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise function.wrong("arguments", arguments, "a string of JSON or an object")
    return call_of(function.text("name"), arguments or {}, id)


async def in_turns(messages: Iterable[Message]) -> Sequence[Message]:
    """`repaired` in a thread: a body may hold 200,000 messages. Raises what `messages` does."""
    return await asyncio.to_thread(repaired, messages)


def repaired(messages: Iterable[Message]) -> Sequence[Message]:
    """The same conversation in the turns that templates accept, in linear time.

    Leading system messages become one; later ones join the user's text. Neighbours of one role are
    joined. Tool results without a name or an id get those of the calls before, in order.
    """
    turns: list[_Turn] = []
    calls = _Calls()
    only_system = True
    for message in messages:
        message = dict(message)
        if message["role"] == "system" and not only_system:
            message["role"] = "user"
        role = message["role"]
        only_system = only_system and role == "system"
        if role == "tool":
            calls.answer(message)
        for each in message.get("tool_calls", ()):
            calls.add(each.get("id", ""), each["function"]["name"])
        if role != "tool" and turns and turns[-1].role == role:
            turns[-1].add(message)
        else:
            turns.append(_Turn(message))
    return [turn.message() for turn in turns]


class _Calls:
    """Tool calls without a result yet."""

    def __init__(self) -> None:
        self._count = 0
        # Number of the call -> (its id, its name).
        self._open: dict[int, tuple[str, str]] = {}
        # The numbers in order, and by id; those of answered calls stay until they are met.
        self._all: deque[int] = deque()
        self._by_id: dict[str, deque[int]] = {}

    def add(self, id: str, name: str) -> None:
        """A call."""
        self._open[self._count] = (id, name)
        self._all.append(self._count)
        self._by_id.setdefault(id, deque()).append(self._count)
        self._count += 1

    def answer(self, result: Message) -> None:
        """Adds what a tool result lacks, from the call that it answers."""
        given = result.get("tool_call_id")
        number = self._first(self._by_id.get(given) if given else self._all)
        if number is None:
            return
        id, name = self._open.pop(number)
        if id:
            result.setdefault("tool_call_id", id)
        result.setdefault("name", name)

    def _first(self, numbers: deque[int] | None) -> int | None:
        while numbers:
            number = numbers.popleft()
            if number in self._open:
                return number
        return None


class _Turn:
    """Neighbouring messages of one role, joined at the end."""

    def __init__(self, message: Message) -> None:
        self.role: str = message["role"]
        self._message = message
        self._more: list[Message] = []

    def add(self, message: Message) -> None:
        """One more message."""
        self._more.append(message)

    def message(self) -> Message:
        """All of them as one message."""
        if not self._more:
            return self._message
        made = dict(self._message)
        parts = [self._message, *self._more]
        made["content"] = _BETWEEN.join(each["content"] for each in parts if each["content"])
        reasoning = [each["reasoning_content"] for each in parts if "reasoning_content" in each]
        if reasoning:
            made["reasoning_content"] = "".join(reasoning)
        calls = [call for each in parts for call in each.get("tool_calls", ())]
        if calls:
            made["tool_calls"] = calls
        return made
