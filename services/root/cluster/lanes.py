"""The root's end of both lanes.

grpc: every rank sends its partial sum on its Forward stream, and the root returns the total.
mesh: the root sends addresses and a key, and is then a rank like the others (native/mesh.h).
"""

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import wire
from hearth.common.channels import is_loopback
from hearth.common.errors import HearthError, Reason
from hearth.common.lanes import StreamLane
from hearth.common.link_costs import LinkCosts
from hearth.common.mesh import connect_all, measure, round_trip, stage_link
from hearth.common.mesh_handshake import KEY_BYTES
from hearth.common.mesh_place import MeshPlace
from hearth.common.types import MESH_CIPHER
from hearth.root.cluster.links import WorkerLink, expect_sync, violation
from hearth.v1 import worker_pb2

# Time limit for connecting the ranks, and then for measuring their links. The workers' limit is
# shorter, so that their own error arrives first.
MESH_SECONDS = 15.0


class Lanes:
    """The root's part in the ways of activations and syncs of a formation."""

    def __init__(
        self,
        syncs: "HubLane | _native.MeshLane | None",
        *,
        relayed: bool,
        behind: Sequence[_native.StageLink] = (),
    ) -> None:
        """syncs: of the root's stage; None if the root is alone there.

        relayed: activations go from stage to stage through the root. Else behind: the root's
        connections to the next stage.
        """
        self.syncs = syncs
        self.relayed = relayed
        self._behind = tuple(behind)

    def send_on(self, step_id: int, activations: bytes) -> int:
        """Sends the output of the root's stage to the next one; the bytes that were sent."""
        for link in self._behind:
            link.send(step_id, activations)
        return len(activations) * len(self._behind)

    def abort(self) -> None:
        """Ends a sync that is under way, from any thread."""
        for link in self._behind:
            link.abort()
        if isinstance(self.syncs, _native.MeshLane):
            self.syncs.abort()

    def close(self) -> None:
        """Ends the connections of the mesh."""
        for link in self._behind:
            link.close()
        if isinstance(self.syncs, _native.MeshLane):
            self.syncs.close()
        self.syncs = None


class HubLane(StreamLane):
    """All-reduce over the Forward streams, with the root as hub.

    Adds in rank order, in f32. Every rank, including the root, uses the rounded values from the
    wire, so that all have the same bits.
    """

    def __init__(self, links: Sequence[WorkerLink], sync_type: int) -> None:
        """links: ranks 1 and up of the root's stage, in rank order; sync_type: a SyncType."""
        super().__init__(sync_type)
        self._links = links

    def _reduce(self, x: npt.NDArray[np.float32], sync_type: int) -> None:
        """Replaces x, f32 [rows, hidden_size], by its sum over all ranks. Raises HearthError."""
        for link in self._links:
            frame = expect_sync(link.receive(), link, self._step_id, self._index)
            try:
                x += wire.decode(frame.data, sync_type, *x.shape)
            except HearthError as error:
                raise violation(link, error.message) from None
            self.received_bytes += len(frame.data)
        data = wire.encode(x, sync_type)
        answer = worker_pb2.ForwardRequest(
            sync=worker_pb2.SyncFrame(step_id=self._step_id, index=self._index, data=data)
        )
        for link in self._links:
            link.send(answer)
        if wire.type_name(sync_type) != "f32":
            x[:] = wire.decode(data, sync_type, *x.shape)
        self.sent_bytes += len(data) * len(self._links)
        self._index += 1


def choose_cipher(links: Sequence[WorkerLink]) -> str:
    """The cipher for a mesh of the root and these workers, by name.

    AES where every CPU has instructions for it, else ChaCha20 where every rank has it: the one
    whose worst place in the ranks' lists is best. Raises HearthError for a rank that has none of
    the others' ciphers.
    """
    own = _native.mesh_ciphers()
    if not own:
        raise HearthError(Reason.BAD_SETTING, _cannot_encrypt("the root", own))
    common = set(own)
    for link in links:
        common &= set(link.mesh_ciphers)
        if not common:
            problem = _cannot_encrypt(f"worker {link.name}", link.mesh_ciphers)
            raise HearthError(Reason.INVALID_ARGUMENT, problem, {"worker": link.address})
    offers = [own, *(link.mesh_ciphers for link in links)]
    # A tie is two CPUs of which one has no AES instructions.
    worst = {name: max(offered.index(name) for offered in offers) for name in common}
    return min(common, key=lambda name: (worst[name], name.startswith("aes")))


def open_mesh(
    links: Sequence[WorkerLink],
    stage_ranks: Sequence[int],
    sync_type: int,
    deadline_seconds: float,
    cipher: str,
) -> tuple[Lanes, LinkCosts | None, list[float]]:
    """Connects the ranks of all stages and measures the links of each stage.

    Returns the root's lanes, the costs of the slowest link of its stage (None: it is alone there),
    and the round trip to each worker in seconds, 0 where it is not known.

    links: all workers, stage by stage. stage_ranks: the number of ranks of each stage. cipher: see
    `choose_cipher`, or "plain". Raises HearthError.
    """
    place = MeshPlace(tuple(stage_ranks), 0, 0)
    for link in links:
        if not link.mesh_address:
            problem = f"worker {link.name} has no mesh port: use --lane grpc"
            raise HearthError(Reason.INVALID_ARGUMENT, problem, {"worker": link.address})
    here = [link for link in links if is_loopback(link.address)]
    if here and len(here) < len(links):
        problem = (
            f"worker {here[0].name} has a loopback address, which workers on other machines cannot "
            "reach: use its address on the network, or --lane grpc"
        )
        raise HearthError(Reason.INVALID_ARGUMENT, problem, {"worker": here[0].address})
    key = secrets.token_bytes(KEY_BYTES)
    addresses = ["", *(link.mesh_address for link in links)]
    request = worker_pb2.ForwardRequest(
        mesh_open=worker_pb2.MeshOpen(
            addresses=addresses,
            session_key=key,
            deadline_seconds=deadline_seconds,
            cipher=MESH_CIPHER[cipher],
            stage_ranks=stage_ranks if len(stage_ranks) > 1 else (),
        )
    )
    for link in links:
        link.send(request)
    try:
        connections = connect_all(
            addresses, key, 0, lambda _: {}, MESH_SECONDS, cipher, peers=place.peers
        )
    except HearthError as error:
        raise _lost(links, error) from None
    # Before the lanes own them.
    round_trips = [round_trip(each) if each >= 0 else 0.0 for each in connections.sockets[1:]]
    behind = [stage_link(connections, 0, peer, deadline_seconds, cipher) for peer in place.behind]
    lane: _native.MeshLane | None = None
    if len(place.mates) > 1:
        mates = slice(0, place.mates.stop)
        lane = _native.MeshLane(
            rank=0,
            sockets=connections.sockets[mates],
            wire=wire.type_name(sync_type),
            deadline_seconds=deadline_seconds,
            cipher=cipher,
            keys=connections.keys[mates],
        )
    lanes = Lanes(lane, relayed=False, behind=behind)
    try:
        costs: LinkCosts | None = None
        if lane is not None:
            try:
                costs = measure(lane, MESH_SECONDS)
            except HearthError as error:
                raise _lost(links, error) from None
            for number in place.mates[1:]:
                round_trips[number - 1] = round_trip(connections.sockets[number])
        for link in links:
            answer = link.receive_within(MESH_SECONDS, "join the mesh")
            if answer.WhichOneof("message") != "mesh_ready":
                kind = answer.WhichOneof("message")
                raise violation(link, f"it replied {kind!r} to mesh_open")
    except BaseException:
        lanes.close()
        raise
    return lanes, costs, round_trips


def _cannot_encrypt(name: str, ciphers: Sequence[str]) -> str:
    lack = (
        f"it has only {', '.join(ciphers)}"
        if ciphers
        else "it has no libcrypto: install OpenSSL 3 there (libssl3)"
    )
    return (
        f"{name} cannot encrypt the mesh, because {lack}; or use --lane grpc, or allow plain text "
        "with --mesh-plain"
    )


def _lost(links: Sequence[WorkerLink], error: HearthError) -> HearthError:
    """Converts the root's own report of a lost rank to an error that names the worker."""
    rank = int(error.metadata["rank"])
    link = links[rank - 1]
    facts = {"worker": link.address, "stage": link.place.stage, "rank": rank}
    return HearthError(Reason.WORKER_LOST, f"worker {link.name}: {error.message}", facts)
