"""llama.cpp's /completion: prompts of every form, no tokens, seeds, penalties and times."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import EOS, FakeRunner, Root, expected, letters

from hearth.root.api.http import sampling
from hearth.root.engine.params import Sampling

BOS = 256
TEXT = (BOS, *b"ab")


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


def post(root: Root, path: str, status: int = 200, **body: Any) -> Any:
    got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
    assert got.status_code == status, got.text
    return got.json()


def events(root: Root, path: str, **body: Any) -> list[dict[str, Any]]:
    got = httpx.post(f"{root.url}{path}", json={**body, "stream": True}, timeout=20)
    lines = got.text.removesuffix("data: [DONE]\n\n").split("\n\n")
    return [json.loads(line[6:]) for line in lines if line]


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", TEXT),
        ([BOS, 97, 98], TEXT),
        (["a", 98], TEXT),
        ([97, "b", 99], (97, 98, 99)),
        ({"prompt_string": "ab"}, TEXT),
        ({"prompt_string": "ab", "multimodal_data": []}, TEXT),
        (["ab"], TEXT),
        ([[97, "b"]], (97, 98)),
    ],
)
def test_one_prompt(root: Root, prompt: Any, ids: tuple[int, ...]) -> None:
    made = post(root, "/completion", prompt=prompt, n_predict=3)
    assert made["tokens"] == expected(ids, 3)
    assert made["tokens_evaluated"] == len(ids)


def test_several_prompts_have_several_answers(root: Root) -> None:
    prompts = ["ab", [97, 98], {"prompt_string": "c"}, [99, "d"]]
    ids = [TEXT, (97, 98), (BOS, 99), (99, 100)]
    made = post(root, "/completion", prompt=prompts, n_predict=3)
    assert [each["index"] for each in made] == [0, 1, 2, 3]
    assert [each["tokens"] for each in made] == [expected(each, 3) for each in ids]
    twice = post(root, "/completion", prompt="ab", n_predict=3, n_cmpl=2)
    assert [each["tokens"] for each in twice] == [expected(TEXT, 3)] * 2
    found: list[list[int]] = [[], [], [], []]
    for event in events(root, "/completion", prompt=prompts, n_predict=3):
        found[event["index"]] += event["tokens"]
    assert found == [expected(each, 3) for each in ids]


def test_mixed_prompts_of_completions(root: Root) -> None:
    body: dict[str, Any] = {
        "prompt": [[97, "b"], {"prompt_string": "ab"}, ["a", 0xC3, 0xA9, "b"]],
        "max_tokens": 3,
        "echo": True,
    }
    made = post(root, "/v1/completions", **body)
    texts = [choice["text"] for choice in made["choices"]]
    assert texts[:2] == ["ab" + bytes(expected(each, 3)).decode() for each in ((97, 98), TEXT)]
    # A character in two tokens.
    assert texts[2].startswith("a\u00e9b")


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        (3, "prompt"),
        ({}, "prompt.prompt_string"),
        ([[]], "prompt[0]"),
        ([97, None], "prompt"),
        (["a", None], "prompt[1]"),
        ({"prompt_string": "a", "multimodal_data": ["aGk="]}, "prompt.multimodal_data"),
    ],
)
def test_what_is_not_a_prompt(root: Root, prompt: Any, param: str) -> None:
    assert post(root, "/completion", 400, prompt=prompt)["error"]["param"] == param


def test_no_tokens() -> None:
    """The prompt is read, so that the next request finds it."""
    with Root(FakeRunner(letters), http=True) as root:
        body: dict[str, Any] = {"prompt": "abcdefghij", "n_predict": 0}
        made = post(root, "/completion", **body)
        assert (made["content"], made["tokens"], made["tokens_predicted"]) == ("", [], 0)
        assert (made["stop_type"], made["tokens_evaluated"]) == ("limit", 11)
        assert sum(event["content"] != "" for event in events(root, "/completion", **body)) == 0
        assert post(root, "/completion", **{**body, "n_predict": 1})["tokens_cached"] == 8
        made = post(root, "/v1/completions", prompt="abc", max_tokens=0, echo=True)
        assert made["choices"][0]["text"] == "abc"
        assert made["choices"][0]["finish_reason"] == "length"
        assert made["usage"]["completion_tokens"] == 0
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}
        made = post(root, "/v1/chat/completions", **chat)
        assert made["choices"][0]["message"]["content"] == ""
        made = post(root, "/v1/messages", **chat)
        assert (made["content"], made["stop_reason"]) == ([], "max_tokens")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Sampling]:
    """The sampling of each request."""
    found: list[Sampling] = []

    def made(**fields: Any) -> Sampling:
        found.append(Sampling(**fields))
        return found[-1]

    monkeypatch.setattr(sampling, "Sampling", made)
    return found


def test_random_seeds(root: Root, seen: list[Sampling]) -> None:
    chat: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    for seed in (-1, 4294967295, 5):
        post(root, "/completion", prompt="a", n_predict=1, seed=seed)
    for seed in (-1, 5):
        options: dict[str, Any] = {"seed": seed, "num_predict": 1}
        post(root, "/api/chat", **chat, options=options, stream=False)
        post(root, "/v1/chat/completions", **chat, seed=seed, max_tokens=1)
        post(root, "/v1/responses", input="a", seed=seed, max_output_tokens=1)
    post(root, "/v1/completions", prompt="a", seed=-2, max_tokens=1)
    seeds = [None, None, 5, None, None, None, 5, 5, 5, (1 << 64) - 2]
    assert [each.seed for each in seen] == seeds


def test_numbers_beyond_openai_s_ranges(root: Root, seen: list[Sampling]) -> None:
    body: dict[str, Any] = {
        "presence_penalty": 5,
        "frequency_penalty": -300,
        "top_p": 2,
        "min_p": -1,
    }
    post(root, "/completion", prompt="a", n_predict=1, **body, temperature=-1)
    options: dict[str, Any] = {"presence_penalty": 5, "num_predict": 1}
    post(root, "/api/generate", model="tiny", prompt="a", options=options, stream=False)
    first, second = seen
    assert (first.presence_penalty, first.frequency_penalty) == (5, -100)
    assert (first.top_p, first.min_p, first.temperature) == (1, 0, 0)
    assert second.presence_penalty == 5
    post(root, "/v1/completions", 400, prompt="a", presence_penalty=5)


def test_an_end_that_is_ignored() -> None:
    ends = FakeRunner(lambda history: EOS if len(history) == 3 else 97)
    with Root(ends, http=True) as root:
        body: dict[str, Any] = {"prompt": "ab", "n_predict": 4}
        assert post(root, "/completion", **body)["stop_type"] == "eos"
        assert post(root, "/completion", **body, ignore_eos=True)["tokens_predicted"] == 4


def test_times_with_each_part(root: Root) -> None:
    parts = events(root, "/completion", prompt="ab", n_predict=5, timings_per_token=True)
    made = [part for part in parts if part["tokens"]]
    counts = [part["timings"]["predicted_n"] for part in made]
    totals = [sum(len(part["tokens"]) for part in made[: end + 1]) for end in range(len(made))]
    assert counts == totals
    assert counts[-1] == 5
    assert all(part["timings"]["prompt_n"] == 3 for part in made)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
    parts = events(root, "/v1/chat/completions", **body, timings_per_token=True)
    made = [part for part in parts if part["choices"][0]["delta"].get("content")]
    assert made[-1]["timings"]["predicted_n"] == 5
    assert "timings" not in parts[0]
    parts = events(root, "/v1/completions", prompt="a", max_tokens=5, timings_per_token=True)
    made = [part for part in parts if part["choices"][0]["text"]]
    assert [made[-1]["timings"]["predicted_n"], parts[-1]["timings"]["predicted_n"]] == [5, 5]
    assert "timings" not in parts[0]
    parts = events(root, "/v1/chat/completions", **body, stream_options={"include_usage": True})
    assert parts[-1]["choices"] == []
    assert parts[-1]["timings"]["predicted_n"] == 5
    assert not any("timings" in part for part in parts if part["choices"][:1] and _open(part))


def test_times_in_responses(root: Root) -> None:
    body: dict[str, Any] = {"input": "a", "max_output_tokens": 5}
    made = post(root, "/v1/responses", **body)
    assert made["timings"]["predicted_n"] == 5
    for wanted in (True, False):
        request = {**body, "timings_per_token": wanted, "stream": True}
        got = httpx.post(f"{root.url}/v1/responses", json=request, timeout=20)
        parts = [json.loads(line[6:]) for line in got.text.split("\n") if line[:6] == "data: "]
        deltas = [part for part in parts if part["type"] == "response.output_text.delta"]
        assert all(("timings" in part) is wanted for part in deltas)
        assert parts[-1]["response"]["timings"]["predicted_n"] == 5
    assert deltas


def _open(part: dict[str, Any]) -> bool:
    return part["choices"][0]["finish_reason"] is None
