"""The cluster's status now (a ClusterStatus), and its readers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hearth.v1 import root_pb2

Subscriber = Callable[[root_pb2.ClusterStatus], object]


class Board:
    """Thread-safe. Readers get copies; subscribers are called in the thread that made a change."""

    def __init__(self) -> None:
        self._status = root_pb2.ClusterStatus(state=root_pb2.CLUSTER_STATE_FORMING)
        self._lock = threading.Lock()
        self._subscribers: dict[object, Subscriber] = {}

    def status(self) -> root_pb2.ClusterStatus:
        """The cluster now."""
        with self._lock:
            return self._copy()

    def subscribe(self, callback: Subscriber) -> Callable[[], object]:
        """Calls back at every change, until the function returned is called."""
        key = object()
        with self._lock:
            self._subscribers[key] = callback
        return lambda: self._subscribers.pop(key, None)

    @contextmanager
    def change(self) -> Iterator[root_pb2.ClusterStatus]:
        """The status itself, to be changed in place; subscribers are called after.

        The lock is held for the whole `with` block, so that no change of another thread is lost.
        The block must not take another lock, call this board, or wait.
        """
        with self._lock:
            yield self._status
            copy = self._copy()
            subscribers = list(self._subscribers.values())
        for callback in subscribers:
            callback(copy)

    def _copy(self) -> root_pb2.ClusterStatus:
        copy = root_pb2.ClusterStatus()
        copy.CopyFrom(self._status)
        return copy
