"""Faults, plans and workers that came or went, in words: the last ones, with their times."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hearth.v1 import root_pb2

MOST_EVENTS = 100

_PEERS = {
    root_pb2.PEER_STATE_IN: ("worker", "has a part of the model"),
    root_pb2.PEER_STATE_LOST: ("fault", "was lost"),
    root_pb2.PEER_STATE_UNREACHABLE: ("fault", "cannot be reached"),
    root_pb2.PEER_STATE_REFUSED: ("fault", "cannot be used"),
    root_pb2.PEER_STATE_DRAINED: ("worker", "was taken out on purpose"),
    root_pb2.PEER_STATE_READY: ("worker", "is here, without a part of the model"),
}


@dataclass(frozen=True, slots=True)
class Event:
    """kind: "fault", "plan", "ready" or "worker". seconds: since 1970."""

    seconds: float
    kind: str
    text: str


class History:
    """Subscribe `note` to the cluster. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._last = root_pb2.ClusterStatus()
        # When the cluster last was ready, while it is not.
        self._stopped: float | None = None

    def events(self) -> list[Event]:
        """The last events, oldest first."""
        with self._lock:
            return list(self._events)

    def note(self, status: root_pb2.ClusterStatus) -> None:
        """Compare with the status before."""
        with self._lock:
            now = self._clock()
            for kind, text in changes(self._last, status):
                if kind == "ready" and self._stopped is not None:
                    text += f", after {now - self._stopped:.1f} s"
                self._events.append(Event(now, kind, text))
            serving = root_pb2.CLUSTER_STATE_SERVING
            if status.state == serving:
                self._stopped = None
            elif self._last.state == serving:
                self._stopped = now
            self._last.CopyFrom(status)


def changes(
    before: root_pb2.ClusterStatus, now: root_pb2.ClusterStatus
) -> Iterator[tuple[str, str]]:
    """(kind, words) of each difference that people care for."""
    known = {peer.address: peer.state for peer in before.peers}
    for peer in now.peers:
        if peer.state != known.get(peer.address) and peer.state in _PEERS:
            kind, words = _PEERS[peer.state]
            name = f"{peer.name} ({peer.address})" if peer.name else peer.address
            reason = f": {peer.reason}" if peer.reason and kind == "fault" else ""
            yield kind, f"worker {name} {words}{reason}"
    for gone in known.keys() - {peer.address for peer in now.peers}:
        yield "worker", f"worker {gone} is not listed any more"
    nodes = f"{len(now.nodes)} node" + ("s" if len(now.nodes) != 1 else "")
    degraded = now.state == root_pb2.CLUSTER_STATE_DEGRADED
    if degraded and (before.state, before.reason) != (now.state, now.reason):
        yield "fault", f"requests wait: {now.reason or 'the cluster is not ready'}"
    if now.state == root_pb2.CLUSTER_STATE_FORMING and before.epoch != now.epoch:
        yield "plan", f"plan {now.epoch}: the model is divided over {nodes}"
    if now.nodes and now.state == root_pb2.CLUSTER_STATE_SERVING != before.state:
        yield "ready", f"plan {now.epoch} runs on {nodes}"
