"""The engine with a stand-in for the model: a request's text does not depend on its neighbours."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import (
    BOS,
    EOS,
    ByteTokenizer,
    FakeRunner,
    Greedy,
    expected,
    letters,
    script,
)

from hearth.common.candidates import WHOLE_ROWS, Candidates, Tails
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.root.engine.delivery import Delivery
from hearth.root.engine.engine import MAX_SETBACKS, Engine
from hearth.root.engine.flights import Flights
from hearth.root.engine.interfaces import Ids, Logits
from hearth.root.engine.mailbox import Delta, Done, Event, Failed, Mailbox
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.engine.sampling import sample
from hearth.root.membership.membership import STRIKES
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, SequenceStep, StepOutput
from hearth.root.scheduling.scheduler import Scheduler
from hearth.root.scheduling.speculation import Speculation

LIMITS = Limits(context_size=64, max_pages=64, page_size=4, max_step_tokens=16, max_running=8)


class Sink:
    """Keeps all events; `done` is set by the last."""

    def __init__(self, on_delta: Callable[[], None] | None = None) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()
        self.on_delta = on_delta

    def __call__(self, event: Event) -> None:
        assert not self.done.is_set(), "an event after the last"
        self.events.append(event)
        if not isinstance(event, Delta):
            self.done.set()
        elif self.on_delta is not None:
            self.on_delta()

    def wait(self) -> "Sink":
        assert self.done.wait(30)
        return self

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Delta))

    @property
    def tokens(self) -> list[int]:
        return [t for e in self.events if isinstance(e, Delta) for t in e.token_ids]

    @property
    def finish(self) -> FinishReason:
        end = self.wait().events[-1]
        assert isinstance(end, Done), end
        return end.finish_reason

    @property
    def error(self) -> HearthError:
        end = self.wait().events[-1]
        assert isinstance(end, Failed), end
        return end.error


@contextmanager
def engine(runner: FakeRunner | None = None, limits: Limits = LIMITS) -> Iterator[Engine]:
    made = Engine(runner or FakeRunner(), ByteTokenizer(), limits, sampler_factory=Greedy)
    made.start()
    try:
        yield made
    finally:
        assert made.stop(finish=False)


def test_an_idle_engine_gives_unused_pages_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearth.root.engine.engine._RESIDENT_SECONDS", 0.05)
    released: queue.SimpleQueue[int] = queue.SimpleQueue()
    made = Engine(
        FakeRunner(), ByteTokenizer(), LIMITS, sampler_factory=Greedy, on_unused_pages=released.put
    )
    made.start()
    for _ in range(2):
        sink = Sink()
        made.submit(params("Once", 20), sink)
        sink.wait()
        # Perhaps in two parts: what one period did not need, then the rest.
        while released.get(timeout=30) > 0:
            pass
    assert made.stop()


def params(text: str, max_tokens: int = 10, **more: object) -> GenerateParams:
    return GenerateParams((BOS, *text.encode()), max_tokens, **more)  # type: ignore[arg-type]


def test_one_request() -> None:
    with engine(FakeRunner(script("Once upon", "Hi"))) as e:
        sink = Sink()
        e.submit(params("Hi", 0), sink)
        assert sink.finish is FinishReason.EOS
        assert sink.text == "Once upon"
        # The end-of-sequence token is listed and counted.
        assert sink.tokens == [*b"Once upon", EOS]
        done = sink.events[-1]
        assert isinstance(done, Done)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 10)
        assert done.usage.queue_seconds >= 0
        assert done.usage.prefill_seconds > 0
        assert done.usage.decode_seconds > 0


def test_finish_reasons() -> None:
    with engine(FakeRunner(lambda history: EOS if len(history) > 6 else ord("x"))) as e:
        cases = [
            (params("abc", 3), FinishReason.LENGTH, "xxx"),
            (params("abc", 0), FinishReason.EOS, "xxx"),
            (params("abc", 0, stop=("xx",)), FinishReason.STOP, ""),
            (params("abc", 0, ignore_eos=True), FinishReason.CONTEXT, "xxx"),
        ]
        for request, reason, text in cases:
            sink = Sink()
            e.submit(request, sink)
            assert (sink.finish, sink.text) == (reason, text)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab", max_size=30), st.integers(1, 25)), min_size=1, max_size=8),
    st.integers(12, 64),
)
def test_together_as_alone(requests: list[tuple[str, int]], pages: int) -> None:
    """Continuous batching, chunked prefill and preemption do not change a token."""
    limits = Limits(
        context_size=48,
        max_pages=pages,
        page_size=4,
        max_step_tokens=8,
        max_running=4,
        max_waiting=8,
    )
    with engine(FakeRunner(max_step_tokens=8), limits) as e:
        sinks = []
        for text, count in requests:
            sinks.append(Sink())
            e.submit(params(text, count), sinks[-1])
        for (text, count), sink in zip(requests, sinks, strict=True):
            wanted = min(count, 48 - 1 - len(text))
            assert sink.wait().tokens == expected((BOS, *text.encode()), wanted, letters)


def test_preemption_does_not_change_the_text() -> None:
    runner = FakeRunner(gate=threading.Event())
    limits = Limits(context_size=40, max_pages=10, page_size=4, max_step_tokens=8, max_running=3)
    with engine(runner, limits) as e:
        sinks = [Sink() for _ in range(3)]
        for i, sink in enumerate(sinks):
            e.submit(params("abc"[i] * 5, 30), sink)
        assert runner.gate is not None
        runner.gate.set()
        for i, sink in enumerate(sinks):
            assert sink.wait().tokens == expected((BOS, *b"abc"[i : i + 1] * 5), 30)
    starts = [s.seq_id for batch in runner.batches for s in batch.sequences if s.position == 0]
    assert len(starts) > 3, "nothing was preempted: the test does not test what it says"


def test_requests_really_run_together() -> None:
    runner = FakeRunner(gate=threading.Event())
    with engine(runner) as e:
        sinks = [Sink() for _ in range(4)]
        for sink in sinks:
            e.submit(params("ab", 5), sink)
        assert runner.gate is not None
        runner.gate.set()
        for sink in sinks:
            sink.wait()
    assert max(len(batch.output_rows) for batch in runner.batches) >= 3
    assert len(runner.batches) <= 7


def test_cancel_takes_effect_before_the_next_step() -> None:
    runner = FakeRunner()
    with engine(runner) as e:
        handles: list[Any] = []
        cancelled_at: list[int] = []

        def cancel_at_third() -> None:
            if len(sink.tokens) == 3:
                handles[0].cancel()
                cancelled_at.append(len(runner.batches))

        sink = Sink(cancel_at_third)
        with e.held():  # the sink may only run when the handle is known
            handles.append(e.submit(params("ab", 50), sink))
        assert sink.error.reason == "CANCELLED"
        time.sleep(0.05)
        assert len(runner.batches) == cancelled_at[0]
        assert len(sink.tokens) == 3


def test_cancel_from_another_thread_and_while_waiting() -> None:
    runner = FakeRunner(gate=threading.Event())
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_running=1)
    with engine(runner, limits) as e:
        first, second = Sink(), Sink()
        e.submit(params("ab", 5), first)
        handle = e.submit(params("ab", 5), second)
        handle.cancel()
        handle.cancel()
        assert runner.gate is not None
        runner.gate.set()
        assert second.error.reason == "CANCELLED"
        assert second.tokens == []
        assert first.finish is FinishReason.LENGTH
        handle.cancel()


def test_a_lost_worker_ends_all_and_the_engine_refuses_until_resumed() -> None:
    lost = HearthError(Reason.WORKER_LOST, "worker nas:7717 was lost", {"worker": "nas:7717"})
    runner = FakeRunner(fail_with=lost)
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_running=1)
    with engine(runner, limits) as e:
        sinks = [Sink(), Sink()]
        with e.held():  # so that the engine takes both together
            for sink in sinks:
                e.submit(params("ab", 5), sink)
        for sink in sinks:
            assert sink.error is lost
        refused = Sink()
        e.submit(params("ab", 5), refused)
        assert refused.error.code.name == "UNAVAILABLE"
        assert refused.error.reason == "CLUSTER_NOT_READY"
        assert "worker nas:7717 was lost" in refused.error.message
        assert refused.error.metadata == {"worker": "nas:7717", "cause": "WORKER_LOST"}
        e.resume()
        again = Sink()
        e.submit(params("ab", 5), again)
        assert again.wait().tokens == expected((BOS, *b"ab"), 5)


def test_resume_with_other_limits() -> None:
    runner = FakeRunner(page_size=8)
    with engine(runner) as e:
        e.suspend(HearthError(Reason.WORKER_LOST, "worker pi3 does not answer"))
        e.resume(Limits(context_size=32, max_pages=8, page_size=8))
        sink = Sink()
        e.submit(params("ab", 0), sink)
        assert sink.finish is FinishReason.CONTEXT
        assert sink.tokens == expected((BOS, *b"ab"), 29)
        assert e.limits.context_size == 32


def test_suspend_while_idle() -> None:
    with engine() as e:
        e.suspend(HearthError(Reason.WORKER_LOST, "worker pi3 does not answer"))
        sink = Sink()
        e.submit(params("ab"), sink)
        assert "pi3" in sink.error.message


def test_resume_during_the_failing_step_wins() -> None:
    """The cluster may be whole again before the engine has heard of the loss."""
    runner = FakeRunner(gate=threading.Event(), fail_with=HearthError(Reason.WORKER_LOST, "gone"))
    with engine(runner) as e:
        sink = Sink()
        e.submit(params("ab"), sink)
        assert runner.entered.wait(30)
        e.resume()
        assert runner.gate is not None
        runner.gate.set()
        assert sink.error.reason == "WORKER_LOST"
        again = Sink()
        e.submit(params("ab", 2), again)
        assert again.finish is FinishReason.LENGTH


def test_an_error_of_the_step_alone_does_not_suspend() -> None:
    with engine(FakeRunner(fail_with=HearthError(Reason.OUT_OF_MEMORY, "no room"))) as e:
        sink = Sink()
        e.submit(params("ab"), sink)
        assert sink.error.reason == "OUT_OF_MEMORY"
        again = Sink()
        e.submit(params("ab", 2), again)
        assert again.finish is FinishReason.LENGTH


def test_a_mistake_in_the_runner_is_an_internal_error_and_the_engine_goes_on() -> None:
    with engine(FakeRunner(fail_with=ZeroDivisionError("oh"))) as e:
        sink = Sink()
        e.submit(params("ab"), sink)
        assert sink.error.code.name == "INTERNAL"
        assert "ZeroDivisionError: oh" in sink.error.message
        again = Sink()
        e.submit(params("ab", 2), again)
        assert again.finish is FinishReason.LENGTH


def test_metrics_that_fail_keep_no_client_waiting() -> None:
    class Broken(RootMetrics):
        def request_done(self, *arguments: object) -> None:
            raise ZeroDivisionError("oh")

    runner = FakeRunner(fail_with=OSError("no step"))
    e = Engine(runner, ByteTokenizer(), LIMITS, sampler_factory=Greedy, metrics=Broken())
    e.start()
    sinks = [Sink(), Sink()]
    with e.held():
        for sink in sinks:
            e.submit(params("ab"), sink)
    assert [sink.error.reason for sink in sinks] == ["INTERNAL", "INTERNAL"]
    assert e.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_dies_refuses_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(flights: Flights) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Flights, "drop", drop)
    e = Engine(
        FakeRunner(fail_with=OSError("no step")), ByteTokenizer(), LIMITS, sampler_factory=Greedy
    )
    e.start()
    sink, after = Sink(), Sink()
    e.submit(params("ab"), sink)
    assert sink.error.reason == "INTERNAL"
    e._thread.join(30)
    with pytest.raises(HearthError, match="shutting down"):
        e.submit(params("ab"), after)


def test_a_runner_with_too_few_rows_is_noticed() -> None:
    class Short(FakeRunner):
        def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
            super().run(batch)
            return StepOutput(np.zeros((0, 258), np.float32))

    with engine(Short()) as e:
        sink = Sink()
        e.submit(params("ab"), sink)
        assert "0 rows of logits, expected 1" in sink.error.message


def test_a_sink_that_fails_ends_its_request_only() -> None:
    runner = FakeRunner()
    with engine(runner) as e:

        def broken(event: Event) -> None:
            raise OSError("gone")

        good = Sink()
        e.submit(params("ab", 40), broken)
        e.submit(params("ab", 5), good)
        assert good.wait().tokens == expected((BOS, *b"ab"), 5)
        assert e.idle


@pytest.mark.parametrize("max_tokens", [1, 40])
def test_a_sink_that_fails_is_called_once_and_its_request_counted_once(max_tokens: int) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise OSError("gone")

    metrics = RootMetrics()
    e = Engine(FakeRunner(), ByteTokenizer(), LIMITS, sampler_factory=Greedy, metrics=metrics)
    e.start()
    e.submit(params("ab", max_tokens), broken)
    assert e.stop()
    assert len(calls) == 1
    count = metrics.registry.get_sample_value
    assert count("hearth_requests_total", {"outcome": "cancelled"}) == 1
    assert count("hearth_requests_total", {"outcome": "length"}) == 0


def test_stop_texts_over_token_borders_are_not_in_the_output() -> None:
    with engine(FakeRunner(script("Hello\n\nUser: me"))) as e:
        sink = Sink()
        e.submit(params("", 0, stop=("\n\nUser:", "zzz")), sink)
        assert (sink.finish, sink.text) == (FinishReason.STOP, "Hello")
        # What might have become a stop text was never given out, not even for a moment.
        assert [e.text for e in sink.events if isinstance(e, Delta) and e.text] == list("Hello")
    with engine(FakeRunner(script("Hello\n\nUser"))) as e:
        sink = Sink()
        e.submit(params("", 0, stop=("\n\nUser:",)), sink)
        assert (sink.finish, sink.text) == (FinishReason.EOS, "Hello\n\nUser")


@pytest.mark.parametrize(
    ("stop", "ignore_eos", "finish", "text", "tokens"),
    [
        ("<s>", False, FinishReason.STOP, "a", [97, BOS]),
        ("a<s>b", False, FinishReason.STOP, "", [97, BOS, 98]),
        ("</s>", False, FinishReason.EOS, "ab", [97, BOS, 98, EOS]),
        ("</s>", True, FinishReason.STOP, "ab", [97, BOS, 98, EOS]),
    ],
)
def test_stop_texts_may_name_control_tokens(
    stop: str, ignore_eos: bool, finish: FinishReason, text: str, tokens: list[int]
) -> None:
    def next_token(history: tuple[int, ...]) -> int:
        return [97, BOS, 98, EOS][(len(history) - 1) % 4]

    with engine(FakeRunner(next_token)) as e:
        sink = Sink()
        e.submit(params("", 8, stop=(stop,), ignore_eos=ignore_eos), sink)
        assert (sink.finish, sink.text, sink.tokens) == (finish, text, tokens)


def test_characters_over_token_borders_are_whole() -> None:
    text = "Grüße 🔥 日本"
    with engine(FakeRunner(script(text))) as e:
        sink = Sink()
        e.submit(params("", 0), sink)
        assert sink.wait().text == text
        assert all("�" not in event.text for event in sink.events if isinstance(event, Delta))
        # Cut in the middle of a character: the rest is flushed as a replacement character.
        cut = Sink()
        e.submit(params("", 3), cut)
        assert cut.wait().text == "Gr�"


def test_queue_full_and_prompt_too_long_come_to_the_sink() -> None:
    runner = FakeRunner(gate=threading.Event())
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_running=1, max_waiting=1)
    with engine(runner, limits) as e:
        sinks = [Sink() for _ in range(3)]
        for sink in sinks:
            e.submit(params("ab", 2), sink)
        long = Sink()
        e.submit(params("a" * 64), long)
        assert runner.gate is not None
        runner.gate.set()
        assert sinks[2].error.reason == "QUEUE_FULL"
        assert long.error.reason == "PROMPT_TOO_LONG"
        assert sinks[1].finish is FinishReason.LENGTH


def test_bad_token_ids_are_refused_at_once() -> None:
    with engine() as e, pytest.raises(HearthError, match="token id 258 at index 1"):
        e.submit(GenerateParams((1, 258)), Sink())


def test_stop_finishes_what_runs() -> None:
    runner = FakeRunner(gate=threading.Event())
    e = Engine(runner, ByteTokenizer(), LIMITS, sampler_factory=Greedy)
    e.start()
    sink = Sink()
    e.submit(params("ab", 5), sink)
    assert runner.gate is not None
    threading.Timer(0.05, runner.gate.set).start()
    assert e.stop(finish=True)
    assert sink.finish is FinishReason.LENGTH
    with pytest.raises(HearthError, match="shutting down"):
        e.submit(params("ab"), sink)


def test_stop_gives_up_after_its_timeout() -> None:
    e = Engine(FakeRunner(seconds=0.01), ByteTokenizer(), LIMITS, sampler_factory=Greedy)
    e.start()
    sink = Sink()
    e.submit(params("ab", 0), sink)
    late = Sink()
    threading.Timer(0.05, lambda: e.submit(params("ab"), late)).start()
    assert e.stop(finish=True, timeout=0.2)
    assert sink.error.reason == "SHUTTING_DOWN"
    assert late.error.reason == "SHUTTING_DOWN"


def test_stop_before_start() -> None:
    e = Engine(FakeRunner(), ByteTokenizer(), LIMITS, sampler_factory=Greedy)
    sink = Sink()
    e.submit(params("ab"), sink)
    assert e.stop()
    assert sink.error.reason == "SHUTTING_DOWN"


def test_an_idle_engine_uses_no_cpu() -> None:
    with engine() as e:
        sink = Sink()
        e.submit(params("ab", 3), sink)
        sink.wait()
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.05


def test_generate_in_process() -> None:
    runner = FakeRunner()
    with engine(runner) as e:
        events = list(e.generate(params("ab", 6)))
        assert isinstance(events[-1], Done)
        tokens = [t for event in events if isinstance(event, Delta) for t in event.token_ids]
        assert tokens == expected((BOS, *b"ab"), 6)
        with pytest.raises(HearthError, match="context 64 positions"):
            list(e.generate(params("a" * 70)))
        # Closing the iterator cancels.
        runner.seconds = 0.005
        stream = e.generate(params("ab", 50))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        made = len(runner.batches)
        time.sleep(0.1)
        assert len(runner.batches) <= made + 1


def test_a_slow_reader_gets_merged_deltas() -> None:
    wakes = []
    mailbox = Mailbox(lambda: wakes.append(1))
    for token in b"abc":
        mailbox(Delta(chr(token), (token,)))
    assert len(wakes) == 1
    assert mailbox.take() == (Delta("abc", (97, 98, 99)), None)
    assert mailbox.take() == (None, None)
    mailbox(Delta("d", (100,)))
    mailbox(Failed(HearthError(Reason.CANCELLED, "x")))
    assert len(wakes) == 2
    delta, end = mailbox.take()
    assert delta == Delta("d", (100,))
    assert isinstance(end, Failed)


def test_the_core_s_sampler_draws_the_same_whatever_runs_beside() -> None:
    pytest.importorskip("hearth._native")

    class Noise(FakeRunner):
        """Logits that leave the sampler something to choose."""

        def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
            peaks = super().run(batch).logits.argmax(axis=1)
            rows = [np.random.default_rng(int(p)).normal(size=258) for p in peaks]
            return StepOutput(np.array(rows, np.float32).reshape(len(peaks), 258))

    def texts(requests: list[GenerateParams], together: bool) -> list[list[int]]:
        e = Engine(Noise(), ByteTokenizer(), LIMITS)
        e.start()
        sinks = [Sink() for _ in requests]
        for request, sink in zip(requests, sinks, strict=True):
            e.submit(request, sink)
            if not together:
                sink.wait()
        made = [sink.wait().tokens for sink in sinks]
        assert e.stop(finish=False)
        return made

    warm = Sampling(temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.2, seed=11)
    cold = Sampling()
    requests = [params("ab", 20, sampling=s, ignore_eos=True) for s in (warm, cold, warm)]
    alone = texts(requests, together=False)
    assert alone[0] == alone[2]
    assert alone[0] != alone[1]
    assert texts(requests, together=True) == alone


def test_the_repetition_penalty_sees_the_prompt() -> None:
    samplers = []

    def factory(sampling: Sampling, seed: int) -> Greedy:
        samplers.append(Greedy(sampling, seed))
        return samplers[-1]

    e = Engine(FakeRunner(), ByteTokenizer(), LIMITS, sampler_factory=factory)
    e.start()
    sink = Sink()
    e.submit(params("ab", 2, sampling=Sampling(repetition_penalty=1.1)), sink)
    sink.wait()
    e.stop()
    assert samplers[0].accepted == [BOS, *b"ab", *sink.tokens]


# A lost worker pauses what runs.


def lost(name: str = "nas:7717") -> HearthError:
    return HearthError(Reason.WORKER_LOST, f"worker {name} was lost", {"worker": name})


class Breaking(FakeRunner):
    """Loses a worker, and the whole cache, in the steps that are named; counted from 0."""

    def __init__(self, broken: set[int]) -> None:
        super().__init__(page_size=4, max_step_tokens=16)
        self.broken = broken
        self.steps = -1

    def reached(self, step: int) -> bool:
        return self.steps == step

    def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
        self.steps += 1
        if self.steps in self.broken:
            self.cache.clear()
            raise lost()
        return super().run(batch)


@contextmanager
def patient(runner: FakeRunner, limits: Limits = LIMITS, seconds: float = 30.0) -> Iterator[Engine]:
    made = Engine(runner, ByteTokenizer(), limits, sampler_factory=Greedy, pause_seconds=seconds)
    made.start()
    try:
        yield made
    finally:
        assert made.stop(finish=False)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab", max_size=20), st.integers(1, 20)), min_size=1, max_size=6),
    # More than four in a row without a token is another test's.
    st.sets(st.integers(0, 60), max_size=4),
)
def test_no_token_is_lost_or_repeated(requests: list[tuple[str, int]], broken: set[int]) -> None:
    """Any failures of steps: each request gets the text it would have had, in order."""
    limits = Limits(
        context_size=48, max_pages=40, page_size=4, max_step_tokens=8, max_running=4, max_waiting=8
    )
    runner = Breaking(broken)
    with patient(runner, limits) as e:
        resuming = threading.Event()

        def resume() -> None:
            while not resuming.wait(0.001):
                e.resume()

        resumer = threading.Thread(target=resume)
        resumer.start()
        try:
            sinks = [Sink() for _ in requests]
            for (text, count), sink in zip(requests, sinks, strict=True):
                e.submit(params(text, count), sink)
            for (text, count), sink in zip(requests, sinks, strict=True):
                wanted = min(count, 48 - 1 - len(text))
                assert sink.wait().tokens == expected((BOS, *text.encode()), wanted, letters)
                assert isinstance(sink.events[-1], Done)
        finally:
            resuming.set()
            resumer.join()


def test_a_pause_keeps_queue_order_and_takes_new_requests() -> None:
    runner = Breaking({3})
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_step_tokens=8, max_running=1)
    with patient(runner, limits) as e:
        order: list[str] = []
        sinks = {name: Sink(partial(order.append, name)) for name in "abc"}
        e.submit(params("a", 6), sinks["a"])
        e.submit(params("b", 3), sinks["b"])
        wait_for(partial(runner.reached, 3))
        e.submit(params("c", 3), sinks["c"])
        time.sleep(0.05)
        assert not sinks["a"].done.is_set()
        e.resume()
        for name, count in (("a", 6), ("b", 3), ("c", 3)):
            assert sinks[name].wait().tokens == expected((BOS, *name.encode()), count)
    assert order == list("aaaaaabbbccc")


def test_a_pause_s_queue_is_bounded() -> None:
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_running=1, max_waiting=1)
    with patient(FakeRunner(), limits) as e:
        e.suspend(lost())
        sinks = [Sink() for _ in range(3)]
        for sink in sinks:
            e.submit(params("ab", 2), sink)
        assert sinks[2].error.reason == "QUEUE_FULL"
        e.resume()
        assert sinks[1].finish is FinishReason.LENGTH


def test_cancelling_works_during_a_pause() -> None:
    runner = Breaking({2})
    with patient(runner) as e:
        sink = Sink()
        handle = e.submit(params("ab", 9), sink)
        wait_for(partial(runner.reached, 2))
        handle.cancel()
        assert sink.error.reason == "CANCELLED"
        e.resume()
        again = Sink()
        e.submit(params("ab", 2), again)
        assert again.finish is FinishReason.LENGTH


def test_a_pause_that_lasts_too_long_names_the_node_and_the_cause() -> None:
    runner = Breaking({2})
    with patient(runner, seconds=0.2) as e:
        sink = Sink()
        e.submit(params("ab", 9), sink)
        assert sink.error.reason == "WORKER_LOST"
        assert sink.error.code.name == "UNAVAILABLE"
        assert "worker nas:7717 was lost" in sink.error.message
        assert "0.2 s" in sink.error.message
        assert sink.error.metadata["worker"] == "nas:7717"
        assert len(sink.tokens) == 2
        late = Sink()
        e.submit(params("ab", 9), late)
        assert late.error.reason == "CLUSTER_NOT_READY"
        assert "nas:7717" in late.error.message
        e.suspend(lost("pi3"))  # tells more of the same loss: what was refused stays so
        other = Sink()
        e.submit(params("ab", 9), other)
        assert "pi3" in other.error.message
        e.resume()
        again = Sink()
        e.submit(params("ab", 2), again)
        assert again.finish is FinishReason.LENGTH


def test_a_request_that_takes_the_cluster_down_is_given_up() -> None:
    """It alone: the one that waited behind it goes on."""

    class Poisoned(FakeRunner):
        def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
            if ord("x") in batch.tokens:
                raise lost()
            return super().run(batch)

    limits = Limits(context_size=64, max_pages=64, page_size=4, max_running=1)
    with patient(Poisoned(), limits) as e:
        poison, good = Sink(), Sink()
        e.submit(params("x", 9), poison)
        e.submit(params("ab", 2), good)
        for _ in range(200):
            e.resume()
            if poison.done.wait(0.01):
                break
        assert poison.error.reason == "WORKER_LOST"
        assert f"{MAX_SETBACKS} times in a row" in poison.error.message
        assert MAX_SETBACKS > 3 * STRIKES  # three workers that fail are left out sooner
        e.resume()
        assert good.wait().tokens == expected((BOS, *b"ab"), 2)


def test_less_room_after_a_pause_ends_what_fits_no_more() -> None:
    runner = Breaking({12})
    with patient(runner) as e:
        long = Sink()
        e.submit(params("a" * 8, 30), long)
        wait_for(partial(runner.reached, 12))
        waiting = Sink()
        e.submit(params("c", 4), waiting)
        e.suspend(lost())
        e.resume(
            Limits(context_size=64, max_pages=4, page_size=4, max_step_tokens=8, max_running=8)
        )
        assert long.error.reason == "OUT_OF_MEMORY"
        assert "nas:7717 was lost" in long.error.message
        assert "4 pages of 4" in long.error.message
        assert waiting.wait().tokens == expected((BOS, *b"c"), 4)


def test_text_state_survives_a_pause() -> None:
    """Half a character and half a stop text are still known after it."""
    text = "Grüße END"
    for step in range(3, len(text.encode())):
        runner = Breaking({step})
        runner.next_token = script(text + "x" * 20, "q")
        with patient(runner) as e:
            sink = Sink()
            e.submit(params("q", 0, stop=("END",)), sink)
            wait_for(partial(runner.reached, step))
            e.suspend(lost())
            e.resume()
            assert (sink.finish, sink.text) == (FinishReason.STOP, "Grüße ")


# Several batches in flight.


class Staged(FakeRunner):
    """Computes in another thread. Tokens are written when a batch is submitted, read at its end.

    So a page that is given away while a batch uses it changes the text.
    """

    def __init__(self, depth: int, **options: Any) -> None:
        super().__init__(depth=depth, **options)
        self.thread = ThreadPoolExecutor(1, "stages")
        self.submitted = 0

    def submit(
        self,
        batch: Batch,
        candidates: Candidates = WHOLE_ROWS,
        hidden: bool = False,
    ) -> Future[StepOutput]:
        self.submitted += 1
        assert self.submitted - len(self.batches) <= self.depth
        tables = self.write(batch)
        return self.thread.submit(self.compute, batch, tables)

    def compute(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        try:
            if self.fail_with is not None:
                error, self.fail_with = self.fail_with, None
                raise error
            return self.read(batch, tables)
        finally:
            self.batches.append(batch)


@contextmanager
def staged(runner: Staged, limits: Limits = LIMITS, seconds: float = 30.0) -> Iterator[Engine]:
    made = Engine(runner, ByteTokenizer(), limits, sampler_factory=Greedy, pause_seconds=seconds)
    made.start()
    try:
        yield made
    finally:
        if runner.gate is not None:
            runner.gate.set()
        assert made.stop(finish=False)
        runner.thread.shutdown()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab", max_size=30), st.integers(1, 25), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.integers(12, 64),
    st.integers(1, 3),
)
def test_batches_in_flight_change_no_text(
    requests: list[tuple[str, int, bool]], pages: int, depth: int
) -> None:
    limits = Limits(
        context_size=48,
        max_pages=pages,
        page_size=4,
        max_step_tokens=8,
        max_running=4,
        max_waiting=8,
    )
    with staged(Staged(depth, max_step_tokens=8), limits) as e:
        sinks = []
        for text, count, cancelled in requests:
            sinks.append(Sink())
            handle = e.submit(params(text, count), sinks[-1])
            if cancelled:
                handle.cancel()
        for (text, count, cancelled), sink in zip(requests, sinks, strict=True):
            made = sink.wait().tokens
            wanted = min(count, 48 - 1 - len(text))
            if isinstance(sink.events[-1], Failed):
                assert cancelled
                assert sink.error.reason == "CANCELLED"
                wanted = len(made)
            assert made == expected((BOS, *text.encode()), wanted, letters)
        wait_for(lambda: e.idle)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_as_many_batches_are_in_flight_as_the_runner_is_deep(depth: int) -> None:
    runner = Staged(depth, gate=threading.Event(), max_step_tokens=8)
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_step_tokens=8, max_running=4)
    with staged(runner, limits) as e:
        sink = Sink()
        e.submit(params("a" * 40, 3), sink)
        wait_for(lambda: runner.submitted == depth)
        other = Sink()
        e.submit(params("b", 3), other)
        wait_for(lambda: e.commands == 0)
        assert runner.submitted == depth
        assert runner.gate is not None
        runner.gate.set()
        assert sink.wait().tokens == expected((BOS, *b"a" * 40), 3)
        assert other.wait().tokens == expected((BOS, *b"b"), 3)


class Slow(Staged):
    """Takes a while for each batch."""

    def compute(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
        time.sleep(0.01)
        return super().compute(batch, tables)


def test_unused_pages_are_given_back_between_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearth.root.engine.engine._RESIDENT_SECONDS", 0.03)
    runner = Slow(2)
    in_flight: list[int] = []
    made = Engine(
        runner,
        ByteTokenizer(),
        LIMITS,
        sampler_factory=Greedy,
        on_unused_pages=lambda _: in_flight.append(runner.submitted - len(runner.batches)),
    )
    made.start()
    try:
        first = Sink()  # at its end the first period begins
        made.submit(params("Once", 2), first)
        first.wait()
        # Two that go on without a pause, and four that end soon with pages behind theirs.
        sinks = [Sink() for _ in range(6)]
        for number, sink in enumerate(sinks):
            text, count = ("Once", 50) if number < 2 else ("a" * 40, 2)
            made.submit(params(text, count, prefix_cache=False), sink)
        for sink in sinks:
            sink.wait()
    finally:
        assert made.stop(finish=False)
        runner.thread.shutdown()
    assert in_flight, "no pages were given back"
    assert set(in_flight) == {0}


def test_cancelling_in_flight_takes_effect_at_once() -> None:
    runner = Staged(2, gate=threading.Event())
    with staged(runner) as e:
        sink, other = Sink(), Sink()
        handle = e.submit(params("ab", 50), sink)
        wait_for(lambda: runner.submitted == 1)
        handle.cancel()
        assert sink.error.reason == "CANCELLED"
        assert not e.idle, "its step is in flight still"
        e.submit(params("cd", 5), other)
        assert runner.gate is not None
        runner.gate.set()
        assert other.wait().tokens == expected((BOS, *b"cd"), 5)
        assert sink.tokens == []
        wait_for(lambda: e.idle)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_suspension_waits_for_what_is_in_flight(depth: int) -> None:
    runner = Staged(depth, gate=threading.Event(), max_step_tokens=8)
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_step_tokens=8, max_running=4)
    with staged(runner, limits) as e:
        sink = Sink()
        e.submit(params("a" * 7, 9), sink)  # one step for the prompt
        wait_for(lambda: runner.submitted == 1)
        suspended = e.suspend(lost())
        wait_for(lambda: e.commands == 0)
        assert not suspended.is_set()
        assert runner.gate is not None
        runner.gate.set()
        assert suspended.wait(30)
        assert len(runner.batches) == runner.submitted == 1
        assert sink.tokens == expected((BOS, *b"a" * 7), 1), "what was in flight counts"
        runner.cache.clear()
        e.resume()
        assert sink.wait().tokens == expected((BOS, *b"a" * 7), 9)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_worker_lost_with_batches_in_flight_pauses_all(depth: int) -> None:
    runner = Staged(depth, gate=threading.Event(), max_step_tokens=8)
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_step_tokens=8, max_running=4)
    with staged(runner, limits) as e:
        sinks = [Sink(), Sink()]
        e.submit(params("a" * 40, 5), sinks[0])
        wait_for(lambda: runner.submitted == depth)
        e.submit(params("b", 5), sinks[1])
        runner.fail_with = lost()
        assert runner.gate is not None
        runner.gate.set()
        wait_for(lambda: len(runner.batches) == runner.submitted == depth)
        time.sleep(0.05)
        assert runner.submitted == depth, "nothing runs until the cluster is back"
        assert not any(sink.events for sink in sinks)
        runner.cache.clear()
        e.resume()
        assert sinks[0].wait().tokens == expected((BOS, *b"a" * 40), 5)
        assert sinks[1].wait().tokens == expected((BOS, *b"b"), 5)


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), HearthError(Reason.BAD_STEP, "oh")])
def test_another_error_in_flight_ends_all_after_the_others_are_done(error: Exception) -> None:
    runner = Staged(3, gate=threading.Event(), max_step_tokens=8, fail_with=error)
    limits = Limits(context_size=64, max_pages=64, page_size=4, max_step_tokens=8, max_running=4)
    with staged(runner, limits) as e:
        sink = Sink()
        e.submit(params("a" * 40, 5), sink)
        wait_for(lambda: runner.submitted == 3)
        assert runner.gate is not None
        runner.gate.set()
        assert "oh" in sink.error.message
        assert len(runner.batches) == 3
        again = Sink()
        e.submit(params("ab", 5), again)
        assert again.wait().tokens == expected((BOS, *b"ab"), 5)


def test_stop_waits_for_batches_in_flight() -> None:
    runner = Staged(2, gate=threading.Event())
    with staged(runner) as e:
        sink = Sink()
        e.submit(params("ab", 5), sink)
        wait_for(lambda: runner.submitted == 1)
        threading.Timer(0.05, runner.gate.set).start()  # type: ignore[union-attr]
        assert e.stop(finish=False)
        assert sink.error.reason == "SHUTTING_DOWN"
        assert len(runner.batches) == 1


# Sampling.


def test_rows_that_are_not_finite_end_their_request_only() -> None:
    """Also rows of prefill, which have no logits: their keys and values are spoilt."""

    class Rows(FakeRunner):
        def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
            bad = {row: "nas:1" for row, token in enumerate(batch.tokens) if token == ord("x")}
            return replace(super().read(batch, tables), not_finite=bad)

    e = Engine(Rows(), ByteTokenizer(), Limits(64, 64, 4, max_step_tokens=5, max_running=4))
    e.start()
    bad, good, late = Sink(), Sink(), Sink()
    with e.held():
        e.submit(params("abcxefghijkl", 5), bad)
        e.submit(params("ab", 5), good)
    assert good.wait().tokens == expected((BOS, *b"ab"), 5)
    assert bad.error.reason == "MODEL_ERROR"
    assert bad.error.message.startswith(
        "the model's activations are not finite at position 4 on worker nas:1; the weights may be"
    )
    assert bad.error.metadata == {"position": "4", "worker": "nas:1"}
    e.submit(params("ab", 5), late)
    assert late.wait().tokens == expected((BOS, *b"ab"), 5)
    assert e.stop()


def test_rows_of_rejected_drafts_that_are_not_finite_end_nothing() -> None:
    class Rows(FakeRunner):
        """Wrong drafts make infinities; of accepted ones the first time."""

        once: ClassVar[list[int]] = []

        def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
            bad = {}
            for row, token in enumerate(batch.tokens):
                if token == ord("!") or (row and token == ord("f") and not self.once):
                    self.once.extend([row] if token == ord("f") else [])
                    bad[row] = "nas:1"
            return replace(super().read(batch, tables), not_finite=bad)

    class Drafts(Speculation):
        def propose(self, scheduler: Scheduler, forced: object = None) -> None:
            for sequence in scheduler.decoding():
                said = len(sequence.tokens) - 3
                scheduler.propose(sequence.seq_id, b"abcdefghij"[said : said + 2] + b"!")

    runner = Rows(script("abcdefghij", "ab"))
    e = Engine(runner, ByteTokenizer(), LIMITS, speculation=Drafts())
    e.start()
    sink = Sink()
    e.submit(params("ab", 10), sink)
    assert sink.wait().text == "abcdefghij"
    assert runner.once
    assert e.stop()


def test_with_several_steps_in_flight_a_step_takes_the_time_that_it_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    steps: list[Future[StepOutput]] = []

    class Slow(FakeRunner):
        depth = 3

        def submit(self, *_: object) -> Future[StepOutput]:
            steps.append(Future())
            return steps[-1]

    ignored: Callable[..., object] = lambda *_: None  # noqa: E731
    made = Flights(Slow(), Delivery(None, ignored), ignored, ignored, lambda: None, None)
    empty = Batch((), (), (), 0)
    for begun in (1.0, 2.0, 3.0):
        now = begun
        made.begin(empty)
    seconds = []
    for ended, step in zip((11.0, 13.0, 14.0), steps, strict=True):
        now = ended
        step.set_result(StepOutput(np.empty((0, 1), np.float32)))
        seconds.append(made.finish()[2])
    assert seconds == [10.0, 2.0, 1.0]
    now = 20.0
    made.begin(empty)
    steps[-1].set_result(StepOutput(np.empty((0, 1), np.float32)))
    now = 21.0
    assert made.finish()[2] == 1.0


def test_a_sampler_that_fails_ends_its_request_only() -> None:
    class Rows(FakeRunner):
        """After the letter x every logit is not a number."""

        def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
            output = super().read(batch, tables)
            logits = output.logits.copy()
            rows = iter(range(len(logits)))
            for step in batch.sequences:
                for _ in range(step.outputs):
                    logits[next(rows)] *= np.nan if ord("x") in step.tokens else 1
            return StepOutput(logits)

    pytest.importorskip("hearth._native")
    e = Engine(Rows(), ByteTokenizer(), LIMITS)
    e.start()
    bad, good = Sink(), Sink()
    with e.held():
        e.submit(params("x", 5), bad)
        e.submit(params("ab", 5), good)
    assert good.wait().tokens == expected((BOS, *b"ab"), 5)
    assert bad.error.reason == "INTERNAL"
    assert "no token could be sampled after 0 of this request: RuntimeError" in bad.error.message
    assert e.stop()


class Fixed:
    """A sampler that draws what it is given, and remembers what it accepts."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)
        self.accepted: list[int] = []

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        return 0.0, 0, ahead

    def sample(self, logits: Logits, ids: Ids | None = None, tails: Tails | None = None) -> int:
        return next(self.tokens)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def accept_prompt(self, tokens: Ids) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("drawn", "tokens"),
    [
        ([7, 8, 9, 5], (7, 8, 9, 5)),  # every draft, and one more
        ([7, 8, 1, 5], (7, 8, 1)),
        ([1, 8, 9, 5], (1,)),
    ],
)
def test_drafts_are_accepted_up_to_the_first_that_is_not_drawn(
    drawn: list[int], tokens: tuple[int, ...]
) -> None:
    step = SequenceStep(1, (6, 7, 8, 9), 20, 0, (0,), 4)
    sampler = Fixed(drawn)
    assert sample(step, np.zeros((4, 10), np.float32), None, sampler) == tokens
    assert tuple(sampler.accepted) == tokens


def test_the_last_row_of_a_prompt_has_no_drafts() -> None:
    step = SequenceStep(1, (6, 7, 8, 9), 20, 0, (0,), 1)
    assert sample(step, np.zeros((1, 10), np.float32), None, Fixed([3])) == (3,)


def test_preemptions_are_counted() -> None:
    metrics = RootMetrics()
    limits = Limits(context_size=40, max_pages=10, page_size=4, max_step_tokens=8, max_running=3)
    e = Engine(FakeRunner(), ByteTokenizer(), limits, sampler_factory=Greedy, metrics=metrics)
    e.start()
    sinks = [Sink() for _ in range(3)]
    with e.held():
        for i, sink in enumerate(sinks):
            e.submit(params("abc"[i] * 5, 30), sink)
    for i, sink in enumerate(sinks):
        assert sink.wait().tokens == expected((BOS, *b"abc"[i : i + 1] * 5), 30)
    assert e.stop()
    assert (metrics.registry.get_sample_value("hearth_preemptions_total") or 0) > 0


def wait_for(ready: Callable[[], bool]) -> None:
    for _ in range(3000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")
