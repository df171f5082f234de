"""The prefix cache over real nodes: the text is what it is without, and few rows are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import family_models
import family_parity
import numpy as np
import perplexity
import pytest
from engine_answers import answer

from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.engine import Engine

VOCAB = 320


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    yield from family_parity.workers()


@contextmanager
def serving(path: Path, addresses: Sequence[str]) -> Iterator[tuple[Cluster, Engine]]:
    with perplexity.formed(
        str(path), list(addresses), "f32", context=256, page_size=8, sequences=4
    ) as (cluster, limits):
        engine = Engine(cluster, PlainTokenizer(VOCAB), limits, vocab_size=VOCAB)
        engine.start()
        try:
            yield cluster, engine
        finally:
            engine.stop(finish=False)


# The last has a sliding window, shorter than the prompts.
@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "mistral"])
def test_the_text_does_not_depend_on_the_cache(
    family: str, addresses: list[str], tmp_path: Path
) -> None:
    path = family_models.write_model(tmp_path / "model", family)
    random = np.random.default_rng(2)
    system = random.integers(3, 300, 45).tolist()
    questions = [[*system, *random.integers(3, 300, count).tolist()] for count in (3, 20, 11)]
    with serving(path, addresses) as (_, engine):
        wanted = [answer(engine, ids, False) for ids in questions]
        assert [cached for _, cached in wanted] == [0, 0, 0]
        assert len({token for text, _ in wanted for token in text}) > 10
        # One after the other: the system prompt's five full pages are found.
        found = [answer(engine, ids, True) for ids in questions]
        assert [text for text, _ in found] == [text for text, _ in wanted]
        assert [cached for _, cached in found] == [0, 40, 40]
        # The next turn of each, together: its question and answer are found.
        turns = [[*ids, *text, 5, 6, 7] for ids, (text, _) in zip(questions, found, strict=True)]
        plain = [answer(engine, ids, False)[0] for ids in turns]
        with ThreadPoolExecutor(len(turns)) as pool:
            together = list(pool.map(lambda ids: answer(engine, ids, True), turns))
        assert [text for text, _ in together] == plain
        assert [cached for _, cached in together] == [(len(ids) - 4) // 8 * 8 for ids in turns]


def test_samples_of_one_prompt_are_prefilled_once(addresses: list[str], tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    ids = np.random.default_rng(3).integers(3, 300, 100).tolist()
    with serving(path, addresses[:1]) as (_, engine), ThreadPoolExecutor(4) as pool:
        wanted, _ = answer(engine, ids, False)
        with engine.held():
            answers = [pool.submit(answer, engine, ids, True) for _ in range(4)]
            while engine.commands < 4:
                pass
        found = [each.result() for each in answers]
    assert [text for text, _ in found] == [wanted] * 4
    assert sorted(cached for _, cached in found) == [0, 96, 96, 96]


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5-moe"])
def test_a_cluster_formed_again_of_the_same_shards_finds_their_pages(
    family: str, addresses: list[str], tmp_path: Path
) -> None:
    path = family_models.write_model(tmp_path / "model", family)
    ids = np.random.default_rng(4).integers(3, 300, 60).tolist()
    with serving(path, addresses) as (cluster, engine):
        wanted = [answer(engine, ids, True) for _ in range(2)]
        assert [cached for _, cached in wanted] == [0, 56]
        texts = {tuple(text) for text, _ in wanted}
        for workers, first in (
            (addresses, 56),  # the same shards go on
            (addresses[:1], 0),  # other shards
            (addresses[:1], 56),
            ([], 0),
            ([], 56),
            (addresses, 0),  # the first ones are gone
        ):
            assert cluster.lost is None
            engine.resume(cluster.form(workers), cluster.pages_kept)
            found = [answer(engine, ids, True) for _ in range(2)]
            assert [cached for _, cached in found] == [first, 56], workers
            assert {tuple(text) for text, _ in found} == texts


def test_pages_that_one_worker_missed_are_not_found(addresses: list[str], tmp_path: Path) -> None:
    """A worker whose shard is kept from an epoch before the last one that ran steps."""
    path = family_models.write_model(tmp_path / "model", "qwen3")
    ids = np.random.default_rng(5).integers(3, 300, 60).tolist()
    with serving(path, addresses) as (cluster, engine):
        answer(engine, ids, True)
        engine.resume(cluster.form(addresses), cluster.pages_kept)
        assert cluster.pages_kept
        # As if the workers had not seen the last step, because the cable was out.
        cluster._pages_epoch += 1
        engine.resume(cluster.form(addresses), cluster.pages_kept)
        assert not cluster.pages_kept
        assert answer(engine, ids, True)[1] == 0
