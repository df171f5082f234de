"""Measures nodes and links for a prediction: the workers' own speeds, and the ways to them."""

import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

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
        link=link,
        host=host,
    )


@dataclass(frozen=True, slots=True)
class Root:
    """The root's part in a measurement: its threads, and the folder of kept speeds."""

    memory_bytes: int
    threads: int
    pin: tuple[int, ...] = ()
    directory: Path | None = None
    kernels: str = ""


def _on_gpu(kernels: str) -> bool:
    return kernels.startswith("vulkan")


def measure(
    root: Root, links: Sequence[WorkerLink], infos: Sequence[common_pb2.NodeInfo]
) -> list[Machine] | None:
    """The root and its workers as predictions know them; None if one could not be measured.

    links: described. infos: what each worker described.
    """
    if any(_on_gpu(kernels) for kernels in (root.kernels, *(i.instruction_set for i in infos))):
        return None  # what is measured is the CPU
    own = speeds_here(root.threads, root.directory, root.pin)
    if own is None:
        return None
    # Others, such as one with a GPU, measure themselves where they can.
    here = [
        is_loopback(link.address) and info.instruction_set == devices.kernels(devices.CPU)
        for link, info in zip(links, infos, strict=True)
    ]
    # Nodes of one machine would disturb each other: it is measured once for each count of threads.
    local = {root.threads: own}
    for info in (info for info, near in zip(infos, here, strict=True) if near):
        if info.threads not in local:
            found = speeds_here(info.threads, root.directory)
            if found is None:
                return None
            local[info.threads] = found

    def one(number: int) -> Machine | None:
        link, info = links[number], infos[number]
        try:
            speeds = local[info.threads] if here[number] else link.measure_speeds()
            way = measure_link(link)
        except HearthError as error:
            log.info("%s", error.message)
            return None
        if speeds is None:
            return None
        host = _HERE if here[number] else ""
        return machine(info.name or link.address, info.memory_available_bytes, speeds, way, host)

    workers: list[Machine] = []
    if links:
        with ThreadPoolExecutor(len(links), "measure") as pool:
            for worker in pool.map(one, range(len(links))):
                if worker is None:
                    return None
                workers.append(worker)
    return _together(root, machine("root", root.memory_bytes, own, LOCAL, _HERE), workers)


def _together(root: Root, first: Machine, workers: Sequence[Machine]) -> list[Machine] | None:
    """The root's own way to the others, and what nodes on its machine share."""
    # Its own way is at least as good as the best of those to its workers.
    ways = [worker.link for worker in workers] or [LOCAL]
    link = Link(
        "measured",
        min(way.latency_seconds for way in ways),
        max(way.send_bandwidth for way in ways),
        max(way.receive_bandwidth for way in ways),
    )
    found = [replace(first, link=link), *workers]
    together = sum(each.host == _HERE for each in found)
    if together == 1:
        return [replace(each, host="") for each in found]
    cores = system.cores()
    whole = speeds_here(min(cores, together * root.threads), root.directory)
    if whole is None:
        return None
    bandwidth = whole.read_bandwidth / _STEP_OVER_PROBE
    fits = max(1.0, cores / root.threads)
    return [
        replace(each, host_bandwidth=bandwidth, host_nodes=fits) if each.host else each
        for each in found
    ]


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
