"""Drafts over real nodes: every text and every log probability is the one without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import family_models
import perplexity
import pytest

from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.draft_model import DraftModel
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done, TokenScore
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.scheduling.batch import Limits
from hearth.root.scheduling.speculation import Speculation
from hearth.worker.server import WorkerServer

# What it says comes again: the tiny models' greedy answers soon go round in a circle.
PROMPT = (*range(20, 40), *range(20, 40), *range(20, 30))
# Some of its text is forced, and it never ends.
GRAMMAR = Constraint(Kind.REGEX, "(name: [a-z]{1,9}, )*")
SAMPLINGS: list[tuple[Sampling, dict[str, Any]]] = [
    (Sampling(temperature=0.0), {}),
    (Sampling(temperature=0.3, seed=5), {}),
    (Sampling(temperature=0.2, top_k=4, repetition_penalty=1.05, seed=6), {}),
    (Sampling(temperature=0.0), {"top_logprobs": 3}),
    (Sampling(temperature=0.7, top_k=5, seed=7, constraint=GRAMMAR), {}),
    (Sampling(temperature=0.0, constraint=GRAMMAR), {}),
]


@contextmanager
def formed(path: Path, workers: int, **settings: Any) -> Iterator[tuple[Cluster, Limits]]:
    with ExitStack() as stack:
        addresses = []
        for number in range(workers):
            server = WorkerServer("127.0.0.1:0", threads=1, name=f"n{number}")
            addresses.append(f"127.0.0.1:{server.start()}")
            stack.callback(server.stop)
        given = {"context": 256, "page_size": 8, "sequences": 4} | settings
        yield stack.enter_context(perplexity.formed(str(path), addresses, **given))


def answers(
    cluster: Cluster,
    limits: Limits,
    speculation: Speculation | None,
    samplings: list[tuple[Sampling, dict[str, Any]]] = SAMPLINGS,
) -> list[tuple[list[int], list[TokenScore]]]:
    """Of each sampling: tokens and scores."""
    vocab = cluster.blueprint.model.spec.vocab_size
    engine = Engine(
        cluster, PlainTokenizer(vocab), limits, vocab_size=vocab, speculation=speculation
    )
    engine.start()
    found = []
    try:
        for sampling, more in samplings:
            params = GenerateParams(PROMPT, 60, sampling, ignore_eos=True, **more)
            events = list(engine.generate(params))
            assert isinstance(events[-1], Done)
            deltas = [event for event in events if isinstance(event, Delta)]
            tokens = [token for delta in deltas for token in delta.token_ids]
            assert len(tokens) == 60
            found.append((tokens, [score for delta in deltas for score in delta.scores]))
    finally:
        assert engine.stop(finish=False)
    return found


@pytest.mark.parametrize(
    ("family", "workers", "settings"),
    [
        ("qwen3", 0, {}),
        ("qwen3", 2, {}),
        ("qwen3", 2, {"lane": "grpc", "sync_type": "q80"}),
        ("mistral", 1, {}),
        ("qwen3-moe", 1, {}),
        ("qwen3", 0, {"kv_type": "q80"}),
        ("qwen3.5-moe", 0, {"speculate": "auto"}),
        ("qwen3.5-moe", 2, {"speculate": "auto", "parallel": "tensor"}),
        ("qwen3.5-moe", 2, {"speculate": "auto", "parallel": "pipeline"}),
        ("qwen3.5-moe", 1, {"speculate": "off"}),
    ],
    ids=str,
)
def test_drafts_change_no_answer(
    family: str, workers: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = family_models.write_model(tmp_path / "model", family)
    with formed(path, workers, **settings) as (cluster, limits):
        plain = answers(cluster, limits, None)
        for always in (True, False):
            speculation = Speculation(always)
            # Equal to the last bit: each row of a step is computed as if it were alone.
            assert answers(cluster, limits, speculation) == plain
            if not limits.most_drafts:
                assert speculation.drafted == 0
            elif always:
                assert speculation.drafted >= speculation.accepted > 20


@pytest.mark.parametrize("workers", [0, 2])
def test_a_draft_model_changes_no_answer(workers: int) -> None:
    with (
        formed(Path("demo"), workers, weights="q8_0") as (cluster, limits),
        formed(Path("demo"), 0, weights="q4_0") as (small, small_limits),
    ):
        plain = answers(cluster, limits, None)
        for always in (True, False):
            speculation = Speculation(always, DraftModel(small, small_limits, 2048))
            assert answers(cluster, limits, speculation) == plain
            if always:
                # Coarser weights of the same model are mostly right.
                assert speculation.accepted > speculation.drafted // 2 > 20


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recurrent_draft_model_changes_no_answer(workers: int, tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3.5-moe")
    with (
        formed(path, workers, speculate="draft") as (cluster, limits),
        formed(path, 0, speculate="draft") as (small, small_limits),
    ):
        plain = answers(cluster, limits, None)
        vocab = cluster.blueprint.model.spec.vocab_size
        speculation = Speculation(True, DraftModel(small, small_limits, vocab))
        assert answers(cluster, limits, speculation) == plain
        assert speculation.accepted > speculation.drafted // 3 > 20
        if workers == 0:
            # The same numbers: every guess is right where the best token is chosen.
            speculation = Speculation(True, DraftModel(small, small_limits, vocab))
            assert answers(cluster, limits, speculation, SAMPLINGS[:1]) == plain[:1]
            assert speculation.accepted == speculation.drafted > 40


@pytest.mark.parametrize("weights", ["q4_0", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("workers", [0, 1])
def test_drafts_change_no_answer_of_packed_weights(weights: str, workers: int) -> None:
    with formed(Path("demo"), workers, weights=weights, threads=2) as (cluster, limits):
        plain = answers(cluster, limits, None)
        speculation = Speculation(always=True)
        assert answers(cluster, limits, speculation) == plain
        assert speculation.accepted > 20
