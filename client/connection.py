"""A client's connection: TLS from a directory, an API key, and channel options."""

import ipaddress
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
    credentials: returned as they are. Raises InvalidArgument, or TypeError when both are given.
    """
    if tls is None:
        return credentials, []
    if credentials is not None:
        raise TypeError("give tls= or credentials=, not both")
    folder = Path(tls)
    chain = _read(folder / "tls.crt") if (folder / "tls.crt").exists() else None
    key = _read(folder / "tls.key") if chain is not None else None
    made = grpc.ssl_channel_credentials(_read(folder / "ca.crt"), key, chain)
    return made, [("grpc.ssl_target_name_override", _ROOT_NAME)]


def metadata_of(api_key: str | None) -> Metadata | None:
    """Metadata of every call. Raises InvalidArgument for a key that does not fit a header."""
    if api_key is None:
        return None
    if not (api_key.isascii() and api_key.isprintable()) or not api_key or " " in api_key:
        raise _invalid("the API key must be ASCII text without spaces")
    return (("authorization", f"Bearer {api_key}"),)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise _invalid(
            f"cannot read {path}: {error.strerror or error}; tls= (--tls) is a directory with "
            "ca.crt, and tls.crt and tls.key where the root requires a certificate"
        ) from None


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(
        message, reason="INVALID_ARGUMENT", code=grpc.StatusCode.INVALID_ARGUMENT
    )
