"""RootService over loopback, with a stand-in for the model: the contract of root.proto."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from serving_fakes import BOS, EOS, FakeRunner, Root, expected, script

from hearth.common.errors import HearthError, Reason
from hearth.root.api.grpc.server import RootServer
from hearth.v1 import common_pb2, root_pb2, root_pb2_grpc

Stub = root_pb2_grpc.RootServiceStub


@pytest.fixture
def root() -> Iterator[Root]:
    with Root() as running:
        yield running


@pytest.fixture
def stub(root: Root) -> Iterator[Stub]:
    with grpc.insecure_channel(root.address) as channel:
        yield Stub(channel)


def request(prompt: str = "ab", max_tokens: int = 5, **more: object) -> root_pb2.GenerateRequest:
    return root_pb2.GenerateRequest(prompt=prompt, max_tokens=max_tokens, **more)  # type: ignore[arg-type]


def info_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    assert info.domain == "hearth"
    return info


def refused(stub: Stub, bad: root_pb2.GenerateRequest, reason: str, code: str) -> str:
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(bad, timeout=20))
    assert error.value.code().name == code
    assert info_of(error.value).reason == reason
    return str(error.value.details())


def test_generate_streams_deltas_then_done(stub: Stub) -> None:
    events = list(stub.Generate(request(), timeout=20))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[-1] == "done"
    assert set(kinds[:-1]) == {"delta"}
    tokens = [token for event in events for token in event.delta.token_ids]
    assert tokens == expected((BOS, *b"ab"), 5)
    assert "".join(event.delta.text for event in events) == bytes(tokens).decode()
    done = events[-1].done
    assert done.finish_reason == root_pb2.FINISH_REASON_LENGTH
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 5)


def test_the_three_inputs(stub: Stub, root: Root) -> None:
    def first_tokens() -> tuple[int, ...]:
        return root.runner.batches[0].tokens

    list(stub.Generate(request("", 1), timeout=20))
    assert first_tokens() == (BOS,)
    root.runner.batches.clear()
    ids = root_pb2.TokenIds(ids=[97, 98])
    list(stub.Generate(root_pb2.GenerateRequest(tokens=ids, max_tokens=1), timeout=20))
    assert first_tokens() == (97, 98)
    root.runner.batches.clear()
    message = root_pb2.ChatMessage(role="user", content="hi")
    talk = root_pb2.Conversation(messages=[message])
    list(stub.Generate(root_pb2.GenerateRequest(conversation=talk, max_tokens=1), timeout=20))
    # The template writes <s> itself; it is there once.
    assert first_tokens() == (BOS, *b"[user]hi", EOS, *b"[assistant]")


def test_bad_requests_are_refused_with_both_numbers(stub: Stub) -> None:
    def invalid(bad: root_pb2.GenerateRequest, reason: str = "INVALID_ARGUMENT") -> str:
        return refused(stub, bad, reason, "INVALID_ARGUMENT")

    long = invalid(request("a" * 64), "PROMPT_TOO_LONG")
    assert "65 tokens and the context 64 positions" in long
    sampling = root_pb2.SamplingParams
    assert "top_p is 0.0; it must be in (0, 1]" in invalid(request(sampling=sampling(top_p=0)))
    assert "temperature is nan" in invalid(request(sampling=sampling(temperature=float("nan"))))
    assert "temperature is 101.0" in invalid(request(sampling=sampling(temperature=101)))
    assert "17 stop texts" in invalid(request(stop=["x"] * 17))
    ids = root_pb2.TokenIds(ids=[1, 999])
    assert "token id 999 at index 1" in invalid(root_pb2.GenerateRequest(tokens=ids))
    assert "0 tokens" in invalid(root_pb2.GenerateRequest(tokens=root_pb2.TokenIds()))
    assert "no input" in invalid(root_pb2.GenerateRequest(max_tokens=1))
    empty = root_pb2.GenerateRequest(conversation=root_pb2.Conversation())
    assert "0 messages" in invalid(empty)


def test_a_message_that_is_not_utf8_is_refused(root: Root) -> None:
    with grpc.insecure_channel(root.address) as channel:
        call: Any = channel.unary_unary("/hearth.v1.RootService/Tokenize")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\x0a\x02\xff\xfe", timeout=20)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "4 bytes cannot be read" in str(error.value.details())
        assert "UTF-8" in str(error.value.details())
        assert info_of(error.value).reason == "INVALID_ARGUMENT"


def test_no_chat_template() -> None:
    with Root(chat_template=None) as root, grpc.insecure_channel(root.address) as channel:
        talk = root_pb2.Conversation(messages=[root_pb2.ChatMessage(role="user", content="hi")])
        bad = root_pb2.GenerateRequest(conversation=talk)
        assert "no chat template" in refused(
            Stub(channel), bad, "NO_CHAT_TEMPLATE", "FAILED_PRECONDITION"
        )
        assert not Stub(channel).GetModel(root_pb2.GetModelRequest()).has_chat_template


def test_tokenize_and_detokenize(stub: Stub) -> None:
    text = "Grüße 🔥"
    ids = stub.Tokenize(root_pb2.TokenizeRequest(text=text, add_special=True)).ids
    assert list(ids) == [BOS, *text.encode()]
    plain = stub.Tokenize(root_pb2.TokenizeRequest(text=text)).ids
    assert list(plain) == list(text.encode())
    assert stub.Detokenize(root_pb2.DetokenizeRequest(ids=ids)).text == text
    with pytest.raises(grpc.RpcError) as error:
        stub.Detokenize(root_pb2.DetokenizeRequest(ids=[0, 4_000_000_000]))
    assert "token id 4000000000 at index 1" in str(error.value.details())
    assert info_of(error.value).metadata["vocabSize"] == "258"


def test_get_model(stub: Stub) -> None:
    model = stub.GetModel(root_pb2.GetModelRequest())
    assert (model.name, model.architecture, model.layers) == ("tiny", "llama", 2)
    assert (model.context_size, model.vocab_size) == (64, 258)
    assert model.weight_type == common_pb2.WEIGHT_TYPE_Q40
    assert model.has_chat_template
    assert not any(model.recommended.ListFields())


def test_get_model_has_the_recommended_sampling(stub: Stub, root: Root) -> None:
    served: Any = root.frontend._model
    found = {"temperature": 0.0, "top_k": 20, "top_p": 0.75}
    root.frontend._model = replace(served, sampling_defaults=found)
    recommended = stub.GetModel(root_pb2.GetModelRequest()).recommended
    assert recommended == root_pb2.RecommendedSampling(temperature=0, top_k=20, top_p=0.75)
    assert recommended.HasField("temperature")
    assert not recommended.HasField("min_p")


def test_watch_cluster_tells_every_state(stub: Stub, root: Root) -> None:
    watch = stub.WatchCluster(root_pb2.WatchClusterRequest(), timeout=20)
    assert next(watch).cluster.state == root_pb2.CLUSTER_STATE_SERVING
    root.cluster.change(root_pb2.CLUSTER_STATE_DEGRADED, "worker nas:7717 was lost")
    status = next(watch).cluster
    assert (status.state, status.reason) == (
        root_pb2.CLUSTER_STATE_DEGRADED,
        "worker nas:7717 was lost",
    )
    assert stub.GetCluster(root_pb2.GetClusterRequest()).cluster == status
    watch.cancel()
    for _ in range(100):
        if len(root.cluster.callbacks) == 1:
            return  # the server's own, for health
        time.sleep(0.02)
    raise AssertionError("a cancelled watch is still subscribed")


def test_health_follows_the_cluster(root: Root) -> None:
    answers = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(root.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "hearth.v1.RootService"):
            check = health_pb2.HealthCheckRequest(service=service)
            watch = stub.Watch(check, timeout=20)
            assert next(watch).status == answers.SERVING
            root.cluster.change(root_pb2.CLUSTER_STATE_DEGRADED)
            assert next(watch).status == answers.NOT_SERVING
            assert stub.Check(check).status == answers.NOT_SERVING
            root.cluster.change(root_pb2.CLUSTER_STATE_SERVING)
            assert next(watch).status == answers.SERVING
            watch.cancel()


def test_reflection_lists_the_service(root: Root) -> None:
    with grpc.insecure_channel(root.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(stub.ServerReflectionInfo(iter([ask]), timeout=20))
        names = {service.name for service in answer.list_services_response.service}
        assert "hearth.v1.RootService" in names


def test_cancelling_the_stream_stops_the_work_within_a_step() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner) as root, grpc.insecure_channel(root.address) as channel:
        call = Stub(channel).Generate(request(max_tokens=50))
        assert runner.entered.wait(20)
        call.cancel()
        # The cancellation reaches the root while the step is still running.
        for _ in range(200):
            if root.engine.commands:
                break
            time.sleep(0.02)
        assert runner.gate is not None
        runner.gate.set()
        assert root.steps_when_quiet() == 1
        assert root.engine.idle


def test_a_client_that_vanishes_stops_the_work() -> None:
    with Root(FakeRunner(seconds=0.01), context_size=4096, max_pages=2000) as root:
        channel = grpc.insecure_channel(root.address)
        call = Stub(channel).Generate(request(max_tokens=4000))
        next(call)
        channel.close()
        assert root.steps_when_quiet() < 1000
        assert root.engine.idle


def test_the_deadline_stops_the_work() -> None:
    with Root(FakeRunner(seconds=0.01), context_size=4096, max_pages=2000) as root:
        with grpc.insecure_channel(root.address) as channel:
            with pytest.raises(grpc.RpcError) as error:
                list(Stub(channel).Generate(request(max_tokens=4000), timeout=0.3))
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert root.steps_when_quiet() < 200
            assert root.engine.idle


def test_queue_full() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, max_running=1, max_waiting=1) as root:
        with grpc.insecure_channel(root.address) as channel:
            stub = Stub(channel)
            first = stub.Generate(request())
            assert runner.entered.wait(20)
            second = stub.Generate(request())
            third = stub.Generate(request())
            # All three must have arrived before the step ends.
            for _ in range(200):
                if root.engine.commands == 2:
                    break
                time.sleep(0.02)
            assert runner.gate is not None
            runner.gate.set()
            ends = []
            for call in (second, third):
                try:
                    list(call)
                    ends.append("ok")
                except grpc.RpcError as error:
                    ends.append(info_of(error).reason)
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert sorted(ends) == ["QUEUE_FULL", "ok"]
            assert list(first)[-1].WhichOneof("event") == "done"


def test_open_streams_are_bounded() -> None:
    with Root(FakeRunner(gate=threading.Event()), max_streams=2) as root:
        with grpc.insecure_channel(root.address) as channel:
            stub = Stub(channel)
            watch = stub.WatchCluster(root_pb2.WatchClusterRequest())
            next(watch)
            held = stub.Generate(request())
            assert root.runner.entered.wait(20)
            assert "2 streams are open" in refused(
                stub, request(), "QUEUE_FULL", "RESOURCE_EXHAUSTED"
            )
            held.cancel()


def test_a_lost_worker_ends_streams_with_a_status_that_names_it() -> None:
    lost = HearthError(Reason.WORKER_LOST, "worker nas:7717 was lost", {"worker": "nas:7717"})
    with Root(FakeRunner(fail_with=lost)) as root:
        with grpc.insecure_channel(root.address) as channel:
            stub = Stub(channel)
            with pytest.raises(grpc.RpcError) as error:
                list(stub.Generate(request(), timeout=20))
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            info = info_of(error.value)
            assert (info.reason, info.metadata["worker"]) == ("WORKER_LOST", "nas:7717")
            refused(stub, request(), "CLUSTER_NOT_READY", "UNAVAILABLE")
            root.engine.resume()
            assert len(list(stub.Generate(request(), timeout=20))) >= 2


def test_a_slow_reader_holds_up_nobody_and_loses_nothing() -> None:
    # 2,000 tokens whose messages are far more than gRPC's own windows would need to be full.
    text = "x" * 2000
    with Root(FakeRunner(script(text)), context_size=4096, max_pages=2000) as root:
        with grpc.insecure_channel(root.address) as channel:
            slow = Stub(channel).Generate(request("", 0))
            other = list(Stub(channel).Generate(request("", 100), timeout=60))
            assert other[-1].done.usage.completion_tokens == 100
            root.steps_when_quiet()
            events = list(slow)
            assert "".join(event.delta.text for event in events) == text
            assert events[-1].done.finish_reason == root_pb2.FINISH_REASON_EOS


def test_stop_lets_running_streams_finish_and_refuses_new_ones() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner) as root, grpc.insecure_channel(root.address) as channel:
        stub = Stub(channel)
        watch = stub.WatchCluster(root_pb2.WatchClusterRequest())
        next(watch)
        running = stub.Generate(request())
        assert runner.entered.wait(20)
        # Far longer than this test may take: `stop` returns when the stream has ended.
        stopping = threading.Thread(target=root.server.stop, args=(3600,))
        stopping.start()
        with pytest.raises(grpc.RpcError) as error:
            list(watch)
        assert info_of(error.value).reason == "SHUTTING_DOWN"
        refused(stub, request(), "SHUTTING_DOWN", "UNAVAILABLE")
        assert runner.gate is not None
        runner.gate.set()
        assert list(running)[-1].WhichOneof("event") == "done"
        stopping.join(60)
        assert not stopping.is_alive()


def test_stop_ends_what_outlasts_the_grace() -> None:
    with Root(FakeRunner(seconds=0.02), context_size=4096, max_pages=2000) as root:
        with grpc.insecure_channel(root.address) as channel:
            call = Stub(channel).Generate(request(max_tokens=4000))
            next(call)
            root.server.stop(0.2)
            with pytest.raises(grpc.RpcError):
                list(call)
            assert root.steps_when_quiet() < 4000
            assert root.engine.idle


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        root = Root()
        server = RootServer(f"127.0.0.1:{port}", root.frontend)
        with pytest.raises(HearthError, match=f"127.0.0.1:{port}") as error:
            server.start()
        assert error.value.reason == "PORT_IN_USE"
        server.stop()
