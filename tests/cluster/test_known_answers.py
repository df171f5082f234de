"""The demo model's known answers, by transformers, on 1 to 3 nodes: logits, greedy ids, texts.

Stored in tests/known, so that a clone checks numbers with neither PyTorch nor test data. Everything
is float32 on both sides; no greedy step of the stories is a near tie (known/make.py sees to that).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import known_answers
import numpy as np
import perplexity
import pytest
from harness import ServiceProcess, hearth

from hearth.client import Client
from hearth.worker.server import WorkerServer

STORIES = known_answers.read_stories()
EXACT = ("--weights", "f32", "--kv-type", "f32", "--sync-type", "f32")
NODES = [
    ("--nodes", "1"),
    ("--nodes", "2"),
    ("--nodes", "2", "--shares", "3,1", "--lane", "grpc"),
    ("--nodes", "3"),
]


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Two workers in this process."""
    servers = [WorkerServer("127.0.0.1:0", threads=1, name=f"node{n}") for n in (1, 2)]
    yield [f"127.0.0.1:{server.start()}" for server in servers]
    for server in servers:
        server.stop()


@pytest.mark.parametrize(
    ("number", "nodes"), list(enumerate(NODES)), ids=(" ".join(nodes) for nodes in NODES)
)
def test_a_story_through_the_command(number: int, nodes: tuple[str, ...]) -> None:
    """The prompt's ids are the tokenizer's, the text is the detokenizer's."""
    story = STORIES[number % len(STORIES)]
    length = len(story["greedy_ids"])
    arguments = ("--model", "demo", "--prompt", story["prompt"], "--max-tokens", str(length))
    ran = hearth("generate", *arguments, "--threads", "1", *EXACT, *nodes, "--json")
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["token_ids"] == story["greedy_ids"]
    assert answer["text"] == story["text"]
    assert answer["prompt_tokens"] == len(story["prompt_ids"])


def test_all_stories_at_once(
    addresses: list[str], start_root: Callable[..., ServiceProcess]
) -> None:
    """Through the SDK, from a root that makes them side by side on 3 nodes."""
    options = (*EXACT, "--workers", *addresses, "--context", "256", "--sequences", "3")
    root = start_root("--model", "demo", *options)
    with Client(root.address, timeout=120) as client:
        streams = [
            client.generate(story["prompt"], max_tokens=len(story["greedy_ids"]), temperature=0)
            for story in STORIES
        ]
        for stream, story in zip(streams, STORIES, strict=True):
            assert "".join(stream) == story["text"]
            assert stream.token_ids == story["greedy_ids"]


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_logits(addresses: list[str], nodes: int) -> None:
    """Sums of float32 in another order; the logits spread over several units."""
    positions, expected = known_answers.read_logits()
    assert expected.std() > 2
    ids = STORIES[0]["prompt_ids"] + STORIES[0]["greedy_ids"]
    with perplexity.formed("demo", addresses[: nodes - 1], "f32", context=512) as formed:
        found = perplexity.logits_of(*formed, ids[: positions[-1] + 1])[positions]
    difference = float(np.abs(found - expected).max())
    print(f"{nodes} nodes: largest difference {difference:.1e}, spread {expected.std():.1f}")
    assert difference < 2e-4
