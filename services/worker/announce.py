"""Announces a worker on the LAN by mDNS, so that a root with --workers-mdns finds it."""

from __future__ import annotations

import ipaddress
import logging
import socket

import ifaddr
from zeroconf import InterfaceChoice, IPVersion, ServiceInfo, Zeroconf

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
        addresses = announced_addresses(host)
        label = f"{name[:40]}-{instance[:8]}".replace(".", "-")
        try:
            self._zeroconf = open_zeroconf(list(addresses))
            self._info = ServiceInfo(
                SERVICE_TYPE,
                f"{label}.{SERVICE_TYPE}",
                port=port,
                parsed_addresses=[each.partition("%")[0] for each in addresses],
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


def open_zeroconf(addresses: list[str] | None) -> Zeroconf:
    """Multicast DNS on the interfaces of these addresses; None for all, IPv4 and IPv6.

    Raises OSError where there is none.
    """
    if addresses is not None:
        # zeroconf names interfaces of IPv6 by their numbers.
        chosen = [_interface(address) if ":" in address else address for address in addresses]
        interfaces: list[str | int] = list(dict.fromkeys(chosen))
        fours = any(isinstance(each, str) for each in interfaces)
        sixes = any(isinstance(each, int) for each in interfaces)
        version = IPVersion.All if fours and sixes else _ONLY[sixes]
        return Zeroconf(interfaces, ip_version=version)
    try:
        return Zeroconf(InterfaceChoice.All, ip_version=IPVersion.All)
    except (OSError, RuntimeError) as error:
        log.debug("mDNS without IPv6: %s", error)
    try:
        return Zeroconf(InterfaceChoice.All, ip_version=IPVersion.V4Only)
    except RuntimeError as error:
        raise OSError(str(error)) from None


_ONLY = {False: IPVersion.V4Only, True: IPVersion.V6Only}


def _interface(address: str) -> int:
    """The number of the interface that has an IPv6 address. Raises OSError."""
    bare, _, scope = address.partition("%")
    for adapter in ifaddr.get_adapters():
        number = adapter.index
        named = not scope or scope in (adapter.name, str(number))
        if named and any(isinstance(ip.ip, tuple) and ip.ip[0] == bare for ip in adapter.ips):
            assert number is not None
            return number
    raise OSError(f"no interface has the address {address}")


def announced_addresses(host: str) -> list[str]:
    """This machine's addresses at which a worker listening on `host` can be reached.

    IPv4 and IPv6, those of one link with its interface. Raises HearthError BAD_SETTING.
    """
    if host in ("0.0.0.0", "::"):
        found = {
            ip.ip if isinstance(ip.ip, str) else _scoped(ip.ip, adapter.name)
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
        }
        known = sorted(each for each in found if not ipaddress.ip_address(each).is_loopback)
        if not known:
            raise HearthError(Reason.BAD_SETTING, "--announce: this machine has no address")
        return known
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        problem = f"--announce: {host} has no address ({error}): listen on 0.0.0.0"
        raise HearthError(Reason.BAD_SETTING, problem) from None
    scope = host.partition("%")[2]
    bare = {str(answer[4][0]).partition("%")[0] for answer in answers}
    return sorted(f"{each}%{scope}" if scope else each for each in bare)


def _scoped(address: tuple[str, int, int], interface: str) -> str:
    """An IPv6 address, with its interface where it is of one link."""
    local = ipaddress.ip_address(address[0]).is_link_local
    return f"{address[0]}%{interface}" if local else address[0]
