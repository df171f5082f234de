"""Gaps in texts (fill in the middle) in every face that has them, and llama.cpp's n_probs."""

from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest
from serving_fakes import EOS, FakeRunner, Root

BOS = 256
GAPS = {"<|fim_prefix|>": 0xF8, "<|fim_suffix|>": 0xF9, "<|fim_middle|>": 0xFA}
FILE = {"<|file_sep|>": 0xFB}
AROUND = (0xF8, *b"a", 0xF9, *b"c", 0xFA)
# The stand-in's answers to prompts; it says nothing to others.
ANSWERS = {
    (BOS, 0xF8, *b"def f(", 0xF9, *b"): pass", 0xFA): b"x, y",
    (BOS, *AROUND, *b"b"): b"!",
    (BOS, 0xFB, *b"u.py\nx = 1\n", 0xFB, *b"filename\n", *AROUND): b"file",
    (BOS, *b"\n\n--- snippet ---\n\nx = 1", *AROUND): b"snippet",
    # Mistral's order.
    (BOS, 0xF9, *b"c", 0xF8, *b"a"): b"mistral",
}


def fills(history: tuple[int, ...]) -> int:
    for prompt, answer in ANSWERS.items():
        made = history[len(prompt) :]
        if history[: len(prompt)] == prompt and made == tuple(answer[: len(made)]):
            return answer[len(made)] if len(made) < len(answer) else EOS
    return EOS


def root_of(controls: dict[str, int]) -> Root:
    return Root(FakeRunner(fills), http=True, context_size=128, controls=controls)


@pytest.fixture
def root() -> Iterator[Root]:
    with root_of(GAPS) as running:
        yield running


def post(root: Root, path: str, status: int = 200, **body: Any) -> Any:
    got = httpx.post(f"{root.url}{path}", json={"temperature": 0, **body}, timeout=20)
    assert got.status_code == status, got.text
    return got.json()


def test_openai(root: Root) -> None:
    client = openai.OpenAI(base_url=f"{root.url}/v1", api_key="any", max_retries=0, timeout=20)
    made = client.completions.create(model="tiny", prompt="def f(", suffix="): pass", echo=True)
    assert made.choices[0].text == "def f(x, y"
    parts = client.completions.create(model="tiny", prompt="def f(", suffix="): pass", stream=True)
    assert "".join(part.choices[0].text for part in parts) == "x, y"
    with pytest.raises(openai.BadRequestError, match="prompt must be a text"):
        client.completions.create(model="tiny", prompt=[1, 2], suffix="b")


def test_ollama(root: Root) -> None:
    made = ollama.Client(root.url).generate("tiny", "def f(", suffix="): pass")
    assert made.response == "x, y"
    assert "insert" in (ollama.Client(root.url).show("tiny").capabilities or ())


def test_infill(root: Root) -> None:
    made = post(root, "/infill", input_prefix="def f(", input_suffix="): pass")
    assert (made["content"], made["stop_type"]) == ("x, y", "eos")
    assert post(root, "/infill", input_prefix="a", input_suffix="c", prompt="b")["content"] == "!"
    # A name of a control token in a text is text.
    assert post(root, "/infill", input_prefix="<|fim_suffix|>", input_suffix="c")["content"] == ""


def test_infill_with_files(root: Root) -> None:
    files = [{"filename": "u.py", "text": "x = 1"}]
    body: Any = {"input_prefix": "a", "input_suffix": "c", "input_extra": files}
    assert post(root, "/infill", **body)["content"] == "snippet"
    with root_of(GAPS | FILE) as with_files:
        assert post(with_files, "/infill", **body)["content"] == "file"


def test_the_order_of_mistral() -> None:
    with root_of({"[PREFIX]": 0xF8, "[SUFFIX]": 0xF9}) as root:
        made = post(root, "/infill", input_prefix="a", input_suffix="c")
    assert made["content"] == "mistral"


@pytest.mark.parametrize("controls", [{}, {"<PRE>": 0xF8, "<SUF>": 0xF9}, {"<|fim_prefix|>": 0xF8}])
def test_a_model_that_fills_no_gaps(controls: dict[str, int]) -> None:
    with root_of(controls) as root:
        assert "fills no gaps" in str(post(root, "/infill", 501, input_prefix="a"))
        refused = post(root, "/v1/completions", 400, prompt="a", suffix="b")
        assert refused["error"]["param"] == "suffix"
        refused = post(root, "/api/generate", 400, model="tiny", prompt="a", suffix="b")
        assert "fills no gaps" in refused["error"]


def test_bad_texts(root: Root) -> None:
    post(root, "/infill", 400, input_prefix=3)
    post(root, "/infill", 400, input_extra=[3])
    for count in (200, 5000):
        refused = post(root, "/infill", 400, input_prefix="a" * count)
        assert "maximum context length" in refused["error"]["message"]


def test_probabilities_of_llama_cpp(root: Root) -> None:
    made = post(root, "/infill", input_prefix="def f(", input_suffix="): pass", n_probs=2)
    entries = made["completion_probabilities"]
    assert "".join(entry["token"] for entry in entries) == "x, y"
    assert entries[0]["id"] == ord("x")
    assert entries[0]["bytes"] == [ord("x")]
    assert entries[0]["top_logprobs"][0]["id"] == ord("x")
    assert len(entries[0]["top_logprobs"]) == 2
    # One logit of 10, 257 of 0.
    assert entries[0]["logprob"] == pytest.approx(-0.0116, abs=1e-3)
    made = post(root, "/completion", prompt="a", n_predict=1)
    assert "completion_probabilities" not in made
    post(root, "/completion", 400, prompt="a", n_probs=21)
    post(root, "/completion", 400, prompt="a", n_probs=2, post_sampling_probs=True)


def test_metrics(root: Root) -> None:
    got = httpx.get(f"{root.url}/metrics")
    assert got.status_code == 200
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
