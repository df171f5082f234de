"""A worker's certificate, looked at where some of the cluster's certificates are revoked."""

from hearth.common.channels import split_address
from hearth.common.errors import HearthError, Reason
from hearth.common.security import Security


class WorkerCertificate:
    """The certificate that the worker at an address shows. For one thread at a time."""

    def __init__(self, address: str, security: Security) -> None:
        """Connects when used. Raises HearthError BAD_ADDRESS."""
        self._host, self._port = split_address(address)
        self._security = security
        # The list at the last look; at first nothing is revoked, and nothing is looked at.
        self._seen: frozenset[int] = frozenset()
        self._problem = ""

    def only(self) -> bytes | None:
        """PEM of the only certificate to trust; None while nothing is revoked.

        Raises HearthError UNAUTHENTICATED for a revoked one, or WORKER_UNREACHABLE.
        """
        self._seen = self._security.revoked
        if not self._seen:
            return None
        return self._security.worker_certificate(self._host, self._port)

    def revocation(self) -> str:
        """The reason to end a connection; looks again only when the list has changed."""
        if self._security.revoked != self._seen:
            self._problem = ""
            try:
                self.only()
            except HearthError as error:
                if error.reason == Reason.UNAUTHENTICATED:
                    self._problem = error.message
        return self._problem
