"""Makes a plan: cuts a model over stages of ranks, in proportion to the nodes' shares. No I/O.

Every stage has a range of layers, and every rank of it a share of each: attention by KV head with
its query heads, the feed-forward by columns of its inner width, the vocabulary by rows. The table
of tensors (converter/spec.py) defines how tensors follow these units. Rank 0 of the first stage
holds the embedding; the ranks of the last stage hold the final norm and the head.

Cuts of quantized rows fall on blocks of 32. A tensor that cannot be cut on blocks is stored as f16,
and the plan notes it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.common.types import BLOCK
from hearth.converter.spec import ModelSpec, Place, TensorSpec, Unit
from hearth.root.planning.cut import (
    Span,
    divide,
    divide_on_blocks,
    joined,
    on_blocks,
    scaled,
    size,
)
from hearth.root.planning.layout import Layout
from hearth.root.planning.plan import NodePlan, Placement, Plan, Slice, Stage

_MAX_SHARE = 1_000_000


def check_shares(nodes: int, shares: Sequence[float] | None) -> list[float]:
    """Shares for `nodes` nodes, equal if None. Raises HearthError INVALID_ARGUMENT."""
    if shares is None:
        return [1.0] * nodes
    if len(shares) != nodes:
        raise _invalid(
            f"{len(shares)} shares ({','.join(f'{share:g}' for share in shares)}) for {nodes} "
            f"nodes: give one share for each node, root first"
        )
    for share in shares:
        if not (math.isfinite(share) and 0 < share <= _MAX_SHARE):
            raise _invalid(f"a share is {share:g}; it must be above 0, at most {_MAX_SHARE}")
    return list(shares)


def most_nodes(spec: ModelSpec) -> int:
    """Maximum number of ranks in a stage of this model."""
    return min(spec.kv_heads, spec.ffn_size, spec.vocab_size)


def make_plan(
    spec: ModelSpec,
    tensor_type: Callable[[str], str],
    layout: Layout,
    shares: Sequence[float] | None = None,
) -> Plan:
    """Cuts the model over the stages and ranks of `layout`.

    tensor_type: type of a tensor when it is not cut. shares: one for each node, stage by stage;
    equal if None. Raises HearthError INVALID_ARGUMENT, with the possible counts, if the model
    cannot be cut into this layout.
    """
    for ranks in layout.ranks:
        _check_ranks(spec, layout, ranks)
    by_node = check_shares(layout.nodes, shares)
    by_stage = [by_node[begin:end] for begin, end in joined(layout.ranks)]
    layers = _divide_layers(spec, layout, by_stage)
    stages: list[Stage] = []
    notes: list[str] = []
    for number, (span, weight) in enumerate(zip(layers, by_stage, strict=True)):
        cut = _cut_stage(spec, number, len(layers), span, weight)
        stages.append(Stage(span, _nodes(spec, tensor_type, cut)))
        notes += _notes(spec, tensor_type, cut)
    return Plan(tuple(stages), tuple(notes))


@dataclass(frozen=True, slots=True)
class _StageCut:
    """The units of one stage, divided: a span of each unit for every rank."""

    stage: int
    stages: int
    layers: Span
    units: dict[Unit, list[Span]]

    @property
    def ranks(self) -> int:
        return len(self.units[Unit.KV_HEAD])

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1


def _check_ranks(spec: ModelSpec, layout: Layout, ranks: int) -> None:
    most = most_nodes(spec)
    if 1 <= ranks <= most:
        return
    what = f"{ranks} nodes" if len(layout.ranks) == 1 else f"a stage of {ranks} nodes"
    raise _invalid(
        f"{spec.name} cannot be divided over {what}: its {spec.kv_heads} KV heads allow 1 to {most}"
    )


def _divide_layers(
    spec: ModelSpec, layout: Layout, shares: Sequence[Sequence[float]]
) -> list[Span]:
    """The layers of each stage. Raises HearthError INVALID_ARGUMENT."""
    stages = len(layout.ranks)
    if not 1 <= stages <= spec.layers:
        raise _invalid(
            f"{spec.name} cannot be divided into {stages} stages: its {spec.layers} layers allow 1 "
            f"to {spec.layers}"
        )
    if layout.layers is None:
        return divide(spec.layers, [math.fsum(each) for each in shares])
    if len(layout.layers) != stages:
        raise _invalid(f"layers for {len(layout.layers)} stages, the layout has {stages}")
    if min(layout.layers) < 1 or sum(layout.layers) != spec.layers:
        given = ",".join(map(str, layout.layers))
        raise _invalid(
            f"stages of {given} layers add up to {sum(layout.layers)}; {spec.name} has "
            f"{spec.layers} layers, and every stage needs at least one"
        )
    return joined(layout.layers)


def _cut_stage(
    spec: ModelSpec, stage: int, stages: int, layers: Span, shares: Sequence[float]
) -> _StageCut:
    kv_heads = divide(spec.kv_heads, shares)
    last = stage == stages - 1
    units = {
        Unit.KV_HEAD: kv_heads,
        Unit.FFN: divide_on_blocks(spec.ffn_size, _ffn_shares(spec, shares, kv_heads)),
        Unit.VOCAB: divide_on_blocks(spec.vocab_size, shares) if last else [(0, 0)] * len(shares),
    }
    return _StageCut(stage, stages, layers, units)


def _ffn_shares(spec: ModelSpec, shares: Sequence[float], kv_heads: Sequence[Span]) -> list[float]:
    """Shares of the feed-forward that compensate for the coarse cut of heads.

    With 4 KV heads on 3 nodes one node has half of the attention; it gets less of the feed-forward,
    so that each layer's weights as a whole follow the shares.
    """
    # Weights counted in rows or columns of hidden_size elements, the unit of a layer's matrices.
    cuts = [tensor.cut for tensor in spec.layer_tensors(0) if tensor.cut is not None]
    per_kv_head = sum(cut.size for cut in cuts if cut.unit is Unit.KV_HEAD)
    attention = spec.kv_heads * per_kv_head
    feed_forward = spec.ffn_size * sum(cut.size for cut in cuts if cut.unit is Unit.FFN)
    total = math.fsum(shares)
    wanted = [
        share / total * (attention + feed_forward) - size(span) * per_kv_head
        for share, span in zip(shares, kv_heads, strict=True)
    ]
    return [max(value, 1e-3 * feed_forward) for value in wanted]


def _nodes(
    spec: ModelSpec, tensor_type: Callable[[str], str], cut: _StageCut
) -> tuple[NodePlan, ...]:
    """The ranks of one stage."""
    group = spec.heads // spec.kv_heads
    nodes = []
    for rank in range(cut.ranks):
        place = Placement(cut.stage, cut.stages, rank, cut.ranks)
        embedding = cut.stage == 0 and rank == 0
        kv_heads = cut.units[Unit.KV_HEAD][rank]
        nodes.append(
            NodePlan(
                place=place,
                layers=cut.layers,
                heads=scaled(kv_heads, group),
                kv_heads=kv_heads,
                ffn=cut.units[Unit.FFN][rank],
                vocab=cut.units[Unit.VOCAB][rank],
                embedding=embedding,
                head_from_embedding=spec.tied and embedding and cut.last,
                slices=tuple(
                    _slice(tensor, tensor_type(tensor.source), cut, rank)
                    for tensor in spec.tensors
                    if _holds(tensor, cut, embedding)
                ),
            )
        )
    return tuple(nodes)


def _holds(tensor: TensorSpec, cut: _StageCut, embedding: bool) -> bool:
    """True if a rank has a slice of the tensor; embedding: the rank holds the embedding."""
    if tensor.place is Place.LAYER:
        return cut.layers[0] <= tensor.layer < cut.layers[1]
    if tensor.place is Place.INPUT:
        return embedding
    # A node with both takes a tied model's head from the embedding.
    return cut.last and not (embedding and tensor.stored_as)


def _slice(tensor: TensorSpec, whole: str, cut: _StageCut, rank: int) -> Slice:
    """A rank's slice of a tensor; whole: the tensor's type when it is not cut."""
    rows, columns = (0, tensor.shape[0]), (0, tensor.shape[1])
    if tensor.cut is not None:
        span = scaled(cut.units[tensor.cut.unit][rank], tensor.cut.size)
        rows, columns = (rows, span) if tensor.cut.columns else (span, columns)
    return Slice(tensor.name, tensor.source, _kind(tensor, whole, cut), rows, columns)


def _kind(tensor: TensorSpec, whole: str, cut: _StageCut) -> str:
    """The type of a tensor's slices: f16 instead of q80 or q40 if cuts miss the blocks."""
    if tensor.cut is None or not tensor.cut.columns or not whole.startswith("q"):
        return whole
    return whole if on_blocks(cut.units[tensor.cut.unit], tensor.cut.size) else "f16"


def _notes(spec: ModelSpec, tensor_type: Callable[[str], str], cut: _StageCut) -> list[str]:
    """Notes on tensors that stay f16 because of their cut."""
    notes = []
    where = f"stage {cut.stage}: " if cut.stages > 1 else ""
    for tensor in spec.layer_tensors(cut.layers[0]):
        whole = tensor_type(tensor.source)
        kind = _kind(tensor, whole, cut)
        if kind != whole:
            notes.append(
                f"{where}{tensor.part} stays {kind} instead of {whole}: its {tensor.shape[1]} "
                f"columns cannot be cut for {cut.ranks} nodes on blocks of {BLOCK}"
            )
    return notes


def _invalid(message: str) -> HearthError:
    return HearthError(Reason.INVALID_ARGUMENT, message)
