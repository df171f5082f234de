"""A plaintext port with only grpc.health.v1 (`--health`): for probes without certificates.

The services cannot be called through it, so it may be reachable from machines that they refuse.
"""

from __future__ import annotations

from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hearth.common.channels import SILENCE_SECONDS, bind, server_options

# This name is SERVING while the process responds, whatever the state of its cluster.
LIVENESS = "liveness"
# A request is a service's name.
_MAX_MESSAGE_BYTES = 4096
_MAX_STREAMS = 32


class HealthPort:
    """Answers Check and Watch on host:port from its construction to `stop`.

    The names "" and `services` have the state last given to `set_serving`, at first NOT_SERVING.
    """

    def __init__(
        self, address: str, *services: str, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        """Raises HearthError PORT_IN_USE or BAD_ADDRESS."""
        self._names = ("", *services)
        self._pools = [futures.ThreadPoolExecutor(2, name) for name in ("health", "health-watch")]
        self._servicer = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=self._pools[1]
        )
        self.set_serving(False)
        self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        self._server = grpc.server(
            self._pools[0],
            options=server_options(_MAX_MESSAGE_BYTES, _MAX_STREAMS, silence_seconds),
            maximum_concurrent_rpcs=4 * _MAX_STREAMS,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self.port = bind(self._server, address)
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        """Sets the state of the services: SERVING or NOT_SERVING."""
        answer = health_pb2.HealthCheckResponse
        for name in self._names:
            self._servicer.set(name, answer.SERVING if serving else answer.NOT_SERVING)

    def stop(self) -> None:
        """Closes the port."""
        self._server.stop(0.2).wait()
        for pool in self._pools:
            pool.shutdown(wait=False)
