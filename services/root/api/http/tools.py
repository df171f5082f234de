"""Tools and the wish for reasoning in requests of all faces, as chat templates take them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.prompt import Conversation
from hearth.root.api.tools.choice import MAX_TOOLS, Object, Tools, function, thinking
from hearth.root.api.tools.values import MAX_NAME, is_name

# Names that templates have for other things.
_RESERVED = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


def tools_of(body: Fields) -> Tools:
    """OpenAI's tools, of chat (with "function") and of responses. Raises HttpError.

    Tools of other types run on OpenAI's own machines, and are left out.
    """
    if body.has("functions") and not body.has("tools"):
        return _old_functions(body)
    given = [*_functions(body, "")]
    _check_count(given)
    strict = _strict(body)
    one = body.values.get("parallel_tool_calls") is False
    names = tuple(tool["function"]["name"] for tool in given)
    choice = body.raw("tool_choice")
    if isinstance(choice, Mapping):
        wish = Fields(choice, "tool_choice")
        kind = wish.text("type")
        if kind == "allowed_tools":
            allowed = wish.child("allowed_tools") or wish
            listed = {(e.child("function") or e).text("name") for e in allowed.objects("tools")}
            given = [tool for tool in given if tool["function"]["name"] in listed]
            names = tuple(name for name in names if name in listed)
            choice = allowed.text("mode", "auto")
        elif kind not in ("auto", "none", "required"):
            name = (wish.child("function") or wish).text("name")
            return Tools(given, True, _known(name, names))
        else:
            choice = kind
    return _chosen(choice, given, names, one, strict)


def _old_functions(body: Fields) -> Tools:
    """`functions` and `function_call`, which were before tools: one call, auto, none or named."""
    given = [_tool(each, "", each.child("parameters")) for each in body.objects("functions")]
    _check_count(given)
    names = tuple(tool["function"]["name"] for tool in given)
    choice = body.raw("function_call")
    if isinstance(choice, Mapping):
        wish = Fields(choice, "function_call")
        return Tools(given, True, _known(wish.text("name"), names, "function_call"))
    if choice == "none":
        return Tools()
    if choice not in (None, "auto"):
        raise body.wrong("function_call", choice, '"auto", "none" or {"name": a function}')
    return Tools(given, True)


def claude_tools(body: Fields) -> Tools:
    """Anthropic's tools; those with a type of their own run elsewhere. Raises HttpError."""
    listed = [e for e in body.objects("tools") if e.text("type", "custom") == "custom"]
    given = [_tool(each, "", each.child("input_schema")) for each in listed]
    _check_count(given)
    strict = any(each.raw("strict") is True for each in listed)
    names = tuple(tool["function"]["name"] for tool in given)
    choice = body.child("tool_choice") or Fields({})
    kind = choice.text("type", "auto")
    if kind == "tool":
        return Tools(given, True, _known(choice.text("name"), names))
    return _chosen(kind, given, names, choice.flag("disable_parallel_tool_use"), strict)


def _chosen(
    choice: object, given: Sequence[Object], names: tuple[str, ...], one: bool, strict: bool
) -> Tools:
    """The tools by a choice in a word: auto, none, required or any."""
    if choice == "none":
        return Tools()
    if choice in ("required", "any"):
        if not names:
            raise bad_request(
                "tool_choice asks for a tool call, and there are no tools", "tool_choice"
            )
        return Tools(given, one, names)
    if choice not in (None, "auto"):
        raise bad_request(
            f"tool_choice is {str(choice)[:40]!r}; it must be auto, none, required or the name of "
            "a function",
            "tool_choice",
        )
    return Tools(given, one, strict=strict and bool(given))


def _known(name: str, names: tuple[str, ...], field: str = "tool_choice") -> tuple[str, ...]:
    if name not in names:
        problem = f"{field} asks for {name[:40]!r}, which is not among the tools"
        raise bad_request(problem, field)
    return (name,)


def _functions(body: Fields, space: str) -> Iterator[Object]:
    for each in body.objects("tools"):
        kind = each.text("type", "function")
        if kind == "namespace":
            yield from _functions(each, f"{each.text('name')}.")
        elif kind == "function":
            owner = each.child("function") or each
            yield _tool(owner, space, owner.child("parameters"))


def _strict(body: Fields) -> bool:
    """True if a tool, or one in a namespace, wants its schema kept."""
    return any(
        _strict(each)
        if each.text("type", "function") == "namespace"
        else (each.child("function") or each).raw("strict") is True
        for each in body.objects("tools")
    )


def new_call_id(prefix: str) -> str:
    """An id for a call that a model made."""
    return prefix + secrets.token_hex(12)


def _tool(owner: Fields, space: str, parameters: Fields | None) -> Object:
    name = space + owner.text("name")
    if not is_name(name):
        place = owner.place("name")
        raise bad_request(
            f"{place} is {name[:40]!r}; a tool's name has 1 to {MAX_NAME} characters, without "
            "spaces, quotes and brackets",
            place,
        )
    schema: Mapping[str, Any] = parameters.values if parameters is not None else {}
    return function(name, owner.text("description"), schema)


def _check_count(given: Sequence[Object]) -> None:
    if len(given) > MAX_TOOLS:
        raise bad_request(f"{len(given)} tools were given; at most {MAX_TOOLS} are", "tools")


def opened(body: Fields) -> Conversation:
    """A conversation without messages, as the fields about its template have it. HttpError.

    `add_generation_prompt` false leaves the answer's turn out; `continue_final_message` goes on
    with the last message.
    """
    continued = body.flag("continue_final_message")
    if continued and body.flag("add_generation_prompt"):
        raise bad_request(
            "continue_final_message and add_generation_prompt are both true; an answer either goes "
            "on with the last message or has a turn of its own",
            "continue_final_message",
        )
    turn = body.flag("add_generation_prompt", not continued)
    return Conversation((), None, template_variables(body), turn=turn, continued=continued)


def template_variables(body: Fields) -> Mapping[str, Any]:
    """Names for the chat template: `chat_template_kwargs`, and `reasoning_effort`."""
    found = thinking(body.text("reasoning_effort")) if body.has("reasoning_effort") else {}
    given = body.child("chat_template_kwargs")
    for name, value in given.values.items() if given is not None else ():
        if name not in _RESERVED:
            found[name] = value
    return found
