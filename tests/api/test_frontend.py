"""The frontend without a transport: values in, deltas and Done out, HearthError for the rest."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import BOS, EOS, TEMPLATE, ByteTokenizer, FakeRunner, Root, expected, script

from hearth.common.errors import HearthError, Reason
from hearth.root.api.answer import Answer
from hearth.root.api.frontend import Frontend, Generation
from hearth.root.api.prompt import Conversation, Input, Prompt, TokenIds, input_ids
from hearth.root.engine.mailbox import Delta, Done, Waiting
from hearth.root.engine.params import Sampling
from hearth.root.scheduling.batch import FinishReason
from hearth.v1 import root_pb2

T = TypeVar("T")
Scene = Callable[[Root], Awaitable[T]]


def play(scene: Scene[T], root: Root | None = None) -> T:
    """Run a scene with an engine that runs, on an event loop of its own; nothing stays open."""
    root = root or Root()

    async def whole() -> T:
        result = await asyncio.wait_for(_awaited(scene(root)), 60)
        assert not root.frontend._answers
        assert not root.frontend._watchers
        return result

    root.engine.start()
    try:
        return asyncio.run(whole())
    finally:
        if root.runner.gate is not None:
            root.runner.gate.set()
        root.frontend.close()
        assert root.engine.stop(finish=False)


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def long_root(**more: Any) -> Root:
    """A root whose answers may be long; each step takes 10 ms unless it waits for a gate."""
    runner = more.pop("runner", None) or FakeRunner(seconds=0.01)
    return Root(runner, context_size=4096, max_pages=2000, **more)


async def events_of(stream: AsyncIterator[Delta | Waiting | Done]) -> tuple[str, list[int], Done]:
    """The text and tokens of all deltas, and the Done that ends them."""
    text, tokens = "", list[int]()
    async for event in stream:
        if isinstance(event, Done):
            assert [event async for event in stream] == []
            return text, tokens, event
        assert isinstance(event, Delta)
        text += event.text
        tokens += event.token_ids
    raise AssertionError("the stream ended without Done")


async def problem(work: Awaitable[Any]) -> HearthError:
    with pytest.raises(HearthError) as error:
        await work
    return error.value


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # bounded by `play`
        await asyncio.sleep(0.005)


def test_an_answer_streams_deltas_then_done() -> None:
    async def scene(root: Root) -> None:
        text, tokens, done = await events_of(root.frontend.generate(Generation(Prompt("ab"), 5)))
        assert tokens == expected((BOS, *b"ab"), 5)
        assert text == bytes(tokens).decode()
        assert done.finish_reason is FinishReason.LENGTH
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 5)

    play(scene)


def test_requests_run_together_and_each_gets_its_own_tokens() -> None:
    async def scene(root: Root) -> None:
        prompts = ["", "a", "bc", "def", "ghij"]
        streams = [root.frontend.generate(Generation(Prompt(p), 9)) for p in prompts]
        results = await asyncio.gather(*map(events_of, streams))
        for prompt, (_, tokens, _) in zip(prompts, results, strict=True):
            assert tokens == expected((BOS, *prompt.encode()), 9)

    play(scene)


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        (Prompt(""), (BOS,)),
        (TokenIds([97, 98]), (97, 98)),
        (
            Conversation(iter([{"role": "user", "content": "hi"}])),
            (BOS, *b"[user]hi", EOS, *b"[assistant]"),
        ),
    ],
)
def test_the_three_inputs(given: Input, prompt: tuple[int, ...]) -> None:
    async def scene(root: Root) -> None:
        with await root.frontend.submit(Generation(given, 1)) as answer:
            assert answer.prompt_tokens == len(prompt)
            await events_of(answer)
        assert root.runner.batches[0].tokens == prompt

    play(scene)


def test_tools_reach_the_chat_template() -> None:
    template = "{{ tools[0].function.name }}:" + TEMPLATE
    messages = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "clock"}}
    ids = input_ids(ByteTokenizer(template), Conversation(messages, [tool]), 64)
    assert bytes(t for t in ids if t < BOS).startswith(b"clock:")


BAD: list[tuple[Input, Reason, str]] = [
    (Prompt("a" * 64), Reason.PROMPT_TOO_LONG, "65 tokens and the context 64 positions"),
    (Prompt("a" * 2049), Reason.PROMPT_TOO_LONG, "the prompt has 2049 bytes, and at most 2048"),
    (Prompt("\ud800"), Reason.INVALID_ARGUMENT, "lone surrogate"),
    (TokenIds(range(65)), Reason.PROMPT_TOO_LONG, "65 token ids were given"),
    (TokenIds([1, 999]), Reason.INVALID_ARGUMENT, "token id 999 at index 1"),
    (TokenIds([]), Reason.INVALID_ARGUMENT, "0 tokens"),
    (Conversation([]), Reason.INVALID_ARGUMENT, "0 messages"),
    (
        Conversation([{"role": "user", "content": "\udfff"}]),
        Reason.INVALID_ARGUMENT,
        "lone surrogate",
    ),
    (
        Conversation([{"role": "user", "content": "x" * 3000}]),
        Reason.PROMPT_TOO_LONG,
        "the conversation up to message 1 has 3012 bytes, and at most 2048",
    ),
]


@pytest.mark.parametrize(("given", "reason", "text"), BAD)
def test_bad_input_is_refused_and_leaves_nothing(given: Input, reason: Reason, text: str) -> None:
    async def scene(root: Root) -> None:
        error = await problem(events_of(root.frontend.generate(Generation(given))))
        assert (error.reason, text in error.message) == (reason, True), error.message
        # The next one runs.
        await events_of(root.frontend.generate(Generation(Prompt("a"), 1)))

    play(scene)


def test_values_out_of_range_are_refused_when_the_request_is_made() -> None:
    with pytest.raises(HearthError, match="17 stop texts"):
        Generation(Prompt(""), stop=("x",) * 17)
    with pytest.raises(HearthError, match="max_tokens is -1"):
        Generation(Prompt(""), -1)
    with pytest.raises(HearthError, match="temperature is 101"):
        Generation(Prompt(""), sampling=Sampling(temperature=101))


def test_a_conversation_is_read_only_as_far_as_it_could_fit() -> None:
    read = 0

    def endless() -> Iterable[dict[str, str]]:
        nonlocal read
        while True:
            read += 1
            yield {"role": "", "content": ""}

    with pytest.raises(HearthError, match="at most 2048 are read"):
        input_ids(ByteTokenizer(TEMPLATE), Conversation(endless()), 64)
    assert read == 2048 // 8 + 1


def test_closing_the_stream_ends_the_work_within_a_step() -> None:
    async def scene(root: Root) -> None:
        assert root.runner.gate is not None
        async with aclosing(root.frontend.generate(Generation(Prompt("ab"), 50))) as stream:
            reader = asyncio.ensure_future(anext(stream))
            await until(root.runner.entered.is_set)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        root.runner.gate.set()
        await until(lambda: not root.engine.busy)
        assert len(root.runner.batches) == 1

    play(scene, Root(FakeRunner(gate=threading.Event())))


def test_cancelling_while_the_prompt_is_tokenized_leaves_nothing() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(ByteTokenizer):
        def _encode(self, text: str, parse_special: bool) -> list[int]:
            entered.set()
            assert leave.wait(30)
            return super()._encode(text, parse_special)

    async def scene(root: Root) -> None:
        root.engine.tokenizer = Slow()
        task = asyncio.ensure_future(root.frontend.submit(Generation(Prompt("ab"), 5)))
        await until(entered.is_set)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], BaseException)
        late = root.frontend.submit(
            Generation(Prompt("ab"), 5), deadline=asyncio.get_running_loop().time() + 0.05
        )
        error = await problem(late)
        assert (error.reason, "not queued" in error.message) == (Reason.DEADLINE, True)
        leave.set()
        assert not root.engine.busy
        assert not root.runner.batches

    play(scene)


def test_the_deadline_ends_the_request() -> None:
    async def scene(root: Root) -> None:
        deadline = asyncio.get_running_loop().time() + 0.2
        stream = root.frontend.generate(Generation(Prompt("ab"), 4000), deadline=deadline)
        error = await problem(events_of(stream))
        assert error.reason == Reason.DEADLINE
        await until(lambda: not root.engine.busy)
        assert len(root.runner.batches) < 4000

    play(scene, long_root())


def test_a_deadline_in_the_past_is_refused() -> None:
    async def scene(root: Root) -> None:
        deadline = asyncio.get_running_loop().time() - 1
        error = await problem(root.frontend.submit(Generation(Prompt("a"), 5), deadline=deadline))
        assert error.reason == Reason.DEADLINE
        assert not root.runner.batches

    play(scene)


def test_a_slow_reader_holds_up_nobody_and_loses_nothing() -> None:
    text = "x" * 2000

    async def scene(root: Root) -> None:
        with await root.frontend.submit(Generation(Prompt(""))) as slow:
            other = await events_of(root.frontend.generate(Generation(Prompt(""), 100)))
            assert other[2].usage.completion_tokens == 100
            await until(lambda: not root.engine.busy)
            events = [event async for event in slow]
        assert len(events) == 2, "deltas that wait are merged"
        assert isinstance(events[0], Delta)
        assert events[0].text == text
        assert isinstance(events[1], Done)
        assert events[1].finish_reason is FinishReason.EOS

    play(scene, long_root(runner=FakeRunner(script(text))))


def test_open_streams_are_bounded() -> None:
    async def scene(root: Root) -> None:
        frontend = root.frontend
        async with aclosing(frontend.watch()) as watch:
            await anext(watch)
            with await frontend.submit(Generation(Prompt("ab"), 5)):
                error = await problem(frontend.submit(Generation(Prompt("ab"), 5)))
                assert (error.reason, error.metadata["maxStreams"]) == (Reason.QUEUE_FULL, "2")
                assert (await problem(anext(frontend.watch()))).reason == Reason.QUEUE_FULL
            with await frontend.submit(Generation(Prompt("ab"), 5)):
                pass

    play(scene, Root(FakeRunner(gate=threading.Event()), max_streams=2))


def test_a_full_queue_refuses_before_there_is_an_answer() -> None:
    """So that a status can say it."""

    async def scene(root: Root) -> None:
        frontend, limits = root.frontend, root.engine.limits
        answers = [
            await frontend.submit(Generation(Prompt("ab"), 5))
            for _ in range(limits.max_running + limits.max_waiting)
        ]
        error = await problem(frontend.submit(Generation(Prompt("ab"), 5)))
        assert (error.reason, error.metadata.keys()) == (Reason.QUEUE_FULL, {"running", "waiting"})
        for answer in answers:
            answer.close()
        gate.set()

    gate = threading.Event()
    try:
        play(scene, Root(FakeRunner(gate=gate), max_running=1, max_waiting=1))
    finally:
        gate.set()


def test_a_cluster_that_is_not_ready_refuses_before_there_is_an_answer() -> None:
    async def scene(root: Root) -> None:
        cause = HearthError(Reason.WORKER_LOST, "worker nas:7717 was lost", {"worker": "nas:7717"})
        root.engine.suspend(cause, refuse=True).wait(30)
        error = await problem(root.frontend.submit(Generation(Prompt("ab"), 5)))
        assert error.reason == Reason.CLUSTER_NOT_READY
        assert "nas:7717" in error.message

    play(scene, Root(FakeRunner()))


def test_a_lost_worker_ends_the_request_with_its_error() -> None:
    lost = HearthError(Reason.WORKER_LOST, "worker nas:7717 was lost", {"worker": "nas:7717"})

    async def scene(root: Root) -> None:
        error = await problem(events_of(root.frontend.generate(Generation(Prompt("ab"), 5))))
        assert (error.reason, error.metadata["worker"]) == (Reason.WORKER_LOST, "nas:7717")
        error = await problem(events_of(root.frontend.generate(Generation(Prompt("ab"), 5))))
        assert error.reason == Reason.CLUSTER_NOT_READY
        root.engine.resume()
        await events_of(root.frontend.generate(Generation(Prompt("ab"), 5)))

    play(scene, Root(FakeRunner(fail_with=lost)))


def test_shutdown_lets_answers_finish_and_refuses_new_streams() -> None:
    async def scene(root: Root) -> None:
        assert root.runner.gate is not None
        frontend = root.frontend
        async with aclosing(frontend.watch()) as watch:
            await anext(watch)
            with await frontend.submit(Generation(Prompt("ab"), 5)) as running:
                ending = asyncio.ensure_future(frontend.shutdown(30))
                assert (await problem(anext(watch))).reason == Reason.SHUTTING_DOWN
                refused = await problem(frontend.submit(Generation(Prompt("ab"), 5)))
                assert refused.reason == Reason.SHUTTING_DOWN
                assert (await problem(anext(frontend.watch()))).reason == Reason.SHUTTING_DOWN
                root.runner.gate.set()
                assert (await events_of(running))[2].finish_reason is FinishReason.LENGTH
                assert not ending.done()
            await ending

    play(scene, Root(FakeRunner(gate=threading.Event())))


def test_shutdown_ends_what_outlasts_its_grace() -> None:
    async def scene(root: Root) -> None:
        with await root.frontend.submit(Generation(Prompt("ab"), 4000)) as running:
            assert isinstance(await anext(running), Delta)
            await root.frontend.shutdown(0)
            assert (await problem(events_of(running))).reason == Reason.SHUTTING_DOWN
            await until(lambda: not root.engine.busy)

    play(scene, long_root())


def test_tokenize_and_detokenize() -> None:
    async def scene(root: Root) -> None:
        text = "Grüße 🔥"
        assert await root.frontend.tokenize(text, add_special=True) == [BOS, *text.encode()]
        ids = await root.frontend.tokenize(text, add_special=False)
        assert await root.frontend.detokenize(ids) == text
        error = await problem(root.frontend.detokenize([0, 999]))
        assert "token id 999 at index 1" in error.message
        error = await problem(root.frontend.tokenize("x" * 2049, add_special=False))
        assert error.reason == Reason.PROMPT_TOO_LONG

    play(scene)


def test_watch_shows_each_state_and_never_skips_the_last() -> None:
    async def scene(root: Root) -> None:
        async with aclosing(root.frontend.watch()) as watch:
            assert (await anext(watch)).state == root_pb2.CLUSTER_STATE_SERVING
            for number in range(20):
                root.cluster.change(root_pb2.CLUSTER_STATE_DEGRADED, f"reason {number}")
            seen = [await anext(watch)]
            while seen[-1].reason != "reason 19":
                seen.append(await anext(watch))
        assert root.frontend.cluster() == seen[-1]
        assert not root.cluster.callbacks

    play(scene)


def test_drain_is_passed_on() -> None:
    asked: list[tuple[str, bool]] = []

    def drain(worker: str, undo: bool) -> "Future[root_pb2.ClusterStatus]":
        asked.append((worker, undo))
        future: Future[root_pb2.ClusterStatus] = Future()
        future.set_result(root_pb2.ClusterStatus(epoch=7))
        return future

    async def scene(root: Root) -> None:
        error = await problem(root.frontend.drain_worker("nas"))
        assert error.reason == Reason.CLUSTER_NOT_READY
        frontend = Frontend(root.engine, root.frontend._model, root.cluster, drain=drain)
        assert (await frontend.drain_worker("nas", undo=True)).epoch == 7
        assert asked == [("nas", True)]
        frontend.close()

    play(scene)


def test_model_facts() -> None:
    async def scene(root: Root) -> None:
        model = root.frontend.model()
        assert (model.name, model.context_size, model.weight_type) == ("tiny", 64, "q4_0")
        assert model.has_chat_template

    play(scene)


def test_each_request_writes_one_line_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hearth.root.api")

    async def scene(root: Root) -> None:
        done = Generation(Prompt("ab"), 5, request_id="one")
        await events_of(root.frontend.generate(done))
        await problem(root.frontend.submit(Generation(TokenIds(range(65)), request_id="two")))
        with await root.frontend.submit(Generation(Prompt("ab"), request_id="three")):
            pass
        with await root.frontend.submit(Generation(Prompt("a"), 1)) as drawn:
            await events_of(drawn)
            assert len(drawn.request_id) == 12

    play(scene)
    lines = [record.message for record in caplog.records if record.message.startswith("request")]
    assert lines[0].startswith("request one: 3 prompt tokens, 5 generated; queue 0.")
    assert lines[0].endswith("; LENGTH")
    assert lines[1].startswith("request two: 0 prompt tokens, 0 generated; 0.")
    assert lines[1].endswith("; PROMPT_TOO_LONG")
    assert lines[2].startswith("request three: 3 prompt tokens, ")
    assert lines[2].endswith("; CANCELLED")
    assert len(lines) == 4


@given(st.lists(st.sampled_from(["read", "cancel", "fail"]), max_size=4))
def test_an_answer_ends_once_however_it_ends(actions: list[str]) -> None:
    """Any order of reading, cancelling and failing: at most one end, and the slot is free."""
    closed: list[Answer] = []

    async def scene() -> None:
        answer = Answer("id", None, closed.append)
        answer.mailbox(Delta("x", (1,)))
        ends = 0
        for action in actions:
            if action == "read":
                try:
                    event = await asyncio.wait_for(anext(answer), 5)
                    assert isinstance(event, Delta)
                    answer.mailbox(Delta("y", (2,)))
                except (HearthError, StopAsyncIteration) as end:
                    ends += isinstance(end, HearthError)
            elif action == "cancel":
                answer.close()
            else:
                answer.fail(HearthError(Reason.SHUTTING_DOWN, "the root is shutting down"))
        assert ends <= 1
        answer.close()
        assert closed == [answer]

    asyncio.run(scene())
