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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from hearth.common import certificates
from hearth.common.api_keys import Metadata, bearer_problem, same_secret
from hearth.common.certificates import REVOCATION_LIST, Peer, Role
from hearth.common.errors import HearthError, Reason
from hearth.common.identity import FILES, SECRETS, Identity, read_identity, read_token
from hearth.common.key_files import bad_file, check_mode
from hearth.common.reread import Reread

log = logging.getLogger(__name__)

# Names in the certificates, the same on every machine: those who dial a root or a worker expect the
# name of its kind. So any number of workers can share a certificate.
ROOT_NAME = Role.ROOT.host_name
WORKER_NAME = Role.WORKER.host_name

# Start-up warns about a certificate with fewer days left.
_WARN_DAYS = 30
# Time limit of the handshake that finds a server's certificate.
_LOOK_SECONDS = 5.0


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
        self._token = Reread([directory / "token"], lambda: read_token(directory), lambda _: "")
        self._serials: frozenset[int] = frozenset()
        self._revoked = Reread(
            [directory / name for name in (REVOCATION_LIST, "ca.crt")], self._read_revoked
        )
        own = self._files.get()
        if own.serial in self._revoked.get():
            problem = (
                f"{directory}/{REVOCATION_LIST} revokes {directory}/tls.crt (serial number "
                f"{own.serial:x}), so nobody would accept it: run `hearth certs add` for another"
            )
            raise bad_file(problem, directory)
        left = own.expires - datetime.datetime.now(datetime.UTC)
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
            # With a password, a key that has one fails; OpenSSL would ask for it on the terminal.
            context.load_cert_chain(
                self.directory / "tls.crt", self.directory / "tls.key", password=""
            )
        except (OSError, ssl.SSLError) as error:
            raise bad_file(f"{self.directory} cannot be used: {error}", self.directory) from None

    def _read_revoked(self) -> frozenset[int]:
        """A list that goes away revokes what it revoked: to end that, restart the service."""
        path = self.directory / REVOCATION_LIST
        if self._serials and not path.exists():
            raise bad_file(f"{path} is gone", path)
        self._serials = certificates.read_revoked(self.directory)
        return self._serials
