"""The status of a cluster that comes and goes, and its readers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from hearth.v1 import root_pb2

Subscriber = Callable[[root_pb2.ClusterStatus], object]


class Watched(Protocol):
    """A cluster as far as this module reads it."""

    def status(self) -> root_pb2.ClusterStatus: ...

    def subscribe(self, callback: Subscriber) -> Callable[[], object]: ...


class Relay:
    """Passes on the status of the cluster that it follows; else one of its own. Thread-safe."""

    def __init__(self, status: root_pb2.ClusterStatus) -> None:
        self._lock = threading.Lock()
        self._own = status
        self._source: Watched | None = None
        self._end: Callable[[], object] = lambda: None
        self._subscribers: dict[object, Subscriber] = {}

    def status(self) -> root_pb2.ClusterStatus:
        """The status now, a copy."""
        with self._lock:
            source = self._source
        if source is not None:
            return source.status()
        status = root_pb2.ClusterStatus()
        status.CopyFrom(self._own)
        return status

    def subscribe(self, callback: Subscriber) -> Callable[[], object]:
        """Calls back at every change, from any thread, until the function returned is called."""
        key = object()
        with self._lock:
            self._subscribers[key] = callback
        return lambda: self._subscribers.pop(key, None)

    def follow(self, source: Watched) -> None:
        """Passes the status of `source` on from now on."""
        self._change(source, self._own)

    def rest(self, status: root_pb2.ClusterStatus) -> None:
        """Follows nothing; the status is this one from now on."""
        self._change(None, status)

    def _change(self, source: Watched | None, status: root_pb2.ClusterStatus) -> None:
        end = source.subscribe(self._publish) if source is not None else lambda: None
        with self._lock:
            self._end, before = end, self._end
            self._source, self._own = source, status
        before()
        self._publish(self.status())

    def _publish(self, status: root_pb2.ClusterStatus) -> None:
        with self._lock:
            subscribers = list(self._subscribers.values())
        for callback in subscribers:
            callback(status)
