"""A client's connection: TLS from a directory, an API key, and channel options."""

import codecs
import ipaddress
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import grpc

from hearth.client.errors import Insecure, InvalidArgument

# The name in every root's certificate, whatever its address (`hearth certs init` writes it).
_ROOT_NAME = "hearth-root"
_MAX_FILE_BYTES = 1 << 20

# Pauses before a connection is tried again that the port closed while it was being made, seconds.
# Each is longer than gRPC's own back-off then, during which calls fail without another attempt.
_PAUSES = (0.25, 0.5, 1.0)
# gRPC's words for such a connection; none of them stands for a port where nothing listens.
_FAILED, _CLOSED = "failed to connect", ("socket closed", "connection reset", "broken pipe")

Options = list[tuple[str, int | str]]
Metadata = tuple[tuple[str, str | bytes], ...]


def channel_options(connect_timeout: float) -> Options:
    """Options of a client's channel. connect_timeout: seconds for one attempt to connect."""
    return [
        # An idle connection is pinged after 20 s and closed after 10 s without an answer.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.min_reconnect_backoff_ms", max(1, round(connect_timeout * 1000))),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        # Two clients do not share a connection (nor its back-off after a failure).
        ("grpc.use_local_subchannel_pool", 1),
    ]


class Reconnecting:
    """The quick retries of one call, for connections that were closed before they were ready.

    A root's port under a flood gives its places at random, so the next attempt is likely to find
    one. The request has not been sent then: no retry can make a root compute twice.
    """

    def __init__(self) -> None:
        self._pauses = iter(_PAUSES)

    def pause(self, error: grpc.RpcError) -> float | None:
        """Seconds to wait before the call is made again; None if it is not to be."""
        call: Any = error  # an RpcError of a call has the call's status, which its type lacks
        details = (call.details() or "").lower()
        if call.code() is not grpc.StatusCode.UNAVAILABLE or _FAILED not in details:
            return None
        if not any(words in details for words in _CLOSED):
            return None
        return next(self._pauses, None)


def check_exposed(address: str) -> None:
    """Raises Insecure unless `address` is on this machine, so that nobody reads what is sent."""
    if not _is_local(address):
        problem = (
            f"the API key would go to {address} in plaintext, where others can read it: use TLS "
            "(--tls, in Python tls=, a directory with the root's ca.crt), or --insecure "
            "(insecure=True) if you trust the whole network"
        )
        raise Insecure(problem, reason="INSECURE", code=grpc.StatusCode.FAILED_PRECONDITION)


def _is_local(address: str) -> bool:
    """True for a Unix socket, and for a loopback address or localhost with a port."""
    scheme, _, rest = address.rpartition(":///") if ":///" in address else ("", "", address)
    for kind in ("unix:", "unix-abstract:"):
        if address.startswith(kind):
            return True
    for kind in ("ipv4:", "ipv6:", "dns:"):
        rest = rest.removeprefix(kind)
    if scheme not in ("", "dns", "ipv4", "ipv6") or "," in rest:
        return False
    host = rest.rpartition(":")[0] if rest.count(":") == 1 or "]:" in rest else rest
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to any address


def credentials_of(
    tls: str | Path | None, credentials: grpc.ChannelCredentials | None
) -> tuple[grpc.ChannelCredentials | None, Options]:
    """Credentials and the channel options that belong to them.

    tls: a directory with ca.crt and, where the root requires a certificate, tls.crt and tls.key.
    credentials: returned as they are. Raises InvalidArgument for files that cannot be used, or
    TypeError when both are given.
    """
    if tls is None:
        return credentials, []
    if credentials is not None:
        raise TypeError("give tls= or credentials=, not both")
    folder = Path(tls)
    authority = _read(folder / "ca.crt")
    chain = _read(folder / "tls.crt") if os.path.lexists(folder / "tls.crt") else None
    key = _read(folder / "tls.key") if chain is not None else None
    _check_files(folder, chain is not None)
    made = grpc.ssl_channel_credentials(authority, key, chain)
    return made, [("grpc.ssl_target_name_override", _ROOT_NAME)]


def _check_files(folder: Path, with_certificate: bool) -> None:
    """Loads the files as TLS does: gRPC ends the process for empty ones, and names no bad one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(folder / "ca.crt")
    except (ssl.SSLError, OSError) as error:
        problem = f"{folder / 'ca.crt'} cannot be used: {_reason(error)}; it must be a certificate"
        raise _invalid(f"{problem} in PEM") from None
    if not with_certificate:
        return
    try:
        # A password, so that OpenSSL does not ask for one on the terminal.
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key", password="")
    except (ssl.SSLError, OSError) as error:
        problem = f"{folder / 'tls.crt'} and {folder / 'tls.key'} cannot be used: {_reason(error)}"
        hint = "they must be a certificate and its own key, in PEM and without a password"
        raise _invalid(f"{problem}; {hint}") from None


def _reason(error: OSError) -> str:
    """OpenSSL's words for a bad file, without the place in its source."""
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).partition(" (_ssl.c")[0].replace("_", " ").lower()


def metadata_of(api_key: str | None) -> Metadata | None:
    """Metadata of every call. Raises InvalidArgument for a key that does not fit a header."""
    if api_key is None:
        return None
    if not (api_key.isascii() and api_key.isprintable()) or not api_key or " " in api_key:
        raise _invalid("the API key must be ASCII text without spaces")
    return (("authorization", f"Bearer {api_key}"),)


def _read(path: Path) -> bytes:
    """A small file without a byte order mark, which gRPC does not know."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _invalid(f"{path} is not a regular file")
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _invalid(
            f"cannot read {path}: {error.strerror or error}; tls= (--tls) is a directory with "
            "ca.crt, and tls.crt and tls.key where the root requires a certificate"
        ) from None
    if len(data) > _MAX_FILE_BYTES:
        raise _invalid(f"{path} has more than {_MAX_FILE_BYTES} bytes: it is not the right file")
    return data.removeprefix(codecs.BOM_UTF8)


def _open_at_once(path: str, flags: int) -> int:
    """Opens a FIFO without waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(
        message, reason="INVALID_ARGUMENT", code=grpc.StatusCode.INVALID_ARGUMENT
    )
