"""A whole worker: cache, tenancy, gRPC server, health and reflection; start it, stop it."""

from __future__ import annotations

import logging
import platform
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hearth.common import channels, devices, system
from hearth.common.admission import Refusals
from hearth.common.channels import MAX_NAME_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.common.front import BEHIND, Front
from hearth.common.health import HealthPort
from hearth.common.logging import printable
from hearth.common.mesh_listener import MeshListener
from hearth.common.metrics import WorkerMetrics
from hearth.common.node_info import node_info, observe_build
from hearth.common.security import Security
from hearth.common.speeds import Speeds, speeds_here, speeds_message
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from hearth.worker.cache import SliceCache
from hearth.worker.gate import Gate
from hearth.worker.leaving import Leaving
from hearth.worker.loading import LoadSession
from hearth.worker.page_files import PageFiles
from hearth.worker.service import ChunkFrames, WorkerService
from hearth.worker.tenancy import Tenancy

log = logging.getLogger(__name__)

_SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
_RPC_THREADS = 32
# How long a machine that could not be measured is left alone.
_UNMEASURED_SECONDS = 600.0
# Calls that wait for a thread, and those of one connection: a root has a few.
_WAITING_CALLS = 256
_CALLS_OF_A_CONNECTION = 16


class WorkerServer:
    """A worker on `listen`. Raises HearthError PORT_IN_USE, BAD_ADDRESS, BAD_SETTING or INSECURE.

    `memory_limit` bytes at most for weights and KV cache (None: what the machine has free);
    `page_dir`: keeps KV pages, `page_limit` bytes of them at most (`--kv-cache disk`).
    `threads` compute (None: all cores); `lease_grace` seconds a root may stay away;
    `mesh_port` is where other ranks connect (0: any free port). With `security` only its cluster's
    root may call; without, `listen` must be on loopback unless `insecure`. `health_address` is a
    plaintext port for probes. Connections, calls and streams that send nothing for
    `silence_seconds` are closed.
    """

    def __init__(
        self,
        listen: str = "127.0.0.1:7717",
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        cache_limit: int | None = None,
        page_dir: Path | None = None,
        page_limit: int | None = None,
        memory_limit: int | None = None,
        name: str | None = None,
        pin: Sequence[int] = (),
        device: str = "cpu",
        metrics: WorkerMetrics | None = None,
        lease_grace: float = 2.0,
        mesh_port: int = 0,
        security: Security | None = None,
        insecure: bool = False,
        health_address: str | None = None,
        silence_seconds: float = channels.SILENCE_SECONDS,
    ) -> None:
        channels.refuse_exposed("--listen", listen, security, insecure)
        self._listen = listen
        self._security = security
        self._health_address = health_address
        self._health_port: HealthPort | None = None
        refusals = Refusals("the worker's port")
        self._front = Front(
            listen, refusals, tls=security is not None, silence_seconds=silence_seconds
        )
        self._gate = Gate(security, refusals, self._front, silence_seconds)
        self._silence_seconds = silence_seconds
        self._threads = threads or system.cores()
        self._pin = tuple(pin)
        self._device = device
        self._name = name or printable(platform.node()) or "worker"
        if len(self._name.encode()) > MAX_NAME_BYTES:
            problem = f"--name has {len(self._name.encode())} bytes; at most {MAX_NAME_BYTES}"
            raise HearthError(Reason.BAD_SETTING, problem)
        if not self._name.isprintable():
            problem = f"--name is {self._name!a}; a name has printable characters alone"
            raise HearthError(Reason.BAD_SETTING, problem)
        self._memory_limit = memory_limit
        # Measured speeds are kept in it.
        self._cache_dir = cache_dir
        self._known_speeds: Speeds | None = None
        self._measuring = threading.Lock()
        self._measured_until = 0.0
        self._metrics = metrics or WorkerMetrics()
        self._cache = SliceCache(cache_dir, cache_limit) if cache_dir is not None else None
        self._files = (
            PageFiles(page_dir, page_limit, self._metrics) if page_dir is not None else None
        )
        self._tenancy = Tenancy(lease_grace)
        self._leaving = Leaving()
        self._pools = (
            futures.ThreadPoolExecutor(_RPC_THREADS, "rpc"),
            futures.ThreadPoolExecutor(2, "health"),
        )
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=self._pools[1]
        )
        self._mesh_port = mesh_port
        self._mesh: MeshListener | None = None
        # Of this process, told to roots and to the LAN.
        self.instance = secrets.token_hex(8)
        self.name = self._name
        self._server: grpc.Server | None = None
        observe_build(self._metrics, "worker", device)

    def start(self) -> int:
        """Serves; the port it listens on."""
        self._front.listen()
        server = grpc.server(
            self._pools[0],
            interceptors=[self._gate, ChunkFrames()],
            options=channels.server_options(
                max_streams=_CALLS_OF_A_CONNECTION, silence_seconds=self._silence_seconds
            ),
            maximum_concurrent_rpcs=_WAITING_CALLS,
        )
        host, _ = channels.split_address(self._listen)
        self._mesh = MeshListener(host, self._mesh_port)
        service = WorkerService(
            self._tenancy,
            self.describe,
            self._make_session,
            self._metrics,
            self._mesh,
            self._leaving,
            self.instance,
            self._silence_seconds,
            self._files,
            self._speeds,
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if channels.is_loopback(self._listen):
            names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        if self._security is None:
            behind = server.add_insecure_port(BEHIND)
        else:
            behind = server.add_secure_port(BEHIND, self._security.server_credentials())
        if self._health_address is not None:
            self._health_port = HealthPort(
                self._health_address, silence_seconds=self._silence_seconds
            )
        server.start()
        self._front.start(behind)
        self._server = server
        for name in ("", _SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if self._health_port is not None:
            self._health_port.set_serving(True)
        return self._front.port

    def leave(self, seconds: float, hurry: threading.Event) -> None:
        """Refuses what comes, and lets the root go on without this worker: see leaving.py.

        hurry: set when there is no time for that.
        """
        self._refuse()
        self._leaving.wait(self._tenancy.stepping, seconds, hurry)

    def stop(self, grace: float = 5.0) -> None:
        """Refuses what comes, ends the streams with SHUTTING_DOWN, waits up to `grace` seconds."""
        self._refuse()
        self._tenancy.close()
        self._front.stop_listening()
        if self._server is not None:
            self._server.stop(grace).wait()
        self._front.close()
        if self._mesh is not None:
            self._mesh.close()
        if self._health_port is not None:
            self._health_port.stop()
        for pool in self._pools:
            pool.shutdown(wait=False)
        if self._files is not None:
            self._files.close()

    def _refuse(self) -> None:
        self._health.enter_graceful_shutdown()
        if self._health_port is not None:
            self._health_port.set_serving(False)
        self._tenancy.refuse()

    def _speeds(self, may_measure: bool) -> Speeds | None:
        if self._known_speeds is not None or not may_measure:
            return self._known_speeds or speeds_here(
                self._threads, self._cache_dir, self._pin, device=self._device, may_measure=False
            )
        # One at a time, however many ask: it takes all cores.
        if not self._measuring.acquire(blocking=False):
            raise HearthError(Reason.WORKER_BUSY, "this worker's speed is being measured")
        try:
            if time.monotonic() < self._measured_until:
                return None
            found = speeds_here(self._threads, self._cache_dir, self._pin, device=self._device)
            if found is None:
                self._measured_until = time.monotonic() + _UNMEASURED_SECONDS
            if self._cache_dir is None:
                self._known_speeds = found
            return found
        finally:
            self._measuring.release()

    def describe(self) -> common_pb2.NodeInfo:
        """This node's facts now."""
        # What a kept shard has is free for a plan that cannot go on with it.
        available = devices.memory_for_model(
            self._device, self._memory_limit, self._tenancy.kept_bytes()
        )
        info = node_info(self._name, self._threads, available, self._device)
        speeds = self._speeds(False)
        if speeds is not None:
            info.speeds.CopyFrom(speeds_message(speeds))
        if self._cache is not None:
            info.cached_slices, info.cached_bytes = self._cache.usage()
        return info

    def _memory_available(self) -> int:
        return devices.memory_for_model(self._device, self._memory_limit)

    def _make_session(self, begin: worker_pb2.LoadBegin) -> LoadSession:
        try:
            return LoadSession(
                begin,
                self._cache,
                self._metrics,
                self._memory_available,
                self._threads,
                self._pin,
                self._device,
                self._cache_dir,
            )
        except HearthError:
            raise
        except MemoryError:
            raise HearthError(Reason.OUT_OF_MEMORY, "no memory for the shard's buffers") from None
