"""Facts about this machine as a NodeInfo message."""

from __future__ import annotations

from hearth.common import channels, devices, system
from hearth.v1 import common_pb2


def node_info(
    name: str, threads: int, memory_available: int, device: str = devices.CPU
) -> common_pb2.NodeInfo:
    """Current facts: compute threads, and bytes available for weights and KV cache."""
    return common_pb2.NodeInfo(
        name=name,
        version=system.version(),
        protocol_version=channels.PROTOCOL_VERSION,
        cores=system.cores(),
        threads=threads,
        instruction_set=devices.kernels(device),
        memory_total_bytes=system.memory_total(),
        memory_available_bytes=memory_available,
        architecture=system.architecture(),
    )
