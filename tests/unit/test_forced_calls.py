"""Calls in forced forms: what the grammar allows, its reader reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from call_formats import CODER, DSML, GLM, MINIMAX
from constraints import ToolTokenizer, accepts, lark
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter.tokenizers.base import any_of
from hearth.root.api.tools.expected import Expected
from hearth.root.api.tools.formats.tagged import TaggedCalls
from hearth.root.api.tools.parser import AnswerParser, Form
from hearth.root.engine.structure import grammar
from hearth.root.engine.structure.matching import Structures

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string"},
        "lines": {"type": "integer"},
        "mode": {"type": "string", "enum": ["<a>", "b"]},
        "note": {"type": "string"},
    },
    "required": ["code", "lines", "mode"],
}
TAGGED = {"coder": CODER, "glm": GLM, "minimax": MINIMAX, "dsml": DSML}
STRUCTURES = Structures(ToolTokenizer())

# Values that look like the tags around them.
pieces = st.sampled_from(
    ["<", "</", ">", "</para", "</parameter", "</arg_value", "<function=", "\n", " ", "a", "\u00e9"]
)
values = st.lists(pieces, max_size=8).map("".join)


def allowed(call_format: TaggedCalls, text: str) -> bool:
    tag = call_format.tag("f", SCHEMA)
    assert tag is not None
    rules = grammar.tagged([tag], {}, free=False, least=1, most=1)
    return accepts(STRUCTURES.matcher(lark(rules)), text)


def read(call_format: TaggedCalls, text: str) -> list[Any]:
    parser = AnswerParser(Form(call_format), {"f": SCHEMA})
    return [*parser.feed(text), *parser.end()]


@pytest.mark.parametrize("name", TAGGED)
@given(code=values, note=st.none() | values)
def test_strings_of_tags_may_hold_any_text_but_the_closing_tag(
    name: str, code: str, note: str | None
) -> None:
    call_format = TAGGED[name]
    arguments = {"code": code, "lines": 3, "mode": "<a>"}
    if note is not None:
        arguments["note"] = note
    close = call_format.value_close.strip()
    text = call_format.written("f", json.dumps(arguments))
    if close in code + (note or ""):
        return
    assert allowed(call_format, text), text
    (call,) = read(call_format, text)
    assert (call.name, json.loads(call.arguments)) == ("f", arguments)


@pytest.mark.parametrize("name", TAGGED)
def test_the_closing_tag_ends_a_string(name: str) -> None:
    call_format = TAGGED[name]
    close = call_format.value_close.strip()
    arguments = {"code": f"x{close}y", "lines": 3, "mode": "b"}
    assert not allowed(call_format, call_format.written("f", json.dumps(arguments)))


def test_tags_that_are_control_tokens_are_these_around_arguments_too() -> None:
    tag = GLM.tag("f", SCHEMA)
    assert tag is not None
    ids = {"<arg_key>": 7, "</arg_key>": 8, "<arg_value>": 9, "</arg_value>": 10}
    rules = grammar.tagged([tag], ids, free=False, least=1, most=1)
    assert not any(name in rules for name in ids)
    assert all(f"<[{id}]>" in rules for id in ids.values())


def test_many_tools_read_the_names_of_control_tokens_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def counted(given: Any) -> Any:
        made.append(len(given))
        return any_of(given)

    monkeypatch.setattr(grammar, "any_of", counted)
    tools = {f"tool_{number}": SCHEMA for number in range(512)}
    controls = {f"<|control {number}|>": number for number in range(1000)}
    expected = Expected(Form(CODER), tools, control_ids=controls)
    expected.forcing([*tools], one_call=True)
    assert made == [1000]
