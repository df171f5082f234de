"""Certificates of a cluster: the roles that they state, and the list of revoked ones.

A certificate states its roles by DNS names of its subjectAltName: `hearth-root`, `hearth-worker`,
`hearth-client`, `hearth-operator`, `hearth-monitor`. One without such a name has no role.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.common.key_files import bad_file, read_file

if TYPE_CHECKING:
    from cryptography import x509

# Revoked certificates of a directory, beside its ca.crt; it may be absent.
REVOCATION_LIST = "crl.pem"
_PREFIX = "hearth-"
_LISTS = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
# Certificates of peers whose contents are kept.
_KNOWN_PEERS = 256


class Role(StrEnum):
    """Rights of the holder of a certificate or of an API key."""

    ROOT = "root"
    WORKER = "worker"
    # Requests; everything but changing the cluster.
    CLIENT = "client"
    # Requests, and draining workers.
    OPERATOR = "operator"
    # Metrics only.
    MONITOR = "monitor"

    @property
    def host_name(self) -> str:
        """The name that states this role in a certificate."""
        return _PREFIX + self


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's certificate. name: its common name, for the log; serial: unique in its authority."""

    name: str
    serial: int
    roles: frozenset[Role]

    def __str__(self) -> str:
        return f"certificate {self.serial:x} of {self.name or 'no name'}"


def roles_of(certificate: x509.Certificate) -> frozenset[Role]:
    """The roles that a certificate states; empty for one of other programs."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return frozenset()
    return frozenset(role for role in Role if role.host_name in found)


def peer_of_pem(pem: bytes) -> Peer:
    """The peer of a certificate as gRPC shows it. Raises ValueError."""
    return _peer(pem, False)


def peer_of_der(der: bytes) -> Peer:
    """The peer of a certificate as Python's ssl shows it. Raises ValueError."""
    return _peer(der, True)


@functools.lru_cache(_KNOWN_PEERS)
def _peer(data: bytes, der: bool) -> Peer:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    load = x509.load_der_x509_certificate if der else x509.load_pem_x509_certificate
    certificate = load(data)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(names[0].value) if names else ""
    return Peer(name[:100], certificate.serial_number, roles_of(certificate))


def read_revoked(directory: Path) -> frozenset[int]:
    """Serial numbers that the directory's revocation list names; none without such a file.

    Raises HearthError BAD_SETTING for a list that is damaged or of another authority.
    """
    from cryptography import x509

    path = directory / REVOCATION_LIST
    if not os.path.lexists(path):  # a link to nothing is a list that cannot be read
        return frozenset()
    authorities = x509.load_pem_x509_certificates(read_file(directory / "ca.crt"))
    blocks = _LISTS.findall(read_file(path))
    if not blocks:
        raise bad_file(f"{path} holds no revocation list (a PEM block X509 CRL)", path)
    revoked: set[int] = set()
    for block in blocks:
        try:
            found = x509.load_pem_x509_crl(block)
            signed = any(
                authority.subject == found.issuer
                and found.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
                for authority in authorities
            )
        except Exception as error:  # cryptography raises errors of many types for bad bytes
            raise bad_file(f"{path} cannot be used: {error}", path) from None
        if not signed:
            problem = f"{path} was not signed by {directory}/ca.crt: take both from one directory"
            raise bad_file(problem, path)
        revoked.update(entry.serial_number for entry in found)
    return frozenset(revoked)


def check_directory(directory: Path, wanted: Sequence[Role]) -> None:
    """Raises HearthError BAD_SETTING unless a directory's certificate states a wanted role.

    The first of `wanted` is the one to suggest. Certificates that are missing or cannot be read
    are left to those who read all of the directory.
    """
    from cryptography import x509

    need = wanted[0]
    path = directory / "tls.crt"
    if not path.exists():
        if (directory / need / "tls.crt").exists():
            problem = f"{path} does not exist; did you mean {directory / need}?"
            raise bad_file(problem, directory)
        return
    try:
        stated = roles_of(x509.load_pem_x509_certificates(read_file(path))[0])
    except ValueError:
        return
    if stated.intersection(wanted):
        return
    if stated:
        own = f"is {_article(min(stated))}'s certificate"
    else:
        own = f"does not have the name {need.host_name}, nor another one of Hearth's"
    beside = directory.parent / need
    hint = f": did you mean {beside}?" if (beside / "tls.crt").exists() else ""
    raise bad_file(f"{path} {own}; {_article(need)}'s is needed here{hint}", directory)


def _article(role: Role) -> str:
    return f"an {role}" if role is Role.OPERATOR else f"a {role}"
