"""A model with recurrent mixers behind the engine: company, pre-emption, few slots."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import family_models
import family_parity
import numpy as np
import perplexity
import pytest

from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done
from hearth.root.engine.params import GenerateParams
from hearth.root.scheduling.batch import Limits
from hearth.root.scheduling.speculation import Speculation

NEW_TOKENS = 40


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    yield from family_parity.workers()


def texts_of(
    path: Path, addresses: list[str], prompts: list[list[int]], together: bool, **changes: int
) -> tuple[list[list[int]], int]:
    """The greedy answers, and the number of pre-emptions. changes: of the cluster's limits."""
    with perplexity.formed(str(path), addresses, "f32", context=128, page_size=8, sequences=4) as (
        cluster,
        formed,
    ):
        limits: Limits = replace(formed, **changes)  # type: ignore[arg-type]
        assert limits.stateful
        vocab = 320
        engine = Engine(cluster, PlainTokenizer(vocab), limits, vocab_size=vocab)
        engine.start()
        try:

            def answer(ids: list[int]) -> list[int]:
                stream = engine.generate(GenerateParams(tuple(ids), NEW_TOKENS, ignore_eos=True))
                events = [event for event in stream if isinstance(event, Delta)]
                return [token for event in events for token in event.token_ids]

            with ThreadPoolExecutor(len(prompts) if together else 1) as pool:
                found = list(pool.map(answer, prompts))
            return found, engine._scheduler.preemptions
        finally:
            engine.stop(finish=False)


def test_answers_do_not_depend_on_company(addresses: list[str], tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3.5-moe")
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 300, count).tolist() for count in (9, 30, 3, 17, 22, 5)]
    wanted, none = texts_of(path, addresses, prompts, together=False)
    assert none == 0
    assert all(len(text) == NEW_TOKENS for text in wanted)
    assert len({token for text in wanted for token in text}) > 10
    # Fewer slots than requests, and then too few pages: sequences start again, in other slots.
    few_slots, _ = texts_of(path, addresses, prompts, together=True, max_running=3)
    assert few_slots == wanted
    few_pages, preempted = texts_of(path, addresses, prompts, together=True, max_pages=16)
    assert few_pages == wanted
    assert preempted > 0


@pytest.mark.parametrize("speculate", ["off", "lookup"])
def test_prefixes_are_continued_from_snapshots(
    speculate: str, addresses: list[str], tmp_path: Path
) -> None:
    """The text is the same; the states behind the last full page of prompt and answer are found."""
    path = family_models.write_model(tmp_path / "model", "qwen3.5-moe")
    ids = np.random.default_rng(6).integers(3, 300, 45).tolist()
    shape = {"context": 256, "page_size": 8, "sequences": 4, "speculate": speculate}
    with perplexity.formed(str(path), addresses, "f32", **shape) as (cluster, limits):
        assert limits.snapshots > 0
        guesses = Speculation(always=True) if speculate == "lookup" else None
        engine = Engine(cluster, PlainTokenizer(320), limits, vocab_size=320, speculation=guesses)
        engine.start()

        def answer(tokens: list[int], cache: bool) -> tuple[list[int], int]:
            params = GenerateParams(tuple(tokens), 20, ignore_eos=True, prefix_cache=cache)
            *deltas, done = engine.generate(params)
            assert isinstance(done, Done)
            text = [t for each in deltas if isinstance(each, Delta) for t in each.token_ids]
            return text, done.usage.cached_tokens

        try:
            wanted, none = answer(ids, False)
            assert none == 0
            assert [answer(ids, True) for _ in range(3)] == [
                (wanted, 0),
                (wanted, 40),
                (wanted, 40),
            ]
            turn = [*ids, *wanted, 5, 6, 7]
            # The snapshot of the answer.
            assert answer(turn, True) == (answer(turn, False)[0], 64)
            assert answer(turn, True)[1] == 64
            assert guesses is None or guesses.drafted >= guesses.accepted > 20
        finally:
            engine.stop(finish=False)
