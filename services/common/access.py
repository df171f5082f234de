"""Rules of a root's port: callers by key or certificate, and the methods of each role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hearth.common import certificates
from hearth.common.api_keys import ApiKey, ApiKeys, Metadata
from hearth.common.certificates import Peer, Role
from hearth.common.errors import HearthError, Reason
from hearth.common.security import Security

Proof = ApiKey | Peer

# Roles that may call the root at all. The root's own certificate is an operator's: its holder has
# the join token.
_CALLERS = (Role.CLIENT, Role.OPERATOR, Role.ROOT)
_OPERATORS = frozenset({Role.OPERATOR, Role.ROOT})
# Methods of the root's service for every client; all others, also future ones, are an operator's.
_FOR_CLIENTS = frozenset(
    (
        "Generate",
        "Embed",
        "Tokenize",
        "Detokenize",
        "GetModel",
        "ListModels",
        "GetCluster",
        "WatchCluster",
    )
)
_ROOT_SERVICE = "/hearth.v1.RootService/"


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of an API key or a certificate; anyone, where there are neither."""

    # For logs and limits: "key anna", "certificate 5f3a of hearth-client"; empty for anyone.
    name: str
    roles: frozenset[Role]
    proof: Proof | None = None


ANYONE = Caller("", _OPERATORS)


def peer_certificate(context: Any) -> Peer:
    """The certificate of a gRPC call's caller. Raises HearthError UNAUTHENTICATED."""
    found = context.auth_context().get("x509_pem_cert")
    try:
        return certificates.peer_of_pem(found[0])
    except (TypeError, IndexError, ValueError):
        raise HearthError(Reason.UNAUTHENTICATED, "no certificate that can be read") from None


class Access:
    """The rules of a root's port: by API keys, by certificates, or open to anyone."""

    def __init__(self, security: Security | None, keys: ApiKeys | None) -> None:
        self._security = security
        self._keys = keys

    @property
    def by_key(self) -> bool:
        """True if API keys decide, so that a call's metadata is enough."""
        return self._keys is not None

    def key_holder(self, metadata: Metadata) -> Caller:
        """The caller by its API key. Raises HearthError UNAUTHENTICATED."""
        assert self._keys is not None
        found = self._keys.holder(metadata)
        if isinstance(found, str):
            raise HearthError(Reason.UNAUTHENTICATED, found)
        return Caller(f"key {found.name}", frozenset({found.role}), found)

    def certificate_holder(self, context: Any) -> Caller:
        """The caller by its certificate; anyone without TLS. Raises HearthError UNAUTHENTICATED."""
        if self._security is None:
            return ANYONE
        return self.certificate_caller(peer_certificate(context))

    def certificate_caller(self, peer: Peer | None) -> Caller:
        """The caller that showed this certificate. Raises HearthError UNAUTHENTICATED."""
        if self._security is None:
            return ANYONE
        if peer is None:
            raise HearthError(Reason.UNAUTHENTICATED, "no certificate")
        problem = self._security.refusal(peer, _CALLERS)
        if problem:
            raise HearthError(Reason.UNAUTHENTICATED, problem)
        return Caller(str(peer), peer.roles, peer)

    def revocation(self, proof: Proof) -> str:
        """The reason to end the calls of a revoked caller; empty for one that may go on."""
        if isinstance(proof, ApiKey):
            known = self._keys is not None and self._keys.holds(proof)
            return "" if known else f"the API key of {proof.name!r} was revoked"
        return self._security.revocation(proof) if self._security is not None else ""


def check_allowed(caller: Caller, method: str) -> None:
    """Raises HearthError PERMISSION_DENIED for a method of another role.

    method: its full name, "/hearth.v1.RootService/DrainWorker".
    """
    service, name = method[: len(_ROOT_SERVICE)], method[len(_ROOT_SERVICE) :]
    if service != _ROOT_SERVICE or name in _FOR_CLIENTS or caller.roles & _OPERATORS:
        return
    problem = (
        f"{name} is for operators, and this is {caller.name}: use an operator's certificate "
        "(DIR/operator of `hearth certs init`), or an API key whose line ends with `operator`"
    )
    raise HearthError(Reason.PERMISSION_DENIED, problem, {"method": name})
