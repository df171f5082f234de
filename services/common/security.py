"""A node's identity on disk, and the TLS credentials made from it.

A directory holds `ca.crt tls.crt tls.key token`, named as in a Kubernetes TLS secret, and perhaps
`crl.pem`; `hearth certs init` makes such directories. The two gates decide which calls are allowed.
Changed files are read again, so that neither renewed nor revoked certificates need a restart.
"""

from __future__ import annotations

import datetime
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from hearth.common import certificates
from hearth.common.api_keys import Metadata, bearer_problem, same_secret
from hearth.common.certificates import REVOCATION_LIST, Peer, Role
from hearth.common.errors import HearthError, Reason
from hearth.common.key_files import bad_file, check_mode, check_secret, read_file
from hearth.common.reread import Reread

if TYPE_CHECKING:
    from cryptography import x509

log = logging.getLogger(__name__)

# Names in the certificates, the same on every machine: those who dial a root or a worker expect the
# name of its kind. So any number of workers can share a certificate.
ROOT_NAME = Role.ROOT.host_name
WORKER_NAME = Role.WORKER.host_name

FILES = ("ca.crt", "tls.crt", "tls.key", "token")
# Those of them that others must not read.
SECRETS = ("tls.key", "token")
# Start-up warns about a certificate with fewer days left.
_WARN_DAYS = 30
# Time limit of the handshake that finds a server's certificate.
_LOOK_SECONDS = 5.0

T = TypeVar("T")


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

    ca, certificate, key, token = (read_file(directory / name) for name in FILES)

    def parse(name: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except Exception as error:  # cryptography raises errors of many types for bad bytes
            raise bad_file(f"{directory / name} cannot be used: {error}", directory) from None

    authorities = parse("ca.crt", lambda: x509.load_pem_x509_certificates(ca))
    chain = parse("tls.crt", lambda: x509.load_pem_x509_certificates(certificate))
    private = parse("tls.key", lambda: serialization.load_pem_private_key(key, password=None))
    if chain[0].public_key() != private.public_key():
        raise bad_file(f"{directory}/tls.key is not the key of {directory}/tls.crt", directory)
    if not any(_issued(link, authority) for link in chain for authority in authorities):
        problem = (
            f"{directory}/tls.crt was not signed by {directory}/ca.crt: take both from "
            "the same run of `hearth certs init`"
        )
        raise bad_file(problem, directory)
    expires = chain[0].not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if not chain[0].not_valid_before_utc <= now < expires:
        problem = (
            f"{directory}/tls.crt is valid from {chain[0].not_valid_before_utc:%Y-%m-%d} to "
            f"{expires:%Y-%m-%d}, and this machine's clock shows {now:%Y-%m-%d %H:%M} UTC"
        )
        raise bad_file(problem, directory)
    return Identity(ca, certificate, key, _secret(directory / "token", token), expires)


class Security:
    """The credentials of one directory (`--tls DIR`)."""

    def __init__(self, directory: Path, role: Role | None = None) -> None:
        """role: the one that the directory's certificate must state.

        Raises HearthError BAD_SETTING naming the file and what to do.
        """
        self.directory = directory
        for name in SECRETS:
            check_mode(directory / name)
        if role is not None:
            certificates.check_directory(directory, (role,))
        self._files = Reread([directory / name for name in FILES], lambda: read_identity(directory))
        self._token = Reread([directory / "token"], lambda: _token(directory), lambda _: "")
        self._serials: frozenset[int] = frozenset()
        self._revoked = Reread(
            [directory / name for name in (REVOCATION_LIST, "ca.crt")], self._read_revoked
        )
        left = self._files.get().expires - datetime.datetime.now(datetime.UTC)
        if left.days < _WARN_DAYS:
            log.warning("%s/tls.crt ends in %d days: renew it", directory, left.days)

    @property
    def token(self) -> str:
        """The cluster's join token."""
        return self._files.get().token

    @property
    def revoked(self) -> frozenset[int]:
        """Serial numbers of the cluster's revoked certificates."""
        return self._revoked.get()

    def admits(self, metadata: Metadata) -> str:
        """The reason to refuse a call with this metadata; empty if it has the join token."""
        token = self._token.get()
        if not token:
            return "the join token cannot be read here"
        return bearer_problem(metadata, lambda given: same_secret(given, token), "join token")

    def revocation(self, peer: Peer) -> str:
        """The reason to refuse a revoked certificate; empty for one that is not revoked."""
        return f"{peer} is revoked" if peer.serial in self._revoked.get() else ""

    def refusal(self, peer: Peer, allowed: Iterable[Role]) -> str:
        """The reason to refuse a certificate; empty if it states one of the allowed roles."""
        allowed = tuple(allowed)
        if not peer.roles.intersection(allowed):
            names = ", ".join(sorted(role.host_name for role in peer.roles)) or "no role"
            return f"a certificate of {names}, not of {' or '.join(r.host_name for r in allowed)}"
        return self.revocation(peer)

    def connection_refusal(self, connection: ssl.SSLSocket, allowed: Iterable[Role]) -> str:
        """The same for a connection of `ssl_context`."""
        der = connection.getpeercert(binary_form=True)
        if der is None:
            return "no certificate"
        try:
            return self.refusal(certificates.peer_of_der(der), allowed)
        except ValueError as error:
            return f"a certificate that cannot be read: {error}"

    def server_credentials(self, client_certificates: bool = True) -> grpc.ServerCredentials:
        """Credentials of a server; client_certificates: clients need a certificate of the CA."""
        given = self._files.get()

        def configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration(
                [(identity.key, identity.certificate)],
                identity.ca if client_certificates else None,
            )

        def renewed() -> Any:
            """The changed configuration, or None if unchanged."""
            nonlocal given
            newest = self._files.get()
            if newest is given:
                return None
            given = newest
            return configuration(newest)

        return grpc.dynamic_ssl_server_credentials(
            configuration(given), renewed, require_client_authentication=client_certificates
        )

    def worker_channel_credentials(
        self, certificate: bytes | None = None
    ) -> grpc.ChannelCredentials:
        """Credentials of the root's channel to a worker: certificate and join token.

        certificate: PEM of the only one that the worker may show.
        """
        identity = self._files.get()
        return grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(
                certificate or identity.ca, identity.key, identity.certificate
            ),
            grpc.access_token_call_credentials(identity.token),
        )

    def worker_certificate(self, host: str, port: int) -> bytes:
        """PEM of the certificate that the worker at host:port shows.

        gRPC reads no revocation lists: look at the certificate first, then dial with it as the only
        one. Raises HearthError UNAUTHENTICATED for a revoked one, or WORKER_UNREACHABLE.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(context)
        try:
            with (
                socket.create_connection((host, port), _LOOK_SECONDS) as raw,
                context.wrap_socket(raw, server_hostname=WORKER_NAME) as connection,
            ):
                der = connection.getpeercert(binary_form=True) or b""
            peer = certificates.peer_of_der(der)
        except (OSError, ValueError) as error:  # ssl.SSLError and time-outs among them
            problem = f"cannot be reached ({getattr(error, 'reason', None) or error})"
            raise HearthError(Reason.WORKER_UNREACHABLE, problem) from None
        problem = self.revocation(peer)
        if problem:
            raise HearthError(Reason.UNAUTHENTICATED, problem)
        return ssl.DER_cert_to_PEM_cert(der).encode()

    def ssl_context(self, client_certificates: bool = True) -> ssl.SSLContext:
        """TLS context of a server other than gRPC.

        client_certificates: clients need a certificate of the CA.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED if client_certificates else ssl.CERT_NONE
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(self.directory / "ca.crt")
            context.load_cert_chain(self.directory / "tls.crt", self.directory / "tls.key")
        except (OSError, ssl.SSLError) as error:
            raise bad_file(f"{self.directory} cannot be used: {error}", self.directory) from None

    def _read_revoked(self) -> frozenset[int]:
        """A list that goes away revokes what it revoked: to end that, restart the service."""
        path = self.directory / REVOCATION_LIST
        if self._serials and not path.exists():
            raise bad_file(f"{path} is gone", path)
        self._serials = certificates.read_revoked(self.directory)
        return self._serials


def _token(directory: Path) -> str:
    return _secret(directory / "token", read_file(directory / "token"))


def _secret(path: Path, raw: bytes) -> str:
    text = raw.decode("utf-8", "replace").strip()
    check_secret(f"the token in {path}", text, path)
    return text


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # ValueError, TypeError or InvalidSignature
        return False
    return True
