"""Conversations with tools, changed to what a chat template can write."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hearth.root.api.tools.discovery import TemplateFacts
from hearth.root.api.tools.values import arguments_text

Message = Mapping[str, Any]
Object = dict[str, Any]

_SYSTEM = ("system", "developer")
_SHORT_ID = 9


@dataclass(frozen=True, slots=True)
class Adapted:
    """The arguments of a template. variables: names that it has beside them."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def adapted(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    template: str,
    facts: TemplateFacts,
) -> Adapted:
    """The conversation as its template takes it.

    Tools that the template does not describe are described in the system message. Calls that it
    does not write become text in the model's form, and results that it refuses the user's text.
    """
    variables: Object = {}
    if any("reasoning_content" in message for message in messages):
        messages = _with_thoughts(messages, template)
    if any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        messages = _with_calls(messages, facts)
    if tools and not facts.reads_tools:
        functions = [tool["function"] for tool in tools]
        if "xml_tools" in template:
            variables["xml_tools"] = functions
        elif "['tools']" in template or "message.tools" in template:
            messages = _with_system(messages, {"tools": json.dumps(functions)})
        else:
            messages = _with_system(messages, {}, _described(functions, facts))
    return Adapted(messages, tools or None, variables)


def _with_thoughts(messages: Sequence[Message], template: str) -> Sequence[Message]:
    """The messages with their reasoning under the name that the template reads."""
    if "reasoning_content" in template or "thinking" not in template:
        return messages
    made: list[Message] = []
    for message in messages:
        changed = dict(message)
        thought = changed.pop("reasoning_content", None)
        if thought and not (changed.get("content") and changed.get("tool_calls")):
            changed["thinking"] = thought
        made.append(changed)
    return made


def _with_calls(messages: Sequence[Message], facts: TemplateFacts) -> Sequence[Message]:
    made: list[Message] = []
    for message in _in_order(messages) if facts.one_call else messages:
        if message.get("tool_calls"):
            made.append(_with_own_calls(message, facts))
        elif message["role"] == "tool" and not facts.reads_results:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            last = made[-1] if made else {}
            if last.get("role") == "user" and "joins" in last:
                made[-1] = {**last, "content": f"{last['content']}\n{text}"}
            else:
                made.append({"role": "user", "content": text, "joins": True})
        elif message["role"] == "user" and made and "joins" in made[-1]:
            joined = f"{made[-1]['content']}\n\n{message['content']}"
            made[-1] = {"role": "user", "content": joined}
        elif facts.short_ids and message.get("tool_call_id"):
            made.append({**message, "tool_call_id": _short_id(message["tool_call_id"])})
        else:
            made.append(message)
    return [{key: each[key] for key in each if key != "joins"} for each in made]


def _with_own_calls(message: Message, facts: TemplateFacts) -> Object:
    """An assistant's message with calls as the template takes them."""
    changed = dict(message)
    calls = [_one_call(call, facts) for call in message["tool_calls"]]
    if facts.writes_calls:
        changed["tool_calls"] = calls
        if facts.null_content and not changed.get("content"):
            changed["content"] = None
        return changed
    del changed["tool_calls"]
    texts = [changed["content"]] if changed.get("content") else []
    for call in calls:
        function = call["function"]
        given = function["arguments"]
        arguments = arguments_text(given) if isinstance(given, dict) else given
        texts.append(facts.calls.written(function["name"], arguments))
    changed["content"] = "\n".join(texts)
    return changed


def _one_call(call: Mapping[str, Any], facts: TemplateFacts) -> Object:
    made = {**call, "function": dict(call["function"])}
    arguments = made["function"]["arguments"]
    if facts.text_arguments and isinstance(arguments, dict):
        made["function"]["arguments"] = arguments_text(arguments)
    if facts.short_ids:
        made["id"] = _short_id(str(call.get("id", "")))
    return made


def _short_id(id: str) -> str:
    """The id where it fits, else one of 9 letters and digits made from it."""
    if len(id) == _SHORT_ID and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:_SHORT_ID]


def _in_order(messages: Sequence[Message]) -> Sequence[Message]:
    """Messages with one call each, followed by its result."""
    made: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            made.append(message)
            continue
        results: list[Message] = []
        while place < len(messages) and messages[place]["role"] == "tool":
            results.append(messages[place])
            place += 1
        waiting = dict(enumerate(results))
        by_id: dict[str, list[int]] = {}
        for number, result in waiting.items():
            by_id.setdefault(result.get("tool_call_id", ""), []).append(number)
        for index, call in enumerate(calls):
            first = message if index == 0 else {"role": "assistant", "content": ""}
            made.append({**first, "tool_calls": [call]})
            numbers = by_id.get(call.get("id", ""))
            if numbers:
                made.append(waiting.pop(numbers.pop(0)))
        made += waiting.values()
    return made


def _with_system(messages: Sequence[Message], more: Object, text: str = "") -> Sequence[Message]:
    """The messages with text and fields added to a leading system message."""
    first: Message = {"role": "system", "content": ""}
    rest = messages
    if messages and messages[0]["role"] in _SYSTEM:
        first, rest = messages[0], messages[1:]
    content = "\n\n".join(part for part in (first["content"], text) if part)
    return [{**first, **more, "content": content}, *rest]


def _described(functions: Sequence[Mapping[str, Any]], facts: TemplateFacts) -> str:
    """Tools in words, with the form of a call."""
    listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    example = facts.calls.written("NAME", '{"ARGUMENT": "VALUE"}')
    return (
        "You can call these functions, described in JSON schema:\n"
        f"{listed}\n\n"
        "To call one, write this and nothing after it:\n"
        f"{example}\n"
        "The result comes in the next message. Call no function where you can answer without."
    )
