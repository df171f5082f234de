"""Roles of certificates and keys, revocation lists, and the modes of secret files."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness import hearth
from hypothesis import given
from hypothesis import strategies as st

from hearth.cli.connecting import _first_key
from hearth.cli.main import main
from hearth.common import key_files, pki
from hearth.common.access import ANYONE, Access, Caller, check_allowed
from hearth.common.api_keys import ApiKeys
from hearth.common.certificates import Role, peer_of_pem
from hearth.common.errors import HearthError
from hearth.common.identity import SECRETS
from hearth.common.live_calls import LiveCalls
from hearth.common.security import Security
from hearth.v1 import root_pb2

KEY = "k" * 16
METHODS = [m.name for m in root_pb2.DESCRIPTOR.services_by_name["RootService"].methods]
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    pki.make(folder, [], 30)
    return folder


@pytest.fixture
def copy(ours: Path, tmp_path: Path) -> Path:
    """A directory of `hearth certs init` that may be changed."""
    return Path(shutil.copytree(ours, tmp_path / "certs"))


def problem_of(act: Callable[[], object], reason: str = "BAD_SETTING") -> str:
    with pytest.raises(HearthError) as caught:
        act()
    assert caught.value.reason == reason
    return caught.value.message


def signed(authority: Path, names: list[str], common_name: str = "x") -> bytes:
    """PEM of a certificate of the authority in a directory, with these DNS names."""
    ca = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def context(pem: bytes | None) -> SimpleNamespace:
    """As gRPC shows a call's connection."""
    found = {} if pem is None else {"x509_pem_cert": [pem]}
    return SimpleNamespace(auth_context=lambda: found)


def certificate(folder: Path) -> bytes:
    return (folder / "tls.crt").read_bytes()


# Roles


@pytest.mark.parametrize("role", list(Role))
def test_each_directory_states_its_role(ours: Path, role: Role) -> None:
    assert peer_of_pem(certificate(ours / role)).roles == {role}


@pytest.mark.parametrize(
    ("role", "methods"),
    [
        (Role.ROOT, set(METHODS)),
        (Role.OPERATOR, set(METHODS)),
        (Role.CLIENT, set(METHODS) - {"DrainWorker"}),
        (Role.WORKER, set()),
        (Role.MONITOR, set()),
    ],
)
def test_what_a_certificate_may_call_at_the_root(ours: Path, role: Role, methods: set[str]) -> None:
    access = Access(Security(ours / "root"), None)
    allowed = set()
    for method in METHODS:
        try:
            caller = access.certificate_holder(context(certificate(ours / role)))
            check_allowed(caller, f"/hearth.v1.RootService/{method}")
        except HearthError as error:
            assert error.reason in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        else:
            allowed.add(method)
    assert allowed == methods


@pytest.mark.parametrize(
    ("names", "common_name"),
    [([], "hearth-client"), (["*"], "x"), (["HEARTH-CLIENT"], "x"), (["nas.lan"], "x")],
)
def test_a_certificate_of_the_authority_without_a_role_is_no_client(
    ours: Path, names: list[str], common_name: str
) -> None:
    access = Access(Security(ours / "root"), None)
    pem = signed(ours, names, common_name)
    said = problem_of(lambda: access.certificate_holder(context(pem)), "UNAUTHENTICATED")
    assert "no role" in said
    assert "hearth-client" in said
    for bad in (None, b"", b"nonsense"):
        problem_of(partial(access.certificate_holder, context(bad)), "UNAUTHENTICATED")


def test_methods_that_are_not_listed_are_for_operators() -> None:
    client = Caller("key me", frozenset({Role.CLIENT}))
    for method in ("DrainWorker", "SomethingNew", ""):
        name = f"/hearth.v1.RootService/{method}"
        said = problem_of(partial(check_allowed, client, name), "PERMISSION_DENIED")
        assert "key me" in said
        check_allowed(ANYONE, name)
    check_allowed(client, "/grpc.health.v1.Health/Check")


def test_a_key_has_a_role(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"me {KEY}1\nyou {KEY}2 client\nboss {KEY}3 operator # me too\n")
    path.chmod(0o600)
    access = Access(None, ApiKeys(path))
    found = {
        number: access.key_holder([("authorization", f"Bearer {KEY}{number}")])
        for number in (1, 2, 3)
    }
    assert [caller.name for caller in found.values()] == ["key me", "key you", "key boss"]
    assert [caller.roles for caller in found.values()] == [
        {Role.CLIENT},
        {Role.CLIENT},
        {Role.OPERATOR},
    ]
    assert KEY not in repr(found)


# Keys that are taken back


@pytest.mark.parametrize(
    ("text", "still"),
    [
        (f"you {KEY}2\n", {2}),
        (f"# me {KEY}1\nyou {KEY}2\n", {2}),
        (f"# me {KEY}1\n# you {KEY}2\n", set()),
        ("", set()),
        ("nonsense", set()),
        (f"laptop of anna {KEY}1\nyou {KEY}2\n", {2}),
        (f"you {KEY}2\nme short\n", {2}),
        (f"me {KEY}2\nyou {KEY}2\n", {2}),
        (f"me {KEY}3\nme {KEY}1\n", set()),  # the name is there twice: the second is not read
        (f"me {KEY}1 king\nyou {KEY}2\n", {2}),
        (f"me\u00a0{KEY}1\n", {1}),
        (None, set()),
    ],
)
def test_a_key_that_is_removed_is_out_at_once(
    tmp_path: Path, text: str | None, still: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"me {KEY}1\nyou {KEY}2\n")
    path.chmod(0o600)
    keys = ApiKeys(path)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    found = {n for n in (1, 2) if not keys.admits([("authorization", f"Bearer {KEY}{n}")])}
    assert found == still
    if len(still) < 1:
        assert "admits nobody" in caplog.text


@given(st.binary(max_size=200))
def test_a_file_of_keys_may_hold_anything(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """While the root runs: no exception, and only lines of the right form admit someone."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"me {KEY}1\n")
    path.chmod(0o600)
    keys = ApiKeys(path)
    path.write_bytes(data)
    assert keys.admits([("authorization", f"Bearer {KEY}1")])
    path.write_bytes(data + f"\nyou {KEY}2\n".encode())
    taken = "you" in data.decode("utf-8", "replace").split()
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    admitted = not keys.admits([("authorization", f"Bearer {KEY}2")])
    assert taken or admitted != utf16


def test_calls_of_a_revoked_key_end_after_two_looks(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"me {KEY}1\nyou {KEY}2\n")
    path.chmod(0o600)
    access = Access(None, ApiKeys(path))
    callers = [access.key_holder([("authorization", f"Bearer {KEY}{n}")]) for n in (1, 2)]
    live = LiveCalls()
    ended: list[str] = []
    held = []
    for caller in callers:
        assert caller.proof is not None
        revocation = partial(access.revocation, caller.proof)
        held.append(live.add(revocation, partial(ended.append, caller.name)))
    live._look(held[0])
    path.write_text("")  # an editor's first half
    live._look(held[0])
    path.write_text(f"me {KEY}1\nyou {KEY}2\n")
    live._look(held[0])
    assert ended == []
    path.write_text(f"you {KEY}2\n")
    for call in held * 3:
        live._look(call)
    assert ended == ["key me"]
    assert held[0].problem == "the API key of 'me' was revoked"
    # A changed role is another key: what runs under the old one ends.
    path.write_text(f"you {KEY}2 operator\n")
    for call in held * 3:
        live._look(call)
    assert ended == ["key me", "key you"]


# Revoked certificates


def test_a_revoked_certificate_is_refused_and_its_replacement_is_not(copy: Path) -> None:
    pki.add(copy, "anna", Role.CLIENT, [], 30)
    lost = certificate(copy / "anna")
    root = Security(copy / "root")
    access = Access(root, None)
    caller = access.certificate_holder(context(lost))
    assert caller.proof is not None
    assert access.revocation(caller.proof) == ""
    serial, written = pki.revoke(copy, "anna")
    assert serial == peer_of_pem(lost).serial
    assert {copy / "root" / "crl.pem", copy / "worker" / "crl.pem"} <= set(written)
    said = problem_of(lambda: access.certificate_holder(context(lost)), "UNAUTHENTICATED")
    assert f"{serial:x}" in said
    assert "revoked" in said
    assert "revoked" in access.revocation(caller.proof)
    pki.add(copy, "anna", Role.CLIENT, [], 30)
    access.certificate_holder(context(certificate(copy / "anna")))
    access.certificate_holder(context(certificate(copy / "client")))
    # A second one keeps the first.
    pki.revoke(copy, f"{peer_of_pem(certificate(copy / 'client')).serial:x}")
    for pem in (lost, certificate(copy / "client")):
        problem_of(partial(access.certificate_holder, context(pem)), "UNAUTHENTICATED")


def test_a_list_that_is_damaged_foreign_or_gone_lets_nobody_back_in(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pki.add(copy, "anna", Role.CLIENT, [], 30)
    lost = peer_of_pem(certificate(copy / "anna"))
    pki.revoke(copy, "anna")
    root = Security(copy / "root")
    path = copy / "root" / "crl.pem"
    good = path.read_bytes()
    theirs = tmp_path / "theirs"
    pki.make(theirs, [], 30)
    pki.add(theirs, "eve", Role.CLIENT, [], 30)
    pki.revoke(theirs, "eve")
    foreign = (theirs / "crl.pem").read_bytes()
    for data in (b"", b"nonsense", good[:-40], foreign, foreign + good):
        path.write_bytes(data)
        assert root.revocation(lost), data
    assert "was not signed by" in caplog.text
    path.unlink()
    assert root.revocation(lost)
    # At the start a list that cannot be used is an error.
    for data in (b"", b"nonsense", foreign):
        path.write_bytes(data)
        assert "crl.pem" in problem_of(lambda: Security(copy / "root"))
    path.write_bytes(good)
    assert Security(copy / "root").revocation(lost)


def test_revoking_what_is_not_there(copy: Path) -> None:
    assert "anna" in problem_of(lambda: pki.revoke(copy, "anna"))
    assert "is not a directory" in problem_of(lambda: pki.revoke(copy / "nowhere", "anna"))
    for name in ("", "../x", "a/b", ".x", "x" * 65, "a b"):
        problem_of(partial(pki.add, copy, name, Role.CLIENT, [], 30))
    assert "another name" in problem_of(lambda: pki.add(copy, "client", Role.CLIENT, [], 30))
    (copy / "ca.key").unlink()
    assert "ca.key" in problem_of(lambda: pki.revoke(copy, "client"))
    assert (copy / "client" / "tls.crt").exists()


def test_a_join_token_that_cannot_be_read_admits_nobody(copy: Path) -> None:
    worker = Security(copy / "worker")
    bearer = [("authorization", f"Bearer {worker.token}")]
    assert worker.admits(bearer) == ""
    for damage in (b"", b"short", b"\xff" * 40, None):
        if damage is None:
            (copy / "worker" / "token").unlink()
        else:
            (copy / "worker" / "token").write_bytes(damage)
        assert worker.admits(bearer)
        assert worker.admits([("authorization", "Bearer ")])
    shutil.copy(copy / "root" / "token", copy / "worker" / "token")
    assert worker.admits(bearer) == ""


# The wrong directory


@pytest.mark.parametrize("wanted", [Role.ROOT, Role.WORKER])
@pytest.mark.parametrize("given_role", list(Role))
def test_a_service_refuses_the_directory_of_another_role(
    ours: Path, wanted: Role, given_role: Role
) -> None:
    if wanted is given_role:
        Security(ours / given_role, wanted)
        return
    said = problem_of(lambda: Security(ours / given_role, wanted))
    assert f"{given_role}'s certificate" in said
    assert f"a {wanted}'s is needed" in said
    assert f"did you mean {ours / wanted}?" in said


def test_the_folder_above_is_not_the_directory(
    ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, role in ((["worker"], "worker"), (["root", "--model", "demo"], "root")):
        ran = hearth(*command, "--listen", "127.0.0.1:0", "--tls", str(ours))
        assert ran.returncode == 2
        assert f"did you mean {ours / role}?" in ran.stderr
    for folder in (ours, ours / "worker", ours / "monitor"):
        assert main(["cluster", "--root", "127.0.0.1:1", "--tls", str(folder)]) == 2
        assert f"did you mean {ours / 'client'}?" in capsys.readouterr().err


def test_a_certificate_of_other_programs_is_refused(copy: Path) -> None:
    (copy / "worker" / "tls.crt").write_bytes(signed(copy, ["nas.lan"]))
    said = problem_of(lambda: Security(copy / "worker", Role.WORKER))
    assert "does not have the name hearth-worker" in said


# Modes


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    ("mode", "allowed"),
    [
        (0o600, True),
        (0o400, True),
        (0o440, True),  # Kubernetes, with fsGroup
        (0o640, True),
        (0o644, False),
        (0o444, False),
        (0o604, False),
        (0o602, False),
        (0o620, False),
        (0o660, False),
        (0o666, False),
        (0o601, False),
    ],
)
def test_modes_of_secret_files(copy: Path, name: str, mode: int, allowed: bool) -> None:
    path = copy / "worker" / name
    path.chmod(mode)
    if allowed:
        Security(copy / "worker")
    else:
        said = problem_of(lambda: Security(copy / "worker"))
        assert f"chmod 600 {path}" in said
        assert f"{mode:04o}" in said


def test_modes_of_other_secrets(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, act in (
        (copy / "api-keys", lambda: ApiKeys(copy / "api-keys")),
        (copy / "ca.key", lambda: pki.revoke(copy, "client")),
    ):
        path.chmod(0o644)
        assert f"chmod 600 {path}" in problem_of(act)
    monkeypatch.setenv(key_files.ANY_MODE, "1")
    ApiKeys(copy / "api-keys")


def test_the_key_file_of_a_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(0o644)
    cluster = ["cluster", "--root", "127.0.0.1:1"]
    assert main([*cluster, "--api-key-file", str(path)]) == 2
    assert f"chmod 600 {path}" in capsys.readouterr().err
    path.chmod(0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main([*cluster, "--api-key-file", str(path)]) == 1  # nothing listens there
    assert "process list" not in capsys.readouterr().err
    assert main([*cluster, "--api-key-file", str(path), "--api-key", KEY]) == 2
    path.write_text(f"# first\nme {KEY}\n")  # a file for --api-keys
    assert main([*cluster, "--api-key-file", str(path)]) == 1
    path.write_bytes(f"\ufeff{KEY}#with\r\n".encode())
    assert _first_key(path, key_files.read_file(path)) == f"{KEY}#with"
    path.write_text("# nothing\n")
    assert main([*cluster, "--api-key-file", str(path)]) == 2
    assert "holds no API key" in capsys.readouterr().err
    assert main([*cluster, "--api-key", KEY]) == 1
    assert "process list" in capsys.readouterr().err
    monkeypatch.setenv("HEARTH_API_KEY", KEY)
    assert main(cluster) == 1
    assert "process list" not in capsys.readouterr().err


def test_a_key_is_not_sent_in_plaintext_to_another_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTH_API_KEY", KEY)
    for address in ("203.0.113.1:7716", "nas:7716", "[2001:db8::1]:7716"):
        assert main(["cluster", "--root", address]) == 1
        said = capsys.readouterr().err
        for word in (address, "plaintext", "--tls", "--insecure"):
            assert word in said
    assert os.environ["HEARTH_API_KEY"] == KEY
