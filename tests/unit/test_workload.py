"""The requests that `hearth bench` times, with an engine that answers at once."""

from types import SimpleNamespace
from typing import cast

import pytest

from hearth.cli.session import Session
from hearth.cli.workload import Runs, Workload
from hearth.common.errors import HearthError, Reason
from hearth.root.engine.mailbox import Delta, Done, Failed, Sink, Usage
from hearth.root.engine.params import GenerateParams
from hearth.root.scheduling.batch import FinishReason

CACHED = 32


class Answers:
    """Answers requests when `together` of them wait: a token of each in turn."""

    tokenizer = SimpleNamespace(vocab_size=90)

    def __init__(self, together: int) -> None:
        self.together = together
        self.waiting: list[tuple[GenerateParams, Sink]] = []
        self.seen: list[GenerateParams] = []
        self.error: HearthError | None = None

    def submit(self, params: GenerateParams, sink: Sink) -> None:
        self.seen.append(params)
        self.waiting.append((params, sink))
        if params.max_tokens > 1 and len(self.waiting) < self.together:
            return
        for number in range(params.max_tokens):
            for _, each in self.waiting:
                each(Delta("", (number,)))
        for asked, each in self.waiting:
            usage = Usage(len(asked.prompt), asked.max_tokens, 0, 0, 0, CACHED)
            each(Failed(self.error) if self.error else Done(FinishReason.LENGTH, usage))
        self.waiting.clear()


def runs_of(workload: Workload) -> tuple[Runs, Answers]:
    engine = Answers(workload.sequences)
    model = SimpleNamespace(spec=SimpleNamespace(vocab_size=100))
    session = cast(Session, SimpleNamespace(model=model, engine=engine))
    return Runs(session, workload), engine


def test_one_sequence_makes_the_tokens_it_was_asked_for() -> None:
    runs, engine = runs_of(Workload(1, 0, 8, 5, 128))
    rates = runs.run(0)
    assert [len(params.prompt) for params in engine.seen] == [8]
    assert engine.seen[0].max_tokens == 5
    assert not engine.seen[0].prefix_cache
    assert len(rates.token_seconds) == 5
    assert rates.decode > 0


def test_sequences_keep_their_contexts_and_get_other_prompts() -> None:
    work = Workload(3, 40, 8, 5, 128)
    runs, engine = runs_of(work)
    contexts = [params.prompt for params in engine.seen]
    assert len(set(contexts)) == 3
    for number in (0, 1):
        runs.run(number)
    asked = engine.seen[3:]
    assert all(params.prefix_cache and len(params.prompt) == 48 for params in asked)
    assert [params.prompt[:40] for params in asked] == contexts * 2
    assert len({params.prompt[40:] for params in asked}) == 6
    # Those that begin first go on until the last has made its tokens.
    assert all(params.max_tokens == 5 + work.spare_tokens for params in asked)


def test_samples_have_one_prompt_in_each_run() -> None:
    runs, engine = runs_of(Workload(3, 40, 8, 5, 128, one_prompt=True))
    runs.run(0)
    runs.run(1)
    assert all(params.prefix_cache for params in engine.seen)
    first, second = engine.seen[3:6], engine.seen[6:]
    assert (
        len({params.prompt for params in first}) == len({params.prompt for params in second}) == 1
    )
    assert first[0].prompt != second[0].prompt
    assert first[0].prompt[:40] == second[0].prompt[:40]


@pytest.mark.parametrize(("sequences", "prompt", "steps"), [(1, 600, 0), (4, 124, 4), (16, 7, 1)])
def test_spare_tokens_last_for_the_prompts_of_others(
    sequences: int, prompt: int, steps: int
) -> None:
    work = Workload(sequences, 0, prompt, 5, 128)
    assert work.spare_tokens == (steps + sequences if steps else 0)
    assert work.context == prompt + 5 + work.spare_tokens


def test_a_request_that_fails_ends_the_run() -> None:
    runs, engine = runs_of(Workload(2, 0, 8, 5, 128))
    engine.error = HearthError(Reason.INTERNAL, "a worker is gone")
    with pytest.raises(HearthError, match="a worker is gone"):
        runs.run(0)
