"""A cluster's certificate authority, certificates, join token and API keys, made and completed.

Files that exist stay: a second run completes a directory, or does nothing. security.py reads them.
A certificate is taken back by the revocation list, crl.pem.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hearth.common import system_files
from hearth.common.certificates import REVOCATION_LIST, Role, read_revoked, roles_of
from hearth.common.errors import HearthError, Reason
from hearth.common.key_files import bad_file, check_mode, read_file

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

T = TypeVar("T")

# Those that every cluster has a directory of; `add` makes more.
_ROLES = tuple(Role)
# Roles whose holders call workers, and so need the join token; workers compare it.
_WITH_TOKEN = (Role.ROOT, Role.WORKER)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Boards without a clock of their own start days behind.
_BACKDATED = datetime.timedelta(days=7)
_SECRET_BYTES = 32


def make(directory: Path, hosts: Sequence[str], days: int, force: bool = False) -> list[Path]:
    """Complete `directory`; the files that were made. Raises OSError, or HearthError BAD_SETTING.

    Runs on one directory at the same time make one set. force: replace all files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        if force:
            for role in _ROLES:
                shutil.rmtree(directory / role, ignore_errors=True)
            for name in ("ca.crt", "ca.key", "token", "api-keys", REVOCATION_LIST):
                (directory / name).unlink(missing_ok=True)
        return _Maker(directory, hosts, days).run()


def add(directory: Path, name: str, role: Role, hosts: Sequence[str], days: int) -> list[Path]:
    """Make one more certificate, in `directory`/`name`; the files that were made.

    Raises OSError, or HearthError BAD_SETTING for a name that is taken or not one of a folder.
    """
    _check_name(name)
    if (directory / name / "tls.crt").exists():
        problem = f"{directory / name} has a certificate already; choose another name"
        raise HearthError(Reason.BAD_SETTING, problem)
    with _locked(directory):
        return _Maker(directory, hosts, days).one(name, role)


def revoke(directory: Path, name: str) -> tuple[int, list[Path]]:
    """Put the certificate of `directory`/`name` on the revocation list, and remove its files.

    name: the folder's, or the certificate's serial number in hexadecimal. Returns the number and
    the copies of the list, one beside each ca.crt. Raises OSError, or HearthError BAD_SETTING.
    """
    with _locked(directory):
        return _Maker(directory, (), 0).revoke(name)


def describe(directory: Path) -> list[str]:
    """A line for each certificate of a directory: its folder, role, end and serial number."""
    from cryptography import x509

    lines = []
    for path in sorted(directory.glob("*/tls.crt")):
        try:
            certificate = x509.load_pem_x509_certificates(read_file(path))[0]
        except (ValueError, HearthError) as error:
            lines.append(f"{path}: cannot be read: {error}")
            continue
        roles = ", ".join(sorted(roles_of(certificate))) or "no role"
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        lines.append(f"{path.parent}: {roles}, until {until}, {certificate.serial_number:x}")
    return lines


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock. Raises HearthError where there is no such directory."""
    if not directory.is_dir():
        raise HearthError(Reason.BAD_SETTING, f"{directory} is not a directory of certificates")
    # Nothing is followed or written to: the folder may be one that others may write to.
    lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | system_files.AS_IT_IS, 0o644)
    try:
        system_files.lock(lock, wait=True)
        yield
    finally:
        os.close(lock)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        problem = f"{name!r} is not a name of 1 to 64 letters, digits, dots, dashes or underscores"
        raise HearthError(Reason.BAD_SETTING, problem)


class _Maker:
    """One run of `make`."""

    def __init__(self, directory: Path, hosts: Sequence[str], days: int) -> None:
        self._directory = directory
        self._hosts = hosts
        self._until = datetime.timedelta(days=days)
        # The end of the authority: nobody accepts what it signed for longer.
        self._latest: datetime.datetime | None = None
        self._made: list[Path] = []

    def run(self) -> list[Path]:
        absent = [
            role
            for role in _ROLES
            if not all((self._directory / role / name).exists() for name in ("tls.crt", "tls.key"))
        ]
        authority = self._authority() if absent else None
        for role in _ROLES:
            folder = self._directory / role
            folder.mkdir(mode=0o700, exist_ok=True)
            if authority is not None and role in absent:
                self._certificate(role, f"hearth-{role}", folder, *authority)
            self._write_common(folder, role)
        default, operator = (secrets.token_urlsafe(_SECRET_BYTES) for _ in range(2))
        keys = f"default {default}\noperator {operator} operator\n"
        self._write(self._directory / "api-keys", keys.encode(), 0o600)
        return self._made

    def one(self, name: str, role: Role) -> list[Path]:
        """One certificate of a name of its own."""
        authority = self._authority()
        folder = self._directory / name
        folder.mkdir(mode=0o700, exist_ok=True)
        self._certificate(role, name, folder, *authority)
        self._write_common(folder, role)
        return self._made

    def _write_common(self, folder: Path, role: Role) -> None:
        """The files of a role that are not its own."""
        self._write(folder / "ca.crt", read_file(self._directory / "ca.crt"), 0o644)
        revoked = self._directory / REVOCATION_LIST
        if revoked.exists():
            self._write(folder / REVOCATION_LIST, read_file(revoked), 0o644)
        if role in _WITH_TOKEN:
            self._write(folder / "token", self._token(), 0o600)

    def revoke(self, name: str) -> tuple[int, list[Path]]:
        """See the function of this name."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        authority, key = self._authority(make=False)
        folder = self._directory / name
        if (folder / "tls.crt").exists():
            found = _parsed(folder / "tls.crt", x509.load_pem_x509_certificates)
            serial = found[0].serial_number
        elif re.fullmatch(r"[0-9a-fA-F]{8,40}", name):
            serial = int(name, 16)
        else:
            problem = (
                f"{folder / 'tls.crt'} does not exist, and {name!r} is not a serial number in "
                "hexadecimal: give the name of a folder with the certificate"
            )
            raise HearthError(Reason.BAD_SETTING, problem)
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - _BACKDATED)
            .next_update(max(authority.not_valid_after_utc, now))
        )
        for number in sorted(read_revoked(self._directory) | {serial}):
            entry = x509.RevokedCertificateBuilder().serial_number(number)
            builder = builder.add_revoked_certificate(entry.revocation_date(now).build())
        data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        folders = [path.parent for path in sorted(self._directory.glob("*/ca.crt"))]
        for where in (self._directory, *folders):
            self._replace(where / REVOCATION_LIST, data, 0o644)
        for own in ("tls.crt", "tls.key"):
            (folder / own).unlink(missing_ok=True)
        return serial, self._made

    def _token(self) -> bytes:
        """The cluster's, if some role has it already."""
        for path in sorted(self._directory.glob("*/token")):
            return read_file(path)
        return secrets.token_urlsafe(_SECRET_BYTES).encode() + b"\n"

    def _authority(self, make: bool = True) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The authority; made where there is none, or an error unless `make`."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        certificate_path, key_path = self._directory / "ca.crt", self._directory / "ca.key"
        if certificate_path.exists() != key_path.exists():
            here, gone = sorted((certificate_path, key_path), key=Path.exists, reverse=True)
            problem = (
                f"{here} exists but {gone} is not there, so no certificate can be added: restore "
                "it, or replace all files with --force"
            )
            raise HearthError(Reason.BAD_SETTING, problem)
        if not key_path.exists() and not make:
            problem = f"{self._directory} has no ca.key: revoke where `hearth certs init` ran"
            raise HearthError(Reason.BAD_SETTING, problem)
        check_mode(key_path)
        if not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name(f"Hearth cluster {secrets.token_hex(4)}")
            built = (
                self._builder(name, name, key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(signs=True), critical=True)
            )
            self._save(certificate_path, key_path, built, key, key)
        certificate = _parsed(certificate_path, x509.load_pem_x509_certificate)
        loaded = _parsed(key_path, lambda data: serialization.load_pem_private_key(data, None))
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            problem = (
                f"{key_path} is not an elliptic curve key: it was not made by `hearth certs init`"
            )
            raise HearthError(Reason.BAD_SETTING, problem)
        if certificate.public_key() != loaded.public_key():
            problem = (
                f"{key_path} is not the key of {certificate_path}: restore both of one cluster"
            )
            raise HearthError(Reason.BAD_SETTING, problem)
        ends, now = certificate.not_valid_after_utc, datetime.datetime.now(datetime.UTC)
        if ends <= now and make:
            problem = (
                f"{certificate_path} ended on {ends:%Y-%m-%d}, and this machine's clock shows "
                f"{now:%Y-%m-%d}: make another authority with --force, and copy all files again"
            )
            raise HearthError(Reason.BAD_SETTING, problem)
        self._latest = ends
        return certificate, loaded

    def _certificate(
        self,
        role: Role,
        name: str,
        folder: Path,
        authority: x509.Certificate,
        authority_key: ec.EllipticCurvePrivateKey,
    ) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        names = [role.host_name]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]  # the root's too, towards its workers
        if role in (Role.ROOT, Role.WORKER):
            names += ["localhost", "127.0.0.1", "::1", *self._hosts]
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        if role is Role.WORKER:
            uses.remove(ExtendedKeyUsageOID.CLIENT_AUTH)
        built = (
            self._builder(_name(name), authority.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_alternative(n) for n in dict.fromkeys(names)]),
                critical=False,
            )
        )
        for name in ("tls.crt", "tls.key"):
            (folder / name).unlink(missing_ok=True)  # half a pair is useless
        self._save(folder / "tls.crt", folder / "tls.key", built, key, authority_key)

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        from cryptography import x509

        now = datetime.datetime.now(datetime.UTC)
        ends = now + self._until
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(ends if self._latest is None else min(ends, self._latest))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def _save(
        self,
        certificate_path: Path,
        key_path: Path,
        builder: x509.CertificateBuilder,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
    ) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        signed = builder.add_extension(identifier, critical=False).sign(signer, hashes.SHA256())
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        # The key first: a certificate that exists has its key.
        self._write(key_path, secret, 0o600)
        self._write(certificate_path, signed.public_bytes(serialization.Encoding.PEM), 0o644)

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        """Write a file that does not exist yet, all of it or nothing."""
        if path.exists():
            return
        self._replace(path, data, mode)

    def _replace(self, path: Path, data: bytes, mode: int) -> None:
        """Write a file, all of it or nothing."""
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)  # of a run that was cut short, or somebody's link
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(part, flags | system_files.AS_IT_IS, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        part.rename(path)
        self._made.append(path)


def _parsed(path: Path, parse: Callable[[bytes], T]) -> T:
    """A file by a parser of `cryptography`. Raises HearthError BAD_SETTING."""
    data = read_file(path)
    try:
        return parse(data)
    except Exception as error:  # cryptography raises errors of many types for bad bytes
        problem = str(error).partition(" See https:")[0]
        raise bad_file(f"{path} cannot be used: {problem}", path) from None


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(text: str) -> x509.GeneralName:
    """A name or an address of a certificate. Raises HearthError for neither."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        problem = f"--host {text!r} is neither a name nor an address: {error}"
        raise HearthError(Reason.BAD_SETTING, problem) from None
