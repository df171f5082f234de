"""Answers taken apart: the same events whatever the pieces in which the text arrives."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from call_formats import CODER, DSML, GLM, MINIMAX
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.root.api.tools.events import Event, Reasoning, Text, ToolCall
from hearth.root.api.tools.formats.base import CallFormat
from hearth.root.api.tools.formats.gemma import GemmaCalls
from hearth.root.api.tools.formats.json_calls import PLAIN, JsonCalls
from hearth.root.api.tools.formats.named import ID, NamedCalls
from hearth.root.api.tools.formats.pythonic import PythonicCalls
from hearth.root.api.tools.parser import AnswerParser, Form, joined
from hearth.root.api.tools.reasoning import Marks
from hearth.root.api.tools.values import value_of

THINK = Marks("<think>", "</think>")
LLAMA = JsonCalls(others=("<|python_tag|>",), arguments_key="parameters")
MISTRAL = JsonCalls("[TOOL_CALLS]", listed=True)
MISTRAL_ARGS = NamedCalls("[TOOL_CALLS]", f"[CALL_ID]{ID}[ARGS]")
DEEPSEEK = NamedCalls(
    "<|call begin|>function<|sep|>",
    "\n```json\n",
    "```<|call end|>",
    "<|calls begin|>",
    "<|calls end|>",
)
KIMI = NamedCalls("<|begin|>functions.", ":0<|args|>", "<|end|>", "<|section|>", "<|section end|>")
GEMMA = GemmaCalls()
PYTHON = PythonicCalls("<|call|>", "<|end call|>")
BARE_PYTHON = PythonicCalls()

FORMATS = (
    *(PLAIN, LLAMA, MISTRAL, MISTRAL_ARGS, DEEPSEEK, KIMI, CODER, GLM, MINIMAX, DSML, GEMMA),
    *(PYTHON, BARE_PYTHON),
)
SCHEMA = {
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "flags": {"type": "array"},
    }
}
TOOLS: Mapping[str, Any] = {"weather": SCHEMA, "tell": SCHEMA, "time.now": {}}


def parse(form: Form, pieces: Sequence[str], *, opened: bool = False, tools: Any = TOOLS) -> Any:
    parser = AnswerParser(form, tools, opened=opened)
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    return joined([*events, *parser.end()])


def said(calls: CallFormat | None, text: str, **options: Any) -> list[Event]:
    """The events of a text, the same in one piece and letter by letter."""
    form = Form(calls, THINK)
    whole: list[Event] = parse(form, [text], **options)
    assert parse(form, list(text), **options) == whole
    return whole


def called(name: str = "weather", **arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


BERN = called(city="Bern", days=3)
NOW = called("time.now")

ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": st.text(st.characters(exclude_characters="<>[]|'\\", exclude_categories=["C"]))
        .map(str.strip)
        .filter(bool),
        "days": st.integers(-5, 10**6),
        "flags": st.lists(st.booleans() | st.none(), max_size=3),
    },
)


@pytest.mark.parametrize("calls", FORMATS, ids=lambda each: repr(each)[:40])
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_calls_written_in_a_form_are_read_from_any_pieces(
    calls: CallFormat, data: st.DataObject
) -> None:
    given_ = data.draw(
        st.lists(st.tuples(st.sampled_from(["weather", "tell"]), ARGUMENTS), max_size=2)
    )
    if calls.bare or not given_:
        given_ = [("weather", data.draw(ARGUMENTS))]
    before = "" if calls.bare else data.draw(st.sampled_from(["", "I look. ", "a < b [1] {"]))
    written = [calls.written(name, json.dumps(arguments)) for name, arguments in given_]
    text = before + "\n".join(written)
    events = said(calls, text)
    expected = [Text(before.strip())] if before else []
    assert events == [*expected, *(called(name, **arguments) for name, arguments in given_)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(Form(calls, THINK), pieces) == events


PARTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<function=", "weather", ">", "<parameter=", "city"),
        *("</parameter>", "</function>", "<think>", "</think>", "{", "}", "[", "]", '"', "\\", ":"),
        *(",", " ", "\n", "a", "[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "call:", "<tool_call|>"),
        *('{"name": "weather", "arguments": {"city": "x"}}', "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>", "<|call|>", "<|end call|>", "weather(city='x')", ";", "'"),
    ]
)


@pytest.mark.parametrize("calls", [*FORMATS, None], ids=lambda each: repr(each)[:40])
@given(st.lists(PARTS, max_size=14), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_text_gives_the_same_events_in_any_pieces(
    calls: CallFormat | None, parts: list[str], opened: bool
) -> None:
    form = Form(calls, THINK)
    text = "".join(parts)
    whole = parse(form, [text], opened=opened)
    assert parse(form, parts, opened=opened) == whole
    assert parse(form, list(text), opened=opened) == whole
    for event in whole:
        if isinstance(event, ToolCall):
            assert isinstance(json.loads(event.arguments), dict)


@given(st.lists(PARTS, max_size=14))
@settings(max_examples=100, deadline=None)
def test_all_of_an_answer_without_tools_and_reasoning_is_text(parts: list[str]) -> None:
    text = "".join(parts)
    events = parse(Form(PLAIN), parts, tools={})
    assert "".join(event.text for event in events) == text


def test_text_comes_as_soon_as_it_is_no_marker() -> None:
    parser = AnswerParser(Form(PLAIN, THINK), TOOLS)
    assert parser.feed("Hello") == [Text("Hello")]
    assert parser.feed(" you <tool") == [Text(" you")]
    assert parser.feed("s> ") == [Text(" <tools>")]
    assert parser.feed("\n<tool_call>{") == []
    assert parser.end() == [Text(" \n<tool_call>{")]


def test_forms_as_their_models_write_them() -> None:
    bern = '{"city": "Bern", "days": 3}'
    plain = f'<tool_call>\n{{"name": "weather", "arguments": {bern}}}\n</tool_call>'
    assert said(PLAIN, f"Yes.\n{plain}\n{plain}") == [Text("Yes."), BERN, BERN]
    assert said(LLAMA, f'{{"name": "weather", "parameters": {bern}}}') == [BERN]
    assert said(LLAMA, f'<|python_tag|>{{"name": "weather", "parameters": {bern}}}') == [BERN]
    two = f'{{"name": "weather", "parameters": {bern}}}; {{"name": "time.now", "parameters": {{}}}}'
    assert said(LLAMA, two) == [BERN, NOW]
    nemo = f'[TOOL_CALLS] [{{"name": "weather", "arguments": {bern}, "id": "abcdefghi"}}]'
    assert said(MISTRAL, nemo) == [BERN]
    assert said(MISTRAL_ARGS, f"[TOOL_CALLS]weather[CALL_ID]x1[ARGS]{bern}") == [BERN]
    assert said(MISTRAL_ARGS, f"[TOOL_CALLS]weather[ARGS]{bern}" * 2) == [BERN, BERN]
    one = f"<|begin|>functions.weather:12<|args|>{bern}<|end|>"
    assert said(KIMI, f"<|section|>{one}{one}<|section end|>") == [BERN, BERN]
    tags = "<parameter=city>\nBern\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    coder = f"<function=weather>\n{tags}</function>\n</tool_call>"
    assert said(CODER, f"<tool_call>\n{coder}") == [BERN]
    assert said(CODER, f"Now.\n{coder}") == [Text("Now."), BERN]
    assert said(CODER, "<tool_call>\n<function=time.now>\n</function>\n</tool_call>") == [NOW]
    glm = "weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n"
    assert said(GLM, f"<tool_call>{glm}</tool_call>") == [called(city="Bern")]
    assert said(GLM, "<tool_call>time.now</tool_call>") == [NOW]
    dsml = (
        '<calls>\n<invoke name="weather">\n<parameter name="city" string="true">5</parameter>\n'
        '<parameter name="x" string="false">[5]</parameter>\n</invoke>\n</calls>'
    )
    assert said(DSML, dsml) == [called(city="5", x=[5])]
    gemma = '<|tool_call>call:weather{city:<|"|>Bern, "x"<|"|>,flags:[true,{a:null}]}<tool_call|>'
    assert said(GEMMA, gemma) == [called(city='Bern, "x"', flags=[True, {"a": None}])]
    assert said(PYTHON, "<|call|>[weather(city='Bern', days=3), time.now()]<|end call|>") == [
        BERN,
        NOW,
    ]
    assert said(BARE_PYTHON, '[weather(city="B\'n]", flags=[True, None])]') == [
        called(city="B'n]", flags=[True, None])
    ]


def test_values_in_tags_have_the_types_of_the_schema() -> None:
    def value(key: str, text: str) -> Any:
        tags = (
            f"<tool_call>weather<arg_key>{key}</arg_key><arg_value>{text}</arg_value></tool_call>"
        )
        (call,) = said(GLM, tags)
        assert isinstance(call, ToolCall)
        return json.loads(call.arguments)[key]

    assert value("city", "12") == "12"
    assert value("city", '{"a": 1}') == '{"a": 1}'
    assert value("days", "12") == 12
    assert value("days", "twelve") == "twelve"
    assert value("flags", "[true, null]") == [True, None]
    assert value("flags", "[True, None]") == [True, None]
    assert value("unknown", "1e5") == 1e5
    assert value("unknown", "NaN") == "NaN"
    assert value("unknown", "1e999") == "1e999"


def test_texts_that_look_like_calls() -> None:
    for text in (
        "<tool_call>",
        "<tool_call>\n{",
        '<tool_call>{"name": "weather"',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"a": "\\ud800"}}</tool_call>',
        "<tool_call>{}</tool_call>",
        "<tool_call>" + "[" * 100 + "]" * 100,
        'I write {"name": "weather", "arguments": {}} so.',
    ):
        assert said(PLAIN, text) == [Text(text)]
    for text in ('{"name": "other", "parameters": {}}', '{"city": "Bern"}', "{}", "[]", "{"):
        assert said(LLAMA, text) == [Text(text)]
    for text in ("[1, 2]", "[weather]", "[weather(1)]", "[other(a=1)]", "[weather(**x)]"):
        assert said(BARE_PYTHON, text) == [Text(text)]
    for text in ("<tool_call>\n<function=weather>\nhello", "<function=a b>x</function>"):
        assert said(CODER, text) == [Text(text)]


def test_calls_are_text_where_the_request_has_no_tools() -> None:
    text = PLAIN.written("weather", "{}")
    assert said(PLAIN, text, tools={}) == [Text(text)]


def test_reasoning() -> None:
    call = PLAIN.written("weather", '{"city": "Bern", "days": 3}')
    assert said(PLAIN, "<think>\na b\n</think>\n\nYes") == [Reasoning("a b"), Text("Yes")]
    assert said(PLAIN, f"<think>a</think>\n{call}") == [Reasoning("a"), BERN]
    assert said(PLAIN, "<think>\n\n</think>\n\nYes") == [Text("Yes")]
    assert said(PLAIN, "a</think>b", opened=True) == [Reasoning("a"), Text("b")]
    assert said(PLAIN, "<think>a</think>b", opened=True) == [Reasoning("a"), Text("b")]
    assert said(PLAIN, f"{call} never ends", opened=True) == [Reasoning(f"{call} never ends")]
    assert said(PLAIN, "I <think> so") == [Text("I <think> so")]
    assert said(PLAIN, "\n a ") == [Text("\n a ")]
    granite = Form(PLAIN, Marks("<think>", "</think>", ("<response>", "</response>")))
    assert parse(granite, ["<think>a</think><response>b</response>"]) == [Reasoning("a"), Text("b")]


def test_the_channels_of_gpt_oss() -> None:
    head = "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant"
    to = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    for text, expected in (
        (f"{head}<|channel|>final<|message|>Yes<|return|>", [Reasoning("I look."), Text("Yes")]),
        (f'{head}{to}{{"city": "Bern", "days": 3}}<|call|>', [Reasoning("I look."), BERN]),
        (f'{head}{to}{{"city": "Bern", "days": 3}}', [Reasoning("I look."), BERN]),
        (
            " to=functions.time.now<|channel|>commentary json<|message|>{}<|call|>",
            [NOW],
        ),
        (f"{to}{{broken", [Text("{broken")]),
        ("<|channel|>commentary<|message|>First.<|end|>", [Text("First.")]),
        ("no channel at all", [Text("no channel at all")]),
    ):
        form = Form(channels=True)
        assert parse(form, [text]) == expected
        assert parse(form, list(text)) == expected


def test_many_beginnings_of_calls_take_linear_time() -> None:
    text = "<tool_call><function=a>\n<parameter=b>\n" * 20_000
    (event,) = parse(Form(CODER), [text])
    assert event == Text(text)
    arguments = json.dumps({"a": "x" * 200_000})
    long = PLAIN.written("weather", arguments)
    pieces = [long[at : at + 4] for at in range(0, len(long), 4)]
    assert parse(Form(PLAIN), pieces) == [ToolCall("weather", arguments)]


def test_calls_that_are_cut_off_are_text() -> None:
    for calls, text in (
        (GLM, "<tool_call>wea"),
        (CODER, "<tool_call>\n<function=weather>"),
        (CODER, "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n"),
    ):
        assert all(isinstance(event, Text) for event in said(calls, text)), text


def test_channels_may_follow_each_other_directly() -> None:
    one = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"days": 1}'
    form = Form(channels=True)
    assert parse(form, [one + one]) == [called(days=1), called(days=1)]


@pytest.mark.parametrize("text", ["a" + ".b" * 400 + "()", "f(0x" + "f" * 5000 + ")"])
def test_calls_of_python_that_cannot_be_read_are_text(text: str) -> None:
    assert all(isinstance(event, Text) for event in said(PYTHON, PYTHON.open + f"[{text}]"))


def test_many_spaces_take_linear_time() -> None:
    text = "<|tool_call>call:weather{a" + " " * 400_000 + "<tool_call|>"
    assert parse(Form(GEMMA), [text])


def test_alternatives_of_a_schema_are_its_types() -> None:
    def value(text: str, schema: Any) -> Any:
        return value_of(text, {"properties": {"a": schema}}, "a")

    for schema in (
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
    ):
        assert value("2134", schema) == "2134"
        assert value('"abc"', schema) == "abc"
        assert value("null", schema) is None
