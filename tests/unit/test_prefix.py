"""The prefix cache as pure state: which rows are computed, and which pages are shared and kept."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Tokens
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import ByteTokenizer, FakeRunner, Greedy, expected, letters

from hearth.common.metrics import RootMetrics
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Done, Usage
from hearth.root.engine.params import GenerateParams
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, Request, StepOutput
from hearth.root.scheduling.prefix import PrefixIndex
from hearth.root.scheduling.scheduler import Scheduler
from hearth.root.scheduling.sequence import Sequence
from hearth.root.scheduling.sharing import Sharing

LIMITS = Limits(context_size=4096, max_pages=512, page_size=32, max_step_tokens=128, max_waiting=64)


def prompt(length: int, start: int = 1000) -> tuple[int, ...]:
    return tuple(range(start, start + length))


def step(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.check()
    finish(scheduler, batch)
    return batch


def finish(scheduler: Scheduler, batch: Batch) -> None:
    scheduler.step_finished(batch, {s.seq_id: (7,) for s in batch.sequences if s.outputs})
    scheduler.check()


def run(scheduler: Scheduler, *requests: Request) -> dict[int, int]:
    """Runs requests submitted together to their ends; the rows computed for each."""
    for request in requests:
        scheduler.submit(request)
    rows = {request.seq_id: 0 for request in requests}
    while not scheduler.idle:
        for part in step(scheduler).sequences:
            rows[part.seq_id] += len(part.tokens)
    return rows


def test_the_second_turn_computes_only_what_is_new() -> None:
    scheduler = Scheduler(LIMITS)
    first = Request(1, prompt(2000), max_tokens=40)
    assert run(scheduler, first) == {1: 2039}
    # The answer of 40 tokens of which 39 were computed, then the next question.
    second = Request(2, (*prompt(2000), *[7] * 40, *prompt(50, 9000)), max_tokens=1)
    assert run(scheduler, second) == {2: 2090 - 2039 // 32 * 32}
    assert (scheduler.sharing.hit_tokens, scheduler.sharing.lookup_tokens) == (2016, 4090)


def test_samples_of_one_prompt_are_one_prefill_in_the_memory_of_one_prefix() -> None:
    scheduler = Scheduler(LIMITS)
    for seq_id in range(4):
        scheduler.submit(Request(seq_id, prompt(1000), max_tokens=20))
    rows = dict.fromkeys(range(4), 0)
    most = 0
    while not scheduler.idle:
        for part in step(scheduler).sequences:
            rows[part.seq_id] += len(part.tokens)
        most = max(most, LIMITS.max_pages - scheduler.pool.available)
    # The prompt once, and of the other three the 8 tokens behind its last full page.
    assert rows == {0: 1019, 1: 27, 2: 27, 3: 27}
    assert most == 31 + 4


@pytest.mark.parametrize("length", [64, 65, 96])
def test_the_last_token_of_a_prompt_is_always_computed(length: int) -> None:
    scheduler = Scheduler(LIMITS)
    run(scheduler, Request(1, prompt(length), max_tokens=1))
    rows = run(scheduler, Request(2, prompt(length), max_tokens=1))
    assert rows == {2: length - (length - 1) // 32 * 32}


def test_a_sequence_that_diverges_has_pages_of_its_own() -> None:
    scheduler = Scheduler(LIMITS)
    run(scheduler, Request(1, prompt(96), max_tokens=1))
    other = (*prompt(40), *prompt(56, 5000))
    assert run(scheduler, Request(2, other, max_tokens=1)) == {2: 64}
    # Both are found afterwards.
    assert run(scheduler, Request(3, prompt(96), max_tokens=1)) == {3: 32}
    assert run(scheduler, Request(4, (*other, 1), max_tokens=1)) == {4: 1}


def test_clients_of_other_salts_and_requests_without_the_cache_share_nothing() -> None:
    scheduler = Scheduler(LIMITS)
    run(scheduler, Request(1, prompt(97), max_tokens=1, salt=b"a"))
    assert run(scheduler, Request(2, prompt(97), max_tokens=1, salt=b"b")) == {2: 97}
    assert run(scheduler, Request(3, prompt(97), max_tokens=1, salt=b"b")) == {3: 1}
    alone = Request(4, prompt(97), max_tokens=1, salt=b"a", prefix_cache=False)
    assert run(scheduler, alone) == {4: 97}
    fresh = Scheduler(LIMITS)
    run(fresh, alone)
    assert fresh.pool.kept == 0
    off = Scheduler(replace(LIMITS, prefix_cache=False))
    run(off, Request(1, prompt(97), max_tokens=1))
    assert run(off, Request(2, prompt(97), max_tokens=1)) == {2: 97}
    assert off.pool.free == LIMITS.max_pages


def test_a_preempted_sequence_finds_its_pages_again() -> None:
    limits = replace(LIMITS, max_pages=9, page_size=4, max_step_tokens=16, context_size=32)
    scheduler = Scheduler(limits)
    scheduler.submit(Request(1, prompt(5), max_tokens=22))
    scheduler.submit(Request(2, prompt(5, 2000), max_tokens=20))
    while not scheduler.preemptions:
        batch = step(scheduler)
    computed = 0
    while not scheduler.idle:
        batch = step(scheduler)
        for part in batch.sequences:
            if part.seq_id == 2 and not computed:
                computed = part.position
    # Its oldest pages are evicted last: something of its beginning was still there.
    assert computed >= 4


def test_pages_of_a_sequence_whose_values_were_not_finite_are_not_found() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(Request(1, prompt(300), max_tokens=1))
    step(scheduler)
    batch = scheduler.schedule()
    assert batch is not None
    assert scheduler.cancel(1, distrust=True)
    finish(scheduler, batch)
    assert run(scheduler, Request(2, prompt(300), max_tokens=1)) == {2: 300}


def test_a_state_that_was_not_finite_is_not_found_where_another_has_the_pages() -> None:
    limits = replace(
        LIMITS, page_size=4, max_step_tokens=16, stateful=True, most_drafts=0, snapshots=1
    )
    scheduler = Scheduler(limits)
    run(scheduler, Request(1, (1,) * 9, max_tokens=1))
    run(scheduler, Request(2, (2,) * 9, max_tokens=1))  # its snapshot replaces the first
    scheduler.submit(Request(3, (1,) * 9, max_tokens=1))
    batch = scheduler.schedule()
    assert batch is not None
    assert scheduler.cancel(3, distrust=True)
    finish(scheduler, batch)
    assert run(scheduler, Request(4, (1,) * 9, max_tokens=1)) == {4: 9}


def test_pages_of_a_cancelled_sequence_are_found_as_far_as_they_were_done() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(Request(1, prompt(300), max_tokens=1))
    step(scheduler)
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.cancel(1)
    finish(scheduler, batch)
    assert run(scheduler, Request(2, prompt(300), max_tokens=1)) == {2: 300 - 128}


@pytest.mark.parametrize("loss", ["rewind", "refit", "step_failed"])
def test_nothing_is_found_after_the_cache_was_lost(loss: str) -> None:
    scheduler = Scheduler(LIMITS)
    run(scheduler, Request(1, prompt(300), max_tokens=1))
    assert scheduler.pool.kept
    if loss == "refit":
        scheduler.refit(replace(LIMITS, max_pages=100))
    else:
        getattr(scheduler, loss)()
    scheduler.check()
    assert scheduler.pool.kept == 0
    assert run(scheduler, Request(2, prompt(300), max_tokens=1)) == {2: 300}


def test_a_sequence_waits_for_an_older_one_only_while_that_computes_its_pages() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(Request(1, prompt(400), max_tokens=1))
    scheduler.submit(Request(2, (*prompt(400), 1, 2), max_tokens=1))
    scheduler.submit(Request(3, prompt(10, 5000), max_tokens=1))
    assert {s.seq_id: len(s.tokens) for s in step(scheduler).sequences} == {1: 118, 3: 10}
    # The first ends: the second takes over the pages that are full, and computes the others.
    assert scheduler.cancel(1)
    batch = step(scheduler)
    assert {s.seq_id: (s.position, len(s.tokens)) for s in batch.sequences} == {2: (96, 128)}


def test_two_sequences_never_wait_for_each_other() -> None:
    """An older sequence that meets the claim of a newer one computes the page itself."""
    sharing = Sharing(LIMITS)
    sequences = [
        Sequence(Request(seq_id, prompt(100)), seq_id, list(prompt(100)), 200, FinishReason.LENGTH)
        for seq_id in range(2)
    ]
    for sequence in sequences:
        sharing.begin(sequence)
    assert sharing.awaiting(sequences[1:]) == set()
    assert sharing.awaiting(sequences) == {1}
    sharing.leave(sequences[0])
    assert sharing.awaiting(sequences[1:]) == set()


def test_pages_of_the_system_prompt_outlive_those_of_single_questions() -> None:
    limits = replace(LIMITS, max_pages=20, context_size=640)
    scheduler = Scheduler(limits)
    for seq_id in range(12):
        question = (*prompt(320), *prompt(90, 2000 + 100 * seq_id))
        rows = run(scheduler, Request(seq_id, question, max_tokens=1))
        assert rows[seq_id] == (410 if seq_id == 0 else 90)
    assert scheduler.sharing.evictions > 0


def test_equal_keys_of_other_tokens_are_not_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the digest were broken, and all prefixes had one key, the text would be right."""
    monkeypatch.setattr(PrefixIndex, "key", lambda self, before, tokens: b"the same")
    index = PrefixIndex()
    start = index.start(b"")
    assert index.add(3, index.key(start, (1, 2)), start, (1, 2))
    assert not index.add(4, index.key(start, (1, 3)), start, (1, 3))
    assert index.find(b"the same", start, (1, 2)) == 3
    assert index.find(b"the same", start, (1, 3)) is None
    assert index.find(b"the same", b"another", (1, 2)) is None
    scheduler = Scheduler(LIMITS)
    run(scheduler, Request(1, prompt(100), max_tokens=1))
    assert run(scheduler, Request(2, prompt(100, 5000), max_tokens=1)) == {2: 100}


RECURRENT = replace(LIMITS, stateful=True, most_drafts=0, snapshots=2)


def test_a_state_that_cannot_go_back_begins_from_a_snapshot() -> None:
    scheduler = Scheduler(RECURRENT)
    assert run(scheduler, Request(1, prompt(300), max_tokens=40)) == {1: 339}
    # Of the answer too there is a snapshot, behind its last full page.
    turn = (*prompt(300), *[7] * 40, *prompt(50, 9000))
    assert run(scheduler, Request(2, turn, max_tokens=1)) == {2: 390 - 320}
    assert run(scheduler, Request(3, turn, max_tokens=1)) == {3: 390 - 384}
    # Without a snapshot nothing is found, though there are pages.
    assert run(scheduler, Request(4, prompt(200), max_tokens=1)) == {4: 200}
    none = Scheduler(replace(RECURRENT, snapshots=0))
    run(none, Request(1, prompt(300), max_tokens=1))
    assert run(none, Request(2, prompt(300), max_tokens=1)) == {2: 300}


def test_a_step_with_drafts_takes_a_snapshot_of_a_border_among_them() -> None:
    """Of no use where a draft before the border is rejected: then the next step takes it."""
    scheduler = Scheduler(replace(RECURRENT, page_size=4, max_step_tokens=16, most_drafts=8))
    scheduler.submit(Request(1, prompt(5), max_tokens=9))
    saves = []
    for drafts, right in (((), 0), ((6, 6), 1), ((6,) * 4, 4)):
        scheduler.propose(1, drafts)
        while True:
            batch = scheduler.schedule()
            assert batch is not None
            [part] = batch.sequences
            saves.append((part.position, len(part.tokens), part.undo, part.save))
            scheduler.check()
            new = {1: (6,) * right + (7,)} if part.outputs else {}
            scheduler.step_finished(batch, new)
            scheduler.check()
            if part.outputs:
                break
    # The prompt's border; then that of position 8, twice; the last number is free again.
    assert saves == [
        (0, 4, 0, saves[0][3]),
        (4, 1, 0, None),
        (5, 3, 2, saves[2][3]),
        (7, 5, 4, saves[3][3]),
    ]
    assert None not in (saves[0][3], saves[2][3], saves[3][3])
    scheduler.cancel(1)
    # 5 tokens of the prompt; 7, 6, 7, 6, 6, 6, 6: positions 8 to 11 are in the snapshot's page.
    text = (*prompt(5), 7, 6, 7, 6, 6, 6, 6, 7)
    assert run(scheduler, Request(2, text, max_tokens=1)) == {2: 13 - 12}


def test_samples_of_one_prompt_wait_for_its_snapshot() -> None:
    scheduler = Scheduler(RECURRENT)
    requests = [Request(seq_id, prompt(1000), max_tokens=20) for seq_id in range(4)]
    assert run(scheduler, *requests) == {0: 1019, 1: 27, 2: 27, 3: 27}


def test_a_sequence_that_waits_for_a_snapshot_does_not_search_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = Scheduler(replace(RECURRENT, max_pages=400))
    for seq_id in range(2):
        scheduler.submit(Request(seq_id, prompt(4000), max_tokens=2))
    searched: list[bytes] = []
    find = PrefixIndex.find

    def counted(index: PrefixIndex, key: bytes, before: bytes, tokens: Tokens[int]) -> int | None:
        searched.append(key)
        return find(index, key, before, tokens)

    monkeypatch.setattr(PrefixIndex, "find", counted)
    while not scheduler.idle:
        batch = step(scheduler)
        waiting = {s.seq_id for s in batch.sequences} == {0}
        if waiting and batch.sequences[0].position < 3968:
            assert not searched
    # Once, when there was a snapshot.
    assert len(searched) == 124


def test_the_snapshot_unused_for_longest_is_replaced() -> None:
    scheduler = Scheduler(RECURRENT)
    for number in (1, 2):
        run(scheduler, Request(number, prompt(70, 1000 * number), max_tokens=1))
    assert run(scheduler, Request(3, prompt(70, 1000), max_tokens=1)) == {3: 6}
    run(scheduler, Request(4, prompt(70, 3000), max_tokens=1))
    assert run(scheduler, Request(5, prompt(70, 2000), max_tokens=1)) == {5: 70}
    assert scheduler.sharing.hit_tokens == 64


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), max_size=6))
def test_keys_are_those_of_the_whole_prefix(pages: list[list[int]]) -> None:
    index, again = PrefixIndex(b"secret"), PrefixIndex(b"secret")
    key, seen = index.start(b""), {index.start(b"")}
    for tokens in pages:
        assert again.key(key, tokens) == index.key(key, tokens)
        key = index.key(key, tokens)
        assert key not in seen
        seen.add(key)
    assert PrefixIndex(b"other").start(b"") != index.start(b"")


@contextmanager
def engine(runner: FakeRunner, metrics: RootMetrics | None = None) -> Iterator[Engine]:
    limits = Limits(context_size=512, max_pages=64, page_size=4, max_step_tokens=16)
    made = Engine(runner, ByteTokenizer(), limits, metrics=metrics, sampler_factory=Greedy)
    made.start()
    try:
        yield made
    finally:
        assert made.stop(finish=False)


def answer(e: Engine, ids: tuple[int, ...], **settings: object) -> tuple[list[int], Usage]:
    tokens: list[int] = []
    for event in e.generate(GenerateParams(ids, 8, ignore_eos=True, **settings)):  # type: ignore[arg-type]
        if isinstance(event, Done):
            return tokens, event.usage
        tokens += event.token_ids
    raise AssertionError("no end")


def value(metrics: RootMetrics, name: str, labels: Mapping[str, str] | None = None) -> float:
    found = metrics.registry.get_sample_value(name, dict(labels or {}))
    assert found is not None
    return found


def test_usage_and_metrics_count_cached_tokens() -> None:
    metrics = RootMetrics()
    metrics.page_bytes(1000)
    ids = tuple(b"You are a helpful assistant.")
    with engine(FakeRunner(), metrics) as e:
        plain, usage = answer(e, ids)
        assert (usage.prompt_tokens, usage.cached_tokens) == (28, 0)
        again, usage = answer(e, ids)
        assert (again, usage.cached_tokens) == (plain, 24)
        without, usage = answer(e, ids, prefix_cache=False)
        assert (without, usage.cached_tokens) == (plain, 0)
        turn, usage = answer(e, (*ids, *plain, 65))
        assert (turn, usage.cached_tokens) == (expected((*ids, *plain, 65), 8), 32)
    assert value(metrics, "hearth_prefix_lookup_tokens_total") == 28 + 28 + 37
    assert value(metrics, "hearth_prefix_hit_tokens_total") == 24 + 32
    kept = value(metrics, "hearth_prefix_pages")
    assert kept == 11
    assert value(metrics, "hearth_prefix_bytes") == kept * 1000
    assert value(metrics, "hearth_kv_pages", {"state": "used"}) == 0
    # As endpoint pickers read it: kept pages are free for anyone who needs them.
    assert value(metrics, "hearth_kv_cache_usage_ratio") == 0
    assert value(metrics, "hearth_kv_cache_info", {"block_size": "4", "num_gpu_blocks": "64"}) == 1


def test_the_use_of_the_kv_cache_as_a_part_of_it() -> None:
    metrics = RootMetrics()
    metrics.kv_cache(16, 30, 120)
    assert value(metrics, "hearth_kv_cache_usage_ratio") == 0.25
    assert value(metrics, "hearth_kv_pages", {"state": "free"}) == 90
    metrics.kv_cache(16, 0, 60)  # another plan: one series, not two
    found = metrics.text().decode()
    assert found.count("hearth_kv_cache_info{") == 1
    assert 'num_gpu_blocks="60"' in found


def test_four_samples_of_one_prompt_through_the_engine() -> None:
    runner = FakeRunner()
    ids = tuple(b"Tell me a story about a hearth, please.")
    with engine(runner) as e:
        with ThreadPoolExecutor(4) as pool:
            with e.held():
                found = [pool.submit(answer, e, ids) for _ in range(4)]
                while e.commands < 4:
                    pass
            answers = [each.result() for each in found]
    assert [tokens for tokens, _ in answers] == [expected(ids, 8)] * 4
    assert sorted(usage.cached_tokens for _, usage in answers) == [0, 36, 36, 36]
    assert sum(batch.rows for batch in runner.batches) == 39 + 3 * 3 + 4 * 7


def test_values_that_are_not_finite_leave_no_pages_behind() -> None:
    class Damaged(FakeRunner):
        def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
            output = super().read(batch, tables)
            bad = {0: ""} if len(self.batches) == 2 else {}
            return replace(output, not_finite=bad)

    runner = Damaged()
    ids = tuple(b"Tell me a story about a hearth, please.")
    with engine(runner) as e:
        with pytest.raises(Exception, match="not finite"):
            answer(e, ids)
        tokens, usage = answer(e, ids)
    assert (tokens, usage.cached_tokens) == (expected(ids, 8, letters), 0)
