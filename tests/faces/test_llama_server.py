"""The endpoints of llama.cpp's server, with a stand-in for the model."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import FakeRunner, Root, expected, script

from hearth.v1 import root_pb2


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


def post(root: Root, path: str, body: dict[str, Any], status: int = 200) -> Any:
    got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
    assert got.status_code == status, got.text
    return got.json()


def test_health(root: Root) -> None:
    assert httpx.get(f"{root.url}/health").json() == {"status": "ok"}
    root.cluster.change(root_pb2.CLUSTER_STATE_FORMING)
    got = httpx.get(f"{root.url}/health")
    assert got.status_code == 503
    assert got.json()["error"]["message"] == "Loading model"


def test_props_and_slots(root: Root) -> None:
    props = httpx.get(f"{root.url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 64
    assert props["total_slots"] == 16  # 256 pages of 4 positions
    assert "generation" in props["chat_template"]
    slots = httpx.get(f"{root.url}/slots").json()
    assert [slot["id"] for slot in slots] == list(range(16))
    assert not any(slot["is_processing"] for slot in slots)


def test_tokens_and_texts(root: Root) -> None:
    ids = [*"aé".encode()]
    assert post(root, "/tokenize", {"content": "aé"}) == {"tokens": ids}
    with_bos = post(root, "/tokenize", {"content": "a", "add_special": True})
    assert with_bos == {"tokens": [256, 97]}
    pieces = post(root, "/tokenize", {"content": "aé", "with_pieces": True})["tokens"]
    assert pieces[0] == {"id": 97, "piece": "a"}
    assert pieces[1] == {"id": 0xC3, "piece": [0xC3]}
    assert post(root, "/detokenize", {"tokens": ids}) == {"content": "aé"}
    post(root, "/detokenize", {"tokens": ["a"]}, 400)
    post(root, "/detokenize", {"tokens": [-1]}, 400)


def test_the_template(root: Root) -> None:
    messages = [{"role": "user", "content": "a<s>b"}]
    made = post(root, "/apply-template", {"messages": messages})
    assert made == {"prompt": "<s>[user]a<s>b</s>[assistant]"}


def test_completion() -> None:
    with Root(FakeRunner(script("one two three", "hi")), http=True) as root:
        body = {"prompt": "hi", "n_predict": 20, "stop": [" tw"]}
        made = post(root, "/completion", body)
        assert (made["content"], made["stop"]) == ("one", True)
        assert (made["stop_type"], made["stopping_word"]) == ("word", " tw")
        assert made["tokens_evaluated"] == 3
        assert made["timings"]["prompt_n"] == 3
        made = post(root, "/completion", {"prompt": "hi", "n_predict": -1})
        assert (made["content"], made["stop_type"]) == ("one two three", "eos")
        got = httpx.post(f"{root.url}/completion", json={**body, "stream": True})
        events = [json.loads(line[6:]) for line in got.text.split("\n\n") if line]
        assert "".join(event["content"] for event in events) == "one"
        assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


def test_a_limit(root: Root) -> None:
    made = post(root, "/completion", {"prompt": [97, 98], "n_predict": 3})
    assert made["tokens"] == expected((97, 98), 3)
    assert made["stop_type"] == "limit"


def test_gaps_are_not_filled(root: Root) -> None:
    post(root, "/infill", {"input_prefix": "a"}, 501)
