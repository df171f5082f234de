"""Sources of workers: a DNS name that lists them, mDNS on the LAN (mdns.py).

A source reports all addresses that it lists, "host:port", at every change. membership.py decides
what follows.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from hearth.common.channels import format_address, split_address
from hearth.root.settings import Joining

log = logging.getLogger(__name__)

# Between two look-ups of a DNS name. Resolvers of containers answer from memory.
_DNS_SECONDS = 3.0
# Addresses of a DNS name that are listed.
MAX_WORKERS = 256

# (name of the source, all addresses that it lists now); called in the source's thread.
Found = Callable[[str, list[str]], object]


class Source(Protocol):
    """Reports what it finds, from `start` to `stop`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def tried(self, address: str, good: bool) -> None:
        """A worker answered at this address, or none that can be used. In any thread."""


def sources(joining: Joining, found: Found) -> list[Source]:
    """The sources that the settings name. Raises HearthError BAD_ADDRESS."""
    made: list[Source] = []
    if joining.dns:
        made.append(DnsSource(joining.dns, found))
    if joining.mdns:
        from hearth.root.discovery.mdns import MdnsSource  # late: loads zeroconf

        made.append(MdnsSource(found))
    return made


class DnsSource:
    """All addresses (IPv4 and IPv6) of a name, looked up every few seconds."""

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
        """Returns at once, even while a look-up is under way."""
        self._stopping.set()

    def tried(self, address: str, good: bool) -> None:
        """Nothing changes: the DNS name decides which addresses are listed."""

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
            # A name of containers is unknown while none runs. Other failures change nothing.
            gone = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
            self._say(f"{self._host}: {error.strerror or error}")
            return [] if gone else None
        except UnicodeError as error:
            self._say(f"{self._host}: {error}")
            return None
        self._say("")
        found = {_address(answer[4]) for answer in answers}
        return sorted(address for address in found if address)[:MAX_WORKERS]

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            if problem:
                log.warning("looking up workers: %s", problem)


def _address(where: tuple[Any, ...]) -> str:
    """ "host:port" of a socket address, with the interface of one that is of a link.

    "" where that interface is not known.
    """
    host, _, scope = str(where[0]).partition("%")
    address = ipaddress.ip_address(host)
    if address.version == 6 and address.is_link_local:
        number = where[3] if len(where) > 3 else 0
        if not scope and not number:
            return ""
        host += f"%{scope or _interface_name(number)}"
    return format_address(host, where[1])


def _interface_name(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return str(number)
