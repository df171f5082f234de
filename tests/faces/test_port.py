"""The HTTP port: limits, clients that leave, Host and Origin, keys and certificates."""

import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from http2 import client_hello
from serving_fakes import FakeRunner, Root

from hearth.common import pki
from hearth.common.api_keys import ApiKeys
from hearth.common.security import Security
from hearth.root.api.http import limits
from hearth.root.api.http.call import encode

BODY = {"prompt": "a", "max_tokens": 60}


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


@pytest.fixture
def slow() -> Iterator[Root]:
    """Each step takes 20 ms, and an answer has thousands."""
    with Root(FakeRunner(seconds=0.02), http=True, context_size=4096, max_pages=4096) as running:
        yield running


def connect(root: Root, receive_buffer: int = 0) -> socket.socket:
    """A connection; receive_buffer: bytes that wait in it at most."""
    assert root.http is not None
    made = socket.socket()
    made.settimeout(20)
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.connect(("127.0.0.1", root.http.port))
    return made


def post(body: dict[str, Any], path: str = "/v1/completions", **headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def everything(connection: socket.socket) -> bytes:
    """Bytes until the server closes."""
    found = bytearray()
    while data := connection.recv(65536):
        found += data
    return bytes(found)


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence(slow: Root, stream: bool) -> None:
    with connect(slow) as connection:
        connection.sendall(post({"prompt": "a", "max_tokens": 4000, "stream": stream}))
        eventually(lambda: len(slow.runner.batches) > 3)
        assert slow.engine.busy
    before = len(slow.runner.batches)
    eventually(lambda: not slow.engine.busy)
    # Within a few steps, not the thousands that it asked for.
    assert len(slow.runner.batches) - before < 50
    assert slow.steps_when_quiet() < 4000


def test_a_half_closed_connection_is_one_that_has_left(slow: Root) -> None:
    with connect(slow) as connection:
        connection.sendall(post({"prompt": "a", "max_tokens": 4000}))
        eventually(lambda: slow.engine.busy)
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: not slow.engine.busy)


def test_a_slow_reader_holds_up_nobody_and_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.3)
    with Root(FakeRunner(lambda _: 97), http=True, context_size=4096, max_pages=1 << 16) as root:
        with connect(root, 4096) as connection:
            connection.sendall(post({"prompt": "a", "max_tokens": 4000, "stream": True, "n": 8}))
            eventually(lambda: root.engine.busy)
            other = httpx.post(f"{root.url}/v1/completions", json=BODY, timeout=20)
            assert other.status_code == 200
            eventually(lambda: not root.engine.busy, 60)
            assert root.http is not None
            http = root.http
            eventually(lambda: "it has not read its answer" in caplog.text)
            eventually(lambda: http.connections <= 1)


def test_a_head_that_does_not_come_ends_the_connection(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    with connect(root) as silent, connect(root) as half, connect(root) as dripping:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        end = time.monotonic() + 20
        with pytest.raises(OSError):
            while time.monotonic() < end:  # a byte now and then does not help
                dripping.sendall(b"GET / HTTP/1.1\r\n"[:1])
                time.sleep(0.05)
        for each in (silent, half):
            assert each.recv(1) == b""


def test_a_body_that_does_not_come_is_refused(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "LINGER_SECONDS", 0.1)
    with connect(root) as connection:
        connection.sendall(post(BODY)[:-5])
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"0.2 s" in answer
    # Nor one that drips.
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.5)
    with connect(root) as connection:
        head, _, data = post({"prompt": "a" * 1000}).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        for index in range(len(data)):
            try:
                connection.sendall(data[index : index + 1])
            except OSError:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("read to its end, 50 s after its first byte")
    assert not root.engine.busy


def test_a_body_that_is_too_large_is_refused_with_an_answer(root: Root) -> None:
    big = {"prompt": "a" * (limits.MAX_BODY_BYTES + 1)}
    got = httpx.post(f"{root.url}/v1/completions", json=big, timeout=20)
    assert got.status_code == 413
    assert str(limits.MAX_BODY_BYTES) in got.json()["error"]["message"]

    def parts() -> Iterator[bytes]:
        for _ in range(limits.MAX_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    try:
        got = httpx.post(f"{root.url}/v1/completions", content=parts(), timeout=20)
        assert got.status_code == 413
    except httpx.WriteError:
        pass  # it was closed while the client still sent


def test_bodies_that_are_not_json_objects(root: Root) -> None:
    bad = [b"", b"{", b"[]", b"null", b"\xff", b'{"prompt": NaN}', b"[" * 100_000]
    bad += [b'{"temperature": 1e999}', b'{"metadata": {"a": [-1e400]}}']
    bad += [b'{"prompt": "\\ud800"}', b'{"x": ' + b"9" * 5000 + b"}", b"{},," * 200_001]
    for body in bad:
        got = httpx.post(f"{root.url}/v1/completions", content=body)
        assert got.status_code == 400, body[:20]
        assert got.json()["error"]["type"] == "invalid_request_error"


def test_answers_have_no_numbers_that_json_lacks() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            encode({"x": value})


def test_small_bodies_do_not_wait_for_slow_ones(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_SILENCE_SECONDS", 60.0)
    large = post({"prompt": "a" * (limits.SMALL_BODY_BYTES + 1)})[:-1]
    chunked = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    held = [connect(root) for _ in range(limits.READERS_OF_EACH)]
    try:
        for index, each in enumerate(held):
            each.sendall(large if index % 2 else chunked)
        for _ in range(3):
            got = httpx.post(f"{root.url}/v1/completions", json=BODY, timeout=20)
            assert got.status_code == 200
    finally:
        for each in held:
            each.close()


def test_what_is_not_http(root: Root) -> None:
    for data in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n"):
        with connect(root) as connection:
            connection.sendall(data + b"\r\n\r\n")
            assert b" 400 " in everything(connection).partition(b"\r\n")[0]
    with connect(root) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * (limits.MAX_HEAD_BYTES + 1))
        assert b" 400 " in everything(connection).partition(b"\r\n")[0]


def chunked(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n"


def test_a_body_whose_end_two_readers_see_differently(root: Root) -> None:
    """Behind a proxy that reads the other length, the rest would be another client's request."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    data = json.dumps(BODY).encode()
    both = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lines, said in (
        (both, "both Content-Length and Transfer-Encoding"),
        (b"Content-Length: 4\r\nContent-Length: 5\r\n", "not an HTTP/1.1 request"),
        (b"Transfer-Encoding: gzip, chunked\r\n", "not an HTTP/1.1 request"),
        (b"Transfer-Encoding : chunked\r\n", "not an HTTP/1.1 request"),
    ):
        with connect(root) as connection:
            connection.sendall(head + lines + b"\r\n" + chunked(data) + hidden)
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"HTTP/1.1 200" not in answer  # nor is the hidden one answered
        assert said in answer.decode()


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "x" * 200])
def test_a_compressed_body_is_refused(root: Root, encoding: str) -> None:
    """So none can grow: nothing is ever unpacked."""
    headers = {"content-encoding": encoding}
    answer = httpx.post(f"{root.url}/v1/completions", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert encoding[:40] in answer.json()["error"]["message"]
    headers["content-encoding"] = "Identity"
    assert httpx.post(f"{root.url}/v1/completions", json=BODY, headers=headers).status_code == 200


def test_a_head_is_limited_however_it_comes(root: Root) -> None:
    """In one piece, too, which the parser does not measure."""
    lines = b"X: y\r\n" * 10_000
    with connect(root) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + lines)
        connection.sendall(b"\r\n")
        answer = connection.recv(65536)
    assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    long = {"x": "y" * limits.MAX_HEAD_BYTES}
    answer_to_one = httpx.get(f"{root.url}/v1/models", headers=long)
    assert answer_to_one.status_code in (400, 431)
    short = {"x": "y" * (limits.MAX_HEAD_BYTES - 2000)}
    assert httpx.get(f"{root.url}/v1/models", headers=short).status_code == 200


def test_idle_connections_keep_nobody_out(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 20)
    held = [connect(root) for _ in range(100)]
    try:
        assert httpx.get(f"{root.url}/v1/models").status_code == 200
        assert root.http is not None
        assert root.http.connections <= 20
    finally:
        for each in held:
            each.close()


def test_hundreds_of_streams_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some run, others get 429 or no connection; the root goes on, and is free afterwards."""
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 100)
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True, max_pages=4096) as root:
        held = [connect(root) for _ in range(400)]
        try:
            for each in held:
                with suppress(OSError):
                    each.sendall(post({"prompt": "a", "stream": True, "max_tokens": 20}))
            begun = 0
            for each in held:
                with suppress(OSError):
                    begun += each.recv(12) == b"HTTP/1.1 200"
            assert 0 < begun <= limits.MAX_CONNECTIONS
            assert root.http is not None
            assert root.http.connections <= limits.MAX_CONNECTIONS
            assert httpx.get(f"{root.url}/health", timeout=20).status_code == 200
        finally:
            for each in held:
                each.close()
        assert runner.gate is not None
        runner.gate.set()
        eventually(lambda: not root.frontend.open_answers)
        assert httpx.post(f"{root.url}/v1/completions", json=BODY, timeout=20).status_code == 200


def test_connections_are_kept(root: Root) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(f"{root.url}/v1/completions", json=BODY).status_code == 200
        assert client.post(f"{root.url}/v1/completions", json={"n": -1}).status_code == 400
        assert root.http is not None
        assert root.http.connections == 1


def test_idle_connections_are_kept_for_longer_than_clients_keep_them(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx keeps one for 5 s, others for a minute: the client should be the one that closes."""
    with httpx.Client(base_url=root.url) as client:
        assert client.get("/api/version").status_code == 200
        assert root.http is not None
        (place,) = root.http._places
        connection = place.connection
        assert connection is not None
        eventually(lambda: connection.timeout_keep_alive_task is not None)
        assert connection.timeout_keep_alive_task is not None
        assert connection.timeout_keep_alive_task.when() - connection.loop.time() > 60
        assert connection._head_timer is None  # the limit of a head is far shorter
    monkeypatch.setattr(limits, "KEEP_ALIVE_SECONDS", 0.1)
    with Root(http=True) as short, connect(short) as silent:
        silent.sendall(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert everything(silent).startswith(b"HTTP/1.1 200")  # and then it is closed


def test_two_requests_at_once_on_a_connection(root: Root) -> None:
    with connect(root) as connection:
        connection.sendall(post(BODY) + post(BODY, Connection="close"))
        assert everything(connection).count(b"HTTP/1.1 200") == 2


def test_the_host_of_a_loopback_root(root: Root) -> None:
    def status(host: str) -> int:
        return httpx.get(f"{root.url}/v1/models", headers={"host": host}).status_code

    for host in ("localhost:7780", "127.0.0.1", "[::1]:7780", "a.localhost", "192.168.1.5"):
        assert status(host) == 200
    for host in ("evil.example", "evil.example:7780", "localhost.evil.example", "a b"):
        assert status(host) == 403


def test_pages_of_other_sites(root: Root) -> None:
    url = f"{root.url}/v1/completions"
    evil = httpx.post(url, content=json.dumps(BODY), headers={"origin": "https://evil.example"})
    assert evil.status_code == 403
    assert "--cors https://evil.example" in evil.json()["error"]["message"]
    assert not root.runner.batches
    same = httpx.post(url, json=BODY, headers={"origin": root.url})
    assert same.status_code == 200
    assert "access-control-allow-origin" not in same.headers
    origin = "http://localhost:3000"
    preflight = httpx.options(
        url,
        headers={
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert preflight.headers["access-control-max-age"]
    for body in (BODY, {"n": -1}):  # errors can be read too
        got = httpx.post(url, json=body, headers={"origin": origin})
        assert got.headers["access-control-allow-origin"] == origin


def test_origins_that_are_allowed() -> None:
    with Root(http=True, http_options={"origins": ["https://chat.example"]}) as root:
        for origin, status in (("https://chat.example", 200), ("http://localhost:1", 403)):
            got = httpx.get(f"{root.url}/v1/models", headers={"origin": origin})
            assert got.status_code == status
    with Root(http=True, http_options={"origins": ["*"]}) as root:
        got = httpx.get(f"{root.url}/v1/models", headers={"origin": "null"})
        assert got.status_code == 200


def keys_file(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)
    return path


def test_keys_in_every_header(tmp_path: Path) -> None:
    key = "k" * 32
    keys = ApiKeys(keys_file(tmp_path, f"anna {key}"))
    with Root(http=True, http_options={"api_keys": keys}) as root:

        def status(path: str = "/v1/models", **headers: str) -> int:
            return httpx.get(f"{root.url}{path}", headers=headers).status_code

        assert status() == 401
        assert status(authorization="Bearer wrong") == 401
        assert status(authorization=f"Basic {key}") == 401
        assert status("/k/wrong/v1/models") == 401
        for name in ("x-api-key", "api-key"):
            assert httpx.get(f"{root.url}/v1/models", headers={name: key}).status_code == 200
        assert status(authorization=f"Bearer {key}") == 200
        assert status(f"/k/{key}/v1/models") == 200
        assert status("/nothing") == 401
        refused = httpx.post(f"{root.url}/v1/completions", json=BODY)
        assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_key_in_the_path_with_characters_of_addresses(tmp_path: Path) -> None:
    key = "k" * 32 + "/?%2F%+&="
    keys = ApiKeys(keys_file(tmp_path, f"anna {key}"))
    with Root(http=True, http_options={"api_keys": keys}) as root:
        for path, expected in ((f"/k/{quote(key, safe='')}", b" 200 "), (f"/k/{key}", b" 401 ")):
            with connect(root) as connection:
                connection.sendall(f"GET {path}/v1/models HTTP/1.1\r\n".encode())
                connection.sendall(b"Host: localhost\r\nConnection: close\r\n\r\n")
                assert expected in everything(connection).partition(b"\r\n")[0]


def test_a_revoked_key_ends_its_stream(tmp_path: Path) -> None:
    key = "k" * 32
    path = keys_file(tmp_path, f"anna {key}", f"ben {'b' * 32}")
    runner = FakeRunner(seconds=0.02)
    options = {"api_keys": ApiKeys(path)}
    with Root(runner, http=True, http_options=options, context_size=4096, max_pages=4096) as root:
        body = {"prompt": "a", "max_tokens": 4000, "stream": True}
        headers = {"authorization": f"Bearer {key}"}
        with httpx.stream(
            "POST", f"{root.url}/v1/completions", json=body, headers=headers, timeout=20
        ) as got:
            lines = got.iter_lines()
            next(lines)
            keys_file(tmp_path, f"ben {'b' * 32}")
            with pytest.raises(httpx.HTTPError):
                for line in lines:
                    assert "[DONE]" not in line
        eventually(lambda: not root.engine.busy)


def test_tls_with_keys_and_with_certificates(tmp_path: Path) -> None:
    pki.make(tmp_path / "certs", [], 30)
    security = Security(tmp_path / "certs" / "root")
    client = tmp_path / "certs" / "client"
    plain = ssl.create_default_context(cafile=str(client / "ca.crt"))
    plain.check_hostname = False
    mutual = ssl.create_default_context(cafile=str(client / "ca.crt"))
    mutual.check_hostname = False
    mutual.load_cert_chain(client / "tls.crt", client / "tls.key")
    other = ssl.create_default_context(cafile=str(client / "ca.crt"))
    other.check_hostname = False
    folder = tmp_path / "certs" / "monitor"
    other.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    key = "k" * 32

    def status(root: Root, context: ssl.SSLContext, **headers: str) -> int:
        with httpx.Client(verify=context, headers=headers, timeout=20) as made:
            return made.get(f"{root.url}/v1/models").status_code

    with Root(http=True, http_options={"security": security}) as root:
        assert status(root, mutual) == 200
        assert status(root, other) == 401
        with pytest.raises(httpx.HTTPError):
            status(root, plain)
        with pytest.raises(httpx.HTTPError), httpx.Client() as insecure:
            insecure.get(root.url.replace("https", "http"))
    options = {"security": security, "api_keys": ApiKeys(keys_file(tmp_path, f"anna {key}"))}
    with Root(http=True, http_options=options) as root:
        assert status(root, plain) == 401
        assert status(root, plain, authorization=f"Bearer {key}") == 200


def test_a_half_open_tls_handshake_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    pki.make(tmp_path / "certs", [], 30)
    options = {"security": Security(tmp_path / "certs" / "root")}
    with Root(http=True, http_options=options) as root, connect(root) as connection:
        assert connection.recv(1) == b""


def clients_context(certs: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certs / "client" / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(certs / "client" / "tls.crt", certs / "client" / "tls.key")
    return context


def test_certificates_that_are_being_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate and its key are two files: for a moment they do not match."""
    certs = tmp_path / "certs"
    pki.make(certs, [], 30)
    monkeypatch.setattr("hearth.root.api.http.server._CONTEXT_SECONDS", -1.0)
    context = clients_context(certs)
    key = certs / "root" / "tls.key"
    good = key.read_bytes()
    with Root(http=True, http_options={"security": Security(certs / "root")}) as root:

        def status() -> int:
            with httpx.Client(verify=context, timeout=20) as made:
                return made.get(f"{root.url}/v1/models").status_code

        assert status() == 200
        key.write_bytes((certs / "client" / "tls.key").read_bytes())
        assert [status() for _ in range(3)] == [200] * 3
        key.write_bytes(good)
        assert status() == 200
        assert caplog.text.count("keeps its certificate") == 1
        assert root.http is not None
        http = root.http
        eventually(lambda: http.connections == 0)


def test_a_connection_that_cannot_be_made_keeps_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pki.make(tmp_path / "certs", [], 30)
    options = {"security": Security(tmp_path / "certs" / "root")}
    with Root(http=True, http_options=options) as root:

        def fails(_: object) -> ssl.SSLContext:
            raise ValueError("a bug")

        monkeypatch.setattr("hearth.root.api.http.server._Contexts.__call__", fails)
        with connect(root) as connection:
            connection.sendall(client_hello())
            with suppress(ConnectionResetError):  # what it sent was not read
                assert everything(connection) == b""
        assert "could not be made" in caplog.text
        assert root.http is not None
        http = root.http
        eventually(lambda: http.connections == 0)


def test_tls_handshakes_wait_for_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKES_OF_EACH", 2)
    certs = tmp_path / "certs"
    pki.make(certs, [], 30)
    with Root(http=True, http_options={"security": Security(certs / "root")}) as root:
        assert root.http is not None
        http = root.http
        record = client_hello()
        held = [connect(root) for _ in range(10)]
        for each in held:
            each.sendall(record)
        eventually(lambda: http.connections == 10 and http.handshakes == 2)
        for each in held:
            each.close()
        with httpx.Client(verify=clients_context(certs), timeout=20) as made:
            assert made.get(f"{root.url}/v1/models").status_code == 200
        eventually(lambda: http.connections == http.handshakes == 0)


def test_handshakes_that_stop_give_their_turns_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKES_OF_EACH", 4)
    monkeypatch.setattr(limits, "HANDSHAKE_PATIENCE_SECONDS", 0.05)
    certs = tmp_path / "certs"
    pki.make(certs, [], 30)
    with Root(http=True, http_options={"security": Security(certs / "root")}) as root:
        assert root.http is not None
        http = root.http
        record = client_hello()
        held = [connect(root) for _ in range(12)]
        for each in held:
            each.sendall(record)
        eventually(lambda: http.handshakes == 4)
        with httpx.Client(verify=clients_context(certs), timeout=20) as made:
            assert made.get(f"{root.url}/v1/models").status_code == 200
        # Nobody waits any more: those that are left are not hurried.
        assert http.handshakes
        for each in held:
            each.close()
        eventually(lambda: http.connections == http.handshakes == 0)


def test_idle_connections_behind_their_handshake_keep_out_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With API keys anyone makes a connection, and may keep it."""
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 8)
    certs = tmp_path / "certs"
    pki.make(certs, [], 30)
    key = "k" * 32
    options = {
        "security": Security(certs / "root"),
        "api_keys": ApiKeys(keys_file(tmp_path, f"anna {key}")),
    }
    context = ssl.create_default_context(cafile=str(certs / "client" / "ca.crt"))
    context.check_hostname = False
    with Root(http=True, http_options=options) as root:
        assert root.http is not None
        http = root.http
        held = [context.wrap_socket(connect(root)) for _ in range(8)]
        eventually(lambda: http.connections == 8 and not http.handshakes)
        headers = {"authorization": f"Bearer {key}"}
        for _ in range(3):
            with httpx.Client(verify=context, headers=headers, timeout=20) as made:
                assert made.get(f"{root.url}/v1/models").status_code == 200
        for each in held:
            each.close()


def test_what_has_not_opened_tls_takes_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKES_OF_EACH", 2)
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 40)
    certs = tmp_path / "certs"
    pki.make(certs, [], 30)
    record = client_hello()
    with Root(http=True, http_options={"security": Security(certs / "root")}) as root:
        assert root.http is not None
        http = root.http
        held = [connect(root) for _ in range(36)]
        for number, each in enumerate(held):
            each.sendall(record[: number * len(record) // 36])
        eventually(lambda: http.connections == 36)
        assert http.handshakes == 0
        with httpx.Client(verify=clients_context(certs), timeout=20) as made:
            for _ in range(8):  # more connections than there are: those that are silent make room
                with httpx.Client(verify=clients_context(certs), timeout=20) as other:
                    assert other.get(f"{root.url}/v1/models").status_code == 200
                assert made.get(f"{root.url}/v1/models").status_code == 200
        held[0].close()
        # A record that comes in pieces, however small, opens the connection all the same.
        slow = connect(root)
        for byte in record:
            slow.sendall(bytes([byte]))
        assert slow.recv(1) == b"\x16"
        with connect(root) as other_protocol:
            other_protocol.sendall(b"GET / HTTP/1.1\r\n")
            with suppress(ConnectionResetError):  # what it sent was not read
                assert other_protocol.recv(1) == b""
        for each in (*held, slow):
            each.close()
        eventually(lambda: http.connections == http.handshakes == 0)


def test_the_end_of_a_root_ends_streams_with_an_error() -> None:
    runner = FakeRunner(seconds=0.02)
    root = Root(runner, http=True, context_size=4096, max_pages=4096)
    found: list[str] = []

    def read() -> None:
        body = {"prompt": "a", "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", f"{root.url}/v1/completions", json=body, timeout=20) as got:
            found.extend(line for line in got.iter_lines() if line)

    with root:
        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: root.engine.busy)
    reader.join(20)
    assert not reader.is_alive()
    assert "shutting down" in json.loads(found[-1].removeprefix("data: "))["error"]["message"]


def test_a_root_without_a_free_port_serves_without_http() -> None:
    from hearth.common.errors import HearthError, Reason
    from hearth.root.api.http.requests import Services
    from hearth.root.api.http.server import HttpServer

    with Root(http=True) as first:
        assert first.http is not None
        address = f"127.0.0.1:{first.http.port}"
        services = Services(first.frontend)
        assert HttpServer(address, services, may_fail=True).start() == 0
        with pytest.raises(HearthError) as error:
            HttpServer(address, services).start()
        assert error.value.reason == Reason.PORT_IN_USE


def test_an_address_beyond_loopback_needs_tls(root: Root) -> None:
    from hearth.common.errors import HearthError
    from hearth.root.api.http.requests import Services
    from hearth.root.api.http.server import HttpServer

    with pytest.raises(HearthError, match="--http"):
        HttpServer("0.0.0.0:0", Services(root.frontend))
