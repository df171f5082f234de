"""Tokens from the prefix cache in the usage of every face, with a stand-in for the model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving_fakes import Root

from hearth.client import Client
from hearth.common.api_keys import ApiKeys

# A prompt of 35 tokens with its template: 8 full pages of 4.
MESSAGES: Any = [{"role": "user", "content": "once upon a time"}]
PROMPT = "a hearth is a home's fire"


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


def post(root: Root, path: str, body: dict[str, Any], key: str = "") -> Any:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    got = httpx.post(f"{root.url}{path}", json=body, headers=headers, timeout=20)
    assert got.status_code == 200, got.text
    return got.json()


def chat(root: Root, key: str = "") -> int:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3, "temperature": 0}
    usage = post(root, "/v1/chat/completions", body, key)["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def responses(root: Root) -> int:
    body = {"model": "tiny", "input": MESSAGES, "max_output_tokens": 3}
    return int(post(root, "/v1/responses", body)["usage"]["input_tokens_details"]["cached_tokens"])


def messages(root: Root) -> int:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3}
    usage = post(root, "/v1/messages", body)["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == 35
    return int(usage["cache_read_input_tokens"])


def grpc(root: Root) -> int:
    with Client(root.address) as client, client.generate(messages=MESSAGES, max_tokens=3) as stream:
        "".join(stream)
        assert stream.usage is not None
        return stream.usage.cached_tokens


@pytest.mark.parametrize("face", [chat, responses, messages, grpc])
def test_a_repeated_prompt(root: Root, face: Callable[[Root], int]) -> None:
    assert [face(root), face(root)] == [0, 32]


def test_a_stream_of_samples_counts_the_prompt_once(root: Root) -> None:
    with openai.OpenAI(base_url=f"{root.url}/v1", api_key="any", max_retries=0) as client:
        cached: list[int] = []
        for _ in range(2):
            stream = client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                max_tokens=3,
                n=3,
                stream=True,
                stream_options={"include_usage": True},
            )
            (usage,) = [chunk.usage for chunk in stream if chunk.usage is not None]
            assert usage.prompt_tokens == 35
            assert usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens or 0)
    assert cached == [0, 32]


def test_llama_servers_cache_prompt(root: Root) -> None:
    def cached(**more: bool) -> tuple[int, int, int]:
        made = post(root, "/completion", {"prompt": PROMPT, "n_predict": 3, **more})
        timings = made["timings"]
        return made["tokens_cached"], timings["cache_n"], timings["prompt_n"]

    assert cached(cache_prompt=False) == (0, 0, 26)
    assert cached() == (0, 0, 26)
    assert cached() == (24, 24, 2)
    assert cached(cache_prompt=False) == (0, 0, 26)


@pytest.mark.parametrize("share", [False, True])
def test_clients_with_other_keys_share_pages_only_if_that_is_wanted(
    share: bool, tmp_path: Path
) -> None:
    first, second = "first-key-of-sixteen", "second-key-of-sixteen"
    file = tmp_path / "keys"
    file.write_text(f"one {first}\ntwo {second}\n")
    file.chmod(0o600)
    keys = ApiKeys(file)
    with Root(
        http=True,
        http_options={"api_keys": keys},
        server_options={"api_keys": keys},
        share_prefixes=share,
    ) as root:
        assert [chat(root, first), chat(root, first)] == [0, 32]
        assert chat(root, second) == (32 if share else 0)
