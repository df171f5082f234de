"""Devices that a node computes on: "cpu", or a GPU by Vulkan, "vulkan" or "vulkan:N"."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hearth import _native
from hearth.common import system
from hearth.common.errors import HearthError, Reason

CPU = "cpu"
# What the ids of GPUs, and so their kernels' names, begin with.
VULKAN = "vulkan"
# Of a GPU's own memory: its driver and other programs keep some.
_USABLE = 0.9

log = logging.getLogger(__name__)


def check_devices(devices: Iterable[str]) -> None:
    """Raises HearthError BAD_SETTING for a device that this machine does not have."""
    for device in dict.fromkeys(devices):
        info = gpu_info(device)
        if info is not None and info.kind == "cpu":
            log.warning("%s (%s) computes on the CPU: --device cpu is faster", info.id, info.name)


def gpu_info(device: str) -> _native.DeviceInfo | None:
    """The GPU's facts; None for the CPU. Raises HearthError BAD_SETTING if it is not there."""
    if device == CPU:
        return None
    try:
        number = _native.parse_vulkan_device(device)
    except ValueError as error:
        raise HearthError(Reason.BAD_SETTING, f"--device: {error}") from None
    known = _native.list_devices()
    if device == "vulkan":  # not a driver that computes on the CPU, if there is another
        number = next((at for at, info in enumerate(known) if info.kind != "cpu"), 0)
    if number < len(known):
        return known[number]
    names = ", ".join(f"{info.id} ({info.name})" for info in known)
    found = f"there are {names}" if known else "Vulkan finds no GPU, or no driver of one"
    if not _native.has_vulkan():
        found = "this core was built without Vulkan (see docs/gpu.md)"
    raise HearthError(Reason.BAD_SETTING, f"--device {device} is not there: {found}")


def memory_for_model(device: str, limit: int | None = None, kept: int = 0) -> int:
    """Bytes available on the device for weights and KV cache, at most `limit`.

    A GPU's own memory, if it has some: of the weights the host keeps only embeddings and routers.
    kept: bytes that this process holds on the device, and would give up.
    """
    info = gpu_info(device)
    room = system.memory_for_model() + kept
    if info is not None:
        # A driver may count what is kept as free.
        own = int(min(info.free_bytes + kept, info.memory_bytes) * _USABLE)
        room = own if info.kind == "discrete" else min(own, room)
    return room if limit is None else min(room, limit)


def memory_total(device: str) -> int:
    """Bytes of the memory that weights and KV cache are taken from: a GPU's own, if it has one."""
    info = gpu_info(device)
    return info.memory_bytes if info and info.kind == "discrete" else system.memory_total()


def kernels(device: str) -> str:
    """The kernels in use: of a CPU its instruction set, of a GPU its id and name.

    Raises HearthError BAD_SETTING.
    """
    info = gpu_info(device)
    if info is not None:
        return f"{info.id} ({info.name})"
    try:
        return _native.instruction_set()
    except ValueError as error:  # HEARTH_INSTRUCTION_SET
        raise HearthError(Reason.BAD_SETTING, str(error)) from None
