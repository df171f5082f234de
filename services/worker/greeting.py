"""The first log lines of a worker: the memory that it offers, and its address for the root."""

from __future__ import annotations

import ipaddress
import logging

import ifaddr

from hearth.common.channels import format_address, is_loopback, split_address
from hearth.common.sizes import format_size
from hearth.v1 import common_pb2

log = logging.getLogger(__name__)

# Addresses that a line names.
_SHOWN = 4


def greet(listen: str, port: int, info: common_pb2.NodeInfo) -> None:
    """Log what the worker offers and where. listen: "host:port" as given; port: the bound one."""
    memory = format_size(info.memory_available_bytes)
    log.info("worker %s offers %s of memory and %d threads", info.name, memory, info.threads)
    host, _ = split_address(listen)
    if is_loopback(listen):
        log.info("for this machine only; --listen 0.0.0.0:%d serves other machines", port)
        return
    found = " or ".join(format_address(address, port) for address in addresses(host)[:_SHOWN])
    if found:
        log.info("on the root: --workers %s", found)


def addresses(host: str) -> list[str]:
    """Addresses by which other machines may reach a service that listens on `host`."""
    try:
        own = ipaddress.ip_address(host)
    except ValueError:
        return [host]
    if not own.is_unspecified:
        return [host]
    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ipaddress.ip_address(text.partition("%")[0])
            if not (address.is_loopback or address.is_link_local):
                found.append(str(address))
    # People know their machines by IPv4 addresses.
    return sorted(dict.fromkeys(found), key=lambda text: ":" in text)
