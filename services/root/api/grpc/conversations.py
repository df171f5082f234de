"""Conversations of gRPC requests, with their tools and calls, and the parts of their answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from hearth.common.errors import HearthError
from hearth.root.api.json_text import loads
from hearth.root.api.prompt import Conversation
from hearth.root.api.spoken import Part
from hearth.root.api.tools.choice import MAX_TOOLS, Tools, function, thinking
from hearth.root.api.tools.values import MAX_NAME, is_name, object_of
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import invalid
from hearth.v1 import root_pb2

Object = dict[str, Any]


def talks(request: root_pb2.GenerateRequest) -> bool:
    """True if the answer has other parts than text. Raises HearthError without a conversation."""
    given = {
        "tools": bool(request.tools),
        "separate_reasoning": request.separate_reasoning,
        "thinking": request.HasField("thinking"),
    }
    asked = [name for name, there in given.items() if there]
    if request.HasField("tool_choice") and not request.tools:
        raise _wrong("tool_choice", "is given, and there are no tools")
    if asked and request.WhichOneof("input") != "conversation":
        raise _wrong(asked[0], "needs a conversation; a prompt has none")
    return bool(asked)


def tools_of(request: root_pb2.GenerateRequest) -> Tools:
    """The tools, and which of them must be called. Raises HearthError INVALID_ARGUMENT."""
    if len(request.tools) > MAX_TOOLS:
        raise _wrong("tools", f"has {len(request.tools)} tools; at most {MAX_TOOLS} are allowed")
    given = [_tool(number, tool) for number, tool in enumerate(request.tools)]
    names = tuple(tool["function"]["name"] for tool in given)
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise _wrong("tools", f"has two tools of the name {twice!r}")
    strict = any(tool.strict for tool in request.tools)
    choice = request.tool_choice
    match choice.WhichOneof("choice"):
        case "none":
            return Tools()
        case "required":
            return Tools(given, request.one_call, names)
        case "name":
            if choice.name not in names:
                problem = f"asks for {choice.name[:40]!r}, which is not among the tools"
                raise _wrong("tool_choice", problem)
            return Tools(given, True, (choice.name,))
    return Tools(given, request.one_call, strict=strict)


def conversation_of(request: root_pb2.GenerateRequest, tools: Tools | None = None) -> Conversation:
    """The messages as templates take them, read when they are iterated over."""
    variables = thinking(request.thinking) if request.HasField("thinking") else {}
    messages = map(_message, request.conversation.messages)
    return Conversation(messages, tools.given or None if tools else None, variables)


def delta_of(delta: Delta) -> root_pb2.GenerateDelta:
    """New text and tokens; of a part also reasoning, or a call with a new id."""
    made = root_pb2.GenerateDelta(text=delta.text, token_ids=delta.token_ids)
    if isinstance(delta, Part):
        made.reasoning = delta.reasoning
        if delta.call is not None:
            made.tool_calls.add(
                id=f"call_{secrets.token_hex(12)}",
                name=delta.call.name,
                arguments=delta.call.arguments,
            )
    return made


def _tool(number: int, tool: root_pb2.Tool) -> Object:
    place = f"tools[{number}]"
    if not is_name(tool.name):
        raise _wrong(
            f"{place}.name",
            f"is {tool.name[:40]!r}; it must have 1 to {MAX_NAME} characters, without spaces, "
            "quotes and brackets",
        )
    parameters: object = {}
    if tool.parameters:
        try:
            parameters = loads(tool.parameters)
        except (ValueError, RecursionError):
            parameters = None
    if not isinstance(parameters, Mapping):
        raise _wrong(f"{place}.parameters", "is not a JSON Schema in JSON: an object")
    return function(tool.name, tool.description, parameters)


def _message(message: root_pb2.ChatMessage) -> Object:
    made: Object = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [*_calls(message)]
    if message.reasoning:
        made["reasoning_content"] = message.reasoning
    for name in ("tool_call_id", "name"):
        if given := getattr(message, name):
            made[name] = given
    return made


def _calls(message: root_pb2.ChatMessage) -> Iterator[Object]:
    for call in message.tool_calls:
        arguments = object_of(call.arguments or "{}")
        if arguments is None:
            problem = f"of {call.name[:40]!r} are not a JSON object: {call.arguments[:80]!r}"
            raise _wrong("tool_calls.arguments", problem)
        found = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        yield {"id": call.id, **found} if call.id else found


def _wrong(field: str, problem: str) -> HearthError:
    return invalid(f"{field} {problem}", field=field)
