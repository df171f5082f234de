"""Conversations of the faces, repaired for chat templates, which expect strict turns."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields

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
        if kind not in _TEXT_PARTS:
            raise bad_request(
                f"{place} is of type {kind[:40]!r}: this model reads text only, no images, "
                "sound or files",
                place,
            )
        texts.append(fields.text(_TEXT_PARTS[kind]))
    return "\n".join(texts)


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
            parsed = json.loads(arguments or "{}")
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
    arguments = function.raw("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise function.wrong("arguments", arguments, "a string of JSON or an object")
    return call_of(function.text("name"), arguments or {}, fields.text("id"))


def repaired(messages: Iterable[Message]) -> Sequence[Message]:
    """The same conversation in the turns that templates accept.

    Leading system messages become one; later ones join the user's text. Neighbours of one role are
    joined. Tool results without a name or an id get those of the calls before, in order.
    """
    out: list[Message] = []
    calls: deque[tuple[str, str]] = deque()
    for message in messages:
        message = dict(message)
        role = message["role"]
        if role == "system" and any(each["role"] != "system" for each in out):
            role = message["role"] = "user"
        if role == "tool":
            _match(message, calls)
        elif role == "assistant":
            made = message.get("tool_calls", ())
            calls.extend((each.get("id", ""), each["function"]["name"]) for each in made)
        if role != "tool" and out and out[-1]["role"] == role:
            _join(out[-1], message)
        else:
            out.append(message)
    return out


def _match(result: Message, calls: deque[tuple[str, str]]) -> None:
    """Adds what a tool result lacks, from the call that it answers."""
    given = result.get("tool_call_id")
    found = next((each for each in calls if given and each[0] == given), None)
    if found is None and calls and not given:
        found = calls[0]
    if found is None:
        return
    calls.remove(found)
    id, name = found
    if id:
        result.setdefault("tool_call_id", id)
    result.setdefault("name", name)


def _join(before: Message, message: Message) -> None:
    texts = [text for text in (before["content"], message["content"]) if text]
    before["content"] = _BETWEEN.join(texts)
    for name in ("tool_calls", "reasoning_content"):
        if name in message:
            before[name] = before[name] + message[name] if name in before else message[name]
