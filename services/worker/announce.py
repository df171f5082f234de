"""Announces a worker on the LAN by mDNS, so that a root with --workers-mdns finds it."""

from __future__ import annotations

import ipaddress
import logging
import socket

import ifaddr
from zeroconf import IPVersion, ServiceInfo, Zeroconf

from hearth.common.channels import PROTOCOL_VERSION, split_address
from hearth.common.errors import HearthError, Reason

log = logging.getLogger(__name__)

SERVICE_TYPE = "_hearth-worker._tcp.local."


class Announcement:
    """Announces from construction to `stop`, under the worker's name and part of `instance`."""

    def __init__(self, listen: str, port: int, name: str, instance: str) -> None:
        """listen: "host:port" as given; 0.0.0.0 and :: mean all addresses of this machine.

        Raises HearthError BAD_SETTING if no address can be announced.
        """
        host, _ = split_address(listen)
        addresses = _addresses(host)
        label = f"{name[:40]}-{instance[:8]}".replace(".", "-")
        try:
            self._zeroconf = Zeroconf(list(addresses), ip_version=IPVersion.V4Only)
            self._info = ServiceInfo(
                SERVICE_TYPE,
                f"{label}.{SERVICE_TYPE}",
                port=port,
                parsed_addresses=addresses,
                properties={"protocol": str(PROTOCOL_VERSION)},
                server=f"{label}.local.",
            )
            self._zeroconf.register_service(self._info)
        except OSError as error:
            problem = f"--announce: cannot send multicast on {', '.join(addresses)}: {error}"
            raise HearthError(Reason.BAD_SETTING, problem) from None
        log.info("announced as %s on %s", label, ", ".join(addresses))

    def stop(self) -> None:
        """Withdraws the announcement."""
        self._zeroconf.unregister_service(self._info)
        self._zeroconf.close()


def _addresses(host: str) -> list[str]:
    """This machine's IPv4 addresses at which a worker listening on `host` can be reached."""
    if host in ("0.0.0.0", "::"):
        known = {
            ip.ip
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
            if isinstance(ip.ip, str)
        }
        found = [a for a in known if not ipaddress.ip_address(a).is_loopback]
        if not found:
            raise HearthError(Reason.BAD_SETTING, "--announce: this machine has no IPv4 address")
        return sorted(found)
    try:
        answers = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        problem = f"--announce: {host} has no IPv4 address ({error}): listen on 0.0.0.0"
        raise HearthError(Reason.BAD_SETTING, problem) from None
    return sorted({str(answer[4][0]) for answer in answers})
