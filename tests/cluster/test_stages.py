"""Pipeline parallelism: stages of one rank and of several, in every layout the same text.

All in float32, in which a cut changes no step of a stored text (known_answers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import family_models
import known_answers
import numpy as np
import perplexity
import pytest

from hearth.common import pki
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import NodeFacts, RootMetrics
from hearth.common.security import Security
from hearth.converter import open_model
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.settings import ClusterSettings
from hearth.worker.server import WorkerServer

LANES = ["mesh", "grpc"]
# Nodes and how they are arranged; the demo model and stories260k have 5 layers.
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
    addresses: list[str], nodes: int, lane: str = "mesh", source: str = "demo", **settings: Any
) -> Iterator[Engine]:
    """An engine of the model `source`, on a cluster of so many nodes."""
    given = {"context": 256, "sequences": 4, "lane": lane, **settings}
    with perplexity.formed(source, addresses[: nodes - 1], "f32", **given) as (cluster, limits):
        with open_model(source) as model:
            engine = Engine(cluster, model.tokenizer(), limits, vocab_size=model.spec.vocab_size)
        engine.start()
        try:
            yield engine
        finally:
            engine.stop(finish=False)


def answer(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """So many greedy tokens."""
    params = GenerateParams(tuple(prompt), count, Sampling(temperature=0.0), ignore_eos=True)
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
@pytest.mark.parametrize("layout", LAYOUTS, ids=map(_name, LAYOUTS))
def test_stories260k(
    addresses: list[str], layout: tuple[int, dict[str, Any]], lane: str, testdata: Path
) -> None:
    nodes, options = layout
    wanted, _ = known_answers.read_stories260k()
    source = str(testdata / "stories260k/stories260K.gguf")
    with engine_on(addresses, nodes, lane, source, **options) as engine:
        assert answer(engine, [1], len(wanted)) == wanted


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


@pytest.mark.parametrize("family", sorted(family_models.CONFIGS))
def test_families(addresses: list[str], tmp_path: Path, family: str) -> None:
    """Experts, windows, states: texts in company, twice, are those of one node.

    The second time the beginnings are in the prefix cache of every stage.
    """
    path = str(family_models.write_model(tmp_path / "model", family))
    random = np.random.default_rng(3)
    system = random.integers(3, 300, 40).tolist()
    prompts = [[*system, *random.integers(3, 300, count).tolist()] for count in (3, 20, 11)]

    def texts(nodes: int, parallel: str) -> list[list[int]]:
        settings = {"context": 256, "page_size": 8, "sequences": 4, "parallel": parallel}
        with perplexity.formed(path, addresses[: nodes - 1], "f32", **settings) as formed:
            engine = Engine(formed[0], PlainTokenizer(320), formed[1], vocab_size=320)
            engine.start()
            try:
                with ThreadPoolExecutor(3) as pool:
                    found = list(pool.map(lambda ids: answer(engine, ids, 24), prompts))
                    again = list(pool.map(lambda ids: answer(engine, ids, 24), prompts))
                assert found == again
                assert engine._scheduler.sharing.hit_tokens > 0
                return found
            finally:
                engine.stop(finish=False)

    wanted = texts(1, "tensor")
    assert len({token for text in wanted for token in text}) > 10
    assert texts(3, "pipeline") == wanted
    assert texts(4, "2x2") == wanted


@pytest.mark.parametrize("lane", LANES)
def test_final_hidden_states(addresses: list[str], lane: str) -> None:
    """Of the last stage's first rank, for embeddings."""
    ids = known_answers.read_stories()[0]["prompt_ids"]

    def states(nodes: int, parallel: str) -> Any:
        settings = {"context": 64, "lane": lane, "parallel": parallel}
        with perplexity.formed("demo", addresses[: nodes - 1], "f32", **settings) as formed:
            cluster, limits = formed
            batch = perplexity.step(limits, [(range(8), 0, ids)])
            return cluster.submit(batch, hidden=True).result().hidden

    wanted = states(1, "tensor")
    assert wanted.shape[0] == len(ids)
    for nodes, parallel in ((2, "pipeline"), (4, "2x2")):
        np.testing.assert_allclose(states(nodes, parallel), wanted, atol=1e-4)


def test_the_busy_time_of_nodes(addresses: list[str]) -> None:
    """No node computes for longer than steps ran."""
    story = known_answers.read_stories()[0]
    metrics = RootMetrics()
    with open_model("demo", "f32") as model:
        settings = ClusterSettings(workers=tuple(addresses[:1]), threads=1, parallel="pipeline")
        cluster = Cluster(model, settings, metrics=metrics)
        try:
            limits = cluster.form()
            metrics.nodes([NodeFacts("root", 1), NodeFacts("worker", 1)])
            ids = story["prompt_ids"] + story["greedy_ids"]
            perplexity.logits_of(cluster, limits, ids[:100])
        finally:
            cluster.close()
    values = {
        (sample.name, sample.labels.get("node", "")): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
    }
    busy = values["hearth_busy_seconds_total", ""]
    for node in ("root", "worker"):
        assert 0 < values["hearth_node_compute_seconds_total", node] <= busy
    # A node alone in its stage has no syncs; that it waits for other steps is none.
    assert values["hearth_sync_seconds_count", ""] > 0
    assert values["hearth_sync_seconds_sum", ""] == 0


def test_stages_with_certificates(tmp_path: Path) -> None:
    """Activations between stages are encrypted like syncs; the text is the same."""
    pki.make(tmp_path / "certs", (), days=2)
    story = known_answers.read_stories()[0]
    servers = [
        WorkerServer("127.0.0.1:0", threads=1, security=Security(tmp_path / "certs" / "worker"))
        for _ in range(3)
    ]
    addresses = [f"127.0.0.1:{server.start()}" for server in servers]
    try:
        root: dict[str, Any] = {
            "security": Security(tmp_path / "certs" / "root"),
            "parallel": "2x1+1x2",
        }
        with engine_on(addresses, 4, **root) as engine:
            assert answer(engine, story["prompt_ids"], 100) == story["greedy_ids"][:100]
    finally:
        for server in servers:
            server.stop()
