"""Facts about this machine as a NodeInfo message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hearth.common import channels, devices, system
from hearth.v1 import common_pb2

if TYPE_CHECKING:
    from hearth.common.metrics import Metrics


def observe_build(metrics: Metrics, role: str, device: str) -> None:
    """The running service and what it computes on, as metrics. role: "root" or "worker"."""
    kernels = devices.kernels(device)
    metrics.build_info(role, system.version(), kernels, system.architecture())
    gpu = devices.gpu_info(device)
    if gpu is not None:
        metrics.gpu(kernels, gpu.kind, gpu.memory_bytes)


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
        memory_total_bytes=devices.memory_total(device),
        memory_available_bytes=memory_available,
        architecture=system.architecture(),
    )
