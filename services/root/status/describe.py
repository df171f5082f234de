"""The cluster as clients see it: a hearth.v1.ClusterStatus. No I/O."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hearth.common import devices, system
from hearth.common.errors import HearthError, Reason
from hearth.common.link_costs import LinkCosts
from hearth.common.node_info import node_info
from hearth.common.sizes import format_rate, format_size
from hearth.common.types import LANE, SYNC
from hearth.root.membership.peers import Peer
from hearth.root.planning.plan import Placement, Plan
from hearth.root.planning.predict import MANY, Prediction
from hearth.v1 import common_pb2, root_pb2

if TYPE_CHECKING:
    from hearth.root.settings import ClusterSettings

# A worker that is there and answers, and cannot be used as things are.
_REFUSALS = {
    Reason.WORKER_BUSY,
    Reason.PROTOCOL_VERSION,
    Reason.OUT_OF_MEMORY,
    Reason.STREAM_IN_USE,
    Reason.BAD_SHARD,
    Reason.PEER_LOST,
}
# The state of a node of the plan, by its peer's state, while the cluster is not ready.
_NODE_STATES = {
    root_pb2.PEER_STATE_READY: root_pb2.NODE_STATE_READY,
    root_pb2.PEER_STATE_LOST: root_pb2.NODE_STATE_LOST,
    root_pb2.PEER_STATE_UNREACHABLE: root_pb2.NODE_STATE_LOST,
    root_pb2.PEER_STATE_REFUSED: root_pb2.NODE_STATE_REFUSED,
}


def forming(
    epoch: int,
    settings: "ClusterSettings",
    plan: Plan,
    workers: Sequence[str],
    model: str = "",
    context_size: int = 0,
) -> root_pb2.ClusterStatus:
    """The status of a cluster whose nodes are being dialled; workers: addresses in rank order.

    model: its name; context_size: positions of one sequence.
    """
    status = root_pb2.ClusterStatus(
        state=root_pb2.CLUSTER_STATE_FORMING,
        reason="dialling workers",
        epoch=epoch,
        lane=LANE[settings.lane],
        sync_type=SYNC[settings.sync_type],
        notes=plan.notes,
        model=model,
        context_size=context_size,
    )
    for address, node in zip(("local", *workers), plan.nodes, strict=True):
        status.nodes.add(
            address=address,
            state=root_pb2.NODE_STATE_DIALING,
            placement=placement(node.place),
            weight_bytes=node.weight_bytes,
        )
    own = status.nodes[0]
    own.state = root_pb2.NODE_STATE_READY
    threads = settings.threads or system.cores()
    on_cpu = settings.device == devices.CPU
    free = system.memory_available() if on_cpu else devices.memory_for_model(settings.device)
    own.info.CopyFrom(node_info(settings.name, threads, free, settings.device))
    return status


def serving(status: root_pb2.ClusterStatus) -> None:
    """Every node serves."""
    status.state = root_pb2.CLUSTER_STATE_SERVING
    status.reason = ""
    for node in status.nodes:
        node.state = root_pb2.NODE_STATE_SERVING
        node.reason = ""


def degraded(status: root_pb2.ClusterStatus, error: BaseException) -> None:
    """The cluster is not ready because of `error`, which the node that it names shows."""
    reason = str(error) or type(error).__name__
    culprits: set[str] = set()
    state = root_pb2.NODE_STATE_LOST
    if isinstance(error, HearthError):
        culprits = {error.metadata[key] for key in ("worker", "peer") if key in error.metadata}
        if error.reason in _REFUSALS:
            state = root_pb2.NODE_STATE_REFUSED
    status.state = root_pb2.CLUSTER_STATE_DEGRADED
    status.reason = reason
    for node in status.nodes:
        if node.address in culprits:
            node.state = state
            node.reason = reason
        elif node.info.name:
            node.state = root_pb2.NODE_STATE_READY
            node.reason = "waiting for the others"


def waiting_reason(status: root_pb2.ClusterStatus) -> str:
    """The reason for which requests wait, for people; "" while the cluster is ready."""
    if status.state == root_pb2.CLUSTER_STATE_SERVING:
        return ""
    if status.state == root_pb2.CLUSTER_STATE_FORMING:
        return "the model is being divided over the nodes that are there"
    return status.reason or "the cluster is not ready"


def peers(known: Sequence[Peer]) -> list[root_pb2.Peer]:
    """All workers that the root knows of, as clients see them."""
    return [
        root_pb2.Peer(
            address=peer.address,
            sources=sorted(peer.sources),
            state=root_pb2.PeerState.ValueType(peer.shown.value),
            reason=peer.reason,
            name=peer.name,
        )
        for peer in known
    ]


def explain(status: root_pb2.ClusterStatus, known: Sequence[Peer], why: str) -> bool:
    """Show why the cluster is not ready, and what its workers lack; True if that is new."""
    before = root_pb2.ClusterStatus()
    before.CopyFrom(status)
    status.state = root_pb2.CLUSTER_STATE_DEGRADED
    status.reason = why
    by_address = {peer.address: peer for peer in known}
    for node in status.nodes[1:]:
        peer = by_address.get(node.address)
        if peer is None:
            continue
        state = _NODE_STATES.get(root_pb2.PeerState.ValueType(peer.shown.value))
        if state is not None:
            node.state, node.reason = state, peer.reason
    return status != before


_CIPHER_TEXT = {
    "plain": "plain text",
    "aes-256-gcm": "AES-256-GCM",
    "chacha20-poly1305": "ChaCha20-Poly1305",
}
MESH_PLAIN_NOTE = (
    "the mesh is not encrypted (--mesh-plain): who can read the network between the nodes can read "
    "what they exchange, and who can change it can change answers"
)


def mesh_note(stage_ranks: Sequence[int], cipher: str, costs: LinkCosts | None) -> str:
    """The cipher and the measured links of a mesh, for people.

    stage_ranks: of each stage. costs: of the root's stage, None if the root is alone there.
    """
    stages = f" in {len(stage_ranks)} stages" if len(stage_ranks) > 1 else ""
    note = f"mesh of {sum(stage_ranks)} ranks{stages}, {_CIPHER_TEXT[cipher]}"
    if costs is None:
        return note
    ways = "all sums go direct"
    if costs.direct_bytes is not None:
        size = format_size(costs.direct_bytes)
        ways = f"sums of up to {size} go direct, larger ones scattered"
    latency = f"latency {costs.latency_seconds * 1e6:.0f} us"
    return f"{note}: {latency}, {costs.bytes_per_second / 1e6:.0f} MB/s a rank; {ways}"


def measured(
    status: root_pb2.ClusterStatus, costs: LinkCosts | None, round_trips: Sequence[float]
) -> None:
    """Show the measured links of a mesh; round_trips: seconds, of each worker in the plan's order.

    costs: see `mesh_note`.
    """
    if costs is not None:
        status.mesh.latency_seconds = costs.latency_seconds
        status.mesh.bytes_per_second = costs.bytes_per_second
    for node, seconds in zip(status.nodes[1:], round_trips, strict=True):
        node.round_trip_seconds = seconds


def prediction(found: Prediction) -> root_pb2.Prediction:
    """A prediction as a message."""
    return root_pb2.Prediction(
        decode_tokens_per_second=found.decode,
        prefill_tokens_per_second=found.prefill,
        sequences=MANY,
        decode_many_tokens_per_second=found.decode_many,
        compute_seconds=found.compute_seconds,
        sync_seconds=found.transfer_seconds,
        sent_bytes=found.sent_bytes,
    )


def prediction_note(found: Prediction) -> str:
    """A prediction for people."""
    return (
        f"expected: {format_rate(found.decode)} tokens/s of one sequence, "
        f"{format_rate(found.decode_many)} of {MANY} together, prompts at "
        f"{format_rate(found.prefill)} tokens/s"
    )


def placement(place: Placement) -> common_pb2.Placement:
    """A node's place in a plan, as a message."""
    return common_pb2.Placement(
        stage=place.stage, stages=place.stages, rank=place.rank, ranks=place.ranks
    )
