"""Settings of gRPC channels and servers for both ends: addresses, message limits, keepalive."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import grpc

from hearth.common import system
from hearth.common.errors import HearthError, Reason

if TYPE_CHECKING:
    from hearth.common.security import Security

# The contract's version. A root and a worker of different versions refuse each other.
PROTOCOL_VERSION = 7

# The longest name of a node, in bytes of UTF-8: it reaches logs, metrics and every client.
MAX_NAME_BYTES = 256

# Weight data in one WeightChunk, bytes.
CHUNK_BYTES = 1 << 20

# The largest payload of one Forward message: f32 [rows, hidden_size] of activations or partial
# sums, or f32 [output rows, vocabulary rows] of logits. 64 MiB is 1,024 rows of the widest known
# model (Llama 3.1 405B, hidden size 16,384), or 125 whole rows of a 128k vocabulary. A plan with a
# larger max_step_tokens x hidden_size x 4 is refused (worker/shard.py).
MAX_PAYLOAD_BYTES = 64 << 20
# Field tags, page tables and digests around the payload.
_OVERHEAD_BYTES = 1 << 20
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + _OVERHEAD_BYTES
# Limit of messages from clients, which send only text (the root's own service).
MAX_CLIENT_MESSAGE_BYTES = 4 << 20

# Both ends ping a connection that was silent for 4 s, and close it 8 s later. A lost machine or a
# stopped process is therefore noticed within 12 s, however long a step takes: gRPC's own threads
# answer pings while others compute. Shorter limits would give false alarms on a slow network,
# where a ping waits behind weights. The server allows twice the rate of pings, so that a clock's
# drift never makes the pings of a correct client "too many".
_KEEPALIVE_MS = 4_000
_KEEPALIVE_TIMEOUT_MS = 8_000

# Time limit for a peer that sends nothing: for the handshake of a connection (TLS, the first frames
# of HTTP/2), for the message of a call, for the first message of a stream.
SILENCE_SECONDS = 10.0
# A connection without a call for this long is closed; clients reconnect by themselves.
_IDLE_MS = 300_000
# Authorized connections of one server at once. Each costs three descriptors and some 100 KiB.
MAX_CONNECTIONS = 256
# Connections without an authorized call that gRPC sees at once (common/front.py).
MAX_STRANGERS = 128
# A peer acknowledges SETTINGS within this, or gRPC closes the connection: until then, gRPC does not
# apply its limit on headers.
SETTINGS_SECONDS = 2.0
# Connections that wait to be accepted.
_BACKLOG = 512

Options = list[tuple[str, int | str]]

_KEEPALIVE: Options = [
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's default here is a minute, whatever the timeout above.
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
]


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a channel between root and worker."""
    return [
        *_KEEPALIVE,
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A worker that comes back is found within seconds, not after minutes of backoff.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Nodes are dialled directly: a proxy in the environment is for the internet.
        ("grpc.enable_http_proxy", 0),
        # One connection per channel: streams of two channels do not queue behind each other.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_streams: int = 100,
    silence_seconds: float = SILENCE_SECONDS,
) -> Options:
    """Options of a server.

    max_message_bytes: limit of a message, received or sent.
    max_streams: calls of one connection at once; more wait on the client.
    silence_seconds: time limit of a connection's handshake.
    """
    return [
        *_KEEPALIVE,
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.max_concurrent_streams", max_streams),
        # The front has fewer, and closes silent ones first.
        ("grpc.max_allowed_incoming_connections", 2 * (MAX_CONNECTIONS + MAX_STRANGERS)),
        ("grpc.server_handshake_timeout_ms", round(silence_seconds * 1000) + 1000),
        ("grpc.http2.settings_timeout", round(SETTINGS_SECONDS * 1000)),
        # A refused stream is forgotten at once, not kept for up to a second.
        ("grpc.http.tarpit", 0),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A port in use is an error; do not share it with another server.
        ("grpc.so_reuseport", 0),
    ]


def dial(
    address: str, security: Security | None = None, certificate: bytes | None = None
) -> grpc.Channel:
    """The root's channel to a worker at host:port; connects when first used.

    With `security`, uses mutual TLS and sends the join token with each call.
    certificate: PEM of the only one that the worker may show. Raises HearthError BAD_ADDRESS.
    """
    split_address(address)
    if security is None:
        return grpc.insecure_channel(address, options=channel_options())
    from hearth.common.security import WORKER_NAME

    # The certificate's name stands for "a worker of this cluster", whatever its address.
    options: Options = [*channel_options(), ("grpc.ssl_target_name_override", WORKER_NAME)]
    credentials = security.worker_channel_credentials(certificate)
    return grpc.secure_channel(address, credentials, options=options)


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[ipv6]:port". Raises HearthError BAD_ADDRESS."""
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    named = bare.isascii() and bare.isprintable() and bool(bare.strip())
    if not colon or not named or not 0 <= number <= 65535 or (":" in bare and bare == host):
        problem = f"{address!r} is not HOST:PORT (for example 192.168.1.20:7717, or [::1]:7717)"
        raise HearthError(Reason.BAD_ADDRESS, problem, {"address": address})
    return bare, number


def format_address(host: str, port: int) -> str:
    """host:port, or [host]:port for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """True if only this machine can reach a server that listens on `address`."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to any address


def refuse_exposed(option: str, address: str, security: Security | None, insecure: bool) -> None:
    """Raises HearthError INSECURE for an unprotected address beyond loopback.

    option: the command-line option of the address, "--listen" or "--metrics".
    """
    if security is None and not insecure and not is_loopback(address):
        problem = (
            f"{option} {address} would be open to every machine that can reach this one: pass "
            "--tls DIR (create it with `hearth certs init`), or --insecure if you trust the whole "
            "network"
        )
        raise HearthError(Reason.INSECURE, problem, {"address": address})


def listen(address: str) -> list[socket.socket]:
    """Sockets that listen on host:port: one for each address of the host, all on one port.

    Port 0 is any free one. "0.0.0.0" takes IPv6 too, where the machine has it.
    Raises HearthError PORT_IN_USE or BAD_ADDRESS, naming the address.
    """
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _cannot_listen(address, error) from None
    where = [(family, address) for family, _, _, _, address in found]
    if host == "0.0.0.0":
        where.insert(0, (socket.AF_INET6, ("::", port)))
    opened: list[socket.socket] = []
    problems: list[OSError] = []
    for family, each in where:
        if opened and port == 0:
            each = (each[0], opened[0].getsockname()[1], *each[2:])
        try:
            opened.append(_listening(family, each))
        except OSError as error:
            problems.append(error)
        if opened and host == "0.0.0.0":
            break
    in_use = any(error.errno == errno.EADDRINUSE for error in problems)
    if not opened or in_use:
        for each_socket in opened:
            each_socket.close()
        raise _port_in_use(address) if in_use else _cannot_listen(address, problems[0])
    return opened


def _listening(family: int, where: tuple[Any, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        system.reuse_address(opened)
        if family == socket.AF_INET6:
            only = 0 if where[0] == "::" else 1
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        opened.bind(where)
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _port_in_use(address: str) -> HearthError:
    problem = (
        f"cannot listen on {address}: another program uses this port; "
        "stop it, or choose another port (port 0 takes any free one)"
    )
    return HearthError(Reason.PORT_IN_USE, problem, {"address": address})


def _cannot_listen(address: str, error: OSError) -> HearthError:
    problem = f"cannot listen on {address}: {error.strerror or error}"
    return HearthError(Reason.BAD_ADDRESS, problem, {"address": address})
