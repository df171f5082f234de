"""Machines and their links as a prediction knows them. Values only."""

import math
from dataclasses import dataclass, fields

from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size

# Bounds of sane numbers: a figure outside them is a slip of units.
_BOUNDS = {
    "memory_bytes": (1 << 20, 1 << 46, "bytes of memory"),
    "read_bandwidth": (1e7, 1e14, "bytes/s of memory"),
    "prefill_rate": (1e7, 1e16, "multiply-adds/s in prefill"),
    "few_rows_rate": (1e7, 1e16, "multiply-adds/s for few rows"),
    "disk_bandwidth": (0.0, 1e12, "bytes/s of disk"),
    "layer_seconds": (0.0, 1.0, "seconds for a layer's fixed work"),
    "step_seconds": (0.0, 1.0, "seconds for a root's work on a step"),
    "submit_seconds": (0.0, 1.0, "seconds for handing a GPU its work"),
    "latency_seconds": (0.0, 10.0, "seconds of latency"),
    "send_bandwidth": (1e3, 1e12, "bytes/s to send"),
    "receive_bandwidth": (1e3, 1e12, "bytes/s to receive"),
}


@dataclass(frozen=True, slots=True)
class Link:
    """A machine's connection to the others, by way of a switch or a radio."""

    kind: str
    # One way, of a small message.
    latency_seconds: float
    # Bytes per second, in each direction.
    send_bandwidth: float
    receive_bandwidth: float
    # True if its machines share the bandwidth: a radio carries one message at a time.
    shared: bool = False


# Between processes of one machine, over loopback.
LOCAL = Link("loopback", 25e-6, 2e9, 2e9)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine's measured or assumed speed, with all the threads it gives."""

    name: str
    # Of the catalogue, or "measured".
    kind: str
    # For weights and KV cache.
    memory_bytes: int
    # Bytes of weights per second that a decode step of one sequence reads.
    read_bandwidth: float
    # Multiply-adds per second with quantized weights: of many rows, and of 2 to 8 rows.
    prefill_rate: float
    few_rows_rate: float
    # Bytes per second that loading reads from the slice cache.
    disk_bandwidth: float
    # Work of a layer that no cut makes smaller: norms, barriers, waking threads.
    layer_seconds: float
    link: Link
    # A root's work on a step beside the layers: scheduling, sampling, text.
    step_seconds: float = 0.5e-3
    # Of a GPU: handing it work and waiting for its end, once between two syncs.
    submit_seconds: float = 0.0
    # Nodes with the same host share its cores and its memory's bandwidth; "" for none.
    host: str = ""
    # Of a host: the bandwidth of all its threads together, and the nodes that fit its cores.
    host_bandwidth: float = 0.0
    host_nodes: float = 1.0


def check_machine(machine: Machine) -> Machine:
    """The same. Raises HearthError BAD_SETTING, naming the number that cannot be."""
    for owner in (machine, machine.link):
        for field in fields(owner):
            if field.name in _BOUNDS:
                check_number(machine.name, field.name, getattr(owner, field.name))
    return machine


def check_number(name: str, field: str, value: float) -> float:
    """The value of a field of Machine or Link. Raises HearthError BAD_SETTING."""
    low, high, what = _BOUNDS[field]
    if math.isfinite(value) and low <= value <= high:
        return value
    shown = format_size(value) if what.startswith("bytes of") and value > 0 else f"{value:g}"
    raise HearthError(
        Reason.BAD_SETTING,
        f"{name}: {field} is {shown}; {what} must be between {low:g} and {high:g}",
    )
