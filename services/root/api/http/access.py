"""Rules before a request is read: its head, the Host and Origin of browsers, the caller's key."""

from __future__ import annotations

import ipaddress
import platform
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from hearth.common import certificates
from hearth.common.access import Access, Caller
from hearth.common.channels import is_loopback
from hearth.common.errors import HearthError, Reason
from hearth.root.api.http import limits
from hearth.root.api.http.call import TEXT, Call
from hearth.root.api.http.errors import encoded_body, forbidden, head_too_large, two_lengths
from hearth.root.api.http.page import is_open

# For clients without a field for a key: http://HOST:PORT/k/KEY as their base address.
_KEY_PREFIX = "/k/"
# Paths without a key: probes. The page's files have none either.
_OPEN = ("/health", "/v1/health")
_METHODS = "GET, POST, DELETE, OPTIONS"
_PREFLIGHT_SECONDS = 600
# Names that no stranger's DNS can point at this machine.
_LOCAL_NAMES = (".localhost", ".internal", ".local")

_KEY_RULE = (
    "this root takes requests with an API key only: send it as `Authorization: Bearer KEY`, "
    "`x-api-key` or `api-key`, or put /k/KEY before the path"
)
_CERTIFICATE_RULE = "this root takes requests of clients and operators of its cluster only"


class Rules:
    """The rules for the sender of a request and the page that it comes from."""

    def __init__(self, address: str, access: Access, origins: Sequence[str]) -> None:
        """address: "host:port" of the port. origins: of other sites' pages that may call.

        Without `origins` pages of this machine may call. "*" is any page.
        """
        self.access = access
        self._loopback = is_loopback(address)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._own_name = platform.node().lower()

    def path_and_key(self, path: str, raw: bytes) -> tuple[str, str]:
        """A path without the key in it and without a last slash, and the key; "" for none.

        raw: the path as it was sent, in which a key's own "/" is "%2F".
        """
        key = ""
        sent = raw.decode("latin-1")
        if sent.startswith(_KEY_PREFIX):
            segment, _, rest = sent[len(_KEY_PREFIX) :].partition("/")
            key, path = unquote(segment), unquote(f"/{rest}")
        return (path.rstrip("/") or "/"), key

    async def admit(self, call: Call) -> bool:
        """Checks the head; adds the headers of CORS. False if the request is answered.

        Raises HttpError 400, 403, 415 or 431.
        """
        _check_head(call)
        host = call.headers.get("host", "")
        self._check_host(host)
        origin = call.headers.get("origin", "")
        if not origin:
            return True
        if not self._is_same(origin, host, call.scope["scheme"]):
            if not self._permits(origin):
                raise forbidden(
                    f"pages of {origin[:100]} may not call this root; start it with "
                    f"--cors {origin[:100]} to allow that"
                )
            call.extra += [
                ("access-control-allow-origin", origin),
                ("access-control-expose-headers", "x-request-id, request-id, retry-after"),
                ("vary", "Origin"),
            ]
        if call.method != "OPTIONS" or "access-control-request-method" not in call.headers:
            return True
        asked = call.headers.get("access-control-request-headers", "")
        headers = [
            ("access-control-allow-methods", _METHODS),
            ("access-control-allow-headers", asked),
            ("access-control-max-age", str(_PREFLIGHT_SECONDS)),
        ]
        await call.reply_bytes(b"", TEXT, 200, headers)
        return False

    def caller(self, call: Call, key: str) -> Caller:
        """The caller by its key or certificate. Raises HearthError UNAUTHENTICATED."""
        if call.path in _OPEN or is_open(call):
            return Caller("", frozenset())
        try:
            if self.access.by_key:
                return self.access.key_holder([("authorization", _authorization(call, key))])
            der = call.connection.certificate
            peer = None if der is None else certificates.peer_of_der(der)
            return self.access.certificate_caller(peer)
        except ValueError as error:
            problem = f"a certificate that cannot be read: {error}"
            call.connection.refuse(problem)
            raise HearthError(Reason.UNAUTHENTICATED, problem) from None
        except HearthError as error:
            call.connection.refuse(error.message)
            rule = _KEY_RULE if self.access.by_key else _CERTIFICATE_RULE
            raise HearthError(error.reason, f"{error.message}: {rule}") from None

    def _check_host(self, host: str) -> None:
        """A page whose name was pointed at this machine (DNS rebinding) sends that name as Host."""
        name = _host_name(host)
        if self._loopback and not self._is_local(name):
            raise forbidden(
                f"the request is for the host {name[:100]!r}, and this root serves this machine "
                "only: use localhost or 127.0.0.1"
            )

    def _is_local(self, name: str) -> bool:
        if name in ("", "localhost", self._own_name) or name.endswith(_LOCAL_NAMES):
            return True
        return _is_address(name)

    def _is_same(self, origin: str, host: str, scheme: str) -> bool:
        return origin.lower() == f"{scheme}://{host.lower()}"

    def _permits(self, origin: str) -> bool:
        if "*" in self._origins or origin.lower() in self._origins:
            return True
        if self._origins:
            return False
        try:
            parts = urlsplit(origin)
            name = (parts.hostname or "").lower()
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _check_head(call: Call) -> None:
    """Size, one length of the body, and no compression. Raises HttpError 400, 415 or 431."""
    size = len(call.scope["raw_path"]) + len(call.scope["query_string"])
    size += sum(len(name) + len(value) for name, value in call.scope["headers"])
    # The parser looks at heads that come in several parts only.
    if size > limits.MAX_HEAD_BYTES:
        raise head_too_large(limits.MAX_HEAD_BYTES)
    if "transfer-encoding" in call.headers and "content-length" in call.headers:
        raise two_lengths()
    encoding = call.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise encoded_body(encoding)


def _authorization(call: Call, key: str) -> str:
    """The header that carries the key, wherever the client put it."""
    given = key or call.headers.get("x-api-key") or call.headers.get("api-key")
    return f"Bearer {given}" if given else call.headers.get("authorization", "")


def _host_name(host: str) -> str:
    """The name of a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
