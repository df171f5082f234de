"""Calls in forced forms: what the grammar allows, its reader reads."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest
from call_formats import CODER, DSML, GLM, MINIMAX
from constraints import ToolTokenizer, accepts, flags, lark
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import EOS, VOCAB

from hearth.converter.tokenizers.base import any_of
from hearth.root.api.tools.events import ToolCall
from hearth.root.api.tools.expected import Expected
from hearth.root.api.tools.formats.base import CallFormat
from hearth.root.api.tools.formats.gemma import GemmaCalls
from hearth.root.api.tools.formats.json_calls import JsonCalls
from hearth.root.api.tools.formats.named import NamedCalls
from hearth.root.api.tools.formats.pythonic import PythonicCalls
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
# Texts around calls and strings are control tokens, as in the models.
GEMMA = GemmaCalls(quote="<|tool|>", close="<|end|>")
COMMAS = {
    "gemma": GEMMA,
    "python": PythonicCalls("<|tool|>", "<|end|>"),
    "bare python": PythonicCalls(),
}
# Of an answer that is read as its schema says: beyond a 64-bit float it is not.
NUMBER = {"type": "number", "minimum": -1000, "maximum": 1000}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "note": {"type": "string", "description": "free text"},
        "city": {"type": "string", "minLength": 2, "maxLength": 5},
        "unit": {"type": "string", "enum": ["\u00b0C", "it's"]},
        "days": {"type": "array", "items": {"type": "string"}},
        "few": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        "place": {
            "type": "object",
            "properties": {"x": NUMBER, "a b": {"type": "boolean"}},
            "required": ["a b"],
            "additionalProperties": False,
        },
        "any": {"$ref": "#/$defs/pair"},
        "sure": {"type": "boolean"},
        "level": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
    },
    "$defs": {
        "pair": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/pair"}, {"enum": ["{", "]"]}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
STRUCTURES = Structures(ToolTokenizer())

# Values that look like the tags around them.
pieces = st.sampled_from(
    ["<", "</", ">", "</para", "</parameter", "</arg_value", "<function=", "\n", " ", "a", "\u00e9"]
)
values = st.lists(pieces, max_size=8).map("".join)


def allowed(call_format: CallFormat, text: str, schema: dict[str, Any] = SCHEMA) -> bool:
    tag = call_format.tag("f", schema)
    assert tag is not None
    rules = grammar.tagged([tag], {}, free=False, least=1, most=1)
    return accepts(STRUCTURES.matcher(lark(rules)), text)


def read(call_format: CallFormat, text: str, schema: dict[str, Any] = SCHEMA) -> list[Any]:
    parser = AnswerParser(Form(call_format), {"f": schema})
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


def random_call(call_format: CallFormat, schema: dict[str, Any], seed: int) -> str:
    """A call that the grammar allows: random tokens, with a liking for those that end something."""
    tokenizer = ToolTokenizer()
    tag = call_format.tag("f", schema)
    assert tag is not None
    rules = grammar.tagged([tag], tokenizer.control_ids, free=False, least=1, most=1)
    matcher = STRUCTURES.matcher(lark(rules))
    random = np.random.default_rng(seed)
    ids: list[int] = []
    while matcher.length is None:
        choices = np.flatnonzero(flags(matcher))
        ends = [id for id in choices if id >= VOCAB or (id < 128 and chr(id) in "\"',:)]}")]
        if EOS in choices:
            break
        ids.append(int(random.choice(ends if ends and random.random() < 0.6 else choices)))
        matcher.accept(ids[-1])
        assert len(ids) < 5000
    stream = tokenizer.stream(visible=frozenset(tokenizer.control_ids.values()))
    return "".join([*map(stream.push, ids), stream.flush()])


@pytest.mark.parametrize("required", [[], ["city", "level"], sorted(NESTED["properties"])], ids=len)
@pytest.mark.parametrize("name", COMMAS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_every_forced_call_with_commas_is_read_and_fits_its_schema(
    name: str, required: list[str], seed: int
) -> None:
    schema = {**NESTED, "required": required}
    text = random_call(COMMAS[name], schema, seed)
    (call,) = read(COMMAS[name], text, schema)
    assert call.name == "f", text
    jsonschema.validate(json.loads(call.arguments), schema)


@pytest.mark.parametrize("name", COMMAS)
@given(note=values, days=st.lists(values, max_size=2), sure=st.booleans(), x=st.floats(-9, 9))
def test_calls_as_models_write_them_are_allowed(
    name: str, note: str, days: list[str], sure: bool, x: float
) -> None:
    place = {"a b": True, "x": round(x, 2) + 0.0}  # not -0.0, which bounds leave out
    arguments = {"note": note, "days": days, "place": place, "sure": sure}
    if name != "gemma":
        # Only strings and truth values are allowed as `repr` writes them.
        del arguments["days"], arguments["place"]
    text = COMMAS[name].written("f", json.dumps(arguments))
    assert allowed(COMMAS[name], text, NESTED), text
    (call,) = read(COMMAS[name], text, NESTED)
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize("key", ["a b", "a=b", "a,b", "a'b", "(a", ""])
def test_keys_that_would_split_a_call_are_not_forced_in_python_s_syntax(key: str) -> None:
    assert PythonicCalls().tag("f", {"properties": {key: {}}}) is None


@pytest.mark.parametrize("key", ["content-type", "class", "from", "a.b", "$top", "1st", "\ufb01"])
@pytest.mark.parametrize("form", [PythonicCalls(), PythonicCalls("<|tool|>", "<|end|>")])
def test_keys_that_python_does_not_take_are_forced_and_read(form: PythonicCalls, key: str) -> None:
    schema = {"properties": {key: {"type": "string"}, "to": {"type": "string"}}, "required": [key]}
    for value in (f"{key}=1, {key}", "x"):
        arguments = {key: value, "to": f"({key}="}
        text = form.written("f", json.dumps(arguments))
        assert allowed(form, text, schema)
        (call,) = read(form, text, schema)
        assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize("name", ["get-weather", "class", "get-weather-2", "1st", "f.get-all"])
def test_tools_with_names_that_python_does_not_take_are_called_in_its_syntax(name: str) -> None:
    call_format = PythonicCalls()
    tools = {"get-weather": SCHEMA, "get": SCHEMA, name: SCHEMA}
    tag = call_format.tag(name, SCHEMA)
    assert tag is not None
    arguments = {"code": f"{name}(1)", "lines": 3, "mode": "b"}
    text = call_format.written(name, json.dumps(arguments))
    rules = grammar.tagged([tag], {}, free=False, least=1, most=1)
    assert accepts(STRUCTURES.matcher(lark(rules)), text.replace("'b'", '"b"'))
    parser = AnswerParser(Form(call_format), tools)
    (call,) = [*parser.feed(text), *parser.end()]
    assert isinstance(call, ToolCall)
    assert (call.name, json.loads(call.arguments)) == (name, arguments)


NUMBERS = {
    "properties": {"x": {"type": "number"}, "many": {"type": "array"}},
    "required": ["x"],
}
FORMS = {
    **TAGGED,
    **COMMAS,
    "json": JsonCalls("<|tool|>", "<|end|>"),
    "named": NamedCalls("<|tool|>", "(", ")"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("number", ["1e999", "9" * 400, "1.5E+9999", "17"])
def test_numbers_beyond_a_float_are_the_largest(name: str, sign: str, number: str) -> None:
    form = FORMS[name]
    written = form.written("f", json.dumps({"x": 12345, "many": [12345]}))
    text = written.replace("12345", sign + number)
    if form.tag("f", NUMBERS) is not None:
        assert allowed(form, text, NUMBERS), text
    (call,) = read(form, text, NUMBERS)
    most = 17 if number == "17" else sys.float_info.max
    (x, (other,)) = json.loads(call.arguments).values()
    assert x == other == (-most if sign else most)


@pytest.mark.parametrize("name", ["gemma", "python"])
def test_many_optional_arguments_alone_are_not_forced(name: str) -> None:
    form = COMMAS[name]
    few: dict[str, Any] = {"properties": {f"a{i}": {} for i in range(32)}}
    many: dict[str, Any] = {"properties": {f"a{i}": {} for i in range(33)}}
    assert form.tag("f", few) is not None
    assert form.tag("f", many) is None
    # With a required one the rule grows with their number alone.
    assert form.tag("f", many | {"required": ["a7"]}) is not None


@pytest.mark.parametrize("name", ["gemma", "python", "coder"])
def test_definitions_are_copied_for_references_and_within_bounds(name: str) -> None:
    form = (COMMAS | TAGGED)[name]
    definitions = {"$defs": {"long": {"enum": ["x" * 60_000]}}, "required": ["a0"]}
    nulls = {f"a{i}": {"type": "null"} for i in range(9)}
    plain = form.tag("f", definitions | {"properties": nulls})
    assert plain is not None
    assert len(str(plain)) < 2_000
    reference = {"$ref": "#/$defs/long"}
    few = {f"a{i}": reference for i in range(4)}
    many = {f"a{i}": reference for i in range(5)}
    assert form.tag("f", definitions | {"properties": few}) is not None
    assert form.tag("f", definitions | {"properties": many}) is None
