"""A HearthError crosses a real gRPC call intact; a stranger's status becomes one of ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from hearth.client import errors as client_errors
from hearth.common import channels
from hearth.common.errors import CODES, Code, HearthError, Reason
from hearth.common.rpc_errors import abort, from_rpc_error


class _Service(grpc.GenericRpcHandler):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            if isinstance(self._error, HearthError):
                abort(context, self._error)
            raise self._error

        return grpc.unary_unary_rpc_method_handler(handle)


def _raw_call(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/x/Y")
    call(b"", timeout=10)


def _call(error: Exception) -> HearthError:
    server = grpc.server(futures.ThreadPoolExecutor(1), options=channels.server_options())
    server.add_generic_rpc_handlers((_Service(error),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with channels.dial(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as raised:
                _raw_call(channel)
            return from_rpc_error(raised.value, "worker nas:7717")
    finally:
        server.stop(0).wait()


def test_reason_code_message_and_numbers_arrive() -> None:
    sent = HearthError(Reason.OUT_OF_MEMORY, "needs 5, has 3; use more", {"needed": 5, "has": 3})
    got = _call(sent)
    assert got.reason == "OUT_OF_MEMORY"
    assert got.code is Code.RESOURCE_EXHAUSTED
    assert got.message == "worker nas:7717: needs 5, has 3; use more"
    assert got.metadata == {"needed": "5", "has": "3", "peer": "worker nas:7717"}


def test_what_a_stranger_says_is_shown_on_one_line() -> None:
    class Stranger(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
                context.abort(grpc.StatusCode.INTERNAL, "PRI *\r\n\r\nSM\n\x00\x1b[2Jgone")
                raise AssertionError

            return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.server(futures.ThreadPoolExecutor(1), options=channels.server_options())
    server.add_generic_rpc_handlers((Stranger(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with channels.dial(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as raised:
                _raw_call(channel)
            for message in (
                from_rpc_error(raised.value, "worker nas:7717").message,
                client_errors.from_rpc_error(raised.value, "nas:7716").message,
            ):
                assert "PRI *" in message
                assert "gone" in message
                assert message.isprintable()
    finally:
        server.stop(0).wait()


def test_an_address_of_one_link_is_shown_as_it_was_given() -> None:
    address = "[fe80::1%nothing0]:7717"
    with channels.dial(address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            _raw_call(channel)
    for message in (
        from_rpc_error(raised.value, f"worker {address}").message,
        client_errors.from_rpc_error(raised.value, address).message,
    ):
        assert address in message
        assert "%25" not in message
        assert "%5B" not in message
    quoted = "last error: UNKNOWN: ipv6:%5Bfe80::1%254%5D:1: something new"
    call = _Failed(grpc.StatusCode.UNAVAILABLE, quoted)
    assert "UNKNOWN: [fe80::1%4]:1: " in client_errors.from_rpc_error(call, address).message


class _Failed(grpc.RpcError):
    """An error of gRPC with these words."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_long_messages_fit_the_trailers() -> None:
    got = _call(HearthError(Reason.BAD_SHARD, "x" * 50_000, {"y": "z" * 50_000}))
    assert got.reason == "BAD_SHARD"
    assert len(got.message) < 3000


def test_a_foreign_status_gets_a_reason() -> None:
    got = _call(RuntimeError("a bug"))
    assert got.reason == Reason.INTERNAL
    assert "a bug" in got.message


def test_nobody_there_is_unreachable_and_says_what_to_do() -> None:
    with channels.dial("127.0.0.1:1") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            _raw_call(channel)
    got = from_rpc_error(raised.value, "worker 127.0.0.1:1")
    assert got.reason == Reason.UNREACHABLE
    assert "worker 127.0.0.1:1: cannot be reached" in got.message


def test_every_reason_has_a_code() -> None:
    assert set(CODES) == set(Reason)


@pytest.fixture
def taken() -> Iterator[str]:
    (listening,) = channels.listen("127.0.0.1:0")
    with listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_port_in_use_is_an_error_that_names_it(taken: str) -> None:
    for address in (taken, taken.replace("127.0.0.1", "localhost")):
        with pytest.raises(HearthError, match=address) as error:
            channels.listen(address)
        assert error.value.reason == Reason.PORT_IN_USE


@pytest.mark.parametrize(
    "address", ["", "host", ":80", "host:", "host:99999", "host:x", "::1:80", "[::1]:-1", "h:٣"]
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(HearthError) as error:
        channels.dial(address)
    assert error.value.reason == Reason.BAD_ADDRESS


def test_what_another_end_says_is_told_in_one_printable_line() -> None:
    got = _call(HearthError(Reason.BAD_SHARD, "bad\n\x1b[31mroot: all is well\x00\u202e é"))
    assert got.message == "worker nas:7717: bad\\n\\x1b[31mroot: all is well\\x00\\u202e é"
