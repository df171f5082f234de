"""Where workers are looked for: a DNS name that lists them, mDNS on the LAN.

A source tells all that it knows, "host:port", at every change; what that means is membership.py's.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from zeroconf import IPVersion, ServiceBrowser, ServiceListener, Zeroconf

from hearth.common.channels import split_address
from hearth.root.settings import Joining
from hearth.worker.announce import SERVICE_TYPE

log = logging.getLogger(__name__)

# Between two looks at a DNS name. Resolvers of containers answer from memory.
_DNS_SECONDS = 3.0
# How long a service that was seen may take to tell its address.
_TELL_MS = 3_000
# Names on a LAN are anybody's to announce: no more than these are kept.
_MOST = 256

# (name of the source, all addresses that it lists now); called in the source's thread.
Found = Callable[[str, list[str]], object]


class Source(Protocol):
    """Tells what it finds from `start` to `stop`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def sources(joining: Joining, found: Found) -> list[Source]:
    """Those that the settings name. Raises HearthError BAD_ADDRESS."""
    made: list[Source] = []
    if joining.dns:
        made.append(DnsSource(joining.dns, found))
    if joining.mdns:
        made.append(MdnsSource(found))
    return made


class DnsSource:
    """Every address (IPv4 and IPv6) of a name, looked up again and again."""

    def __init__(self, name: str, found: Found, seconds: float = _DNS_SECONDS) -> None:
        """name: "host:port". Raises HearthError BAD_ADDRESS."""
        self._host, self._port = split_address(name)
        self._found = found
        self._seconds = seconds
        self._known: list[str] | None = None
        self._problem = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hearth-dns", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A look-up that is under way is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            addresses = self.resolve()
            if addresses is not None and addresses != self._known and not self._stopping.is_set():
                self._known = addresses
                self._found("dns", addresses)
            self._stopping.wait(self._seconds)

    def resolve(self) -> list[str] | None:
        """All addresses now; None when the resolver cannot say."""
        try:
            answers = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            # A name of containers is unknown while none runs. A resolver that fails says nothing.
            gone = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
            self._say(f"{self._host}: {error.strerror or error}")
            return [] if gone else None
        except UnicodeError as error:
            self._say(f"{self._host}: {error}")
            return None
        self._say("")
        found = {_address(answer[4]) for answer in answers}
        return sorted(address for address in found if address)[:_MOST]

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            if problem:
                log.warning("looking up workers: %s", problem)


class MdnsSource(ServiceListener):
    """Workers that announce themselves on the LAN (`hearth worker --announce`)."""

    def __init__(self, found: Found, interfaces: list[str] | None = None) -> None:
        """interfaces: addresses of those to listen on; None for all."""
        self._found = found
        self._interfaces = interfaces
        self._known: dict[str, str] = {}
        self._zeroconf: Zeroconf | None = None

    def start(self) -> None:
        """Raises OSError where there is no network at all."""
        if self._interfaces is None:
            self._zeroconf = Zeroconf(ip_version=IPVersion.V4Only)
        else:
            self._zeroconf = Zeroconf(self._interfaces, ip_version=IPVersion.V4Only)
        ServiceBrowser(self._zeroconf, SERVICE_TYPE, self)

    def stop(self) -> None:
        if self._zeroconf is not None:
            self._zeroconf.close()

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """zeroconf's: a service was seen."""
        info = zc.get_service_info(type_, name, timeout=_TELL_MS)
        addresses = info.parsed_addresses(IPVersion.V4Only) if info is not None else []
        if info is None or not addresses or not info.port or len(self._known) >= _MOST:
            return
        self._known[name] = f"{addresses[0]}:{info.port}"
        self._tell()

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """zeroconf's: it tells something else."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """zeroconf's: it has left."""
        if self._known.pop(name, None) is not None:
            self._tell()

    def _tell(self) -> None:
        self._found("mdns", sorted(set(self._known.values())))


def _address(where: tuple[object, ...]) -> str:
    """ "host:port" of a socket address; "" for one that only means something on one machine."""
    host, port = str(where[0]), where[1]
    if "%" in host:
        return ""
    return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"
