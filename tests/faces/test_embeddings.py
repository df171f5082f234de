"""Embeddings of every face, with a stand-in whose hidden states are known.

Of each position they are the token, the position, 1 and zeros (serving_fakes.hidden_states).
"""

import asyncio
import base64
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
from serving_fakes import FakeRunner, Root

from hearth.client import AsyncClient, Client, InvalidArgument
from hearth.common.errors import HearthError, Reason
from hearth.converter.pooling import Pooling

BOS = 256


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


@pytest.fixture
def client(root: Root) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{root.url}/v1", api_key="any", max_retries=0, timeout=20) as made:
        yield made


def states(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    ids = [BOS, *text.encode()]
    return np.array([[token, at, 1, 0, 0, 0, 0, 0] for at, token in enumerate(ids)], np.float64)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def last(text: str) -> Any:
    return unit(states(text)[-1])


def test_openai_floats_and_base64(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="tiny", input=["ab", "c"], encoding_format="float")
    assert made.model == "tiny"
    assert [each.index for each in made.data] == [0, 1]
    np.testing.assert_allclose(made.data[0].embedding, last("ab"), rtol=1e-6)
    np.testing.assert_allclose(made.data[1].embedding, last("c"), rtol=1e-6)
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (5, 5)
    # The client's own default is base64.
    again = client.embeddings.create(model="tiny", input="ab")
    np.testing.assert_allclose(again.data[0].embedding, last("ab"), rtol=1e-6)


def test_base64_on_the_wire(root: Root) -> None:
    body = {"input": "ab", "encoding_format": "base64", "user": "someone"}
    got = httpx.post(f"{root.url}/embeddings", json=body).json()
    data = base64.b64decode(got["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(data, "<f4"), last("ab"), rtol=1e-6)


def test_token_ids(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="tiny", input=[97, 98])
    np.testing.assert_allclose(one.data[0].embedding[:3], unit([98, 1, 1]), rtol=1e-6)
    two = client.embeddings.create(model="tiny", input=[[97], [98]])
    np.testing.assert_allclose(two.data[1].embedding[:3], unit([98, 0, 1]), rtol=1e-6)


def test_dimensions(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="tiny", input="ab", dimensions=2)
    np.testing.assert_allclose(made.data[0].embedding, unit([98, 2]), rtol=1e-6)
    for count in (0, 9):
        with pytest.raises(openai.BadRequestError, match=f"dimensions is {count}"):
            client.embeddings.create(model="tiny", input="ab", dimensions=count)


def test_many_texts_in_long_prompts() -> None:
    texts = [chr(97 + index % 26) * (1 + index % 40) for index in range(100)]
    runner = FakeRunner(max_step_tokens=16)
    with Root(runner, http=True, max_step_tokens=16) as root:
        body = {"input": texts}
        got = httpx.post(f"{root.url}/v1/embeddings", json=body, timeout=30).json()
    assert [each["index"] for each in got["data"]] == list(range(100))
    for text, each in zip(texts, got["data"], strict=True):
        np.testing.assert_allclose(each["embedding"], last(text), rtol=1e-6)
    assert got["usage"]["prompt_tokens"] == sum(1 + len(text) for text in texts)


@pytest.mark.parametrize("kind", ["mean", "cls", "last"])
def test_the_pooling_of_the_model(kind: str) -> None:
    with Root(http=True, pooling=Pooling(kind)) as root:
        got = httpx.post(f"{root.url}/v1/embeddings", json={"input": "abc"}).json()
        shown = ollama.Client(root.url).show("tiny")
    rows = states("abc")
    wanted = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[kind]
    np.testing.assert_allclose(got["data"][0]["embedding"], unit(wanted), rtol=1e-6)
    assert shown.capabilities is not None
    assert "embedding" in shown.capabilities


def test_a_model_whose_vectors_need_more() -> None:
    problem = Pooling(problem="modules.json asks for a module 'Dense'")
    with Root(http=True, pooling=problem) as root:
        got = httpx.post(f"{root.url}/v1/embeddings", json={"input": "abc"})
        assert got.status_code == 400
        assert "'Dense'" in got.json()["error"]["message"]
        with Client(root.address) as client:
            assert len(client.embed(["abc"], pooling="mean")[0]) == 8


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": [1.5]}, "input[0]"),
        ({"input": ["a", True]}, "input[1]"),
        ({"input": [3, True]}, "input"),
        ({"input": [{"content": "a"}]}, "input[0].content"),
        ({"input": [{"content": [{"type": "image_url"}]}]}, "content[0]"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a" * 200}, "messages"),
        ({"input": [1 << 40]}, None),
        ({"input": "a", "model": "other"}, "model"),
    ],
)
def test_bad_requests(root: Root, body: dict[str, Any], field: str | None) -> None:
    got = httpx.post(f"{root.url}/v1/embeddings", json=body)
    assert got.status_code == (404 if field == "model" else 400), got.text
    assert got.json()["error"]["param"] == field


def test_no_texts_have_no_vectors(root: Root) -> None:
    got = httpx.post(f"{root.url}/api/embed", json={"model": "tiny", "input": []})
    assert got.json()["embeddings"] == []


def test_ollama(root: Root) -> None:
    client = ollama.Client(host=root.url, timeout=20)
    made = client.embed(model="tiny", input=["ab", "c"])
    np.testing.assert_allclose(made.embeddings[0], last("ab"), rtol=1e-6)
    np.testing.assert_allclose(made.embeddings[1], last("c"), rtol=1e-6)
    assert made.prompt_eval_count == 5
    short = client.embed(model="tiny", input="ab", dimensions=2)
    np.testing.assert_allclose(short.embeddings[0], unit([98, 2]), rtol=1e-6)
    # The older one leaves vectors as they are.
    old = client.embeddings(model="tiny", prompt="ab")
    np.testing.assert_allclose(old.embedding, states("ab")[-1])


def test_ollama_cuts_what_is_too_long(root: Root) -> None:
    client = ollama.Client(host=root.url, timeout=20)
    made = client.embed(model="tiny", input="a" * 100)
    assert made.prompt_eval_count == 63
    np.testing.assert_allclose(made.embeddings[0], unit(states("a" * 62)[-1]), rtol=1e-6)
    with pytest.raises(ollama.ResponseError, match="maximum context length is 64"):
        client.embed(model="tiny", input="a" * 100, truncate=False)


def test_llama_server(root: Root) -> None:
    def post(**body: Any) -> Any:
        return httpx.post(f"{root.url}/embedding", json=body).json()

    (made,) = post(content="ab")
    np.testing.assert_allclose(made["embedding"][0], last("ab"), rtol=1e-6)
    (plain,) = post(content="ab", embd_normalize=-1)
    np.testing.assert_allclose(plain["embedding"][0], states("ab")[-1])
    (taxicab,) = post(content="ab", embd_normalize=1)
    np.testing.assert_allclose(taxicab["embedding"][0], states("ab")[-1] / 101, rtol=1e-6)


def test_grpc(root: Root) -> None:
    with Client(root.address) as client:
        made = client.embed(["ab", [97, 98]], pooling="mean")
        np.testing.assert_allclose(made[0], unit(states("ab").mean(axis=0)), rtol=1e-6)
        np.testing.assert_allclose(made[1][:3], unit([97.5, 0.5, 1]), rtol=1e-6)
        raw = client.embed(["ab"], normalize=False)
        np.testing.assert_allclose(raw[0], states("ab")[-1])
        assert len(client.embed(["a" * 100], truncate=True)[0]) == 8
        with pytest.raises(InvalidArgument, match="pooling is 'max'"):
            client.embed(["a"], pooling="max")
        with pytest.raises(InvalidArgument, match="context"):
            client.embed(["a" * 100])


def test_grpc_with_asyncio(root: Root) -> None:
    async def vectors() -> list[list[float]]:
        async with AsyncClient(root.address) as client:
            return await client.embed(["ab"])

    made = asyncio.run(vectors())
    np.testing.assert_allclose(made[0], last("ab"), rtol=1e-6)


def test_a_cluster_lost_meanwhile_begins_the_text_again() -> None:
    runner = FakeRunner(max_step_tokens=16)
    with Root(runner, http=True, max_step_tokens=16, pause_seconds=20) as root:
        runner.fail_with = HearthError(Reason.WORKER_LOST, "a worker is lost")
        with Client(root.address) as client:
            # Its first step is lost; the engine waits until the cluster is there again.
            timer = threading.Timer(0.3, root.engine.resume)
            timer.start()
            made = client.embed(["a" * 40], pooling="mean", normalize=False)
            timer.join()
    np.testing.assert_allclose(made[0], states("a" * 40).mean(axis=0), rtol=1e-6)
