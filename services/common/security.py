"""A node's identity on disk, and the TLS credentials made from it.

A directory holds `ca.crt tls.crt tls.key token`, named as in a Kubernetes TLS secret;
`hearth certs init` makes such directories. The two gates decide which calls are allowed. Changed
files are read again, so that renewed certificates need no restart.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import logging
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from hearth.common.errors import HearthError, Reason

if TYPE_CHECKING:
    from cryptography import x509

log = logging.getLogger(__name__)

# Names in the certificates, the same on every machine: those who dial a root or a worker expect the
# name of its kind. So any number of workers can share a certificate.
ROOT_NAME = "hearth-root"
WORKER_NAME = "hearth-worker"

FILES = ("ca.crt", "tls.crt", "tls.key", "token")
# Minimum length of a token or an API key: 16 random characters are 96 bits.
MIN_SECRET_CHARACTERS = 16
_MAX_SECRET_CHARACTERS = 1024
_MAX_FILE_BYTES = 1 << 20
# Start-up warns about a certificate with fewer days left.
_WARN_DAYS = 30

T = TypeVar("T")
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Contents of the files, checked against each other. PEM as bytes; `repr` hides secrets."""

    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    token: str = field(repr=False)
    # End of the certificate's validity.
    expires: datetime.datetime


def read_identity(directory: Path) -> Identity:
    """Reads and checks a directory. Raises HearthError BAD_SETTING naming the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    ca, certificate, key, token = (_read(directory / name, directory) for name in FILES)

    def parse(name: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except Exception as error:  # cryptography raises errors of many types for bad bytes
            raise _bad(f"{directory / name} cannot be used: {error}", directory) from None

    authorities = parse("ca.crt", lambda: x509.load_pem_x509_certificates(ca))
    chain = parse("tls.crt", lambda: x509.load_pem_x509_certificates(certificate))
    private = parse("tls.key", lambda: serialization.load_pem_private_key(key, password=None))
    if chain[0].public_key() != private.public_key():
        raise _bad(f"{directory}/tls.key is not the key of {directory}/tls.crt", directory)
    if not any(_issued(link, authority) for link in chain for authority in authorities):
        problem = (
            f"{directory}/tls.crt was not signed by {directory}/ca.crt: take both from "
            "the same run of `hearth certs init`"
        )
        raise _bad(problem, directory)
    expires = chain[0].not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if not chain[0].not_valid_before_utc <= now < expires:
        problem = (
            f"{directory}/tls.crt is valid from {chain[0].not_valid_before_utc:%Y-%m-%d} to "
            f"{expires:%Y-%m-%d}, and this machine's clock shows {now:%Y-%m-%d %H:%M} UTC"
        )
        raise _bad(problem, directory)
    return Identity(ca, certificate, key, _secret(directory / "token", token), expires)


class Reread(Generic[T]):
    """A value read from files, and read again when one of them changes. Thread-safe.

    Construction raises the errors of `read`. Later errors are logged, and the last value stays in
    use.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._stamp = self._look()
        self._value = read()

    def get(self) -> T:
        """The newest value that could be read."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._value = self._read()
            except HearthError as error:
                log.error("the previous version stays in use: %s", error)
            else:
                log.info("%s changed: read again", ", ".join(map(str, self._paths)))
        return self._value

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                return []
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return found


class Security:
    """The credentials of one directory (`--tls DIR`)."""

    def __init__(self, directory: Path) -> None:
        """Raises HearthError BAD_SETTING naming the file and what to do."""
        self.directory = directory
        self._files = Reread([directory / name for name in FILES], lambda: read_identity(directory))
        left = self._files.get().expires - datetime.datetime.now(datetime.UTC)
        if left.days < _WARN_DAYS:
            log.warning("%s/tls.crt ends in %d days: renew it", directory, left.days)

    @property
    def token(self) -> str:
        """The cluster's join token."""
        return self._files.get().token

    def admits(self, metadata: Metadata) -> str:
        """The reason to refuse a call with this metadata; empty if it has the join token."""
        return bearer_problem(metadata, lambda given: _same(given, self.token), "join token")

    def server_credentials(
        self, client_certificates: bool = True, on_handshake: Callable[[], None] = lambda: None
    ) -> grpc.ServerCredentials:
        """Credentials of a server; client_certificates: clients need a certificate of the CA.

        on_handshake: called in a gRPC thread at the start of each connection's handshake.
        """
        given = self._files.get()

        def configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration(
                [(identity.key, identity.certificate)],
                identity.ca if client_certificates else None,
            )

        def renewed() -> Any:
            """The changed configuration, or None if unchanged."""
            nonlocal given
            on_handshake()
            newest = self._files.get()
            if newest is given:
                return None
            given = newest
            return configuration(newest)

        return grpc.dynamic_ssl_server_credentials(
            configuration(given), renewed, require_client_authentication=client_certificates
        )

    def worker_channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of the root's channel to a worker: certificate and join token."""
        identity = self._files.get()
        return grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate),
            grpc.access_token_call_credentials(identity.token),
        )

    def ssl_context(self) -> ssl.SSLContext:
        """TLS context of a server other than gRPC; clients need a certificate of the CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.directory / "ca.crt")
            context.load_cert_chain(self.directory / "tls.crt", self.directory / "tls.key")
        except (OSError, ssl.SSLError) as error:
            raise _bad(f"{self.directory} cannot be used: {error}", self.directory) from None
        return context


class ApiKeys:
    """The clients of a root, by key: a file of lines `NAME KEY`; # begins a comment."""

    def __init__(self, path: Path) -> None:
        """Raises HearthError BAD_SETTING naming the file and the line."""
        self._keys = Reread([path], lambda: _read_keys(path))

    def admits(self, metadata: Metadata) -> str:
        """The reason to refuse a call with this metadata; empty if it has one of the keys."""
        return bearer_problem(metadata, self._accepts, "API key")

    def _accepts(self, given: str) -> bool:
        digest = _digest(given)
        # Compares with every key, so that the time reveals nothing.
        return sum(hmac.compare_digest(digest, known) for known in self._keys.get().values()) > 0


def bearer_problem(metadata: Metadata, accepts: Callable[[str], bool], what: str) -> str:
    """The reason to refuse `authorization: Bearer ...`; empty if `accepts` returns True for it."""
    given = [value for key, value in metadata if key == "authorization"]
    if not given:
        return f"no {what}"
    text = given[0] if isinstance(given[0], str) else given[0].decode("latin-1")
    scheme, _, secret = text.partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        return f"no {what} (authorization is not one `Bearer ...`)"
    return "" if accepts(secret) else f"a wrong {what}"


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _read_keys(path: Path) -> dict[str, bytes]:
    """Digests of the keys, by name."""
    text = _read(path, path.parent).decode("utf-8", "replace")
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != 2:
            raise _bad(f"{where}: {len(words)} words, expected 2: NAME KEY", path)
        name, key = words
        if name in keys:
            raise _bad(f"{where}: the name {name!r} is there twice", path)
        _check_secret(f"{where}: the key of {name!r}", key, path)
        keys[name] = _digest(key)
    if not keys:
        raise _bad(f"{path} has 0 keys; give at least one line NAME KEY", path)
    return keys


def _secret(path: Path, raw: bytes) -> str:
    text = raw.decode("utf-8", "replace").strip()
    _check_secret(f"the token in {path}", text, path.parent)
    return text


def _check_secret(what: str, text: str, path: Path) -> None:
    if not MIN_SECRET_CHARACTERS <= len(text) <= _MAX_SECRET_CHARACTERS:
        problem = (
            f"{what} has {len(text)} characters; it must have {MIN_SECRET_CHARACTERS} to "
            f"{_MAX_SECRET_CHARACTERS}"
        )
        raise _bad(problem, path)
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise _bad(f"{what} has characters not allowed in a header: use letters and digits", path)


def _read(path: Path, directory: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = (
            f"cannot read {path}: {error.strerror or error}; `hearth certs init` creates the "
            "files for --tls and --api-keys"
        )
        raise _bad(problem, directory) from None
    if len(data) > _MAX_FILE_BYTES:
        raise _bad(
            f"{path} has more than {_MAX_FILE_BYTES} bytes: it is not the right file", directory
        )
    return data


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # ValueError, TypeError or InvalidSignature
        return False
    return True


def _bad(problem: str, path: Path) -> HearthError:
    return HearthError(Reason.BAD_SETTING, problem, {"path": path})
