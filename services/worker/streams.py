"""Runs one bidirectional stream of the synchronous gRPC server in two threads.

The handler's own thread only sends; a second thread reads and works. The second can therefore send
during its work, any thread can end the stream with an error, and a silent client is noticed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError

from hearth.common.admission import Peer, peer_of
from hearth.common.errors import HearthError, Reason
from hearth.common.frames import ChangedError
from hearth.common.rpc_errors import abort
from hearth.worker.lanes import StreamEnded

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Done:
    pass


class Exchange(Generic[Request, Response]):
    """One stream: `receive` and `send` for the working thread, `end` for any."""

    def __init__(self, requests: Iterator[Request], context: grpc.ServicerContext) -> None:
        self._requests = requests
        self._context = context
        self._out: queue.SimpleQueue[Response | HearthError | _Done] = queue.SimpleQueue()
        self._begun = False
        self.send: Callable[[Response], None] = self._out.put

    @property
    def peer(self) -> Peer:
        """Address of the caller."""
        return peer_of(self._context.peer())

    def receive(self) -> Request:
        """Blocks for the next message. Raises StreamEnded at the end of the stream.

        Raises HearthError for a DecodeError, which stands for a malformed message:
        INVALID_ARGUMENT, or WORKER_LOST for one that was changed on its way.
        """
        try:
            request = next(self._requests)
        except (StopIteration, grpc.RpcError) as error:
            # gRPC's error refers to itself: its traceback would keep every frame up to here.
            error.__traceback__ = None
            raise StreamEnded from None
        except Exception as error:
            # gRPC raises a bare Exception for a stream that was cancelled.
            if self._context.is_active():
                raise
            raise StreamEnded from error
        self._begun = True
        if isinstance(request, ChangedError):
            raise HearthError(Reason.WORKER_LOST, f"of the root, {request}")
        if isinstance(request, DecodeError):
            problem = f"malformed message: {request}"
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        return request

    def end(self, error: HearthError) -> None:
        """Ends the stream with `error`; may be called from any thread."""
        self._out.put(error)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Calls `callback` in a gRPC thread when the stream has ended, for whatever reason."""
        if not self._context.add_callback(callback):
            callback()

    def run(
        self, work: Callable[[Exchange[Request, Response]], None], first_seconds: float
    ) -> Iterator[Response]:
        """The handler's generator: runs `work` in its own thread and yields the messages it sends.

        Ends with DEADLINE when no message arrives within `first_seconds`.
        """
        self._context.add_callback(lambda: self._out.put(_Done()))
        name = threading.current_thread().name
        thread = threading.Thread(target=self._work, args=(work,), name=f"{name}-work", daemon=True)
        thread.start()
        timeout: float | None = first_seconds
        while True:
            try:
                item = self._out.get(timeout=timeout)
            except queue.Empty:
                if not self._begun:
                    problem = f"no message within {first_seconds:g} s of opening the stream"
                    abort(self._context, HearthError(Reason.DEADLINE, problem))
                timeout = None
                continue
            timeout = None
            if isinstance(item, _Done):
                return
            if isinstance(item, HearthError):
                abort(self._context, item)
            yield item

    def _work(self, work: Callable[[Exchange[Request, Response]], None]) -> None:
        try:
            work(self)
        except StreamEnded:
            pass
        except HearthError as error:
            # gRPC may keep the queue, and with it the error, its frames and their shard.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self._out.put(error)
        except Exception as error:
            log.exception("a stream's handler failed")
            self._out.put(
                HearthError(Reason.INTERNAL, f"{type(error).__name__}: {error} (see the log)")
            )
        self._out.put(_Done())
