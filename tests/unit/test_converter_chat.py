"""Chat templates: real ones give the text that other programs give, and none leaves the sandbox."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hearth.converter import ModelError, chat
from hearth.converter.chat import render

USER = [{"role": "user", "content": "Hi <there> & é"}]


def test_real_templates(testdata: Path) -> None:
    data = json.loads((testdata / "templates/chat_templates.json").read_text())
    compared = 0
    for case in data["cases"]:
        if not case["python_jinja2_reproduces"]:
            continue
        messages = data["conversation"] + case.get("extra_conversation", [])
        bos, eos = case.get("bos_token", ""), case.get("eos_token", "")
        text = render(
            case["template_str"],
            messages,
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=data["add_generation_prompt"],
        )
        expected = case["expected_output_jinja"] or case["expected_output"]
        # The expected texts have lost a BOS at their start and an EOS at their end, but not all.
        bare = text.removeprefix(bos).removesuffix(eos)
        assert expected in (text, bare), case["name"]
        compared += 1
    assert compared == 16


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama-Llama-3.1-8B-Instruct.jinja",
        "meta-llama-Llama-3.2-3B-Instruct.jinja",
        "mistralai-Mistral-Nemo-Instruct-2407.jinja",
        "HuggingFaceTB-SmolLM3-3B.jinja",
    ],
)
def test_templates_of_llama_models_hold_the_message(testdata: Path, name: str) -> None:
    template = (testdata / f"templates/{name}").read_text()
    text = render(template, USER, bos_token="<BOS>", eos_token="<EOS>")
    assert USER[0]["content"] in text
    if "llama" in name:
        assert text.startswith("<BOS><|start_header_id|>system<|end_header_id|>")
        assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_what_hugging_face_gives_templates() -> None:
    assert render("{{ messages[0] | tojson }}", USER) == json.dumps(USER[0], ensure_ascii=False)
    assert render("{{ x | tojson(indent=1) }}", [], variables={"x": [1]}) == "[\n 1\n]"
    assert len(render("{{ strftime_now('%Y') }}", [])) == 4
    loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop, []) == "01"
    assert render("{% generation %}\n  x{% endgeneration %}", []) == "  x"
    assert render("  {% if true %}\na\n  {% endif %}\nb", []) == "a\nb"


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(ModelError, match="cannot render this conversation: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", USER)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[0].role.x.y }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.clear() }}",
        "{{ render.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ 'a' * 10**9 }}",
        "{{ ('a' * 1000000) * 1000000 }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "{{ 'x' | tojson(indent='y', sort_keys=3, separators=4) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "x" * (1 << 21),
    ],
)
def test_damaged_and_hostile_templates(template: str) -> None:
    with pytest.raises(ModelError, match="the chat template"):
        render(template, USER)


def test_a_template_cannot_change_the_conversation() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a", "tags": [1]}]
    for template in ("{{ messages[0].update({'role': 'x'}) }}", "{{ messages[0].tags.pop() }}"):
        with pytest.raises(ModelError):
            render(template, messages)
    assert messages == [{"role": "user", "content": "a", "tags": [1]}]


def test_a_template_may_append_to_a_list() -> None:
    """Kimi's collects messages so; the conversation of the caller is another list."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    template = "{% set l = [] %}{% set _ = l.append(5) %}{% set _ = messages.append(6) %}{{ l }}"
    assert render(template, messages) == "[5]"
    assert messages == [{"role": "user", "content": "a"}]


DOUBLED = "{% set n = namespace(x=START) %}{% for i in range(60) %}{% set n.x = NEXT %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "longer",
        ),
        (
            DOUBLED.replace("START", "[1]").replace("NEXT", "[n.x, n.x]") + "{{ n.x | tojson }}",
            "longer than|memory",
        ),
        (DOUBLED.replace("START", "'ab'").replace("NEXT", "n.x ~ n.x") + "{{ n.x }}", "memory"),
        ("{{ 'a' | center(1000000000) }}", "memory"),
        ("{{ '%1000000000d' % 1 }}", "memory"),
        ("{{ '{:>1000000000}'.format('') }}", "memory"),
        ("{{ 'a'.ljust(20000000) }}", "makes 20000000 bytes"),
    ],
)
def test_a_template_has_so_much_time_and_memory(template: str, words: str) -> None:
    # What must end for its memory has time for that.
    seconds = 1.0 if "longer" in words else 60.0
    with closing(chat.Renderer(seconds)) as renderer:
        with pytest.raises(ModelError, match=words):
            render(template, USER, renderer=renderer)
        # The next one has all of both again.
        assert render("{{ messages[0].role }}", USER, renderer=renderer) == "user"


def test_templates_do_not_wait_for_a_process_that_was_ended() -> None:
    assert render("{{ 1 }}", []) == "1"
    process = chat._RENDERER._process
    assert process is not None
    process.kill()
    process.wait()
    assert render("{{ 2 }}", []) == "2"
