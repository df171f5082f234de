"""Structured output in every face, through the clients' own libraries, with random logits."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import ollama
import openai
import pytest
from serving_fakes import NoisyRunner, Root

from hearth.client import Client, InvalidArgument
from hearth.root.engine.interfaces import native_sampler

PROMPT: Any = [{"role": "user", "content": "hi"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
# A grammar of llama.cpp's.
GBNF = 'root ::= ("yes" | "no") "!"'
HOT = 1.5


@pytest.fixture(scope="module")
def root() -> Iterator[Root]:
    with Root(
        NoisyRunner(),
        http=True,
        sampler_factory=native_sampler,
        context_size=2048,
        max_pages=4096,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(root: Root) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{root.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def check(text: str | None) -> None:
    assert text is not None
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("strict", [True, False])
def test_a_schema_in_openais_chat(client: openai.OpenAI, strict: bool) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": SCHEMA, "strict": strict},
    }
    for seed in range(3):
        made = client.chat.completions.create(
            model="tiny", messages=PROMPT, temperature=HOT, seed=seed, response_format=form
        )
        check(made.choices[0].message.content)
        assert made.choices[0].finish_reason == "stop"


def test_a_schema_in_openais_stream_and_several_choices(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="tiny", messages=PROMPT, temperature=HOT, n=3, stream=True, response_format=form
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for text in texts:
        check(text)
    assert len(set(texts)) == 3


def test_any_json_in_openais_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=PROMPT,
        temperature=0.2,
        max_tokens=400,
        response_format={"type": "json_object"},
    )
    text = made.choices[0].message.content or ""
    assert text.startswith("{")
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert made.choices[0].finish_reason == "length"


def test_an_answer_that_is_cut_off_has_the_reason_length(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    made = client.chat.completions.create(
        model="tiny", messages=PROMPT, max_tokens=5, response_format=form
    )
    assert made.choices[0].finish_reason == "length"
    assert len(made.choices[0].message.content or "") == 5


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[a-f]+"}, "[0-9]{3}-[a-f]+"),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
        ({"guided_choice": ['a"b', "c\n", "é"]}, 'a"b|c\n|é'),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"guided_grammar": GBNF}, "(yes|no)!"),
        ({"grammar": GBNF}, "(yes|no)!"),
        ({"structured_outputs": {"grammar": 'start: "x"+ "!"'}}, "x+!"),
    ],
)
def test_forms_of_other_servers(client: openai.OpenAI, body: Any, pattern: str) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=PROMPT, temperature=HOT, max_tokens=200, extra_body=body
    )
    text = client.completions.create(
        model="tiny", prompt="hi", temperature=HOT, max_tokens=200, extra_body=body
    )
    for choice, found in (
        (chat.choices[0], chat.choices[0].message.content),
        (text.choices[0], text.choices[0].text),
    ):
        assert choice.finish_reason == "stop"
        assert re.fullmatch(pattern, found or "")


@pytest.mark.parametrize(
    "body",
    [
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
        {"json_schema": SCHEMA},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "text"}, "json_schema": SCHEMA},
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/completion"])
def test_schemas_of_other_servers(root: Root, body: Any, path: str) -> None:
    prompt = {"messages": PROMPT} if "chat" in path else {"prompt": "hi", "max_tokens": 900}
    got = httpx.post(root.url + path, json={**prompt, **body, "temperature": HOT, "seed": 4})
    assert got.status_code == 200, got.text
    made = got.json()
    if path == "/completion":
        check(made["content"])
    else:
        choice = made["choices"][0]
        check(choice["message"]["content"] if "chat" in path else choice["text"])


def test_a_schema_in_openais_responses(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}
    made = client.responses.create(model="tiny", input="hi", temperature=HOT, text={"format": form})
    check(made.output_text)
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.type == "json_schema"


@pytest.mark.parametrize(
    "body",
    [
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}},
    ],
)
def test_a_schema_in_anthropics_messages(root: Root, body: Any) -> None:
    request = {"model": "tiny", "max_tokens": 900, "messages": PROMPT, **body}
    got = httpx.post(f"{root.url}/v1/messages", json={**request, "temperature": 1})
    assert got.status_code == 200, got.text
    check(got.json()["content"][0]["text"])
    assert got.json()["stop_reason"] == "end_turn"


def test_ollamas_format(root: Root) -> None:
    client = ollama.Client(host=root.url, timeout=20)
    hot = {"temperature": HOT, "seed": 3}
    check(client.chat("tiny", PROMPT, format=SCHEMA, options=hot).message.content)
    check(client.generate("tiny", "hi", format=SCHEMA, options=hot).response)
    parts = client.chat("tiny", PROMPT, format=SCHEMA, options=hot, stream=True)
    check("".join(part.message.content or "" for part in parts))
    text = client.chat("tiny", PROMPT, format="json", options={"num_predict": 3}).message.content
    assert (text or "").startswith("{")
    # An empty format is none.
    assert client.chat("tiny", PROMPT, format="", options={"num_predict": 3}).done


def test_the_sdk(root: Root) -> None:
    with Client(root.address) as client:
        with client.generate("hi", temperature=HOT, json_schema=SCHEMA) as stream:
            check("".join(stream))
        with client.generate("hi", temperature=HOT, regex="[ab]{5}") as stream:
            assert re.fullmatch("[ab]{5}", "".join(stream))
        with client.generate("hi", temperature=HOT, grammar=GBNF) as stream:
            assert "".join(stream) in ("yes!", "no!")
        with client.generate("hi", json_object=True, max_tokens=1) as stream:
            assert "".join(stream) == "{"
        with pytest.raises(InvalidArgument, match=r"constraint.regex .* cannot be enforced"):
            "".join(client.generate("hi", regex="("))
        with pytest.raises(TypeError, match="json_object and regex"):
            client.generate("hi", json_object=True, regex="a")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "array", "uniqueItems": True}},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice"),
        ({"grammar": "root ::= other"}, "grammar"),
        ({"grammar": "x" * 300_000}, "grammar"),
        ({"json_schema": {"$ref": "#"}}, "json_schema"),
        ({"guided_regex": "a", "json_schema": {}}, "json_schema"),
        (
            {"guided_json": {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}},
            "guided_json",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_a_400_that_names_the_field(
    root: Root, body: Any, field: str, stream: bool
) -> None:
    got = httpx.post(
        f"{root.url}/v1/chat/completions",
        json={"messages": PROMPT, "stream": stream, **body},
        timeout=30,
    )
    assert got.status_code == 400, got.text
    assert got.json()["error"]["param"] == field
    assert field in got.json()["error"]["message"]
