"""A cluster's certificate authority, certificates, join token and API key, made and completed.

Files that exist stay: a second run completes a directory, or does nothing. security.py reads them.
"""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.common.errors import HearthError, Reason

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_ROLES = ("root", "worker", "client")
# Boards without a clock of their own start days behind.
_BACKDATED = datetime.timedelta(days=7)
_SECRET_BYTES = 32


def make(directory: Path, hosts: Sequence[str], days: int, force: bool = False) -> list[Path]:
    """Complete `directory`; the files that were made. Raises OSError, or HearthError BAD_SETTING.

    Runs on one directory at the same time make one set. force: replace all files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if force:
            for role in _ROLES:
                shutil.rmtree(directory / role, ignore_errors=True)
            for name in ("ca.crt", "ca.key", "token", "api-keys"):
                (directory / name).unlink(missing_ok=True)
        return _Maker(directory, hosts, days).run()


class _Maker:
    """One run of `make`."""

    def __init__(self, directory: Path, hosts: Sequence[str], days: int) -> None:
        self._directory = directory
        self._hosts = hosts
        self._until = datetime.timedelta(days=days)
        self._made: list[Path] = []

    def run(self) -> list[Path]:
        absent = [
            role
            for role in _ROLES
            if not all((self._directory / role / name).exists() for name in ("tls.crt", "tls.key"))
        ]
        authority = self._authority() if absent else None
        ca = (self._directory / "ca.crt").read_bytes()
        token = self._token()
        for role in _ROLES:
            folder = self._directory / role
            folder.mkdir(mode=0o700, exist_ok=True)
            if authority is not None and role in absent:
                self._certificate(role, folder, *authority)
            self._write(folder / "ca.crt", ca, 0o644)
            if role != "client":
                self._write(folder / "token", token, 0o600)
        key = f"default {secrets.token_urlsafe(_SECRET_BYTES)}\n"
        self._write(self._directory / "api-keys", key.encode(), 0o600)
        return self._made

    def _token(self) -> bytes:
        """The cluster's, if some role has it already."""
        for role in _ROLES:
            path = self._directory / role / "token"
            if path.exists():
                return path.read_bytes()
        return secrets.token_urlsafe(_SECRET_BYTES).encode() + b"\n"

    def _authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
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
        if not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name(f"Hearth cluster {secrets.token_hex(4)}")
            built = (
                self._builder(name, name, key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(signs=True), critical=True)
            )
            self._save(certificate_path, key_path, built, key, key)
        try:
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
            loaded = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        except ValueError as error:
            problem = f"{certificate_path} or {key_path} cannot be used: {error}"
            raise HearthError(Reason.BAD_SETTING, problem) from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            problem = (
                f"{key_path} is not an elliptic curve key: it was not made by `hearth certs init`"
            )
            raise HearthError(Reason.BAD_SETTING, problem)
        return certificate, loaded

    def _certificate(
        self,
        role: str,
        folder: Path,
        authority: x509.Certificate,
        authority_key: ec.EllipticCurvePrivateKey,
    ) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        names = [f"hearth-{role}"]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH]
        if role == "client":
            uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        else:
            names += ["localhost", "127.0.0.1", "::1", *self._hosts]
        if role == "root":
            uses += [ExtendedKeyUsageOID.CLIENT_AUTH]  # towards its workers
        built = (
            self._builder(_name(f"hearth-{role}"), authority.subject, key.public_key())
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
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + self._until)
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
        part = path.with_name(f".{path.name}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        part.rename(path)
        self._made.append(path)


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
