"""Workers that announce themselves by mDNS on the LAN."""

from __future__ import annotations

from zeroconf import IPVersion, ServiceBrowser, ServiceListener, Zeroconf

from hearth.root.discovery.sources import MAX_WORKERS, Found
from hearth.worker.announce import SERVICE_TYPE

# How long a service that was seen may take to send its address.
_ADDRESS_MS = 3_000


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
        info = zc.get_service_info(type_, name, timeout=_ADDRESS_MS)
        addresses = info.parsed_addresses(IPVersion.V4Only) if info is not None else []
        if info is None or not addresses or not info.port or len(self._known) >= MAX_WORKERS:
            return
        self._known[name] = f"{addresses[0]}:{info.port}"
        self._report()

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """zeroconf's: its announcement changed."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """zeroconf's: it has left."""
        if self._known.pop(name, None) is not None:
            self._report()

    def _report(self) -> None:
        self._found("mdns", sorted(set(self._known.values())))
