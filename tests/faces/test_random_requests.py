"""Random requests to every face: none makes an error of the server, or leaves a request behind."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from serving_fakes import FakeRunner, Root

# Paths, and fields that they read.
SAMPLING = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "max_tokens",
]
FIELDS = {
    "/v1/chat/completions": ["messages", "stream", "stream_options", "tool_choice", *SAMPLING],
    "/v1/completions": ["prompt", "stream", "echo", "suffix", "best_of", *SAMPLING],
    "/v1/responses": ["input", "instructions", "text", "metadata", "max_output_tokens", *SAMPLING],
    "/v1/messages": ["messages", "system", "tool_choice", "stop_sequences", "stream", *SAMPLING],
    "/v1/messages/count_tokens": ["messages", "system", "tool_choice"],
    "/v1/embeddings": ["input", "encoding_format"],
    "/api/chat": ["messages", "options", "format", "think", "keep_alive", "stream"],
    "/api/generate": ["prompt", "system", "suffix", "raw", "options", "keep_alive", "images"],
    "/api/show": ["name"],
    "/api/pull": ["name", "stream"],
    "/api/embed": ["input"],
    "/tokenize": ["content", "add_special", "with_pieces"],
    "/detokenize": ["tokens"],
    "/apply-template": ["messages"],
    "/completion": ["prompt", "n_predict", "stream", *SAMPLING],
}
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["tiny", "user", "assistant", "system", "tool", "text"]
)
NUMBERS = st.integers(-3, 70) | st.integers() | st.floats() | st.sampled_from([2**63, 2**64, -1.0])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "name",
        "tool_calls",
        "function",
        "arguments",
        "include_usage",
        "num_predict",
        "97",
        "format",
        "stop",
        "seed",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"])},
        optional={
            "content": TEXTS | st.none() | st.lists(VALUES, max_size=2),
            "tool_calls": st.lists(VALUES, max_size=2),
        },
    ),
    max_size=4,
)


# Values of the right type for most fields, in and out of their ranges.
FLAGS = st.booleans()
COUNTS = st.integers(-1, 5)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2)
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXTS | PARTS}
        ),
        min_size=1,
        max_size=3,
    ),
    "prompt": TEXTS | st.lists(TEXTS, min_size=1, max_size=2) | st.lists(st.integers(0, 260)),
    "input": TEXTS,
    "stop": TEXTS | st.lists(TEXTS, max_size=3),
    "options": st.dictionaries(st.sampled_from(SAMPLING), COUNTS, max_size=3),
    "logit_bias": st.dictionaries(st.sampled_from(["97", "98", "300", "x"]), COUNTS, max_size=2),
    "tokens": st.lists(st.integers(0, 260), max_size=4),
    **dict.fromkeys(["stream", "echo", "raw", "logprobs"], FLAGS),
    **dict.fromkeys(["add_special", "with_pieces"], FLAGS),
    **dict.fromkeys(["n", "top_k", "seed", "n_predict", "max_tokens", "top_logprobs"], COUNTS),
    **dict.fromkeys(["temperature", "top_p", "min_p", "repeat_penalty"], st.floats(0, 1.1)),
    **dict.fromkeys(["presence_penalty", "frequency_penalty"], st.floats(-2.1, 2.1)),
    **dict.fromkeys(["system", "instructions", "content"], TEXTS),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    path = draw(st.sampled_from(sorted(FIELDS)))
    wild = draw(st.integers(0, 3)) == 0
    body: dict[str, Any] = {"model": draw(VALUES) if wild else "tiny"}
    names = FIELDS[path][:1] * (not wild)
    names = names + draw(st.lists(st.sampled_from(FIELDS[path]), unique=True, max_size=5))
    for name in dict.fromkeys(names):
        given = MESSAGES | VALUES if name == "messages" else VALUES
        body[name] = draw(given if wild else TYPED.get(name, given))
    return path, body


@pytest.fixture(scope="module")
def root() -> Iterator[Root]:
    runner = FakeRunner()
    with Root(runner, http=True) as running:
        yield running
        end = time.monotonic() + 10
        while running.frontend.open_answers:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture(scope="module")
def client(root: Root) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=root.url, timeout=30) as made:
        yield made


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests())
@example(("/v1/completions", {"prompt": [True]}))
@example(("/v1/completions", {"prompt": [[-1]]}))
@example(("/v1/chat/completions", {"messages": [{"role": "user", "content": [None]}]}))
@example(("/api/show", {"name": 5}))
def test_no_request_makes_an_error_of_the_server(
    root: Root, client: httpx.Client, given: tuple[str, dict[str, Any]]
) -> None:
    path, body = given
    got = client.post(path, content=json.dumps(body))
    event(f"{path} {got.status_code}")
    assert got.status_code in (200, 400, 404), (got.status_code, got.text)
    if got.status_code != 200:
        error = got.json()["error"]
        assert isinstance(error, str) if path.startswith("/api") else error["message"]
    root.runner.batches.clear()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(sorted(FIELDS)))
def test_no_body_makes_an_error_of_the_server(client: httpx.Client, body: bytes, path: str) -> None:
    assert client.post(path, content=body).status_code == 400
