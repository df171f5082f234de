"""The cluster's words as messages: names of types, and plans as hearth.v1 has them. No I/O."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import channels, system
from hearth.common.errors import HearthError, Reason
from hearth.converter import Model, ModelSpec
from hearth.root.candidates import Candidate
from hearth.root.planner import Plan, Slice
from hearth.root.scheduler import Batch, Limits
from hearth.v1 import common_pb2, root_pb2, worker_pb2

if TYPE_CHECKING:
    from hearth.root.settings import ClusterSettings

WEIGHT = {
    "f32": common_pb2.WEIGHT_TYPE_F32,
    "f16": common_pb2.WEIGHT_TYPE_F16,
    "q80": common_pb2.WEIGHT_TYPE_Q80,
    "q40": common_pb2.WEIGHT_TYPE_Q40,
}
SYNC = {
    "f32": common_pb2.SYNC_TYPE_F32,
    "f16": common_pb2.SYNC_TYPE_F16,
    "q80": common_pb2.SYNC_TYPE_Q80,
}
KV = {
    "f32": common_pb2.KV_TYPE_F32,
    "f16": common_pb2.KV_TYPE_F16,
    "q80": common_pb2.KV_TYPE_Q80,
}
# A worker that is there and answers, and cannot be used as things are.
_REFUSALS = {
    Reason.WORKER_BUSY,
    Reason.PROTOCOL_VERSION,
    Reason.OUT_OF_MEMORY,
    Reason.STREAM_IN_USE,
    Reason.BAD_SHARD,
    Reason.PEER_LOST,
}
# What a candidate's state means for its place in the plan that does not serve.
_NODE_STATES = {
    root_pb2.CANDIDATE_STATE_READY: root_pb2.NODE_STATE_READY,
    root_pb2.CANDIDATE_STATE_LOST: root_pb2.NODE_STATE_LOST,
    root_pb2.CANDIDATE_STATE_UNREACHABLE: root_pb2.NODE_STATE_LOST,
    root_pb2.CANDIDATE_STATE_REFUSED: root_pb2.NODE_STATE_REFUSED,
}
LANE = {"grpc": common_pb2.LANE_GRPC, "mesh": common_pb2.LANE_MESH}


def check(lane: str, sync_type: str, kv_type: str, spec: ModelSpec) -> None:
    """Raises HearthError INVALID_ARGUMENT for a name that there is not, or that does not fit."""
    for what, name, known in (
        ("lane", lane, LANE),
        ("sync type", sync_type, SYNC),
        ("KV type", kv_type, KV),
    ):
        if name not in known:
            raise HearthError(
                Reason.INVALID_ARGUMENT, f"unknown {what} {name!r}: there are {', '.join(known)}"
            )
    if kv_type == "q80" and spec.head_size % 32:
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            f"KV type q80 needs a head size that is a multiple of 32; {spec.name} has "
            f"{spec.head_size}: use --kv-type f16",
        )
    if sync_type == "q80" and spec.hidden_size % 32:
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            f"sync type q80 needs a hidden size that is a multiple of 32; {spec.name} has "
            f"{spec.hidden_size}: use --sync-type f16",
        )


def activation_type(sync_type: str) -> common_pb2.SyncType.ValueType:
    """How a step's input travels. Embeddings are a step's only input: q80 would be too coarse."""
    return SYNC["f32"] if sync_type == "f32" else SYNC["f16"]


def shard_config(
    spec: ModelSpec, plan: Plan, rank: int, settings: "ClusterSettings", limits: Limits
) -> common_pb2.ShardConfig:
    """All that rank `rank` learns of the model."""
    node = plan.nodes[rank]
    return common_pb2.ShardConfig(
        hidden_size=spec.hidden_size,
        layers=_range((0, spec.layers)),
        heads=_range(node.heads),
        kv_heads=_range(node.kv_heads),
        head_size=spec.head_size,
        ffn=_range(node.ffn),
        vocab=_range(node.vocab),
        norm_epsilon=spec.norm_epsilon,
        rope_frequencies=spec.rope_frequencies().tolist(),
        kv_type=KV[settings.kv_type],
        page_size=limits.page_size,
        max_pages=limits.max_pages,
        max_step_tokens=limits.max_step_tokens,
        embedding=node.embedding,
        vocab_size=spec.vocab_size,
        head_from_embedding=node.head_from_embedding,
    )


def placement(plan: Plan, rank: int) -> common_pb2.Placement:
    return common_pb2.Placement(stage=0, stages=1, rank=rank, ranks=len(plan.nodes))


def load_begin(
    model: Model,
    plan: Plan,
    rank: int,
    config: common_pb2.ShardConfig,
    lease: worker_pb2.Lease,
    settings: "ClusterSettings",
) -> worker_pb2.LoadBegin:
    """The first message of rank `rank`'s weight stream."""
    return worker_pb2.LoadBegin(
        protocol_version=channels.PROTOCOL_VERSION,
        lease=lease,
        placement=placement(plan, rank),
        shard=config,
        manifest=[slice_entry(part, model.fingerprint) for part in plan.nodes[rank].slices],
        lane=LANE[settings.lane],
        sync_type=SYNC[settings.sync_type],
    )


def slice_entry(part: Slice, fingerprint: bytes) -> worker_pb2.SliceEntry:
    return worker_pb2.SliceEntry(
        name=part.name,
        type=WEIGHT[part.kind],
        rows=part.rows[1] - part.rows[0],
        columns=part.columns[1] - part.columns[0],
        identity=part.identity(fingerprint),
        size_bytes=part.size_bytes,
    )


def step(
    step_id: int,
    batch: Batch,
    activations: bytes,
    activation_type: common_pb2.SyncType.ValueType,
    candidates: int,
) -> worker_pb2.ForwardRequest:
    return worker_pb2.ForwardRequest(
        step=worker_pb2.Step(
            step_id=step_id,
            sequences=[
                worker_pb2.SequenceStep(rows=len(s.tokens), position=s.position, pages=s.pages)
                for s in batch.sequences
            ],
            activations=activations,
            output_rows=batch.output_rows,
            activation_type=activation_type,
            candidates=worker_pb2.Candidates(count=candidates),
        )
    )


# Logits of one rank: f32 [rows, n], and u32 ids where they are of candidates only.
Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32] | None]


def own_logits(whole: npt.NDArray[np.float32], candidates: int) -> Logits:
    """The root's part; its vocabulary rows begin at 0."""
    if not candidates:
        return whole, None
    return _native.best(whole, min(candidates, whole.shape[1]), 0)


def logits(
    result: worker_pb2.StepResult, name: str, rows: int, vocab: tuple[int, int], candidates: int
) -> Logits:
    """A worker's part, checked. Raises HearthError WORKER_LOST when it is not what is due."""
    columns = _columns(vocab, candidates)
    size = rows * columns * 4
    # Each look at a field of a message copies it: 4 MiB for 16 whole rows of a large vocabulary.
    logits_bytes, id_bytes = result.logits, result.candidate_ids
    if len(logits_bytes) != size or len(id_bytes) != (size if candidates else 0):
        raise HearthError(
            Reason.WORKER_LOST,
            f"worker {name} sent {len(logits_bytes)} bytes of logits and "
            f"{len(id_bytes)} of ids where [{rows}, {columns}] are {size}",
        )
    values = np.frombuffer(logits_bytes, "<f4").reshape(rows, columns)
    if not candidates:
        return values, None
    ids = np.frombuffer(id_bytes, "<u4").reshape(rows, columns)
    if rows and not (vocab[0] <= int(ids.min()) and int(ids.max()) < vocab[1]):
        raise HearthError(
            Reason.WORKER_LOST,
            f"worker {name} sent token ids outside its vocabulary rows {vocab[0]} to {vocab[1]}",
        )
    return values, ids


class JoinedLogits:
    """All ranks' logits, side by side; a part is copied when it comes, and can be let go then.

    Of 16 whole rows of a vocabulary of 128,000 all parts together are 8 MiB.
    """

    def __init__(self, rows: int, vocabs: Sequence[tuple[int, int]], candidates: int) -> None:
        """vocabs: each rank's rows of the vocabulary."""
        columns = sum(_columns(vocab, candidates) for vocab in vocabs)
        self.values = np.empty((rows, columns), np.float32)
        self.ids = np.empty((rows, columns), np.uint32) if candidates else None
        self._filled = 0

    def add(self, part: Logits) -> int:
        """Takes the next rank's part; its bytes."""
        values, ids = part
        begin, self._filled = self._filled, self._filled + values.shape[1]
        self.values[:, begin : self._filled] = values
        if self.ids is None or ids is None:
            return values.nbytes
        self.ids[:, begin : self._filled] = ids
        return values.nbytes + ids.nbytes


def _columns(vocab: tuple[int, int], candidates: int) -> int:
    """How many logits of a row a rank gives."""
    size = vocab[1] - vocab[0]
    return min(candidates, size) if candidates else size


def forming(
    epoch: int, settings: "ClusterSettings", plan: Plan, workers: Sequence[str]
) -> root_pb2.ClusterStatus:
    """The status of a cluster whose nodes are being dialled; workers: addresses in rank order."""
    status = root_pb2.ClusterStatus(
        state=root_pb2.CLUSTER_STATE_FORMING,
        reason="dialling workers",
        epoch=epoch,
        lane=LANE[settings.lane],
        sync_type=SYNC[settings.sync_type],
        notes=plan.notes,
    )
    for rank, address in enumerate(("local", *workers)):
        status.nodes.add(
            address=address,
            state=root_pb2.NODE_STATE_DIALING if rank else root_pb2.NODE_STATE_READY,
            placement=placement(plan, rank),
            weight_bytes=plan.nodes[rank].weight_bytes,
        )
    status.nodes[0].info.CopyFrom(own_info(settings))
    return status


def serving(status: root_pb2.ClusterStatus) -> None:
    """Every node serves."""
    status.state = root_pb2.CLUSTER_STATE_SERVING
    status.reason = ""
    for node in status.nodes:
        node.state = root_pb2.NODE_STATE_SERVING
        node.reason = ""


def degraded(status: root_pb2.ClusterStatus, error: BaseException) -> None:
    """The cluster does not serve because of `error`; the node that it names says why."""
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


def candidates(known: Sequence[Candidate]) -> list[root_pb2.Candidate]:
    """All workers that the root knows of, as clients see them."""
    return [
        root_pb2.Candidate(
            address=candidate.address,
            sources=sorted(candidate.sources),
            state=root_pb2.CandidateState.ValueType(candidate.shown.value),
            reason=candidate.reason,
            name=candidate.name,
        )
        for candidate in known
    ]


def explain(status: root_pb2.ClusterStatus, known: Sequence[Candidate], why: str) -> bool:
    """Says why the cluster does not serve, and what its workers lack; whether that is news."""
    before = root_pb2.ClusterStatus()
    before.CopyFrom(status)
    status.state = root_pb2.CLUSTER_STATE_DEGRADED
    status.reason = why
    by_address = {candidate.address: candidate for candidate in known}
    for node in status.nodes[1:]:
        candidate = by_address.get(node.address)
        if candidate is None:
            continue
        state = _NODE_STATES.get(root_pb2.CandidateState.ValueType(candidate.shown.value))
        if state is not None:
            node.state, node.reason = state, candidate.reason
    return status != before


def own_info(settings: "ClusterSettings") -> common_pb2.NodeInfo:
    """What the root itself is."""
    cores = system.cores()
    return common_pb2.NodeInfo(
        name=settings.name,
        version=system.version(),
        protocol_version=channels.PROTOCOL_VERSION,
        cores=cores,
        threads=settings.threads or cores,
        instruction_set=_native.instruction_set(),
        memory_total_bytes=system.memory_total(),
        memory_available_bytes=system.memory_available(),
        architecture=system.architecture(),
    )


def _range(span: tuple[int, int]) -> common_pb2.Range:
    return common_pb2.Range(begin=span[0], end=span[1])
