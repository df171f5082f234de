"""Measures nodes and links for a prediction: the workers' own speeds, and the ways to them."""

import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hearth import _native
from hearth.common import devices, system
from hearth.common.channels import is_loopback, split_address
from hearth.common.errors import HearthError
from hearth.common.speeds import Speeds, speeds_here
from hearth.root.cluster.links import WorkerLink
from hearth.root.planning.machines import LOCAL, Link, Machine
from hearth.v1 import common_pb2

log = logging.getLogger(__name__)

# Bytes each way that show a link's bandwidth: 50 Mbit/s take 40 ms for them.
_PAYLOAD_BYTES = 256 << 10
# A connection begins slowly: time counts from the second message on.
_MESSAGES = 3
_CONNECTS = 5
_CONNECT_SECONDS = 2.0
# Of two machines: threads that wake up, beside the wire.
_WAKING_SECONDS = 20e-6
_LEAST_SECONDS = 1e-6
# Reading in a step of a whole model against the probe's, which repeats a few layers. Measured with
# TinyLlama on one and two cores of a Zen 5.
_STEP_OVER_PROBE = 1.1
# Bytes per second of a disk that could not be measured, as of a memory card.
_ASSUMED_DISK = 50e6
# The host of nodes on the root's machine.
_HERE = "here"
# Bounds of what can be believed of a link, bytes/s.
_BANDWIDTHS = (1e4, 1e11)


def machine(name: str, memory_bytes: int, speeds: Speeds, link: Link, host: str) -> Machine:
    """A node as predictions know it."""
    return Machine(
        name=name,
        kind="measured",
        memory_bytes=memory_bytes,
        read_bandwidth=speeds.read_bandwidth / _STEP_OVER_PROBE,
        prefill_rate=speeds.prefill_rate,
        few_rows_rate=speeds.few_rows_rate,
        disk_bandwidth=speeds.disk_bandwidth or _ASSUMED_DISK,
        layer_seconds=speeds.layer_seconds,
        submit_seconds=speeds.submit_seconds,
        link=link,
        host=host,
    )


@dataclass(frozen=True, slots=True)
class Root:
    """The root's part in a measurement: its threads, its device, and the folder of kept speeds."""

    memory_bytes: int
    threads: int
    pin: tuple[int, ...] = ()
    directory: Path | None = None
    device: str = devices.CPU


def _device_here(kernels: str) -> str | None:
    """The device of this machine that has these kernels; None for another machine's."""
    if kernels == devices.kernels(devices.CPU):
        return devices.CPU
    if not kernels.startswith(devices.VULKAN):
        return None
    known = (info.id for info in _native.list_devices())
    return next((id for id in known if devices.kernels(id) == kernels), None)


def _host_of(device: str) -> str:
    """The host of a device of this machine: the machine, or a GPU with memory of its own."""
    info = devices.gpu_info(device)
    return info.id if info is not None and info.kind == "discrete" else _HERE


def measure(
    root: Root, links: Sequence[WorkerLink], infos: Sequence[common_pb2.NodeInfo]
) -> list[Machine] | None:
    """The root and its workers as predictions know them; None if one could not be measured.

    links: described. infos: what each worker described.
    """
    own_device = _device_here(devices.kernels(root.device)) or root.device
    own = speeds_here(root.threads, root.directory, root.pin, device=own_device)
    if own is None:
        return None
    # Others, such as one at the end of a tunnel, measure themselves.
    here = [
        _device_here(info.instruction_set) if is_loopback(link.address) else None
        for link, info in zip(links, infos, strict=True)
    ]
    # Nodes of one machine would disturb each other: each device is measured once for each count of
    # threads.
    local = {(own_device, root.threads): own}
    for info, device in zip(infos, here, strict=True):
        if device is not None and (device, info.threads) not in local:
            found = speeds_here(info.threads, root.directory, device=device)
            if found is None:
                return None
            local[device, info.threads] = found

    def one(number: int) -> Machine | None:
        link, info = links[number], infos[number]
        try:
            near = here[number]
            speeds = local[near, info.threads] if near is not None else link.measure_speeds()
            way = measure_link(link)
        except HearthError as error:
            log.info("%s", error.message)
            return None
        if speeds is None:
            return None
        host = _host_of(near) if near is not None else ""
        return machine(info.name or link.address, info.memory_available_bytes, speeds, way, host)

    workers: list[Machine] = []
    if links:
        with ThreadPoolExecutor(len(links), "measure") as pool:
            for worker in pool.map(one, range(len(links))):
                if worker is None:
                    return None
                workers.append(worker)
    first = machine("root", root.memory_bytes, own, LOCAL, _host_of(own_device))
    return _together(root, first, workers, [own_device, *here])


def _together(
    root: Root, first: Machine, workers: Sequence[Machine], here: Sequence[str | None]
) -> list[Machine] | None:
    """The root's own way to the others, and what nodes on its machine share.

    here: the device of each node that is on the root's machine.
    """
    # Its own way is at least as good as the best of those to its workers.
    ways = [worker.link for worker in workers] or [LOCAL]
    link = Link(
        "measured",
        min(way.latency_seconds for way in ways),
        max(way.send_bandwidth for way in ways),
        max(way.receive_bandwidth for way in ways),
    )
    found = [replace(first, link=link), *workers]
    for host in {each.host for each in found if each.host}:
        members = [number for number, each in enumerate(found) if each.host == host]
        changes: dict[str, Any] = {"host": ""}
        if len(members) > 1:
            shared = _shared(root, [(found[number], here[number]) for number in members])
            if shared is None:
                return None
            changes = {"host_bandwidth": shared[0], "host_nodes": shared[1]}
        for number in members:
            found[number] = replace(found[number], **changes)
    return found


def _shared(root: Root, nodes: Sequence[tuple[Machine, str | None]]) -> tuple[float, float] | None:
    """The bandwidth of all nodes of a host together, and the nodes that fit its cores.

    nodes: with their devices. None if it cannot be measured.
    """
    bandwidth = max(node.read_bandwidth for node, _ in nodes)
    on_cpu = sum(device == devices.CPU for _, device in nodes)
    if not on_cpu:
        return bandwidth, 1.0
    cores = system.cores()
    whole = speeds_here(min(cores, on_cpu * root.threads), root.directory)
    if whole is None:
        return None
    kinds = [info.kind for _, device in nodes if (info := devices.gpu_info(device or "cpu"))]
    # One that is drawn by the CPU takes all cores; others have their own.
    fits = 1.0 if "cpu" in kinds else max(1.0, cores / root.threads) + len(kinds)
    return max(bandwidth, whole.read_bandwidth / _STEP_OVER_PROBE), fits


def measure_link(link: WorkerLink) -> Link:
    """Latency and bandwidth both ways, to a worker on another machine. Raises HearthError."""
    latency = _latency(link.address)
    empty = min(link.measure_seconds(0, 0) for _ in range(3))

    def bandwidth(up: int, down: int) -> float:
        best = min(link.measure_seconds(up, down) for _ in range(_MESSAGES))
        low, high = _BANDWIDTHS
        return min(high, max(low, _PAYLOAD_BYTES / max(_LEAST_SECONDS, best - empty)))

    send, receive = bandwidth(_PAYLOAD_BYTES, 0), bandwidth(0, _PAYLOAD_BYTES)
    # Without a way to time the wire alone, half of an empty call; it includes both programs.
    return Link("measured", latency or empty / 2, send, receive)


def _latency(address: str) -> float:
    """Seconds one way, from the time in which the kernels connect; 0 where that fails."""
    best = 0.0
    with suppress(OSError):
        for _ in range(_CONNECTS):
            started = time.perf_counter()
            with socket.create_connection(split_address(address), _CONNECT_SECONDS):
                seconds = time.perf_counter() - started
            best = min(best or seconds, seconds)
    return best / 2 + _WAKING_SECONDS if best else 0.0
