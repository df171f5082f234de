"""Sampling as OpenAI's clients expect it: with the core's sampler over a stand-in for the model."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serving_fakes import EOS, VOCAB, FakeModel, FakeRunner, NoisyRunner, Root, expected

from hearth.root.api.http.logprobs import ChatLogprobs, CompletionLogprobs
from hearth.root.engine.interfaces import native_sampler
from hearth.root.engine.mailbox import TokenScore
from hearth.root.scheduling.batch import Batch, StepOutput

PROMPT: Any = [{"role": "user", "content": "hi"}]


class Spread(FakeRunner):
    """Each row has logits for several letters, which depend on nothing: 'a' is the best."""

    def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
        logits = np.full((len(batch.output_rows), VOCAB), -20.0, np.float32)
        for place, letter in enumerate(b"abcd"):
            logits[:, letter] = 2.0 - 0.5 * place
        return StepOutput(logits)


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(Spread(), http=True, sampler_factory=native_sampler) as running:
        yield running


@pytest.fixture
def client(root: Root) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{root.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def text(client: openai.OpenAI, **body: Any) -> str:
    given: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 12, "temperature": 0}
    made: str = client.completions.create(**(given | body)).choices[0].text
    return made


def test_biases_and_penalties(client: openai.OpenAI) -> None:
    assert text(client) == "a" * 12
    assert text(client, logit_bias={"97": -100}) == "b" * 12
    assert text(client, logit_bias={"100": 100}) == "d" * 12
    # By a text, and as llama.cpp's list: in both the numbers of a token add up.
    assert text(client, logit_bias={"d": 60, "100": 40}) == "d" * 12
    listed = {"logit_bias": [["a", False], ["ab", -100], [100, 1000]]}
    assert text(client, extra_body=listed) == "d" * 12
    assert text(client, frequency_penalty=0.4) != "a" * 12
    assert set(text(client, presence_penalty=1.0)[:2]) == {"a", "b"}


def test_a_seed_gives_the_same_text_and_choices_differ(client: openai.OpenAI) -> None:
    def choices(seed: int | None) -> list[str]:
        body: dict[str, Any] = {"model": "tiny", "messages": PROMPT, "max_tokens": 12, "n": 3}
        made = client.chat.completions.create(**body, seed=seed)
        return [choice.message.content or "" for choice in made.choices]

    first = choices(-5)
    assert len(set(first)) > 1
    assert choices(-5) == first
    assert choices(6) != first


def test_the_temperature_is_1_where_the_request_has_none(client: openai.OpenAI) -> None:
    letters = client.completions.create(model="tiny", prompt="x", max_tokens=50, seed=3)
    assert len(set(letters.choices[0].text)) > 1


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": PROMPT, "max_tokens": 2, "temperature": 0}
    made = client.chat.completions.create(**body, logprobs=True, top_logprobs=3)
    weights = [math.exp(2.0 - 0.5 * place) for place in range(4)]
    total = math.fsum(weights) + (VOCAB - 4) * math.exp(-20)
    values = [math.log(weight / total) for weight in weights]
    assert made.choices[0].logprobs is not None
    content = made.choices[0].logprobs.content
    assert content is not None
    assert [entry.token for entry in content] == ["a", "a"]
    assert content[0].bytes == [97]
    assert content[0].logprob == pytest.approx(values[0], abs=1e-5)
    top = content[0].top_logprobs
    assert [entry.token for entry in top] == ["a", "b", "c"]
    assert [entry.logprob for entry in top] == pytest.approx(values[:3], abs=1e-5)
    parts = client.chat.completions.create(**body, logprobs=True, stream=True)
    logprobs = [part.choices[0].logprobs for part in parts]
    streamed = [entry for each in logprobs if each is not None for entry in each.content or ()]
    assert [entry.token for entry in streamed] == ["a", "a"]
    assert streamed[0].top_logprobs == []
    assert client.chat.completions.create(**body).choices[0].logprobs is None


def test_log_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "xy", "max_tokens": 3, "temperature": 0}
    logprobs = client.completions.create(**body, logprobs=2).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "a", "a"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs is not None
    assert set(logprobs.top_logprobs[0]) == {"a", "b"}
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs[0]["a"] == logprobs.token_logprobs[0]


def reference(ids: tuple[int, ...]) -> list[float]:
    """The log probabilities of all tokens but the first, by NoisyRunner."""
    found = []
    for length in range(1, len(ids)):
        row = np.random.default_rng(hash(ids[:length]) & 0xFFFFFFFF).normal(size=VOCAB) * 3
        row = row.astype(np.float32).astype(np.float64)
        found.append(float(row[ids[length]] - row.max() - np.log(np.exp(row - row.max()).sum())))
    return found


@pytest.mark.parametrize("most_drafts", [32, 5, 0])
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_prompt(stream: bool, most_drafts: int) -> None:
    """With echo; an end of a sequence within the prompt ends nothing. lm-eval reads models so."""
    ids = (256, *b"once upon a time, ", EOS, *b"twice upon another, once more on a third")
    body = {"model": "tiny", "prompt": list(ids), "logprobs": 2, "echo": True, "temperature": 0}
    with Root(
        NoisyRunner(max_step_tokens=24),
        http=True,
        context_size=128,
        max_step_tokens=24,
        most_drafts=most_drafts,
        sampler_factory=native_sampler,
    ) as root:
        url = f"{root.url}/v1/completions"

        def ask(**more: Any) -> tuple[str, dict[str, list[Any]], dict[str, int]]:
            got = httpx.post(url, json={**body, "stream": stream, **more}, timeout=20)
            assert got.status_code == 200, got.text
            lines = [line.removeprefix("data: ") for line in got.text.splitlines() if line]
            chunks = [json.loads(line) for line in lines if line != "[DONE]"]
            usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
            choices = [each for chunk in chunks for each in chunk["choices"]]
            joined: dict[str, list[Any]] = {}
            for each in choices:
                for name, values in (each["logprobs"] or {}).items():
                    joined.setdefault(name, []).extend(values)
            return "".join(each["text"] for each in choices), joined, usages[-1]

        options: Any = {"stream_options": {"include_usage": True}} if stream else {}
        text, found, usage = ask(max_tokens=0, **options)
        assert text == bytes(token for token in ids if token < 256).decode()
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), 0)
        assert found["tokens"][:3] == ["<s>", "o", "n"]
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        assert found["token_logprobs"][1:] == pytest.approx(reference(ids), abs=1e-4)
        assert found["text_offset"][:4] == [0, 0, 1, 2]
        # (Bytes that are not characters share a name.)
        assert all(len(top) in (1, 2) for top in found["top_logprobs"][1:])
        rows = [len(batch.tokens) for batch in root.runner.batches]
        # Rows of a step as drafts; one at a time where no draft can be verified.
        assert max(rows) == min(24, 1 + most_drafts)
        assert sum(rows) == len(ids)

        longer, more_found, usage = ask(max_tokens=4, **options)
        assert usage["completion_tokens"] == 4
        assert longer.startswith(text)
        assert more_found["token_logprobs"][: len(ids)] == found["token_logprobs"]
        assert len(more_found["tokens"]) == len(ids) + 4
        # The answer is that to the same prompt without its log probabilities.
        plain = ask(max_tokens=4, echo=False, **options)
        assert longer == text + plain[0]
        assert more_found["token_logprobs"][len(ids) :] == pytest.approx(
            plain[1]["token_logprobs"], abs=1e-6
        )


def test_log_probabilities_of_several_prompts(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="tiny", prompt=["xy", ""], n=2, max_tokens=1, logprobs=0, echo=True, temperature=0
    )
    tokens = [choice.logprobs and choice.logprobs.tokens for choice in made.choices]
    assert tokens == [["<s>", "x", "y", "a"]] * 2 + [["<s>", "a"]] * 2
    assert [choice.text for choice in made.choices] == ["xya", "xya", "a", "a"]


def test_an_end_of_sequence_has_no_log_probability(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": PROMPT, "logit_bias": {str(EOS): 100}}
    made = client.chat.completions.create(**body, logprobs=True)
    assert made.choices[0].finish_reason == "stop"
    assert made.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logit_bias": {"x": True}}, "logit_bias"),
        ({"logit_bias": {"1" * 10: 1}}, "logit_bias"),
        ({"logit_bias": 3}, "logit_bias"),
        ({"logit_bias": {"97": 101}}, "logit_bias"),
        ({"logit_bias": {"258": 1}}, None),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 0}, "n"),
    ],
)
def test_what_is_refused(client: openai.OpenAI, body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**({"model": "tiny", "messages": PROMPT} | body))
    assert error.value.param == param


def test_defaults_of_the_model(root: Root) -> None:
    """A temperature of 0 in generation_config.json; a request may say otherwise."""
    served = root.frontend._model
    assert isinstance(served, FakeModel)
    root.frontend._model = replace(served, sampling_defaults={"temperature": 0.0, "top_k": 1})
    url = f"{root.url}/v1/completions"
    body = {"prompt": "x", "max_tokens": 30}
    assert httpx.post(url, json=body).json()["choices"][0]["text"] == "a" * 30
    free = body | {"temperature": 1.5, "top_k": 0, "seed": 1}
    assert httpx.post(url, json=free).json()["choices"][0]["text"] != "a" * 30


def test_the_choices_of_one_stream() -> None:
    with Root(http=True) as root:
        body = {"prompt": ["ab", "cd"], "max_tokens": 4, "stream": True, "n": 2}
        lines = httpx.post(f"{root.url}/v1/completions", json=body).text.split("\n\n")
        texts = ["", "", "", ""]
        for line in lines:
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                texts[choice["index"]] += choice["text"]
        made = [bytes(expected((256, *prompt), 4)).decode() for prompt in (b"ab", b"cd")]
        assert texts == [made[0], made[0], made[1], made[1]]


def test_a_token_without_any_probability_has_a_finite_one(root: Root) -> None:
    score = TokenScore(97, -math.inf, ((98, -math.inf), (99, -1.5)))
    (entry,) = (ChatLogprobs(root.frontend)([score]) or {})["content"]
    assert entry["logprob"] == -9999.0
    assert [each["logprob"] for each in entry["top_logprobs"]] == [-9999.0, -1.5]
    made = CompletionLogprobs(root.frontend, 0)([score])
    assert made is not None
    assert made["token_logprobs"] == [-9999.0]
    assert made["top_logprobs"] == [{"c": -1.5, "b": -9999.0}]


def test_a_list_of_biases_as_llama_cpp_has_it() -> None:
    with Root(http=True, sampler_factory=None) as root:
        for pairs, status in (
            ([[97, -100], [98, False]], 200),
            ([["a", 1], ["xy", False]], 200),
            ([[97, 1000]], 200),
            ([], 200),
            (False, 200),
            ({"a": -1, "97": False}, 200),
            ([[97]], 400),
            ([[97, True]], 400),
            ([[True, 1]], 400),
            (["ab"], 400),
            ({"a": "b"}, 400),
            ([[-1, 1]], 400),
            ([97], 400),
        ):
            body = {"prompt": "a", "n_predict": 2, "logit_bias": pairs}
            got = httpx.post(f"{root.url}/completion", json=body)
            assert got.status_code == status, pairs
