"""Pipeline parallelism: stages of one rank and of several, in every layout the same text.

All in float32, in which a cut changes no step of a stored text (known_answers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import known_answers
import numpy as np
import perplexity
import pytest

from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.settings import ClusterSettings
from hearth.worker.server import WorkerServer

LANES = ["mesh", "grpc"]
# Nodes and how they are arranged; the demo model has 5 layers.
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"parallel": "pipeline"}),
    (3, {"parallel": "pipeline"}),
    (4, {"parallel": "pipeline"}),
    (3, {"parallel": "pipeline", "stages": (1, 3, 1)}),
    (2, {"stages": (4, 1)}),
    (4, {"parallel": "2x2"}),
    (4, {"parallel": "2x1+1x2"}),
    (3, {"parallel": "1x2+1x1", "stages": (3, 2)}),
]


def _name(layout: tuple[int, dict[str, Any]]) -> str:
    layers = ",".join(map(str, layout[1].get("stages", ())))
    return f"{layout[0]} {layout[1].get('parallel', '')} {layers}".strip()


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Three workers in this process."""
    servers = [WorkerServer("127.0.0.1:0", threads=1, name=f"node{n}") for n in (1, 2, 3)]
    yield [f"127.0.0.1:{server.start()}" for server in servers]
    for server in servers:
        server.stop()


@contextmanager
def engine_on(
    addresses: list[str], nodes: int, lane: str = "mesh", **settings: Any
) -> Iterator[Engine]:
    """An engine of the demo model, on a cluster of so many nodes."""
    given = {"context": 256, "sequences": 4, "lane": lane, **settings}
    with perplexity.formed("demo", addresses[: nodes - 1], "f32", **given) as (cluster, limits):
        with open_model("demo") as model:
            engine = Engine(cluster, model.tokenizer(), limits, vocab_size=model.spec.vocab_size)
        engine.start()
        try:
            yield engine
        finally:
            engine.stop(finish=False)


def answer(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """So many greedy tokens."""
    params = GenerateParams(tuple(prompt), count, Sampling(temperature=0.0))
    events = [event for event in engine.generate(params) if isinstance(event, Delta)]
    return [token for event in events for token in event.token_ids]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=map(_name, LAYOUTS))
def test_stories(addresses: list[str], layout: tuple[int, dict[str, Any]], lane: str) -> None:
    """All stories at once: batches follow each other through the stages."""
    nodes, options = layout
    stories = known_answers.read_stories()
    with engine_on(addresses, nodes, lane, **options) as engine:

        def tell(story: dict[str, Any]) -> list[int]:
            return answer(engine, story["prompt_ids"], len(story["greedy_ids"]))

        assert tell(stories[0]) == stories[0]["greedy_ids"]
        with ThreadPoolExecutor(len(stories)) as pool:
            assert list(pool.map(tell, stories)) == [story["greedy_ids"] for story in stories]


@pytest.mark.parametrize("lane", LANES)
def test_chunks_of_a_prompt_follow_each_other(addresses: list[str], lane: str) -> None:
    """A prompt of many small steps, several of them in flight."""
    story = known_answers.read_stories()[0]
    head, tail = story["greedy_ids"][:90], story["greedy_ids"][90:]
    with engine_on(addresses, 3, lane, parallel="pipeline", max_step_tokens=16) as engine:
        assert answer(engine, story["prompt_ids"] + head, len(tail)) == tail


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("layout", LAYOUTS[2:6:3], ids=map(_name, LAYOUTS[2:6:3]))
def test_logits(addresses: list[str], layout: tuple[int, dict[str, Any]], lane: str) -> None:
    positions, expected = known_answers.read_logits()
    story = known_answers.read_stories()[0]
    ids = (story["prompt_ids"] + story["greedy_ids"])[: positions[-1] + 1]
    nodes, options = layout
    settings = {"context": 512, "lane": lane, **options}
    with perplexity.formed("demo", addresses[: nodes - 1], "f32", **settings) as formed:
        found = perplexity.logits_of(*formed, ids)[positions]
    assert float(np.abs(found - expected).max()) < 2e-4


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("sync_type", ["f16", "q80"])
def test_rounded_activations(addresses: list[str], sync_type: str, lane: str) -> None:
    """Logits near those in float32: a stage's border rounds no more than a sync does."""
    positions, expected = known_answers.read_logits()
    story = known_answers.read_stories()[0]
    ids = (story["prompt_ids"] + story["greedy_ids"])[: positions[-1] + 1]
    settings = {"context": 512, "lane": lane, "parallel": "2x1+1x2", "sync_type": sync_type}
    with perplexity.formed("demo", addresses, "f32", **settings) as formed:
        found = perplexity.logits_of(*formed, ids)[positions]
    assert 0 < float(np.abs(found - expected).max()) < 0.5


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        (2, {"stages": (3, 3)}, "stages of 3,3 layers add up to 6; demo has 5 layers"),
        (2, {"stages": (2, 2, 1)}, "--stages 2,2,1 is for 3 nodes, and there are 2"),
        (2, {"parallel": "2x2"}, "--parallel 2x2 is for 4 nodes, and there are 2"),
        (3, {"parallel": "1x3", "stages": (4, 1)}, "--stages 4,1 has 2 stages, --parallel 1x3 has"),
        (3, {"parallel": "tensor", "stages": (4, 1)}, "with --parallel tensor, which is one stage"),
        (7, {"parallel": "pipeline"}, "into 7 stages: its 5 layers allow 1 to 5"),
        (10, {"parallel": "1x1+1x9"}, "over a stage of 9 nodes: its 8 query heads allow 1 to 8"),
        (2, {"parallel": "0x2"}, "0x2 is not 1 to 4096 stages of at least one rank"),
        (2, {"parallel": "diagonal"}, "unknown --parallel 'diagonal'"),
    ],
)
def test_layouts_that_cannot_be(nodes: int, options: dict[str, Any], message: str) -> None:
    """Before anything is dialled."""
    workers = tuple(f"127.0.0.1:{port}" for port in range(1, nodes))
    with open_model("demo") as model, pytest.raises(HearthError) as error:
        Cluster(model, ClusterSettings(workers=workers, **options))
    assert error.value.reason == Reason.INVALID_ARGUMENT
    assert message in error.value.message
