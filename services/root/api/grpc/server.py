"""The root's gRPC server: the service, health and reflection on one address, in its own thread.

The thread runs the event loop, so that the main thread is free for signals.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hearth.common.access import Access
from hearth.common.admission import Refusals
from hearth.common.api_keys import ApiKeys
from hearth.common.channels import (
    MAX_CLIENT_MESSAGE_BYTES,
    SILENCE_SECONDS,
    is_loopback,
    refuse_exposed,
    server_options,
)
from hearth.common.front import BEHIND, Front
from hearth.common.health import HealthPort
from hearth.common.security import Security
from hearth.root.api.frontend import Frontend
from hearth.root.api.grpc.calls import make_server
from hearth.root.api.grpc.gate import WRITE_SECONDS, Gate
from hearth.root.api.grpc.service import SERVICE, RootService
from hearth.root.api.models import Models
from hearth.root.api.signals import Signal
from hearth.v1 import root_pb2, root_pb2_grpc

# Calls at once that the gate may be refusing.
_REFUSED_CALLS = 64


class Beside(Protocol):
    """A server of another protocol in the same event loop."""

    def start(self) -> object:
        """Listen. Raises HearthError."""

    def stop_listening(self) -> None:
        """Accept no more connections."""

    async def close(self) -> None:
        """End all connections."""


class RootServer:
    """Serves RootService on `listen` ("host:port") from `start` to `stop`.

    grpc.health.v1 says SERVING, for the service and for the server, only while the cluster serves.
    Reflection, which tells strangers what there is to call, is for this machine only.
    """

    def __init__(
        self,
        listen: str,
        frontend: Frontend,
        *,
        security: Security | None = None,
        api_keys: ApiKeys | None = None,
        insecure: bool = False,
        health_address: str | None = None,
        silence_seconds: float = SILENCE_SECONDS,
        write_seconds: float = WRITE_SECONDS,
        beside: Sequence[Beside] = (),
        models: Models | None = None,
    ) -> None:
        """With `security` by TLS: clients show an API key, or a certificate where `api_keys` are
        not given. Without, `listen` must be on loopback unless `insecure`. `health_address` is a
        plaintext port for probes. Connections and calls that send nothing for `silence_seconds`
        are closed. beside: servers that start and end with this one. models: several models, with
        frontends beside `frontend`. Raises HearthError INSECURE.
        """
        refuse_exposed("--listen", listen, security, insecure)
        self._listen = listen
        self._security = security
        self._health_address = health_address
        refusals = Refusals("the root's port")
        self._front = Front(
            listen, refusals, tls=security is not None, silence_seconds=silence_seconds
        )
        # The frontend refuses streams with a reason; this only bounds everything else.
        self._calls = 2 * frontend.max_streams
        self._gate = Gate(
            Access(security, api_keys),
            refusals,
            self._front,
            silence_seconds,
            self._calls,
            write_seconds,
        )
        self._silence_seconds = silence_seconds
        self._certificates = api_keys is None
        self._frontend = frontend
        self._models = models
        self._beside = beside
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_grace: asyncio.Future[float] | None = None
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="hearth-root-grpc", daemon=True)

    def start(self) -> int:
        """Listens; returns the port. Raises HearthError PORT_IN_USE or BAD_ADDRESS."""
        self._thread.start()
        return self._started.result()

    def stop(self, grace: float = 5.0) -> None:
        """No new requests; running ones may finish for `grace` seconds and are then cancelled."""
        if self._loop is not None and self._stop_grace is not None:
            with suppress(RuntimeError):  # stopped before
                self._loop.call_soon_threadsafe(self._request_stop, grace)
            self._thread.join()

    def _request_stop(self, grace: float) -> None:
        assert self._stop_grace is not None
        if not self._stop_grace.done():
            self._stop_grace.set_result(grace)

    def _run(self) -> None:
        try:
            # Windows' usual loop cannot wait for sockets that are read here (the HTTP port's).
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    def _make(self, checker: health.aio.HealthServicer) -> tuple[grpc.aio.Server, int]:
        """A server that is not started yet, and its port behind the front."""
        options = server_options(MAX_CLIENT_MESSAGE_BYTES, self._calls, self._silence_seconds)
        # A little more than the gate's places: it says why it refuses.
        server = make_server([self._gate], options, self._calls + _REFUSED_CALLS)
        root_pb2_grpc.add_RootServiceServicer_to_server(
            RootService(self._frontend, self._models), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        if is_loopback(self._listen):
            reflection.enable_server_reflection(
                (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
            )
        if self._security is None:
            return server, server.add_insecure_port(BEHIND)
        credentials = self._security.server_credentials(self._certificates)
        return server, server.add_secure_port(BEHIND, credentials)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._front.listen()
        checker = health.aio.HealthServicer()
        server, behind = self._make(checker)
        probes = None
        if self._health_address:
            probes = HealthPort(self._health_address, silence_seconds=self._silence_seconds)
        changed = Signal()
        unsubscribe = self._frontend.subscribe(changed.set)
        self._loop, self._stop_grace = loop, loop.create_future()
        watch = loop.create_task(self._watch_health(checker, changed, probes))
        try:
            for each in self._beside:
                each.start()
            await server.start()
            self._front.start(behind)
            self._started.set_result(self._front.port)
            grace = await self._stop_grace
            self._front.stop_listening()
            for each in self._beside:
                each.stop_listening()
            await checker.enter_graceful_shutdown()
            watch.cancel()
            if probes is not None:
                probes.set_serving(False)
            more = self._models.frontends if self._models is not None else ()
            await asyncio.gather(*(each.shutdown(grace) for each in (self._frontend, *more)))
        finally:
            unsubscribe()
            watch.cancel()
            # What is left was given its time; this only sends the last statuses out.
            await asyncio.gather(server.stop(0.2), *(each.close() for each in self._beside))
            self._frontend.close()
            await asyncio.to_thread(self._front.close)
            if probes is not None:
                await asyncio.to_thread(probes.stop)

    async def _watch_health(
        self,
        checker: health.aio.HealthServicer,
        changed: Signal,
        probes: HealthPort | None,
    ) -> None:
        while True:
            # With several models a request may wait for its model to be loaded.
            serving = self._models is not None or (
                self._frontend.cluster().state == root_pb2.CLUSTER_STATE_SERVING
            )
            answer = health_pb2.HealthCheckResponse
            for name in ("", SERVICE):
                await checker.set(name, answer.SERVING if serving else answer.NOT_SERVING)
            if probes is not None:
                probes.set_serving(serving)
            await changed.wait()
