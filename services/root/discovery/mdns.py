"""Workers that announce themselves by mDNS on the LAN, over IPv4 and IPv6.

Most announcements hold all that is needed. A name without an address is looked up in threads of its
own, so that names without one hold nobody up. Which names have a place: announced.py. How memory is
bounded: browsing.py.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
import time

from zeroconf import IPVersion, ServiceInfo, Zeroconf

from hearth.common.channels import format_address
from hearth.root.discovery.announced import Announced
from hearth.root.discovery.browsing import Browser
from hearth.root.discovery.sources import Found
from hearth.worker.announce import SERVICE_TYPE, open_zeroconf

log = logging.getLogger(__name__)

# How long a service that was seen may take to send its address.
_ADDRESS_MS = 3_000
# Names that wait to be looked up, and how many are looked up at once.
_MAX_WAITING = 64
_THREADS = 4
_MAX_LEFT = 4096
# Between two searches for names that found no place before.
_AGAIN_SECONDS = 1.0


class MdnsSource:
    """Workers that announce themselves on the LAN (`hearth worker --announce`)."""

    def __init__(self, found: Found, interfaces: list[str] | None = None) -> None:
        """interfaces: addresses of those to listen on; None for all."""
        self._found = found
        self._interfaces = interfaces
        self._zeroconf: Zeroconf | None = None
        self._browser: Browser | None = None
        # Guards all below.
        self._changed = threading.Condition()
        self._announced = Announced()
        self._reported: list[str] = []
        self._waiting: list[str] = []
        self._refused_some = False
        # Names that left while a search or a look-up may still hold them.
        self._left: set[str] = set()
        self._stopping = False
        # Reports in the order of the listings.
        self._reporting = threading.Lock()

    def start(self) -> None:
        """Raises OSError where there is no network at all."""
        self._zeroconf = open_zeroconf(self._interfaces)
        for work in (self._search_again, *[self._look_up] * _THREADS):
            threading.Thread(target=work, name="hearth-mdns", daemon=True).start()
        self._browser = Browser(self._zeroconf, self.seen, self.left)

    def stop(self) -> None:
        """Returns at once, even while a name is looked up."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._browser is not None:
            self._browser.stop()
        if self._zeroconf is not None:
            self._zeroconf.close()

    def tried(self, address: str, good: bool) -> None:
        """A worker answered at this address, or none that can be used."""
        with self._changed:
            self._announced.tried(address, good, time.monotonic())
            self._changed.notify_all()
        self._report()

    def seen(self, info: ServiceInfo) -> None:
        """The browser's: a name was announced, with all that its packet has. Returns at once."""
        with self._changed:
            self._left.discard(info.name)
        if addresses_of(info):
            self._take(info)
        elif self._zeroconf is not None:
            self._see(self._zeroconf, info.name)

    def left(self, name: str) -> None:
        """The browser's: a name has left, or expired."""
        with self._changed:
            self._announced.withdraw(name)
            if len(self._left) >= _MAX_LEFT:
                self._left.clear()
            self._left.add(name)
            self._changed.notify_all()
        self._report()

    def _see(self, zc: Zeroconf, name: str) -> bool:
        """Take in a name: now, if the cache has its address, else once it was looked up.

        False if there is no place for it now.
        """
        try:
            info = ServiceInfo(SERVICE_TYPE, name)
            info.load_from_cache(zc)
        except Exception as error:  # anyone can send anything
            log.debug("mDNS: %s: %s", name, error)
            return True
        if addresses_of(info):
            return self._take(info)
        with self._changed:
            if name in self._waiting:
                return True
            if len(self._waiting) >= _MAX_WAITING:
                self._waiting.pop(random.randrange(_MAX_WAITING))
            self._waiting.append(name)
            self._changed.notify_all()
        return True

    def _take(self, info: ServiceInfo) -> bool:
        """Offer a name with its addresses; False if there is no place for it now."""
        addresses = addresses_of(info)
        if not addresses:
            return True
        with self._changed:
            if info.name in self._left:
                return True
            taken = self._announced.offer(info.name, addresses, time.monotonic())
            if not taken or self._announced.some_gave_up:
                self._refused_some = True
                self._changed.notify_all()
        self._report()
        return taken

    def _report(self) -> None:
        with self._reporting:
            with self._changed:
                listing = self._announced.listing()
                if listing == self._reported or self._stopping:
                    return
                self._reported = listing
            self._found("mdns", listing)

    def _look_up(self) -> None:
        """One of the threads that look names up."""
        assert self._zeroconf is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                name = self._waiting.pop(random.randrange(len(self._waiting)))
            try:
                info = self._zeroconf.get_service_info(SERVICE_TYPE, name, timeout=_ADDRESS_MS)
            except Exception as error:  # anyone can send anything; or the source was stopped
                log.debug("mDNS: %s: %s", name, error)
                continue
            if info is not None:
                self._take(info)

    def _search_again(self) -> None:
        """The thread that gives names a place once others have given theirs up."""
        assert self._zeroconf is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._refused_some or self._stopping)
                self._changed.wait_for(lambda: self._stopping, _AGAIN_SECONDS)
                if self._stopping:
                    return
                self._refused_some = False
                self._left.clear()
            try:
                self._search(self._zeroconf)
            except Exception as error:  # the source was stopped meanwhile
                log.debug("mDNS: %s", error)
            with self._changed:
                self._refused_some = self._refused_some or self._announced.some_gave_up

    def _search(self, zc: Zeroconf) -> None:
        """Offer names that zeroconf still knows and that have no place, in any order."""
        names = [
            alias
            for record in zc.cache.entries_with_name(SERVICE_TYPE)
            if isinstance(alias := getattr(record, "alias", None), str)
        ]
        random.shuffle(names)
        for name in names:
            with self._changed:
                if self._stopping:
                    return
                may_come = self._announced.may_come(name, time.monotonic())
            if may_come and not self._see(zc, name):
                return


def addresses_of(info: ServiceInfo) -> list[str]:
    """All "host:port" of a service, best first: IPv4, IPv6, IPv6 of one link with its interface."""
    if not info.port:
        return []
    found = []
    for text in info.parsed_scoped_addresses(IPVersion.All):
        address = ipaddress.ip_address(text)
        scope = address.scope_id if isinstance(address, ipaddress.IPv6Address) else None
        local = address.version == 6 and address.is_link_local
        if address.is_unspecified or address.is_multicast or local != bool(scope):
            continue
        found.append((address.version, local, format_address(text, info.port)))
    return [text for *_, text in sorted(found)]
