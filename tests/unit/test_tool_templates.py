"""The form of a model's calls, found from short templates of the families' shapes."""

import json
from typing import Any

import call_formats
import pytest
from serving_fakes import ByteTokenizer

from hearth.common.errors import HearthError
from hearth.root.api.prompt import Conversation, conversation_ids, conversation_text
from hearth.root.api.tools.adapting import adapted
from hearth.root.api.tools.discovery import TemplateFacts, facts_of
from hearth.root.api.tools.events import ToolCall
from hearth.root.api.tools.expected import expected_of
from hearth.root.api.tools.formats.gemma import GemmaCalls
from hearth.root.api.tools.formats.json_calls import JsonCalls
from hearth.root.api.tools.formats.named import ID, NamedCalls
from hearth.root.api.tools.formats.pythonic import PythonicCalls

HEAD = "{% for t in tools or [] %}{{ t.function | tojson }}\n{% endfor %}"
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
TAIL = "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
ARGUMENTS = "{{ f.arguments | tojson }}"


def template(calls: str, *, loop: bool = True) -> str:
    """A template that writes calls so."""
    return HEAD + TURNS + (f"{EACH}{calls}{{% endfor %}}" if loop else calls) + TAIL


JSON_CALL = "{{ {'name': f.name, 'arguments': f.arguments} | tojson }}"
HERMES = template(f"\n<tool_call>\n{JSON_CALL}\n</tool_call>")
LIST = (
    "{% if m.tool_calls %}{% set found = namespace(calls=[]) %}{% for c in m.tool_calls %}"
    "{% set found.calls = found.calls + [{'name': c.function.name, "
    "'arguments': c.function.arguments, 'id': c.id}] %}{% endfor %}"
    "[TOOL_CALLS]{{ found.calls | tojson }}{% endif %}"
)
NEMO = template(
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}"
    "{% endif %}{% endfor %}" + LIST,
    loop=False,
)
ARGS = template(f"[TOOL_CALLS]{{{{ f.name }}}}[CALL_ID]{{{{ c.id }}}}[ARGS]{ARGUMENTS}")
SECTION = template(
    "{% if m.tool_calls %}<|calls|>{% for c in m.tool_calls %}{% set f = c.function %}"
    "<|call|>function<|sep|>{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```<|call end|>"
    "{% endfor %}<|calls end|>{% endif %}",
    loop=False,
)
CODER = template(
    "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>"
)
GLM = template(
    "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
)
FLAGGED = template(
    "{% if m.tool_calls %}\n<calls>\n{% for c in m.tool_calls %}{% set f = c.function %}"
    '<invoke name="{{ f.name }}">\n{% for k, v in f.arguments.items() %}<parameter name="{{ k }}" '
    "string=\"{{ 'true' if v is string else 'false' }}\">{{ v if v is string else v | tojson }}"
    "</parameter>\n{% endfor %}</invoke>\n{% endfor %}</calls>{% endif %}",
    loop=False,
)
LLAMA = template(
    "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    "{% for c in m.tool_calls or [] %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    "{% endfor %}{# <|start_header_id|> #}",
    loop=False,
)
GEMMA = template("<|tool_call>call:{{ f.name }}{}<tool_call|>")
LFM = template("{# <|tool_call_start|> #}", loop=False)
TEXT_ARGUMENTS = template(
    '<tool_call>{"name": "{{ f.name }}", "arguments": {{ "" + f.arguments }}}</tool_call>'
)
BY_NAME = template("<|tools|>[{{ {f.name: f.arguments} | tojson }}]<|tools end|>")
NO_TOOLS = TURNS + TAIL


def facts(template: str) -> TemplateFacts:
    return facts_of(ByteTokenizer(template), tools=True)


FOUND = [
    (HERMES, JsonCalls("<tool_call>", "</tool_call>")),
    (NEMO, JsonCalls("[TOOL_CALLS]", listed=True, gap="")),
    (ARGS, NamedCalls("[TOOL_CALLS]", f"[CALL_ID]{ID}[ARGS]")),
    (
        SECTION,
        NamedCalls(
            "<|call|>function<|sep|>",
            "\n```json\n",
            "```<|call end|>",
            "<|calls|>",
            "<|calls end|>",
        ),
    ),
    (CODER, call_formats.CODER),
    (GLM, call_formats.GLM),
    (FLAGGED, call_formats.DSML),
    (LLAMA, JsonCalls(others=("<|python_tag|>",), arguments_key="parameters")),
    (GEMMA, GemmaCalls()),
    (LFM, PythonicCalls("<|tool_call_start|>", "<|tool_call_end|>")),
    (TEXT_ARGUMENTS, JsonCalls("<tool_call>", "</tool_call>", gap="")),
    (
        BY_NAME,
        JsonCalls(
            "<|tools|>",
            "<|tools end|>",
            listed=True,
            arguments_key="hearth_probe",
            by_name=True,
            gap="",
        ),
    ),
]


@pytest.mark.parametrize(("source", "form"), FOUND, ids=lambda each: repr(each)[-30:])
def test_the_form_is_found(source: str, form: object) -> None:
    assert facts(source).form.calls == form
    assert facts(source).reads_tools


@pytest.mark.parametrize(("source", "form"), FOUND, ids=lambda each: repr(each)[-30:])
def test_a_call_as_it_is_written_is_read(source: str, form: object) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    tokenizer = ByteTokenizer(source)
    expected = expected_of(tokenizer, [tool], ())
    assert expected is not None
    assert expected.form.calls is not None
    text = expected.form.calls.written("f", '{"a": 1}')
    parser = expected.parser()
    assert [*parser.feed(text), *parser.end()] == [ToolCall("f", '{"a": 1}')]


def test_the_facts_of_templates() -> None:
    assert facts(NEMO).short_ids
    assert not facts(HERMES).short_ids
    assert facts(LLAMA).one_call
    assert not facts(HERMES).one_call
    assert facts(TEXT_ARGUMENTS).text_arguments
    assert not facts(HERMES).text_arguments
    assert facts(HERMES).writes_calls
    assert facts(HERMES).reads_results
    assert not facts(LFM).writes_calls
    none = facts(NO_TOOLS)
    assert (none.form.calls, none.reads_tools, none.writes_calls) == (None, False, False)
    assert not facts("{{ messages[0].nothing.at.all }}").reads_results
    assert facts("{% if %}") == TemplateFacts(facts("{% if %}").form)


def test_channels() -> None:
    form = facts(NO_TOOLS + "{# <|channel|> <|message|> #}").form
    assert form.channels
    assert form.stops == ("<|call|>",)
    assert "<|message|>" in form.markers


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("</think>", "<think>"),
        ("[THINK][/THINK]", "[THINK]"),
        ("<|channel>thought <channel|>", "<|channel>thought"),
        ("Here is my response:", "Here is my thought process:"),
        ("nothing", None),
    ],
)
def test_reasoning_is_found(text: str, opening: str | None) -> None:
    marks = facts(f"{NO_TOOLS}{{# {text} #}}").form.reasoning
    assert (marks.open if marks else None) == opening


def calling(*ids: str, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": id, "type": "function", "function": {"name": f"f{id}", "arguments": {"a": id}}}
        for id in ids
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def result(id: str) -> dict[str, Any]:
    return {"role": "tool", "content": f"r{id}", "tool_call_id": id}


USER = {"role": "user", "content": "u"}


def test_one_call_at_a_time_each_with_its_result() -> None:
    messages = [USER, calling("1", "2", "3"), result("2"), result("1"), USER]
    made = adapted(messages, None, LLAMA, facts(LLAMA)).messages
    told = [
        message["tool_calls"][0]["id"] if "tool_calls" in message else message["content"]
        for message in made
    ]
    assert told == ["u", "1", "r1", "2", "r2", "3", "u"]


def test_ids_of_nine_letters() -> None:
    made = adapted([calling("call_x"), result("call_x")], None, NEMO, facts(NEMO)).messages
    id = made[0]["tool_calls"][0]["id"]
    assert len(id) == 9
    assert id.isalnum()
    assert made[1]["tool_call_id"] == id
    kept = adapted([calling("abcdefghi")], None, NEMO, facts(NEMO)).messages
    assert kept[0]["tool_calls"][0]["id"] == "abcdefghi"


def test_arguments_as_text() -> None:
    (made,) = adapted([calling("1")], None, TEXT_ARGUMENTS, facts(TEXT_ARGUMENTS)).messages
    assert made["tool_calls"][0]["function"]["arguments"] == '{"a": "1"}'


def test_reasoning_under_the_name_that_the_template_reads() -> None:
    thought = {"role": "assistant", "content": "x", "reasoning_content": "r"}
    plain = facts(NO_TOOLS)
    (made,) = adapted([thought], None, "{{ message.thinking }}", plain).messages
    assert made == {"role": "assistant", "content": "x", "thinking": "r"}
    (made,) = adapted([thought], None, "{{ message.reasoning_content }}", plain).messages
    assert made == thought
    called = calling("1", content="x", reasoning_content="r")
    (made,) = adapted([called], None, "thinking", facts(HERMES)).messages
    assert "thinking" not in made


def test_tools_under_other_names() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    made = adapted([USER], [tool], "{{ xml_tools }}", facts(NO_TOOLS))
    assert made.variables == {"xml_tools": [tool["function"]]}
    made = adapted([USER], [tool], "{{ message['tools'] }}", facts(NO_TOOLS))
    assert json.loads(made.messages[0]["tools"]) == [tool["function"]]


def test_names_of_control_tokens_in_variables_and_tools_stay_text() -> None:
    source = "{{ mode }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}</s>"
    tool = {"type": "function", "function": {"name": "</s>", "parameters": {}}}
    tokenizer = ByteTokenizer(source)
    given = Conversation([USER], [tool], {"mode": "</s>", "bos_token": "x"})
    assert conversation_text(tokenizer, given, 512) == "</s></s></s>"

    ids = conversation_ids(tokenizer, [USER], [tool], 512, {"mode": "</s>"})
    assert ids == (256, *b"</s></s>", 257)


class Marked(ByteTokenizer):
    """With a control token as Mistral's models have it."""

    def __init__(self, template: str) -> None:
        super().__init__(template)
        self.vocab_size = 301
        self.control_ids = {**self.control_ids, "[TOOL_CALLS]": 300}

    def _name(self, token: int) -> str:
        return "[TOOL_CALLS]" if token == 300 else super()._name(token)


def test_markers_that_are_control_tokens_are_visible_and_forced_by_id() -> None:
    tokenizer = Marked(NEMO)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    expected = expected_of(tokenizer, [tool], ())
    assert expected is not None
    assert expected.visible == {300}
    stream = tokenizer.stream(visible=expected.visible)
    text = "".join(map(stream.push, [300, *b'[{"name": "f", "arguments": {}}]', 257]))
    assert text == '[TOOL_CALLS][{"name": "f", "arguments": {}}]'
    parser = expected.parser()
    assert [*parser.feed(text), *parser.end()] == [ToolCall("f", "{}")]
    assert "<[300]>" in expected.forcing(["f"], one_call=True).text
    checking = expected.checking()
    assert checking is not None
    assert "<[300]>" in checking.text


def test_forms_that_cannot_be_forced_are_refused_where_a_call_must_come() -> None:
    alternatives = {"anyOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in (("f", {}), ("either", alternatives))
    ]
    for source in (GEMMA, LFM):
        expected = expected_of(ByteTokenizer(source), tools, ())
        assert expected is not None
        assert expected.forcing(["f"], one_call=True).text
        with pytest.raises(HearthError, match="calls of 'either' cannot be forced"):
            expected.forcing(["f", "either"], one_call=False)
        # Where the model has the choice, its calls are read as they come.
        assert expected.checking() is None
