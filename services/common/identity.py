"""A node's certificate, key and join token, read from a directory and checked against each other.

The checks are those of a handshake. So files that no peer would accept are an error in words at the
start, and not connections that close.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hearth.common.errors import HearthError
from hearth.common.key_files import bad_file, check_secret, read_file

if TYPE_CHECKING:
    from cryptography import x509

FILES = ("ca.crt", "tls.crt", "tls.key", "token")
# Those of them that others must not read.
SECRETS = ("tls.key", "token")

# Keys that gRPC's TLS (BoringSSL) and Python's (OpenSSL) both use.
_MIN_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1")
_USABLE = f"RSA of {_MIN_RSA_BITS} bits or more, or the curve P-256 or P-384"
# Keys that sign certificates may be of these, too.
_CURVES_ABOVE = (*_CURVES, "secp224r1", "secp521r1")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate, its key, and the authorities of its cluster. PEM; `repr` hides all three."""

    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    serial: int
    # End of validity of the certificate, or of a certificate above it that ends earlier.
    expires: datetime.datetime


@dataclass(frozen=True, slots=True)
class Identity(Pair):
    """A pair and the cluster's join token."""

    token: str = field(repr=False)


def read_identity(directory: Path) -> Identity:
    """Reads and checks a directory. Raises HearthError BAD_SETTING naming the file."""
    pair = read_pair(directory)
    return Identity(
        pair.ca, pair.certificate, pair.key, pair.serial, pair.expires, read_token(directory)
    )


def read_token(directory: Path) -> str:
    """The join token of a directory. Raises HearthError BAD_SETTING."""
    path = directory / "token"
    text = read_file(path).decode("utf-8", "replace").strip()
    check_secret(f"the token in {path}", text, path)
    return text


def read_pair(directory: Path) -> Pair:
    """Reads and checks all but the join token. Raises HearthError BAD_SETTING naming the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    paths = tuple(directory / name for name in ("ca.crt", "tls.crt", "tls.key"))
    ca, certificate, key = (read_file(path) for path in paths)
    authorities = _parse(paths[0], lambda: x509.load_pem_x509_certificates(ca))
    chain = _parse(paths[1], lambda: x509.load_pem_x509_certificates(certificate))
    private = _parse(paths[2], lambda: serialization.load_pem_private_key(key, password=None))
    if _parse(paths[1], lambda: _usable_key(chain[0], _CURVES)) != private.public_key():
        raise bad_file(f"{paths[2]} is not the key of {paths[1]}", directory)
    path = _parse(paths[1], lambda: _path(chain, authorities))
    if path is None:
        problem = (
            f"{paths[1]} was not signed by {paths[0]}: take both from the same run of "
            "`hearth certs init`"
        )
        raise bad_file(problem, directory)
    own, *links, authority = path
    for above in (*links, authority):
        _parse(paths[0], lambda above=above: _usable_key(above, _CURVES_ABOVE))  # type: ignore[misc]
    expires = min(
        _check_time(paths[1], own, directory),
        *(_check_time(paths[1], link, directory) for link in links),
        _check_time(paths[0], authority, directory),
    )
    return Pair(ca, certificate, key, own.serial_number, expires)


def _parse(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except HearthError:
        raise
    except Exception as error:  # cryptography raises errors of many types for bad bytes
        # Some of its messages go on with an address of its documentation.
        problem = str(error).partition(" See https:")[0]
        raise bad_file(f"{path} cannot be used: {problem}", path) from None


def _usable_key(certificate: x509.Certificate, curves: Sequence[str]) -> object:
    """The certificate's public key. Raises ValueError for a kind that TLS here does not support."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key = certificate.public_key()
    kind = type(key).__name__.lstrip("_").removesuffix("PublicKey")
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size >= _MIN_RSA_BITS:
            return key
        kind = f"RSA of {key.key_size} bits"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name in curves:
            return key
        kind = f"of the curve {key.curve.name}"
    elif isinstance(key, ed25519.Ed25519PublicKey) and curves is _CURVES_ABOVE:
        return key
    raise ValueError(f"its key is {kind}; Hearth's ports support {_USABLE}")


def _path(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate] | None:
    """Certificates from the first of `chain` up to an authority; None if none signed it."""
    found = [chain[0]]
    for link in chain[1:]:
        if any(_issuers(found[-1], authorities)) or not any(_issuers(found[-1], [link])):
            break
        found.append(link)
    # Of several authorities of one name the one that is valid longest.
    last = max(
        _issuers(found[-1], authorities), key=lambda each: each.not_valid_after_utc, default=None
    )
    return None if last is None else [*found, last]


def _issuers(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate]
) -> Iterator[x509.Certificate]:
    """Those of `authorities` that signed a certificate."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except Exception:  # ValueError, TypeError or InvalidSignature
            continue
        yield authority


def _check_time(path: Path, certificate: x509.Certificate, directory: Path) -> datetime.datetime:
    """The end of validity. Raises HearthError for a certificate that is not valid now."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if not begins <= now < ends:
        problem = (
            f"{path} is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}, and this machine's clock "
            f"shows {now:%Y-%m-%d %H:%M} UTC"
        )
        raise bad_file(problem, directory)
    return ends
