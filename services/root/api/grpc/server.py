"""The root's gRPC server: the service, health and reflection on one address, in its own thread.

The thread runs the event loop, so that the main thread is free for signals.
"""

import asyncio
import functools
import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hearth.common.access import Access
from hearth.common.admission import Handshakes, Refusals
from hearth.common.api_keys import ApiKeys
from hearth.common.channels import (
    MAX_CLIENT_MESSAGE_BYTES,
    SILENCE_SECONDS,
    bind,
    is_loopback,
    refuse_exposed,
    server_options,
)
from hearth.common.errors import HearthError
from hearth.common.health import HealthPort
from hearth.common.security import Security
from hearth.root.api.frontend import Frontend
from hearth.root.api.grpc.gate import Gate
from hearth.root.api.grpc.service import SERVICE, RootService
from hearth.root.api.signals import Signal
from hearth.v1 import root_pb2, root_pb2_grpc

log = logging.getLogger(__name__)

# How soon it is noticed that gRPC has closed the port.
_LOOK_SECONDS = 0.2
# How long calls may last on a server whose port it closed: as long as they like.
_LEAVE_SECONDS = 1e6


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
    ) -> None:
        """With `security` by TLS: clients show an API key, or a certificate where `api_keys` are
        not given. Without, `listen` must be on loopback unless `insecure`. `health_address` is a
        plaintext port for probes. Connections and calls that send nothing for `silence_seconds`
        are closed. Raises HearthError INSECURE."""
        refuse_exposed("--listen", listen, security, insecure)
        self._listen = listen
        self._security = security
        self._health_address = health_address
        refusals = Refusals("the root's port")
        self._handshakes = Handshakes(refusals, silence_seconds) if security else None
        self._gate = Gate(Access(security, api_keys), refusals, self._handshakes, silence_seconds)
        self._silence_seconds = silence_seconds
        self._certificates = api_keys is None
        self._frontend = frontend
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_grace: asyncio.Future[float] | None = None
        # The one that listens is the last; before it those that gRPC has closed, while calls last.
        self._servers: list[grpc.aio.Server] = []
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="hearth-root-grpc", daemon=True)

    def start(self) -> int:
        """The port that it listens on. HearthError when that is taken or the address is none."""
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
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    def _make(
        self, checker: health.aio.HealthServicer, address: str
    ) -> tuple[grpc.aio.Server, int]:
        """A server that is not started yet, and its port."""
        # The frontend refuses streams with a reason; this only bounds everything else.
        calls = 2 * self._frontend.max_streams
        server = grpc.aio.server(
            interceptors=[self._gate],
            options=server_options(MAX_CLIENT_MESSAGE_BYTES, calls, self._silence_seconds),
            maximum_concurrent_rpcs=calls,
        )
        root_pb2_grpc.add_RootServiceServicer_to_server(RootService(self._frontend), server)
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        if is_loopback(self._listen):
            reflection.enable_server_reflection(
                (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
            )
        # Both kinds of server bind alike; their types share no base.
        credentials = None
        if self._security is not None and self._handshakes is not None:
            credentials = self._security.server_credentials(
                self._certificates, self._handshakes.began
            )
        return server, bind(cast(grpc.Server, server), address, credentials)

    async def _keep_up(
        self, server: grpc.aio.Server, checker: health.aio.HealthServicer, address: str
    ) -> None:
        """Open the port again when gRPC has closed it.

        gRPC's loop ends on some calls that it cannot read, such as a method name that is not
        UTF-8. Running calls continue on the closed server.
        """
        while True:
            try:
                await server.wait_for_termination(_LOOK_SECONDS)
                continue
            except Exception as error:
                log.warning("gRPC closed the root's port, opening it again: %r", error)
            left = asyncio.create_task(server.stop(_LEAVE_SECONDS))
            left.add_done_callback(functools.partial(self._forget, server))
            while True:
                try:
                    server, _ = self._make(checker, address)
                    break
                except HearthError as error:
                    log.warning("the root's port is not free yet: %s", error)
                    await asyncio.sleep(_LOOK_SECONDS)
            self._servers.append(server)
            await server.start()

    def _forget(self, server: grpc.aio.Server, _: asyncio.Task[None]) -> None:
        self._servers.remove(server)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        checker = health.aio.HealthServicer()
        server, port = self._make(checker, self._listen)
        self._servers.append(server)
        probes = None
        if self._health_address:
            probes = HealthPort(
                self._health_address, SERVICE, silence_seconds=self._silence_seconds
            )
        if self._handshakes is not None:
            self._handshakes.start(port)
        changed = Signal()
        unsubscribe = self._frontend.subscribe(changed.set)
        self._loop, self._stop_grace = loop, loop.create_future()
        watch = loop.create_task(self._watch_health(checker, changed, probes))
        address = f"{self._listen.rpartition(':')[0]}:{port}"
        keep_up = None
        try:
            await server.start()
            keep_up = loop.create_task(self._keep_up(server, checker, address))
            self._started.set_result(port)
            grace = await self._stop_grace
            await checker.enter_graceful_shutdown()
            watch.cancel()
            if probes is not None:
                probes.set_serving(False)
            await self._frontend.shutdown(grace)
        finally:
            unsubscribe()
            watch.cancel()
            if keep_up is not None:
                keep_up.cancel()
            # What is left was given its time; this only sends the last statuses out.
            for server in [*self._servers]:
                with suppress(UnicodeDecodeError):  # what gRPC fell over, once more
                    await server.stop(0.2)
            self._frontend.close()
            if self._handshakes is not None:
                self._handshakes.stop()
            if probes is not None:
                await asyncio.to_thread(probes.stop)

    async def _watch_health(
        self,
        checker: health.aio.HealthServicer,
        changed: Signal,
        probes: HealthPort | None,
    ) -> None:
        while True:
            serving = self._frontend.cluster().state == root_pb2.CLUSTER_STATE_SERVING
            answer = health_pb2.HealthCheckResponse
            for name in ("", SERVICE):
                await checker.set(name, answer.SERVING if serving else answer.NOT_SERVING)
            if probes is not None:
                probes.set_serving(serving)
            await changed.wait()
