"""Calls and arguments as JSON values: read leniently, written strictly."""

import ast
import json
from collections.abc import Mapping
from typing import Any

from hearth.root.api.json_text import loads
from hearth.root.api.tools.events import ToolCall, Tools

_NAMES = ("name", "tool_name", "function_name", "function")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
MAX_NAME = 128


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """The arguments of a call as they are sent."""
    return json.dumps(arguments, ensure_ascii=False)


def calls_of(text: str, tools: Tools, *, known: bool = False) -> list[ToolCall] | None:
    """The calls in a JSON text: an object, or a list of objects.

    Each has a name and arguments under one of the usual keys, or is {name: arguments}.
    known: only names of `tools` count. None where anything else is found.
    """
    try:
        value = loads(text, nearest=True)
    except (ValueError, RecursionError):
        return None
    listed = value if isinstance(value, list) else [value]
    calls = [call for each in listed if (call := _call_of(each, tools, known))]
    return calls if calls and len(calls) == len(listed) else None


def _call_of(value: Any, tools: Tools, known: bool) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name: Any = next((value[key] for key in _NAMES if key in value), None)
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), None)
    if name is None and len(value) == 1:
        ((name, arguments),) = value.items()
        known = True
    elif arguments is None:
        # A name alone is a call without arguments only where its markers say that it is a call.
        arguments = {} if not known and value.keys() <= {"name", "tool_name", "id"} else None
    if not isinstance(name, str) or not is_name(name) or (known and name not in tools):
        return None
    if isinstance(arguments, str):
        arguments = object_of(arguments)
    return ToolCall(name, arguments_text(arguments)) if isinstance(arguments, dict) else None


def is_name(name: str) -> bool:
    """Test whether a text may be the name of a tool."""
    return 0 < len(name) <= MAX_NAME and not any(c.isspace() or c in '"<>{}[]()' for c in name)


def object_of(text: str) -> dict[str, Any] | None:
    """The object of a JSON text; an empty one for a blank text; None for anything else."""
    try:
        value = loads(text, nearest=True) if text.strip() else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def value_of(text: str, schema: Mapping[str, Any], key: str) -> Any:
    """An argument written as plain text: a string where the schema wants one, else JSON."""
    properties = schema.get("properties")
    given = properties.get(key) if isinstance(properties, Mapping) else None
    kinds = _kinds(given)
    if kinds == ["string"]:
        return text
    try:
        value = loads(text, nearest=kinds != [None])
    except (ValueError, RecursionError):
        value = _python_value(text)
    # {"type": ["string", "null"]}: 5 is the text "5", and "5" is it in quotes.
    quoted = isinstance(value, str) and text.lstrip().startswith('"')
    return value if "string" not in kinds or value is None or quoted else text


def _kinds(given: object) -> list[object]:
    """The types that a schema allows, those of its alternatives among them."""
    if not isinstance(given, Mapping):
        return [None]
    kind = given.get("type")
    kinds = list(kind) if isinstance(kind, list) else [kind]
    for name in ("anyOf", "oneOf"):
        others = given.get(name)
        for each in others if isinstance(others, list) else ():
            more = each.get("type") if isinstance(each, Mapping) else None
            kinds += more if isinstance(more, list) else [more]
    return kinds


def _python_value(text: str) -> Any:
    """The value of a Python literal, as some templates write them; else the text itself."""
    if len(text) > 1 << 16:
        return text
    try:
        value = ast.literal_eval(text.strip())
        return loads(json.dumps(value))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
