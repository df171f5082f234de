"""Constrained answers of the engine: valid at any sampling, and otherwise like all answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import numpy as np
import pytest
from constraints import flags
from serving_fakes import BOS, EOS, VOCAB, ByteTokenizer, NoisyRunner

from hearth.common.errors import HearthError, Reason
from hearth.root.engine.engine import Engine
from hearth.root.engine.interfaces import native_sampler
from hearth.root.engine.mailbox import Delta, Done, Event, Failed
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.engine.sampling import sample
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.engine.structure.matching import Structures
from hearth.root.engine.structure.sampler import ConstrainedSampler
from hearth.root.scheduling.batch import FinishReason, Limits, SequenceStep

LIMITS = Limits(context_size=512, max_pages=1024, page_size=4, max_step_tokens=64, max_running=8)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
WANTED = Constraint(Kind.JSON_SCHEMA, json.dumps(SCHEMA))


@contextmanager
def engine(**more: Any) -> Iterator[Engine]:
    made = Engine(NoisyRunner(), ByteTokenizer(), LIMITS, **more)
    made.start()
    try:
        yield made
    finally:
        assert made.stop(finish=False)


def answer(e: Engine, seed: int = 1, max_tokens: int = 0, **more: Any) -> tuple[str, Done]:
    """The text of an answer under WANTED, and its end. more: of Sampling and GenerateParams."""
    params = {
        name: more.pop(name) for name in ("stop", "ignore_eos", "top_logprobs") if name in more
    }
    wanted = Sampling(**{"temperature": 1.5, "constraint": WANTED, "seed": seed, **more})
    *deltas, end = e.generate(GenerateParams((BOS, 65), max_tokens, wanted, **params))
    assert isinstance(end, Done)
    if "top_logprobs" in params:
        scores = [s for d in deltas if isinstance(d, Delta) for s in d.scores]
        assert len(scores) in (end.usage.completion_tokens, end.usage.completion_tokens - 1)
    return "".join(d.text for d in deltas if isinstance(d, Delta)), end


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 100.0},
        {"top_k": 3},
        {"top_p": 0.5, "min_p": 0.01},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": ((ord("x"), 100.0), (EOS, 100.0))},
        {"top_logprobs": 3},
        {"ignore_eos": True},
    ],
    ids=str,
)
def test_a_constrained_answer_is_valid(more: dict[str, Any]) -> None:
    with engine() as e:
        for seed in range(5):
            text, end = answer(e, seed, **more)
            jsonschema.validate(json.loads(text), SCHEMA)
            assert end.finish_reason is FinishReason.EOS


def test_the_same_seed_gives_the_same_answer_and_others_differ() -> None:
    with engine() as e:
        texts = [answer(e, seed)[0] for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_many_answers_at_once() -> None:
    with engine() as e:
        alone = [answer(e, seed)[0] for seed in range(6)]
        together: list[str] = [""] * 6

        def run(seed: int) -> None:
            together[seed] = answer(e, seed)[0]

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == alone


def test_an_answer_that_is_cut_off_has_the_reason_length() -> None:
    with engine() as e:
        whole = answer(e)[0]
        text, end = answer(e, max_tokens=7)
    assert end.finish_reason is FinishReason.LENGTH
    assert whole.startswith(text)
    assert end.usage.completion_tokens == 7


def test_a_stop_text_ends_a_constrained_answer() -> None:
    with engine() as e:
        text, end = answer(e, stop=('"tags"',))
    assert end.finish_reason is FinishReason.STOP
    assert "tags" not in text


def test_an_answer_ends_with_its_last_character() -> None:
    """No step is spent on a token that only ends it."""
    wanted = Sampling(constraint=Constraint(Kind.REGEX, "[0-9]{3}ü"))
    with engine() as e:
        *deltas, end = e.generate(GenerateParams((BOS,), 0, wanted))
    assert isinstance(end, Done)
    assert end.finish_reason is FinishReason.EOS
    assert end.usage.completion_tokens == 5
    assert "".join(d.text for d in deltas if isinstance(d, Delta))[3:] == "ü"


def test_an_answer_survives_the_loss_of_a_worker() -> None:
    with engine(pause_seconds=30.0) as e:
        whole = answer(e)[0]
        events: list[Event] = []
        done, some = threading.Event(), threading.Event()

        def sink(event: Event) -> None:
            events.append(event)
            some.set()
            if not isinstance(event, Delta):
                done.set()

        wanted = Sampling(temperature=1.5, constraint=WANTED, seed=1)
        e.submit(GenerateParams((BOS, 65), 0, wanted), sink)
        assert some.wait(30)
        e.suspend(HearthError(Reason.WORKER_LOST, "worker pi3 does not answer")).wait(30)
        e.resume(Limits(context_size=512, max_pages=512, page_size=4, max_step_tokens=32))
        assert done.wait(30)
    assert "".join(d.text for d in events if isinstance(d, Delta)) == whole


def test_a_constraint_that_grows_too_complex_ends_its_request_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hearth.root.engine.structure.matching._MAX_LEXER_STATES", 60)
    nasty = Constraint(Kind.REGEX, "[ab]*a[ab]{30}", field="response_format")
    with engine() as e:
        end = _events(e, Sampling(temperature=5.0, constraint=nasty, seed=1))[-1]
        monkeypatch.undo()
        text, _ = answer(e)
    assert isinstance(end, Failed), end
    assert end.error.reason == Reason.INVALID_ARGUMENT
    assert end.error.metadata["field"] == "response_format"
    assert "cannot be enforced: after " in end.error.message
    json.loads(text)


def _events(e: Engine, wanted: Sampling) -> list[Event]:
    events: list[Event] = []
    done = threading.Event()

    def sink(event: Event) -> None:
        events.append(event)
        if not isinstance(event, Delta):
            done.set()

    e.submit(GenerateParams((BOS,), 0, wanted), sink)
    assert done.wait(60)
    return events


def test_an_invalid_constraint_is_refused_at_once() -> None:
    with engine() as e, pytest.raises(HearthError, match="cannot be enforced"):
        e.submit(
            GenerateParams((BOS,), 0, Sampling(constraint=Constraint(Kind.REGEX, "("))),
            lambda event: None,
        )


def test_drafts_do_not_change_a_constrained_answer() -> None:
    """Each row is sampled under the constraint after the tokens before it."""
    structures = Structures(ByteTokenizer())
    constraint = Constraint(Kind.REGEX, "ab[cd]e")
    rows = np.random.default_rng(1).normal(size=(4, VOCAB)).astype(np.float32)

    def sampler() -> tuple[ConstrainedSampler, Any]:
        matcher = structures.matcher(constraint)
        inner = native_sampler(Sampling(temperature=1.0), 5)
        return ConstrainedSampler(inner, matcher), matcher

    one, matcher = sampler()
    alone: list[int] = []
    for row in rows:
        step = SequenceStep(1, (65,), 0, 0, (0,), outputs=1)
        alone += sample(step, row[None], None, one, matcher)
    assert matcher.length == 4
    several, matcher = sampler()
    drafts = (65, *alone[:3])
    step = SequenceStep(1, drafts, 0, 0, (0,), outputs=4)
    assert list(sample(step, rows, None, several, matcher)) == alone
    # Nothing follows the end, whatever was drafted.
    ended, matcher = sampler()
    step = SequenceStep(1, (65, *alone, ord("x")), 0, 0, (0,), outputs=6)
    more = np.concatenate((rows, rows[:2]))
    assert list(sample(step, more, None, ended, matcher)) == alone


def test_candidates_give_the_same_token_as_whole_rows() -> None:
    structures = Structures(ByteTokenizer())
    random = np.random.default_rng(3)
    for top_k in (1, 5):
        for seed in range(20):
            row = random.normal(size=VOCAB).astype(np.float32)
            found = []
            for cut in (False, True):
                matcher = structures.matcher(Constraint(Kind.REGEX, "[a-m]+"))
                inner = native_sampler(Sampling(temperature=1.0, top_k=top_k), seed)
                chosen = ConstrainedSampler(inner, matcher)
                if cut:
                    masked = np.where(flags(matcher)[:VOCAB], row, -np.inf).astype(np.float32)
                    ids = np.argsort(-masked)[:20].astype(np.uint32)  # some are not allowed
                    found.append(chosen.sample(masked[ids], ids))
                else:
                    found.append(chosen.sample(row))
            assert found[0] == found[1]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_best_allowed_token_is_chosen_with_and_without_a_mask(penalty: float) -> None:
    """The best of all is an allowed one, or is not."""
    structures = Structures(ByteTokenizer())
    random = np.random.default_rng(4)
    for seed in range(30):
        answers = []
        rows = random.normal(size=(12, VOCAB)).astype(np.float32)
        rows[:, ord("a") : ord("n")] += seed / 10
        for greedy in (False, True):
            matcher = structures.matcher(Constraint(Kind.REGEX, "[a-m]{1,9}[xy]z"))
            inner = native_sampler(Sampling(repetition_penalty=penalty), seed)
            chosen = ConstrainedSampler(inner, matcher, greedy)
            tokens: list[int] = []
            while matcher.length is None:
                tokens.append(chosen.sample(rows[len(tokens)]))
                chosen.accept(tokens[-1])
            answers.append(tokens)
        assert answers[0] == answers[1]
