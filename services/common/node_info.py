"""Facts about this machine as a NodeInfo message."""

from __future__ import annotations

from hearth import _native
from hearth.common import channels, system
from hearth.common.errors import HearthError, Reason
from hearth.v1 import common_pb2


def instruction_set() -> str:
    """Name of the kernels in use. Raises HearthError: BAD_SETTING for an unknown choice."""
    try:
        return _native.instruction_set()
    except ValueError as error:  # HEARTH_INSTRUCTION_SET
        raise HearthError(Reason.BAD_SETTING, str(error)) from None


def node_info(name: str, threads: int, memory_available: int) -> common_pb2.NodeInfo:
    """Current facts: compute threads, and bytes available for weights and KV cache."""
    return common_pb2.NodeInfo(
        name=name,
        version=system.version(),
        protocol_version=channels.PROTOCOL_VERSION,
        cores=system.cores(),
        threads=threads,
        instruction_set=instruction_set(),
        memory_total_bytes=system.memory_total(),
        memory_available_bytes=memory_available,
        architecture=system.architecture(),
    )
