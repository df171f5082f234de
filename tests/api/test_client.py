"""The SDK, sync and async, against a real server on the loopback with a stand-in for the model."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving_fakes import BOS, EOS, FakeRunner, Root, expected, script

from hearth.client import (
    AsyncClient,
    Cancelled,
    Client,
    ClusterUnavailable,
    DeadlineExceeded,
    FinishReason,
    HearthError,
    InvalidArgument,
    NoChatTemplate,
    QueueFull,
    Unreachable,
    WorkerLost,
)
from hearth.client.messages import sample_options
from hearth.common.errors import HearthError as ServiceError
from hearth.common.errors import Reason
from hearth.v1 import root_pb2

LONG: dict[str, Any] = {"context_size": 4096, "max_pages": 2000}


@pytest.fixture
def root() -> Iterator[Root]:
    with Root() as running:
        yield running


def test_generate(root: Root) -> None:
    with Client(root.address) as client, client.generate("ab", max_tokens=8) as stream:
        assert (stream.finish_reason, stream.usage) == (None, None)
        text = "".join(stream)
        assert stream.token_ids == expected((BOS, *b"ab"), 8)
        assert text == bytes(stream.token_ids).decode()
        assert stream.finish_reason is FinishReason.LENGTH
        assert stream.usage is not None
        assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 8)


def test_samples_of_a_prompt_are_prefilled_once() -> None:
    prompt = "abcdefgh" * 25
    with Root(FakeRunner(), **LONG) as root, Client(root.address) as client:
        one = client.generate_text(prompt, max_tokens=4)
        root.runner.batches.clear()
        assert client.generate_samples(3, prompt + "x", max_tokens=4, seed=5) != [one] * 3
        rows = sum(len(batch.tokens) for batch in root.runner.batches)
        assert rows < 2 * len(prompt)
        assert client.generate_samples(1, prompt, max_tokens=4) == [one]
        tokens = iter([BOS, 97, 98])
        assert len(set(client.generate_samples(2, tokens=tokens, max_tokens=4))) == 1
        for bad in (0, 65):
            with pytest.raises(ValueError, match=f"samples is {bad}; it must be in 1 to 64"):
                client.generate_samples(bad, prompt)


def test_samples_have_seeds_of_their_own() -> None:
    assert [each["seed"] for each in sample_options(3, {"seed": (1 << 64) - 2})] == [
        (1 << 64) - 2,
        (1 << 64) - 1,
        0,
    ]
    assert sample_options(2, {"top_k": 3}) == [{"top_k": 3}] * 2


async def _async_samples(address: str) -> list[str]:
    async with AsyncClient(address) as client:
        return await client.generate_samples(3, tokens=iter([BOS, 97, 98]), max_tokens=4)


def test_async_samples(root: Root) -> None:
    with Client(root.address) as client:
        text = client.generate_text("ab", max_tokens=4)
    assert asyncio.run(_async_samples(root.address)) == [text] * 3


def test_a_client_is_told_why_no_text_comes() -> None:
    states = (
        (root_pb2.CLUSTER_STATE_DEGRADED, "waiting for pi2"),
        (root_pb2.CLUSTER_STATE_FORMING, "dialling workers"),
        (root_pb2.CLUSTER_STATE_SERVING, ""),
    )
    gate = threading.Event()
    with Root(FakeRunner(gate=gate)) as root, Client(root.address) as client:
        reasons: list[str] = []

        def on_waiting(reason: str) -> None:
            reasons.append(reason)
            if len(reasons) < len(states):
                root.cluster.change(*states[len(reasons)])
            else:
                gate.set()

        stream = client.generate("ab", max_tokens=8, on_waiting=on_waiting)
        root.runner.entered.wait(30)
        root.cluster.change(*states[0])
        text = "".join(stream)
        assert reasons == [
            "waiting for pi2",
            "the model is being divided over the nodes that are there",
            "",
        ]
        assert text == bytes(stream.token_ids).decode()


def test_a_request_has_an_id_on_both_sides(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    with Client(root.address) as client, caplog.at_level("INFO", "hearth.root.api"):
        stream = client.generate("ab", max_tokens=2, request_id="my.request-1")
        assert "".join(stream)
        assert stream.request_id == "my.request-1"
        drawn = client.generate("ab", max_tokens=2)
        assert "".join(drawn)
        for bad in ("a b", "x" * 65, "a/b"):
            with pytest.raises(InvalidArgument, match="hearth-request-id"):
                client.generate_text("ab", request_id=bad)
    lines = [record for record in caplog.records if record.message.startswith("request ")]
    assert [record.message.split()[1].rstrip(":") for record in lines] == [
        "my.request-1",
        drawn.request_id,
    ]
    fields = lines[0].__dict__["fields"]
    assert fields["request_id"] == "my.request-1"
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (3, 2)
    assert fields["outcome"] == "LENGTH"


def test_inputs_and_options(root: Root) -> None:
    with Client(root.address) as client:
        by_text = client.generate_text("ab", max_tokens=4)
        assert client.generate_text(tokens=[BOS, 97, 98], max_tokens=4) == by_text
        assert client.generate_text(tokens=(t for t in (BOS, 97, 98)), max_tokens=4) == by_text
        root.runner.batches.clear()
        client.generate_text(
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=1,
            temperature=0.5,
            top_k=3,
            top_p=0.9,
            min_p=0.1,
            repetition_penalty=1.1,
            seed=7,
            stop="zz",
            ignore_eos=True,
            timeout=20,
        )
        assert root.runner.batches[0].tokens == (BOS, *b"[user]hi", EOS, *b"[assistant]")
        whole = client.generate_text("ab", max_tokens=30)
        stream = client.generate("ab", max_tokens=30, stop=[whole[10:13], "~~"])
        assert "".join(stream) == whole[: whole.index(whole[10:13])]
        assert stream.finish_reason is FinishReason.STOP


def test_exactly_one_input() -> None:
    with Client("127.0.0.1:1") as client:
        cases: list[dict[str, Any]] = [
            {},
            {"prompt": "a", "tokens": [1]},
            {"messages": [], "tokens": []},
        ]
        for inputs in cases:
            with pytest.raises(TypeError, match="exactly one of prompt"):
                client.generate(**inputs)
        with pytest.raises(TypeError, match="no option max_token"):
            client.generate("a", max_token=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"temperature": float("nan")}, r"temperature is nan; .* \[0, 100\]"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": "many"}, "top_k is 'many'"),
        ({"max_tokens": -5}, "-5"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"stop": ["x"] * 17}, "17 stop texts"),
        ({"stop": ["\ud83d"]}, "(?i)surrogate|utf-?8"),
    ],
)
def test_bad_values(root: Root, options: dict[str, Any], message: str) -> None:
    with Client(root.address) as client, pytest.raises(InvalidArgument, match=message):
        client.generate_text("ab", **options)


def test_bad_inputs(root: Root) -> None:
    with Client(root.address) as client:
        with pytest.raises(InvalidArgument, match="context 64 positions") as error:
            client.generate_text("a" * 100)
        assert error.value.reason == "PROMPT_TOO_LONG"
        assert error.value.metadata == {"promptTokens": "101", "contextSize": "64"}
        with pytest.raises(InvalidArgument, match=r"(?i)surrogate|utf-?8"):
            client.generate_text("ab\ud83d")
        with pytest.raises(InvalidArgument, match=r"(?i)surrogate|utf-?8"):
            client.tokenize("\ud83d")
        with pytest.raises(InvalidArgument, match="token id 300"):
            client.detokenize([300])
        with pytest.raises(InvalidArgument):
            client.detokenize([-1])
        with pytest.raises(InvalidArgument, match="colour"):
            client.generate_text(messages=[{"role": "user", "colour": "red"}])
        assert client.generate_text("ab", max_tokens=1)


def test_the_other_calls(root: Root) -> None:
    with Client(root.address) as client:
        assert client.tokenize("hé") == [BOS, *"hé".encode()]
        assert client.tokenize("hé", add_special=False) == list("hé".encode())
        assert client.detokenize("hé".encode()) == "hé"
        assert client.model().context_size == 64
        assert client.cluster().state == root_pb2.CLUSTER_STATE_SERVING
        watch = client.watch_cluster()
        assert next(watch).state == root_pb2.CLUSTER_STATE_SERVING
        root.cluster.change(root_pb2.CLUSTER_STATE_DEGRADED, "nas is lost")
        assert next(watch).reason == "nas is lost"


def test_no_chat_template() -> None:
    with Root(chat_template=None) as root, Client(root.address) as client:
        with pytest.raises(NoChatTemplate, match="write the prompt as text"):
            client.generate_text(messages=[{"role": "user", "content": "hi"}])


def test_cancel_stops_the_work() -> None:
    with Root(FakeRunner(seconds=0.005), **LONG) as root, Client(root.address) as client:
        stream = client.generate("ab", max_tokens=4000)
        next(stream)
        stream.cancel()
        made = len(root.runner.batches)
        with pytest.raises(Cancelled):
            list(stream)
        # What passes until the root hears of it, not 4,000 steps.
        assert root.steps_when_quiet() <= made + 40
        assert root.engine.idle


def test_leaving_the_context_manager_early_cancels() -> None:
    with Root(FakeRunner(seconds=0.005), **LONG) as root, Client(root.address) as client:
        with client.generate("ab", max_tokens=4000) as stream:
            next(stream)
        assert root.steps_when_quiet() < 4000
        assert root.engine.idle


def test_timeout() -> None:
    with Root(FakeRunner(seconds=0.01), **LONG) as root, Client(root.address) as client:
        with pytest.raises(DeadlineExceeded, match="timeout"):
            client.generate_text("ab", max_tokens=4000, timeout=0.3)
        assert root.steps_when_quiet() < 4000


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # What waited for this long would meet the test's own timeout.
    with Client(f"127.0.0.1:{port}", connect_timeout=3600) as client:
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port} .* check that `hearth root`"):
            client.model()
        with pytest.raises(Unreachable):
            list(client.generate("a"))


def test_something_else_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Client(f"127.0.0.1:{port}", connect_timeout=0.5) as client:
            with pytest.raises(Unreachable):
                client.model()


def test_queue_full() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, max_streams=1) as root, Client(root.address) as client:
        held = client.generate("ab")
        assert runner.entered.wait(20)
        with pytest.raises(QueueFull, match="try again later"):
            client.generate_text("ab")
        held.cancel()


def test_a_lost_worker() -> None:
    lost = ServiceError(Reason.WORKER_LOST, "worker nas:7717 was lost", {"worker": "nas:7717"})
    with Root(FakeRunner(fail_with=lost)) as root, Client(root.address) as client:
        with pytest.raises(WorkerLost, match="nas:7717") as error:
            client.generate_text("ab")
        assert error.value.metadata == {"worker": "nas:7717"}
        with pytest.raises(ClusterUnavailable, match="not ready: worker nas:7717"):
            client.generate_text("ab")


def test_a_root_that_stops_in_mid_stream() -> None:
    with Root(FakeRunner(seconds=0.01), **LONG) as root, Client(root.address) as client:
        stream = client.generate("ab", max_tokens=4000)
        next(stream)
        root.server.stop(0)
        with pytest.raises(HearthError):
            list(stream)


def test_a_slow_reader_gets_all() -> None:
    text = "Grüße 🔥 " * 50
    with Root(FakeRunner(script(text)), **LONG) as root, Client(root.address) as client:
        stream = client.generate("")
        pieces = [next(stream)]
        root.steps_when_quiet()
        pieces += stream
        assert "".join(pieces) == text
        assert stream.finish_reason is FinishReason.EOS


def test_clients_of_many_threads(root: Root) -> None:
    texts: dict[int, str] = {}
    with Client(root.address) as client:

        def work(i: int) -> None:
            texts[i] = client.generate_text("abcdefgh"[i], max_tokens=20)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(8):
        assert texts[i] == bytes(expected((BOS, b"abcdefgh"[i]), 20)).decode()


def test_async_generate(root: Root) -> None:
    async def use() -> None:
        async with AsyncClient(root.address) as client:
            stream = client.generate("ab", max_tokens=8)
            text = "".join([piece async for piece in stream])
            assert stream.token_ids == expected((BOS, *b"ab"), 8)
            assert text == bytes(stream.token_ids).decode()
            assert stream.finish_reason is FinishReason.LENGTH
            assert stream.usage is not None
            together = await asyncio.gather(
                *(client.generate_text(prompt, max_tokens=20) for prompt in "abcdefgh")
            )
            for prompt, made in zip(b"abcdefgh", together, strict=True):
                assert made == bytes(expected((BOS, prompt), 20)).decode()

    asyncio.run(use())


def test_async_other_calls_and_errors(root: Root) -> None:
    async def use() -> None:
        async with AsyncClient(root.address) as client:
            assert await client.tokenize("hi") == [BOS, *b"hi"]
            assert await client.detokenize(b"hi") == "hi"
            assert (await client.model()).name == "tiny"
            assert (await client.cluster()).state == root_pb2.CLUSTER_STATE_SERVING
            watch = client.watch_cluster()
            assert (await anext(watch)).state == root_pb2.CLUSTER_STATE_SERVING
            root.cluster.change(root_pb2.CLUSTER_STATE_DEGRADED, "nas is lost")
            assert (await anext(watch)).reason == "nas is lost"
            with pytest.raises(InvalidArgument, match="context 64 positions"):
                await client.generate_text("a" * 100)
            with pytest.raises(InvalidArgument, match="token id 300"):
                await client.detokenize([300])
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        async with AsyncClient(f"127.0.0.1:{port}") as nobody:
            with pytest.raises(Unreachable):
                await nobody.model()
            with pytest.raises(Unreachable):
                await nobody.generate_text("a")

    asyncio.run(use())


def test_async_cancel_timeout_and_cancelled_tasks() -> None:
    async def use(root: Root) -> None:
        async with AsyncClient(root.address) as client:
            stream = client.generate("ab", max_tokens=4000)
            await anext(stream)
            stream.cancel()
            with pytest.raises(Cancelled):
                async for _ in stream:
                    pass
            async with client.generate("ab", max_tokens=4000) as left:
                await anext(left)
            with pytest.raises(DeadlineExceeded):
                await client.generate_text("ab", max_tokens=4000, timeout=0.2)
            # The task's own cancellation stays one.
            task = asyncio.create_task(client.generate_text("ab", max_tokens=4000))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(root.steps_when_quiet) < 800
            assert root.engine.idle

    with Root(FakeRunner(seconds=0.005), **LONG) as root:
        asyncio.run(use(root))


def test_the_sdk_imports_nothing_else_of_hearth() -> None:
    import subprocess
    import sys

    code = (
        "import sys, hearth.client; "
        "print(*sorted(m for m in sys.modules if m.startswith('hearth.')))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert all(m.startswith(("hearth.client", "hearth.v1")) for m in out), out
