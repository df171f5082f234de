"""Certificates, tokens and keys as files; error messages; how often a refusal is logged."""

from __future__ import annotations

import datetime
import hmac
import os
import shutil
import socket
import ssl
import stat
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from http2 import client_hello
from prometheus_client import CollectorRegistry, Gauge

from hearth.cli.main import main
from hearth.common import pki
from hearth.common.admission import MAX_LINES, WINDOW_SECONDS, Refusals, peer_of
from hearth.common.api_keys import ApiKeys, bearer_problem
from hearth.common.channels import is_loopback, refuse_exposed
from hearth.common.errors import HearthError
from hearth.common.front import BEHIND, Front
from hearth.common.http_port import MAX_OPENED, MAX_SILENT
from hearth.common.identity import FILES, read_identity
from hearth.common.metrics import Metrics
from hearth.common.metrics_port import MetricsPort
from hearth.common.security import Security
from hearth.root.api.prompt import MAX_BYTES_PER_POSITION, check_count, check_size

KEY = "k" * 16


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of `hearth certs init`, for two clusters."""
    folders = (tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs"))
    for folder in folders:
        pki.make(folder, [], 30)
    return folders


@pytest.fixture
def worker(clusters: tuple[Path, Path], tmp_path: Path) -> Path:
    """A worker's directory that may be broken."""
    return Path(shutil.copytree(clusters[0] / "worker", tmp_path / "worker"))


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads."""
    path.write_text(text)
    path.chmod(0o600)


def problem_of(read: Callable[[], object], reason: str = "BAD_SETTING") -> str:
    with pytest.raises(HearthError) as caught:
        read()
    assert caught.value.reason == reason
    return caught.value.message


# hearth certs init


def test_what_is_made_is_whole_and_private(clusters: tuple[Path, Path]) -> None:
    ours = clusters[0]
    tokens = {(ours / role / "token").read_text() for role in ("root", "worker")}
    assert len(tokens) == 1
    assert not (ours / "client" / "token").exists()
    for path in ours.rglob("*"):
        if path.name in ("ca.key", "tls.key", "token", "api-keys"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for role in ("root", "worker"):
        read_identity(ours / role)
    assert ApiKeys(ours / "api-keys").admits([]) == "no API key"


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    made = pki.make(tmp_path, ["nas.lan", "192.168.1.20"], 30)
    before = {path: path.read_bytes() for path in made}
    assert pki.make(tmp_path, [], 30) == []
    assert {path: path.read_bytes() for path in made} == before


def test_a_second_run_of_the_command_says_that_nothing_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certs", "init", str(tmp_path)]) == 0
    first = capsys.readouterr()
    assert str(tmp_path / "api-keys") in first.out.splitlines()
    for role in ("root", "worker", "client", "operator", "monitor"):
        assert str(tmp_path / role) in first.err  # where to copy it
    assert main(["certs", "init", str(tmp_path)]) == 0
    again = capsys.readouterr()
    assert again.out == ""
    head, *lines = again.err.splitlines()
    assert head == f"{tmp_path} is complete (--force replaces its files):"
    assert [line.split(",")[0].strip() for line in lines] == [
        f"{tmp_path / role}: {role}" for role in ("client", "monitor", "operator", "root", "worker")
    ]


def test_what_is_missing_is_made_with_the_same_authority_and_token(tmp_path: Path) -> None:
    pki.make(tmp_path, [], 30)
    token = (tmp_path / "root" / "token").read_bytes()
    shutil.rmtree(tmp_path / "worker")
    (tmp_path / "root" / "tls.key").unlink()
    pki.make(tmp_path, [], 30)
    assert (tmp_path / "worker" / "token").read_bytes() == token
    read_identity(tmp_path / "worker")
    read_identity(tmp_path / "root")


def test_force_makes_another_cluster(tmp_path: Path) -> None:
    first = {path: path.read_bytes() for path in pki.make(tmp_path, [], 30)}
    again = pki.make(tmp_path, [], 30, force=True)
    assert set(again) == set(first)
    assert not [path for path in again if path.read_bytes() == first[path]]


def test_runs_at_the_same_time_make_one_set(tmp_path: Path) -> None:
    with futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: pki.make(tmp_path, [], 30), range(4)))
    assert sum(map(bool, made)) == 1
    read_identity(tmp_path / "worker")


def test_a_lost_authority_is_said(tmp_path: Path) -> None:
    pki.make(tmp_path, [], 30)
    (tmp_path / "ca.key").unlink()
    assert pki.make(tmp_path, [], 30) == []  # nothing needs it
    (tmp_path / "client" / "tls.crt").unlink()
    assert "ca.key is not" in problem_of(lambda: pki.make(tmp_path, [], 30))


def test_hosts_are_names_of_root_and_worker(tmp_path: Path) -> None:
    pki.make(tmp_path, ["nas", "fe80::1", "10.0.0.1"], 30)
    for role, own in (("root", "hearth-root"), ("worker", "hearth-worker")):
        (certificate,) = x509.load_pem_x509_certificates((tmp_path / role / "tls.crt").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {own, "localhost", "nas"} == set(names.get_values_for_type(x509.DNSName))
        found = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
        assert found == {"127.0.0.1", "::1", "fe80::1", "10.0.0.1"}


def test_a_host_that_no_certificate_can_name(tmp_path: Path) -> None:
    assert "café" in problem_of(lambda: pki.make(tmp_path, ["café"], 30))


# A directory that cannot be used


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_empty_or_nonsense(worker: Path, name: str) -> None:
    path = worker / name
    path.write_bytes(b"")
    assert name in problem_of(lambda: read_identity(worker))
    path.write_bytes(os.urandom(500))
    assert name in problem_of(lambda: read_identity(worker))
    path.write_bytes(bytes((1 << 20) + 1))
    assert name in problem_of(lambda: read_identity(worker))
    path.unlink()
    said = problem_of(lambda: Security(worker))
    assert str(path) in said
    assert "hearth certs init" in said


def test_files_of_two_clusters(clusters: tuple[Path, Path], worker: Path) -> None:
    theirs = clusters[1] / "worker"
    shutil.copy(theirs / "tls.key", worker)
    assert "tls.key is not the key of" in problem_of(lambda: read_identity(worker))
    shutil.copy(theirs / "tls.crt", worker)
    assert "was not signed by" in problem_of(lambda: read_identity(worker))


def test_a_certificate_that_has_ended(tmp_path: Path) -> None:
    pki.make(tmp_path, [], 1)
    (tmp_path / "worker" / "tls.crt").unlink()
    maker = pki._Maker(tmp_path, [], 1)
    maker._until = datetime.timedelta(days=-1)
    maker.run()
    said = problem_of(lambda: read_identity(tmp_path / "worker"))
    assert "is valid from" in said
    assert "this machine's clock shows" in said


def test_a_certificate_that_ends_soon_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pki.make(tmp_path, [], 5)
    Security(tmp_path / "root")
    assert "ends in 4 days" in caplog.text


@pytest.mark.parametrize("token", ["short", "x" * 2000, "sixteen letters and spaces", "é" * 20])
def test_a_token_that_is_none(worker: Path, token: str) -> None:
    (worker / "token").write_text(token)
    assert "token" in problem_of(lambda: read_identity(worker))


def test_no_secret_is_shown(clusters: tuple[Path, Path]) -> None:
    identity = read_identity(clusters[0] / "root")
    assert identity.token not in repr(identity)
    assert "PRIVATE" not in repr(identity)


# API keys


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 keys"),
        ("# nobody\n", "0 keys"),
        (f"me {KEY}\nyou", "line 2: 1 words"),
        (f"me {KEY} client more", "line 1: 4 words"),
        (f"me {KEY} more", "line 1: the role is 'more'"),
        (f"me {KEY} root", "line 1: the role is 'root'"),
        ("me short", "5 characters"),
        (f"me {KEY}\nme {KEY}2", "line 2: the name 'me'"),
        (f"me {KEY}\nyou {KEY} operator", "line 2: 'you' has the key of 'me'"),
        ("n" * 101 + f" {KEY}", "has 101 characters; at most 100"),
        (f"m\x1b[2J {KEY}", "line 1: the name 'm\\x1b[2J'"),
    ],
)
def test_api_keys_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    write_secret(tmp_path / "keys", text)
    assert said in problem_of(lambda: ApiKeys(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("data", "admitted"),
    [
        (f"me {KEY}#1\n", f"{KEY}#1"),  # all of the key, not what is before the #
        (f"me {KEY}#1#2 operator #3\n", f"{KEY}#1#2"),
        (f"#me {KEY}1\n  # you {KEY}2\n\n \t\nall {KEY}3 # {KEY}4\n", f"{KEY}3"),
        (f"\ufeffme {KEY}\r\n\r\n", KEY),
        (f"\ufeff# first\r\nme {KEY}\r\n", KEY),
        (f"me\t{KEY}", KEY),
    ],
)
def test_lines_of_api_keys(tmp_path: Path, data: str, admitted: str) -> None:
    (tmp_path / "keys").write_bytes(data.encode())
    (tmp_path / "keys").chmod(0o600)
    keys = ApiKeys(tmp_path / "keys")
    assert keys.admits([("authorization", f"Bearer {admitted}")]) == ""
    for other in (KEY, f"{KEY}1", f"{KEY}2", f"{KEY}4", f"{KEY}#1#2#3"):
        found = keys.admits([("authorization", f"Bearer {other}")])
        assert found == ("" if other == admitted else "a wrong API key")


def test_api_keys_are_read_again_when_they_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    write_secret(path, f"# a household\nme {KEY}1 # mine\nyou {KEY}2\n")
    keys = ApiKeys(path)
    assert not keys.admits([("authorization", f"Bearer {KEY}2")])
    assert keys.admits([("authorization", f"Bearer {KEY}3")]) == "a wrong API key"
    path.write_text(f"me {KEY}3\n")
    assert not keys.admits([("authorization", f"Bearer {KEY}3")])
    assert keys.admits([("authorization", f"Bearer {KEY}2")])
    path.write_text("nonsense")
    assert keys.admits([("authorization", f"Bearer {KEY}3")]) == "a wrong API key"
    assert "1 words" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ([], "no secret"),
        ([("other", "Bearer good")], "no secret"),
        ([("authorization", "good")], "not one `Bearer ...`"),
        ([("authorization", "Basic good")], "not one `Bearer ...`"),
        ([("authorization", "Bearer good"), ("authorization", "Bearer good")], "not one"),
        ([("authorization", "Bearer ")], "a wrong secret"),
        ([("authorization", "Bearer bad")], "a wrong secret"),
        ([("authorization", b"\xff\xfe")], "not one"),
        ([("authorization", "Bearer good")], ""),
        ([("authorization", "bearer good")], ""),
    ],
)
def test_what_a_call_must_carry(metadata: list[tuple[str, str | bytes]], said: str) -> None:
    problem = bearer_problem(metadata, lambda given: given == "good", "secret")
    assert said in problem
    assert bool(said) == bool(problem)


def test_secrets_are_compared_in_constant_time(
    clusters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ours = Security(clusters[0] / "worker")
    assert ours.admits([("authorization", "Bearer x")])
    assert not ours.admits([("authorization", f"Bearer {ours.token}")])
    assert compared == [(32, 32)] * 2  # digests: not even the length leaks


# Where one may listen


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.1.2:1", False),
        ("127.evil.example:1", False),
        ("nas:1", False),
    ],
)
def test_beyond_loopback_something_must_protect(
    clusters: tuple[Path, Path], address: str, loopback: bool
) -> None:
    assert is_loopback(address) == loopback
    ours = Security(clusters[0] / "worker")
    for protected in ((ours, False), (None, True)):
        refuse_exposed("--listen", address, *protected)
    if loopback:
        refuse_exposed("--listen", address, None, False)
        return
    said = problem_of(lambda: refuse_exposed("--listen", address, None, False), "INSECURE")
    for word in (address, "--listen", "--tls", "--insecure", "hearth certs init"):
        assert word in said


def test_metrics_beyond_loopback() -> None:
    assert "--metrics" in problem_of(lambda: Metrics().serve("0.0.0.0:0"), "INSECURE")


# What is logged


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:10.0.0.1:5", ("10.0.0.1", 5)),
        ("ipv6:[::1]:5", ("::1", 5)),
        ("ipv6:%5Bfe80::1%5D:5", ("fe80::1", 5)),
        ("ipv6:[::ffff:10.0.0.1]:5", ("10.0.0.1", 5)),
        ("unix:", ("unix:", 0)),
        ("", ("", 0)),
    ],
)
def test_peers(text: str, peer: tuple[str, int]) -> None:
    assert peer_of(text) == peer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_scanner_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refusals = Refusals("the worker's port", clock)
    for port in range(1000):
        refusals.note(("10.0.0.9", port), "a wrong join token")
    assert [r.message for r in caplog.records] == [
        "refused 10.0.0.9:0 at the worker's port: a wrong join token"
    ]
    for host in range(1000):
        refusals.note((f"fe80::{host}", 1), "a wrong join token")
    assert len(caplog.records) == MAX_LINES
    assert "[fe80::0]:1" in caplog.text
    clock.now += WINDOW_SECONDS
    refusals.note(("10.0.0.9", 7), "a wrong join token")
    assert len(caplog.records) == MAX_LINES + 1
    left_out = 1000 - (MAX_LINES - 1)  # hosts after the last line
    assert f"({left_out} more refused since the last line)" in caplog.records[-1].message


# Servers in this process


class Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def call(port: int, folder: Path, own: Path | None = None) -> bytes:
    """One call with the certificate of `own`, to a server of the cluster of `folder`."""
    pair = [(own / name).read_bytes() for name in ("tls.key", "tls.crt")] if own else [None, None]
    credentials = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes(), *pair)
    options = [("grpc.ssl_target_name_override", "hearth-worker")]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        thing: Any = channel.unary_unary("/any/Thing")
        return bytes(thing(b"hello", timeout=10))


@pytest.fixture
def served(worker: Path, caplog: pytest.LogCaptureFixture) -> Iterator[tuple[int, Path]]:
    """A TLS server whose directory may change: its port, the directory."""
    front = Front("127.0.0.1:0", Refusals("the port"), tls=True)
    front.listen()
    server = grpc.server(futures.ThreadPoolExecutor(2, "rpc"))
    server.add_generic_rpc_handlers((Echo(),))
    behind = server.add_secure_port(BEHIND, Security(worker).server_credentials())
    server.start()
    front.start(behind)
    yield front.port, worker
    server.stop(0).wait()
    front.close()


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_renewed_certificates_need_no_restart(
    served: tuple[int, Path], clusters: tuple[Path, Path]
) -> None:
    port, folder = served
    ours, theirs = clusters
    assert call(port, ours, ours / "client") == b"hello"
    for name in FILES:  # the whole cluster moves to other ones
        shutil.copy(theirs / "worker" / name, folder)
    assert call(port, theirs, theirs / "client") == b"hello"
    with pytest.raises(grpc.RpcError):
        call(port, ours, ours / "client")


def test_certificates_are_for_their_role_only(
    served: tuple[int, Path], clusters: tuple[Path, Path]
) -> None:
    """A worker's certificate is not a client's: one worker cannot call another."""
    port, _ = served
    ours = clusters[0]
    with pytest.raises(grpc.RpcError):
        call(port, ours, ours / "worker")
    assert call(port, ours, ours / "root") == b"hello"


def test_failed_handshakes_are_logged_with_who_and_why(
    served: tuple[int, Path], clusters: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    port, _ = served
    ours, theirs = clusters
    with pytest.raises(grpc.RpcError):
        call(port, ours, theirs / "client")
    wait_for(lambda: "no certificate of this cluster's CA" in caplog.text)
    where = ("127.0.0.9", 0)
    with socket.create_connection(("127.0.0.1", port), source_address=where) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        stranger.settimeout(20)
        assert stranger.recv(100) == b""  # closed at once
        number = stranger.getsockname()[1]
        wait_for(lambda: f"127.0.0.9:{number} at the port: it did not speak TLS" in caplog.text)


@pytest.fixture
def scraped(clusters: tuple[Path, Path]) -> Iterator[MetricsPort]:
    registry = CollectorRegistry()
    Gauge("answer", "All there is.", registry=registry).set(42)
    port = MetricsPort("127.0.0.1:0", registry, Security(clusters[0] / "worker"))
    yield port
    port.stop()


def scrape(port: int, ours: Path, own: Path | None) -> str:
    context = ssl.create_default_context(cafile=str(ours / "ca.crt"))
    if own is not None:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    with urllib.request.urlopen(
        f"https://localhost:{port}/metrics", context=context, timeout=20
    ) as answer:
        return str(answer.read().decode())


def test_metrics_by_mutual_tls(
    scraped: MetricsPort, clusters: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = clusters
    assert "answer 42.0" in scrape(scraped.port, ours, ours / "client")
    for own in (None, theirs / "client"):
        with pytest.raises(OSError):
            scrape(scraped.port, ours, own)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://localhost:{scraped.port}/metrics", timeout=20)
    for said in ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "VERIFY_FAILED", "does not speak TLS"):
        wait_for(lambda said=said: said in caplog.text)  # type: ignore[misc]
    assert "refused 127.0.0.1:" in caplog.text


def test_half_open_connections_do_not_end_scraping(
    scraped: MetricsPort, clusters: tuple[Path, Path]
) -> None:
    idle = [socket.create_connection(("127.0.0.1", scraped.port)) for _ in range(8)]
    try:
        assert "answer 42.0" in scrape(scraped.port, clusters[0], clusters[0] / "client")
    finally:
        for connection in idle:
            connection.close()


def test_connections_to_the_metrics_port_are_counted(
    scraped: MetricsPort, clusters: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    many = 3 * MAX_SILENT
    idle = [socket.create_connection(("127.0.0.1", scraped.port)) for _ in range(many)]
    wait_for(lambda: f"{MAX_SILENT} connections of its kind are open" in caplog.text)
    # The oldest are closed, and the port answers.
    for connection in idle[: many - MAX_SILENT]:
        connection.settimeout(20)
        assert connection.recv(1) == b""
    assert "answer 42.0" in scrape(scraped.port, clusters[0], clusters[0] / "client")
    for connection in idle:
        connection.close()


def test_hellos_without_more_do_not_end_scraping(
    scraped: MetricsPort, clusters: tuple[Path, Path]
) -> None:
    """A whole hello costs the port a handshake, and its peer nothing."""
    record = client_hello()
    idle = []
    context = ssl.create_default_context(cafile=str(clusters[0] / "client" / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(clusters[0] / "client" / "tls.crt", clusters[0] / "client" / "tls.key")
    own = context.wrap_socket(socket.create_connection(("127.0.0.1", scraped.port), 20))
    for number in range(2 * MAX_OPENED):
        idle.append(socket.create_connection(("127.0.0.1", scraped.port)))
        idle[-1].sendall(record[: -1 if number % 4 == 0 else len(record)])
        if number % 128 == 127:
            assert "answer 42.0" in scrape(scraped.port, clusters[0], clusters[0] / "client")
    # One whose certificate was accepted before all these kept its place.
    own.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert own.recv(4096).startswith(b"HTTP/1.1 200")
    own.close()
    # The newest with a whole hello were answered, and so was one whose hello came in pieces.
    with socket.create_connection(("127.0.0.1", scraped.port), 20) as slow:
        for byte in record:
            slow.sendall(bytes([byte]))
        assert slow.recv(1) == b"\x16"
    idle[-1].settimeout(20)
    assert idle[-1].recv(1) == b"\x16"
    for connection in idle:
        connection.close()


# How long a prompt may be before it is looked at


def test_a_text_that_cannot_fit_is_refused_by_its_length() -> None:
    check_size("prompt", 64 * MAX_BYTES_PER_POSITION, 64)
    said = problem_of(
        lambda: check_size("prompt", 64 * MAX_BYTES_PER_POSITION + 1, 64), "PROMPT_TOO_LONG"
    )
    assert "2049 bytes" in said
    assert "2048" in said
    check_count(64, 64)
    assert "65 token ids" in problem_of(lambda: check_count(65, 64), "PROMPT_TOO_LONG")
