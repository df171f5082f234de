"""The cluster's last events in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hearth.root.status.history import MOST_EVENTS, History
from hearth.v1 import root_pb2

SERVING, FORMING, DEGRADED = (
    root_pb2.CLUSTER_STATE_SERVING,
    root_pb2.CLUSTER_STATE_FORMING,
    root_pb2.CLUSTER_STATE_DEGRADED,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def status(
    state: root_pb2.ClusterState.ValueType, epoch: int, *peers: root_pb2.Peer, reason: str = ""
) -> root_pb2.ClusterStatus:
    nodes = [root_pb2.ClusterNode(), root_pb2.ClusterNode()]
    return root_pb2.ClusterStatus(state=state, epoch=epoch, reason=reason, nodes=nodes, peers=peers)


def peer(state: root_pb2.PeerState.ValueType, reason: str = "") -> root_pb2.Peer:
    return root_pb2.Peer(address="pi:7717", name="pi", state=state, reason=reason)


def test_a_lost_worker_and_its_return() -> None:
    clock = Clock()
    history = History(clock)
    history.note(status(FORMING, 1, peer(root_pb2.PEER_STATE_READY)))
    history.note(status(SERVING, 1, peer(root_pb2.PEER_STATE_IN)))
    clock.now = 200.0
    lost = peer(root_pb2.PEER_STATE_LOST, "connection reset")
    history.note(status(DEGRADED, 1, lost, reason="waiting for pi"))
    history.note(status(DEGRADED, 1, lost, reason="waiting for pi"))
    clock.now = 203.5
    history.note(status(FORMING, 2, peer(root_pb2.PEER_STATE_IN)))
    history.note(status(SERVING, 2, peer(root_pb2.PEER_STATE_IN)))
    assert [(event.seconds, event.kind, event.text) for event in history.events()] == [
        (100.0, "worker", "worker pi (pi:7717) is here, without a part of the model"),
        (100.0, "plan", "plan 1: the model is divided over 2 nodes"),
        (100.0, "worker", "worker pi (pi:7717) has a part of the model"),
        (100.0, "ready", "plan 1 runs on 2 nodes"),
        (200.0, "fault", "worker pi (pi:7717) was lost: connection reset"),
        (200.0, "fault", "requests wait: waiting for pi"),
        (203.5, "worker", "worker pi (pi:7717) has a part of the model"),
        (203.5, "plan", "plan 2: the model is divided over 2 nodes"),
        (203.5, "ready", "plan 2 runs on 2 nodes, after 3.5 s"),
    ]


def test_a_worker_that_no_source_lists_any_more() -> None:
    history = History()
    history.note(status(SERVING, 1, peer(root_pb2.PEER_STATE_IN)))
    history.note(status(SERVING, 1))
    assert history.events()[-1].text == "worker pi:7717 is not listed any more"


states = st.sampled_from([SERVING, FORMING, DEGRADED])
peer_states = st.sampled_from(list(root_pb2.PeerState.values()))


@given(st.lists(st.tuples(states, st.integers(0, 3), peer_states), max_size=300))
def test_events_are_bounded_and_repeat_nothing(
    changes: list[tuple[root_pb2.ClusterState.ValueType, int, root_pb2.PeerState.ValueType]],
) -> None:
    history = History()
    for state, epoch, peer_state in changes:
        history.note(status(state, epoch, peer(peer_state)))
        before = history.events()
        history.note(status(state, epoch, peer(peer_state)))
        assert history.events() == before
    assert len(history.events()) <= MOST_EVENTS
