"""Speculation by lookup: matches, estimates, and drafts that never change a text."""

from __future__ import annotations

import itertools
import json
import queue
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import BOS, EOS, VOCAB, ByteTokenizer, FakeRunner, NoisyRunner

from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done, Event
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.scheduling import speculation
from hearth.root.scheduling.batch import Limits, Request
from hearth.root.scheduling.drafter import Draft
from hearth.root.scheduling.estimates import Acceptance, StepCosts, matched
from hearth.root.scheduling.lookup import Recent, Text, continuation, longest_match
from hearth.root.scheduling.scheduler import Scheduler
from hearth.root.scheduling.sequence import Sequence as Running
from hearth.root.scheduling.speculation import Speculation

LIMITS = Limits(context_size=512, max_pages=1024, page_size=4, max_step_tokens=64, max_running=8)
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def i32(tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(tokens, np.int32)


@given(st.lists(TOKENS, max_size=8))
def test_a_text_holds_what_was_added(parts: list[list[int]]) -> None:
    text = Text()
    for part in parts:
        text.extend(part * 20)
    assert text.view.tolist() == [token for part in parts for token in part * 20]


def plain_match(text: Sequence[int], tail: Sequence[int]) -> tuple[int, int]:
    """By trying every place, the newest last."""
    best = (0, 0)
    for end in range(1, len(text) + 1):
        length = 0
        while length < min(end, len(tail), 16) and text[end - 1 - length] == tail[-1 - length]:
            length += 1
        if length and length >= best[0]:
            best = (length, end)
    return best


@given(TOKENS, TOKENS)
def test_the_longest_match_is_found_and_of_several_the_newest(
    text: list[int], tail: list[int]
) -> None:
    assert longest_match(i32(text), i32(tail)) == plain_match(text, tail)
    whole = text + tail
    assert longest_match(i32(whole[:-1]), i32(whole)) == plain_match(whole[:-1], whole)


@pytest.mark.parametrize(
    ("text", "end", "count", "wanted"),
    [
        ([5, 6, 7, 8], 1, 2, (6, 7)),
        # A text that repeats itself goes on so.
        ([9, 1, 2, 3], 1, 7, (1, 2, 3, 1, 2, 3, 1)),
        ([9, 9], 1, 3, (9, 9, 9)),
        # Nothing follows, or another text does.
        ([5, 6], 2, 3, ()),
        ([5, 6, -1, 7, 8], 1, 4, (6,)),
        ([5, -1, 7], 1, 4, ()),
    ],
)
def test_what_followed(text: list[int], end: int, count: int, wanted: tuple[int, ...]) -> None:
    assert continuation(i32(text), end, count) == wanted


def test_recent_texts_are_apart_by_salt_and_bounded() -> None:
    recent = Recent()
    recent.keep(b"a", i32([1, 2]))
    recent.keep(b"a", i32([3]))
    recent.keep(b"b", i32([4]))
    assert recent.of(b"a").tolist() == [1, 2, -1, 3, -1]
    assert recent.of(b"c").tolist() == []
    recent.keep(b"a", np.arange(1 << 17, dtype=np.int32))
    assert len(recent.of(b"a")) == 1 << 16
    assert recent.of(b"a")[-2:].tolist() == [(1 << 17) - 1, -1]
    for salt in range(20):
        recent.keep(bytes([salt]), i32([1]))
    assert recent.of(b"a").size == recent.of(b"b").size == 0


def test_acceptance_follows_what_was_observed_and_forgets() -> None:
    acceptance = Acceptance()
    longer = [acceptance.part(matched(length)) for length in range(2, 12)]
    assert longer == sorted(longer)
    for _ in range(50):
        acceptance.observe(matched(3), 4, 4)
        acceptance.observe(matched(6), 4, 0)
    assert acceptance.part(matched(3)) > 0.9
    bad = acceptance.part(matched(6))
    assert bad < 0.15
    # Another length was not touched; a sequence's own begins where the server's is.
    assert acceptance.part(matched(4)) == longer[2]
    assert Acceptance().part(matched(6), bad) == pytest.approx(bad)
    for _ in range(1000):
        acceptance.unused(matched(6))
    assert acceptance.part(matched(6)) == pytest.approx(longer[4], abs=0.01)


@given(st.dictionaries(st.integers(1, 40), st.floats(1e-4, 1), min_size=1), st.integers(1, 60))
def test_costs_lie_between_those_observed(seen: dict[int, float], rows: int) -> None:
    costs = StepCosts()
    assert costs.of(rows) == 0
    for each, seconds in seen.items():
        costs.observe(each, seconds)
    found = costs.of(rows)
    if rows in seen:
        assert found == seen[rows]
    elif rows < min(seen):
        assert found == seen[min(seen)]
    elif rows > max(seen):
        assert found > seen[max(seen)]
    else:
        below = seen[max(each for each in seen if each < rows)]
        above = seen[min(each for each in seen if each > rows)]
        assert below <= found <= max(below, above)


def test_one_step_that_was_held_up_hardly_changes_a_cost() -> None:
    costs = StepCosts()
    costs.observe(1, 0.01)
    costs.observe(1, 5.0)
    assert costs.of(1) == pytest.approx(0.012)


class Guesser:
    """A drafter whose guesses are right by chance, and which knows how likely each is."""

    def __init__(self, model: Model, right: float, cost: float, reading: int = 0) -> None:
        """reading: calls that read a text before the first guess, each as long as 10 steps."""
        self._model = model
        self._right = right
        self._cost = cost
        self._reading = reading
        self._read: dict[int, int] = {}
        self._random = random.Random(7)
        self.forgotten: list[int] = []

    def guess(
        self, asked: Sequence[tuple[Running, Sequence[int]]]
    ) -> tuple[list[Draft | None], float]:
        found: list[Draft | None] = []
        seconds = 0.01 * self._cost * (1 + 0.1 * (len(asked) - 1))
        for sequence, drafts in asked:
            read = self._read.setdefault(sequence.seq_id, 0)
            if read < self._reading:
                self._read[sequence.seq_id] = read + 1
                seconds += 0.1
                found.append(None)
                continue
            token = self._model.token(sequence.seq_id, len(sequence.tokens) + len(drafts))
            right = self._random.random() < self._right
            found.append(Draft(token if right else token + 1, 0.9 * self._right))
        return found, seconds

    def forget(self, seq_id: int) -> None:
        self.forgotten.append(seq_id)


class Model:
    """A scheduler's steps of a model whose next token is a function of the tokens before."""

    def __init__(
        self,
        row_cost: float,
        seed: int | None,
        always: bool = False,
        drafter: tuple[float, float] | tuple[float, float, int] | None = None,
    ) -> None:
        """row_cost: of a step, for each further row. seed: of random tokens; None: a loop.

        drafter: the part of its guesses that are right, the cost of each, and Guesser's reading.
        """
        self.scheduler = Scheduler(
            Limits(context_size=4096, max_pages=600, max_step_tokens=256, max_running=4)
        )
        self.drafter = None if drafter is None else Guesser(self, *drafter)
        self.speculation = Speculation(always, self.drafter)
        self.seconds = 0.0
        self.plain_seconds = 0.0
        self._row_cost = row_cost
        self._random = None if seed is None else random.Random(seed)
        self._made: dict[int, list[int]] = {}

    def token(self, seq_id: int, place: int) -> int:
        made = self._made.setdefault(seq_id, [])
        while len(made) <= place:
            random = self._random
            made.append(len(made) % 7 if random is None else random.randrange(12))
        return made[place]

    def step(self) -> int:
        """One step; the number of new tokens."""
        self.speculation.propose(self.scheduler)
        batch = self.scheduler.schedule()
        assert batch is not None
        tokens = {}
        for part in batch.sequences:
            if part.outputs:
                first = part.position + len(part.tokens) - part.outputs + 1
                wanted = [self.token(part.seq_id, first + i) for i in range(part.outputs)]
                pairs = zip(part.drafts, wanted, strict=False)
                right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
                tokens[part.seq_id] = tuple(wanted[: right + 1])
        seconds = 0.01 * (1 + self._row_cost * (batch.rows - 1))
        self.seconds += seconds
        made = sum(map(len, tokens.values()))
        if batch.decode_rows == batch.rows:
            self.plain_seconds += 0.01 * made
        else:
            self.plain_seconds += seconds
        fate = self.speculation.finished(batch, tokens, seconds)
        self.seconds += fate.seconds
        self.scheduler.step_finished(batch, tokens)
        return made

    def start(self, seq_id: int, prompt: Sequence[int]) -> None:
        """Notes the prompt of a sequence."""
        self._made[seq_id] = list(prompt)

    def run(self, new_tokens: int, prompt: Sequence[int] = (1, 2, 3)) -> list[int]:
        seq_id = len(self._made) + 1
        self.start(seq_id, prompt)
        self.scheduler.submit(Request(seq_id, tuple(prompt), new_tokens))
        made = 0
        while not self.scheduler.idle:
            made += self.step()
        assert made == new_tokens
        return self._made[seq_id][len(prompt) :]


def test_a_text_that_repeats_itself_gains() -> None:
    model = Model(0.15, None)
    model.run(400, [i % 7 for i in range(10)])
    assert model.speculation.accepted > 300
    assert model.seconds < model.plain_seconds / 2.5


@pytest.mark.parametrize("row_cost", [0.02, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_text_of_chance_loses_hardly_anything(row_cost: float, seed: int) -> None:
    # Twelve tokens repeat pairs and triples all the time, and what followed them is chance.
    model = Model(row_cost, seed)
    model.run(600, [random.Random(seed).randrange(12) for _ in range(50)])
    # The account: 2 tokens at the begin, and 1 %; a draft may go beyond it by its own cost.
    assert model.seconds < 1.03 * model.plain_seconds + 0.01 * (2 + 16 * row_cost)


def chance(seed: int) -> list[int]:
    """A prompt without anything that repeats."""
    return random.Random(seed).sample(range(100, 1000), 50)


@pytest.mark.parametrize(
    ("right", "cost", "gain"), [(0.95, 0.03, 3.2), (0.7, 0.03, 1.6), (0.7, 0.1, 1.35)]
)
def test_a_good_drafter_gains(right: float, cost: float, gain: float) -> None:
    model = Model(0.1, 1, drafter=(right, cost))
    model.run(600, chance(1))
    assert model.seconds < model.plain_seconds / gain


@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.95])
@pytest.mark.parametrize("cost", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("row_cost", [0.02, 0.5, 1.0])
def test_a_drafter_that_does_not_pay_loses_hardly_anything(
    right: float, cost: float, row_cost: float
) -> None:
    model = Model(row_cost, 2, drafter=(right, cost))
    model.run(600, chance(2))
    # The account: 2 tokens at the begin, and 1 %; drafts of one step may go beyond it.
    assert model.seconds < 1.03 * model.plain_seconds + 0.01 * (2 + 4 * (cost + row_cost))


def test_reading_takes_little_of_the_time_of_short_answers() -> None:
    model = Model(0.1, 5, drafter=(0.7, 0.05, 5))
    for number in range(100):
        model.run(8, chance(number))
    # What it may take at first, and 2 %; one call may go beyond it.
    assert model.seconds < 1.025 * model.plain_seconds + 1.0 + 0.1


def test_a_long_answer_pays_for_its_reading() -> None:
    model = Model(0.1, 6, drafter=(0.7, 0.05, 5))
    model.run(2000, chance(6))
    assert model.seconds < model.plain_seconds / 1.4


def test_of_several_sequences_each_gets_its_own_drafts_until_it_ends() -> None:
    model = Model(0.05, 3, drafter=(0.8, 0.02))
    for seq_id in (1, 2, 3):
        prompt = chance(seq_id)
        model.scheduler.submit(Request(seq_id, tuple(prompt), 50 * seq_id))
        model.start(seq_id, prompt)
    made = 0
    while not model.scheduler.idle:
        made += model.step()
    assert made == 300
    assert model.seconds < model.plain_seconds
    model.run(2, chance(9))
    assert model.drafter is not None
    assert model.drafter.forgotten == [1, 2, 3]


def test_drafts_of_a_drafter_are_always_taken_where_that_is_asked_for() -> None:
    model = Model(1.0, 4, always=True, drafter=(0.0, 5.0))
    model.run(20, chance(4))
    # The last token but one leaves no room for a draft.
    assert model.speculation.drafted == sum(min(4, left) for left in range(18, 0, -1))
    assert model.speculation.accepted == 0


def test_dear_rows_are_left_out() -> None:
    model = Model(1.0, None)
    model.run(200, [i % 7 for i in range(10)])
    assert model.seconds < 1.03 * model.plain_seconds + 0.04


def test_steps_that_are_shorter_than_a_lookup_get_no_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speculation, "_SHORT_STEP", 1.0)
    model = Model(0.0, None)
    model.run(100, [i % 7 for i in range(10)])
    assert model.speculation.drafted == 0
    always = Model(0.0, None, always=True)
    always.run(100, [i % 7 for i in range(10)])
    assert always.speculation.accepted > 70


def test_a_text_that_ended_is_found_by_the_next_of_its_salt() -> None:
    for salts, found in (((b"a", b"a"), True), ((b"a", b"b"), False)):
        scheduler = Scheduler(LIMITS)
        made = Speculation(always=True)
        text = tuple(range(40))
        for number, salt in enumerate(salts):
            scheduler.submit(Request(number, text[:10], 30, salt=salt))
            while not scheduler.idle:
                made.propose(scheduler)
                batch = scheduler.schedule()
                assert batch is not None
                [part] = batch.sequences
                end = part.position + len(part.tokens)
                tokens = {number: text[end - part.outputs + 1 : end + 1]}
                made.finished(batch, tokens, 0.01)
                scheduler.step_finished(batch, tokens)
        assert (made.accepted > 15) is found
        assert made.accepted == made.drafted


PLAIN = Sampling(temperature=0.0)
OBJECT = Constraint(Kind.JSON_SCHEMA, json.dumps({"type": "array", "items": {"enum": ["ab"]}}))


@pytest.mark.parametrize(
    ("sampling", "more"),
    [
        (PLAIN, {}),
        (Sampling(temperature=0.3, seed=3), {}),
        (Sampling(temperature=0.6, top_k=3, seed=3), {"stop": ("zz",)}),
        (Sampling(temperature=0.4, repetition_penalty=1.1, seed=4), {}),
        (Sampling(temperature=0.4, presence_penalty=0.2, seed=4), {"top_logprobs": 2}),
        (Sampling(temperature=1.0, constraint=OBJECT, seed=5), {}),
    ],
    ids=str,
)
def test_drafts_change_no_answer(sampling: Sampling, more: dict[str, object]) -> None:
    answers = []
    for made in (None, Speculation(always=True)):
        engine = Engine(NoisyRunner(), ByteTokenizer(), LIMITS, speculation=made)
        engine.start()
        try:
            prompt = (BOS, *b"abcabcabcabcabcabc")
            *deltas, end = engine.generate(GenerateParams(prompt, 60, sampling, **more))  # type: ignore[arg-type]
        finally:
            assert engine.stop(finish=False)
        assert isinstance(end, Done)
        tokens = [t for d in deltas if isinstance(d, Delta) for t in d.token_ids]
        scores = [s for d in deltas if isinstance(d, Delta) for s in d.scores]
        text = "".join(d.text for d in deltas if isinstance(d, Delta))
        answers.append((tokens, text, scores, end.finish_reason, end.usage.completion_tokens))
    assert answers[0] == answers[1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([b"ab", b"abc", b"xyzxyz", b"q"]), min_size=1, max_size=6))
def test_several_at_once_get_the_answers_of_each_alone(parts: list[bytes]) -> None:
    # A model that repeats the last six bytes of the prompt, with a change now and then.
    def next_token(history: tuple[int, ...]) -> int:
        if len(history) > 70:
            return EOS
        return (history[-6] + (len(history) % 11 == 0)) % VOCAB if len(history) > 6 else 97

    runs, steps = [], []
    for made in (None, Speculation(always=True), Speculation()):
        runner = FakeRunner(next_token)
        engine = Engine(runner, ByteTokenizer(), LIMITS, speculation=made)
        engine.start()
        boxes = [queue.SimpleQueue[Event]() for _ in parts]
        try:
            with engine.held():
                for part, box in zip(parts, boxes, strict=True):
                    engine.submit(GenerateParams((BOS, *part * 3)), box.put)
            runs.append([answer_of(box) for box in boxes])
        finally:
            assert engine.stop(finish=False)
        steps.append(len(runner.batches))
    assert runs[0] == runs[1] == runs[2]
    assert steps[1] < steps[0]
    assert steps[2] <= steps[0]


def answer_of(box: queue.SimpleQueue[Event]) -> list[int]:
    """The tokens of a request, at its end."""
    tokens: list[int] = []
    while isinstance(event := box.get(timeout=60), Delta):
        tokens += event.token_ids
    assert isinstance(event, Done)
    return tokens


def test_a_text_of_one_token_is_compared_at_its_newest_places() -> None:
    text = i32([7] * 5000)
    assert longest_match(text[:-1], text) == (16, 4999)
    # Older places are not looked at, though their match would be longer.
    text = i32([1, 2, 7, 3, *[7] * 2000, 1, 2, 7])
    assert longest_match(text[:-1], text) == (1, 2004)
