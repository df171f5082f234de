"""Files of certificates and keys that no handshake would accept: an error in words at the start."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from hearth.cli.main import main
from hearth.client import Client
from hearth.client.errors import InvalidArgument
from hearth.common import pki
from hearth.common.api_keys import ApiKeys
from hearth.common.certificates import Role
from hearth.common.errors import HearthError
from hearth.common.identity import FILES, read_identity
from hearth.common.security import Security

PEM = serialization.Encoding.PEM
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
PAIR = ("ca.crt", "tls.crt", "tls.key")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    pki.make(folder, [], 30)
    return folder


@pytest.fixture
def root(ours: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ours / "root", tmp_path / "root"))


@pytest.fixture
def client(ours: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ours / "client", tmp_path / "client"))


def problem_of(act: Callable[[], object]) -> str:
    with pytest.raises(HearthError) as caught:
        act()
    assert caught.value.reason == "BAD_SETTING"
    return caught.value.message


def client_problem(directory: Path) -> str:
    with pytest.raises(InvalidArgument) as caught:
        Client("127.0.0.1:1", tls=directory)
    return str(caught.value)


def key_pem(key: Any, password: bytes | None = None) -> bytes:
    protection = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(PEM, form, protection))


def load_key(path: Path) -> Any:
    return serialization.load_pem_private_key(path.read_bytes(), None)


def certificate(
    subject: str,
    key: Any,
    issuer: str,
    signer: Any,
    begins: datetime.timedelta = -DAY,
    ends: datetime.timedelta = DAY,
) -> bytes:
    """PEM of a certificate with the names of a root and a client."""
    own, above = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in (subject, issuer)
    )
    names = [x509.DNSName("hearth-root"), x509.DNSName("hearth-client")]
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begins)
        .not_valid_after(NOW + ends)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    plain = isinstance(signer, ed25519.Ed25519PrivateKey)
    return builder.sign(signer, None if plain else hashes.SHA256()).public_bytes(PEM)


def curve(kind: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(kind())


def write(directory: Path, **files: bytes) -> None:
    """Writes ca_crt=, tls_crt= and tls_key= as files of these names."""
    for name, data in files.items():
        (directory / name.replace("_", ".")).write_bytes(data)


# Files that are not files of text


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD = (fifo, folder, link_to_nothing, endless)


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", [*FILES, "crl.pem"])
def test_what_is_not_a_regular_file_is_named(
    root: Path, name: str, make: Callable[[Path], None]
) -> None:
    """Nothing waits for a FIFO, and a list of revoked certificates cannot vanish as a link."""
    path = root / name
    path.unlink(missing_ok=True)
    make(path)
    assert str(path) in problem_of(lambda: Security(root))


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", PAIR)
def test_a_client_names_what_is_not_a_regular_file(
    client: Path, name: str, make: Callable[[Path], None]
) -> None:
    (client / name).unlink()
    make(client / name)
    assert str(client / name) in client_problem(client)


@pytest.mark.parametrize("name", FILES)
def test_text_of_windows(root: Path, name: str) -> None:
    """A byte order mark and CRLF change nothing; UTF-16 is named."""
    before = read_identity(root)
    text = (root / name).read_text()
    (root / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    after = read_identity(root)
    assert after.token == before.token
    for data in (after.ca, after.certificate, after.key):
        assert data.startswith(b"-----BEGIN")
    Security(root).ssl_context()
    (root / name).write_bytes(text.encode("utf-16"))
    assert f"{root / name} is text in UTF-16" in problem_of(lambda: read_identity(root))


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 999, b"x" * (3 << 20), b"-----BEGIN CERTIFICATE-----"]
)
def test_a_client_names_a_file_that_cannot_be_used(client: Path, name: str, data: bytes) -> None:
    """gRPC ends the process for an empty file, and names no bad one."""
    (client / name).write_bytes(data)
    assert str(client / name) in client_problem(client)


@pytest.mark.parametrize("make", ODD)
def test_a_file_of_api_keys_that_is_replaced_while_a_root_runs(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """No call waits for a FIFO, and nobody is admitted."""
    path = tmp_path / "keys"
    path.write_text(f"me {'k' * 16}\n")
    path.chmod(0o600)
    keys = ApiKeys(path)
    given = [("authorization", f"Bearer {'k' * 16}")]
    assert keys.admits(given) == ""
    path.unlink()
    make(path)
    assert keys.admits(given) == "a wrong API key"
    assert str(path) in caplog.text
    assert str(path) in problem_of(lambda: ApiKeys(path))


# Keys


def test_a_key_with_a_password(root: Path, client: Path) -> None:
    for directory in (root, client):
        key = load_key(directory / "tls.key")
        write(directory, tls_key=key_pem(key, b"secret"))
    assert "encrypted" in problem_of(lambda: Security(root))
    assert "without a password" in client_problem(client)


def test_a_key_of_another_certificate(root: Path, client: Path) -> None:
    for directory in (root, client):
        write(directory, tls_key=key_pem(curve()))
    assert "tls.key is not the key of" in problem_of(lambda: Security(root))
    assert "key values mismatch" in client_problem(client)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), ""),
        (lambda: curve(ec.SECP384R1), ""),
        (lambda: rsa.generate_private_key(65537, 1024), "RSA of 1024 bits"),
        (lambda: curve(ec.SECP521R1), "secp521r1"),
        (lambda: curve(ec.SECP256K1), "secp256k1"),
        (lambda: curve(ec.BrainpoolP256R1), "brainpoolP256r1"),
        (lambda: dsa.generate_private_key(1024), "DSA"),
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
    ],
)
def test_kinds_of_keys(ours: Path, root: Path, make: Callable[[], Any], said: str) -> None:
    """gRPC fails to open its port with the others, or fails at each handshake."""
    key, authority = make(), load_key(ours / "ca.key")
    issuer = x509.load_pem_x509_certificate((ours / "ca.crt").read_bytes()).subject
    name = str(issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    write(root, tls_crt=certificate("x", key, name, authority), tls_key=key_pem(key))
    if not said:
        read_identity(root)
        return
    problem = problem_of(lambda: read_identity(root))
    assert said in problem
    assert "P-256" in problem


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: curve(ec.SECP521R1), ""),
        (ed25519.Ed25519PrivateKey.generate, ""),
        (lambda: curve(ec.BrainpoolP256R1), "brainpoolP256r1"),
    ],
)
def test_kinds_of_keys_of_an_authority(root: Path, make: Callable[[], Any], said: str) -> None:
    key, above = curve(), make()
    write(
        root,
        ca_crt=certificate("above", above, "above", above),
        tls_crt=certificate("x", key, "above", above),
        tls_key=key_pem(key),
    )
    if said:
        assert said in problem_of(lambda: read_identity(root))
    else:
        read_identity(root)


# Chains


def test_a_chain_is_followed_from_the_own_certificate(root: Path) -> None:
    key, middle, above = curve(), curve(), curve()
    authority = certificate("above", above, "above", above)
    link = certificate("middle", middle, "above", above, ends=3 * DAY)
    own = certificate("x", key, "middle", middle)
    write(root, ca_crt=authority, tls_crt=own + link, tls_key=key_pem(key))
    assert read_identity(root).expires < NOW + 2 * DAY
    write(root, tls_crt=own)  # no link to the authority
    assert "was not signed by" in problem_of(lambda: read_identity(root))
    # A second certificate that the authority signed makes no path for the first.
    stranger = certificate("x", key, "x", key)
    write(root, tls_crt=stranger + link)
    assert "was not signed by" in problem_of(lambda: read_identity(root))


@pytest.mark.parametrize(("begins", "ends"), [(-3 * DAY, -DAY), (DAY, 3 * DAY)])
@pytest.mark.parametrize("name", ["ca.crt", "tls.crt"])
def test_a_certificate_out_of_its_time(
    root: Path, name: str, begins: datetime.timedelta, ends: datetime.timedelta
) -> None:
    """Nobody accepts a certificate whose authority has ended, however long it is valid itself."""
    key, above = curve(), curve()
    times = {"ca.crt": (-DAY, DAY), "tls.crt": (-DAY, DAY), name: (begins, ends)}
    write(
        root,
        ca_crt=certificate("above", above, "above", above, *times["ca.crt"]),
        tls_crt=certificate("x", key, "above", above, *times["tls.crt"]),
        tls_key=key_pem(key),
    )
    problem = problem_of(lambda: Security(root))
    assert f"{root / name} is valid from" in problem
    assert "this machine's clock shows" in problem


def test_the_authority_that_ends_first_is_warned_of(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, above = curve(), curve()
    write(
        root,
        ca_crt=certificate("above", above, "above", above, ends=3 * DAY),
        tls_crt=certificate("x", key, "above", above, ends=90 * DAY),
        tls_key=key_pem(key),
    )
    Security(root)
    assert "ends in 2 days" in caplog.text


def test_a_command_refuses_an_ended_certificate_in_words(
    client: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, above = curve(), curve()
    write(
        client,
        ca_crt=certificate("above", above, "above", above),
        tls_crt=certificate("x", key, "above", above, -3 * DAY, -DAY),
        tls_key=key_pem(key),
    )
    assert main(["cluster", "--root", "127.0.0.1:1", "--tls", str(client)]) == 2
    assert f"{client / 'tls.crt'} is valid from" in capsys.readouterr().err


def test_a_service_refuses_its_own_revoked_certificate(tmp_path: Path) -> None:
    pki.make(tmp_path, [], 30)
    kept = {name: (tmp_path / "root" / name).read_bytes() for name in ("tls.crt", "tls.key")}
    serial, _ = pki.revoke(tmp_path, "root")
    for name, data in kept.items():
        (tmp_path / "root" / name).write_bytes(data)
        (tmp_path / "root" / name).chmod(0o600)
    problem = problem_of(lambda: Security(tmp_path / "root"))
    assert f"{serial:x}" in problem
    assert "hearth certs add" in problem


# hearth certs


def certs(*words: str | Path) -> int:
    return main(["certs", *map(str, words)])


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "crl.pem", "root/token", ".lock"])
def test_certs_names_what_is_not_a_regular_file(
    name: str,
    make: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither waits for a FIFO nor writes through a link."""
    pki.make(tmp_path, [], 30)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    for words in (("add", tmp_path, "anna", "--role", "worker"), ("revoke", tmp_path, "client")):
        code = certs(*words)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert name in said or code == 0
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "root" / "nowhere").exists()


def test_certs_writes_its_secrets_to_new_files_only(tmp_path: Path) -> None:
    """A part left by a run that was cut short, or by somebody else, gives its mode to no key."""
    folder = tmp_path / "certs"
    pki.make(folder, [], 30)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("tls.crt", "tls.key"):
        (folder / "root" / name).unlink()
    (folder / "root" / ".tls.key.part").symlink_to(victim)
    (folder / "root" / ".tls.crt.part").write_text("old")
    pki.make(folder, [], 30)
    assert victim.read_text() == "precious"
    assert (folder / "root" / "tls.key").stat().st_mode & 0o777 == 0o600
    read_identity(folder / "root")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ca_key": key_pem(curve())}, "ca.key is not the key of"),
        ({"ca_key": key_pem(curve(), b"secret")}, "ca.key cannot be used"),
        ({"ca_key": b""}, "ca.key cannot be used"),
        ({"ca_crt": b"-----BEGIN CERTIFICATE-----"}, "ca.crt cannot be used"),
        ({"ca_key": key_pem(rsa.generate_private_key(65537, 2048))}, "not an elliptic curve key"),
    ],
)
def test_certs_signs_with_the_key_of_its_authority_only(
    tmp_path: Path, files: dict[str, bytes], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pki.make(tmp_path, [], 30)
    write(tmp_path, **files)
    assert certs("add", tmp_path, "anna") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "anna" / "tls.crt").exists()


def test_no_certificate_outlives_its_authority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pki.make(tmp_path, [], 30)
    pki.add(tmp_path, "anna", Role.CLIENT, [], 3650)
    made = x509.load_pem_x509_certificate((tmp_path / "anna" / "tls.crt").read_bytes())
    above = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    assert made.not_valid_after_utc == above.not_valid_after_utc
    key = load_key(tmp_path / "ca.key")
    write(tmp_path, ca_crt=certificate("above", key, "above", key, -3 * DAY, -DAY))
    assert certs("add", tmp_path, "bert") == 2
    assert "ca.crt ended on" in capsys.readouterr().err
