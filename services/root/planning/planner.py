"""Makes a plan: cuts a model over stages of ranks, in proportion to the nodes' shares. No I/O.

Every stage has a range of layers, and every rank of it a share of each: attention by KV head with
its query heads, the feed-forward by columns of its inner width, the vocabulary by rows. With more
ranks than KV heads, several ranks have the same KV head and different query heads of it. The table
of tensors (converter/tensors.py) defines how tensors follow these units. Rank 0 of the first stage
holds the embedding; the ranks of the last stage hold the final norm and the head.

Columns of quantized rows are cut on blocks, of 32 or 256 elements. Cuts that fall on the blocks of
all tensors are chosen where there are any. Else a tensor becomes q8_0, whose blocks are short, or
f16, and the plan notes it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.converter.blocks import LatentAttentionSpec
from hearth.converter.spec import ModelSpec
from hearth.converter.tensors import (
    Place,
    TensorSpec,
    Unit,
    UnitKind,
    block_tensors,
    inner_units,
    mixer_units,
    vocab_unit,
)
from hearth.converter.weights import FORMATS
from hearth.root.planning.cut import (
    Span,
    divide,
    divide_heads,
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
    counts = [spec.vocab_size]
    for kind in spec.kinds:
        units = (mixer_units(kind.mixer)[0], *inner_units(kind))
        counts += [unit.count for unit in units]
    return min(counts)


def most_stages(spec: ModelSpec) -> int:
    """Maximum number of stages of this model."""
    # Borders are moved before layers that one stage must hold.
    return spec.layers if spec.kept_together is None else spec.kept_together[0] + 1


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
        steps = _steps(spec, tensor_type, span)
        cut = _cut_stage(spec, number, len(layers), span, weight, steps)
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
        return len(next(iter(self.units.values())))

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1


def _check_ranks(spec: ModelSpec, layout: Layout, ranks: int) -> None:
    most = most_nodes(spec)
    if 1 <= ranks <= most:
        return
    what = f"{ranks} nodes" if len(layout.ranks) == 1 else f"a stage of {ranks} nodes"
    raise _invalid(
        f"{spec.name} cannot be divided over {what}: {_fewest_parts(spec)} allow 1 to {most}"
    )


def _fewest_parts(spec: ModelSpec) -> str:
    """The parts that bound the number of nodes: "its 32 query heads"."""
    units = [mixer_units(kind.mixer)[0] for kind in spec.kinds]
    units += [unit for kind in spec.kinds for unit in inner_units(kind)]
    fewest = min([*units, vocab_unit(spec)], key=lambda unit: unit.count)
    return f"its {fewest.count} {fewest.kind.value}"


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
        spans = divide(spec.layers, [math.fsum(each) for each in shares])
        return _moved_apart(spec, spans)
    if len(layout.layers) != stages:
        raise _invalid(f"layers for {len(layout.layers)} stages, the layout has {stages}")
    if min(layout.layers) < 1 or sum(layout.layers) != spec.layers:
        given = ",".join(map(str, layout.layers))
        raise _invalid(
            f"stages of {given} layers add up to {sum(layout.layers)}; {spec.name} has "
            f"{spec.layers} layers, and every stage needs at least one"
        )
    spans = joined(layout.layers)
    together = spec.kept_together
    for begin, _ in spans[1:]:
        if together is not None and together[0] < begin < together[1]:
            raise _invalid(
                f"a stage of {spec.name} cannot begin with layer {begin}: layers {together[0]} to "
                f"{together[1] - 1} share keys and values, so one stage must hold them"
            )
    return spans


def _moved_apart(spec: ModelSpec, spans: list[Span]) -> list[Span]:
    """The same, with no border between layers that one stage must hold. Raises HearthError."""
    together = spec.kept_together
    borders = [begin for begin, _ in spans[1:]]
    if together is None or not any(together[0] < each < together[1] for each in borders):
        return spans
    if together[0] < len(borders):
        raise _invalid(
            f"{spec.name} cannot be divided into {len(spans)} stages: its layers {together[0]} to "
            f"{together[1] - 1} share keys and values, so one stage must hold them"
        )
    moved = [min(each, together[0] + 1 + i - len(borders)) for i, each in enumerate(borders)]
    ends = [*moved, spec.layers]
    return list(zip([0, *moved], ends, strict=True))


def _steps(spec: ModelSpec, tensor_type: Callable[[str], str], layers: Span) -> dict[Unit, int]:
    """Count of units between cuts that fall on the blocks of every tensor of these layers."""
    steps: dict[Unit, int] = {}
    for tensor in spec.tensors:
        cut = tensor.cut
        if cut is None or not cut.columns or not layers[0] <= tensor.layer < layers[1]:
            continue
        block = FORMATS[_whole(tensor, tensor_type)].columns
        step = block // math.gcd(block, cut.size)
        steps[cut.unit] = math.lcm(steps.get(cut.unit, 1), step)
    return steps


def _cut_stage(
    spec: ModelSpec,
    stage: int,
    stages: int,
    layers: Span,
    shares: Sequence[float],
    steps: Mapping[Unit, int],
) -> _StageCut:
    """Divides a stage's units. steps: see _steps."""
    units: dict[Unit, list[Span]] = {}
    counts = Counter(spec.kind_of_layer[layers[0] : layers[1]])
    for number in counts:
        head, *beside = mixer_units(spec.kinds[number].mixer)
        if head in units:
            continue
        # Parts that have nothing beside them are divided as KV heads of one query head each are.
        kv_heads = beside[0].count if beside else head.count
        spans = divide_heads(head.count, kv_heads, shares, steps.get(head, 1))
        units.update(zip((head, *beside), spans, strict=False))
    flexible = _ffn_shares(spec, counts, units, shares)
    for number in counts:
        for unit in inner_units(spec.kinds[number]):
            units[unit] = divide_on_blocks(unit.count, flexible, steps.get(unit, 1))
    if stage == stages - 1:
        unit = vocab_unit(spec)
        units[unit] = divide_on_blocks(unit.count, shares)
    return _StageCut(stage, stages, layers, units)


def _ffn_shares(
    spec: ModelSpec,
    counts: Mapping[int, int],
    units: Mapping[Unit, Sequence[Span]],
    shares: Sequence[float],
) -> list[float]:
    """Shares of the feed-forward that compensate for the coarse cut of heads.

    With 4 KV heads on 3 nodes one node has half of the attention; it gets less of the feed-forward,
    so that a stage's weights as a whole follow the shares. counts: the stage's layers of each kind.
    """
    # Weights counted in rows or columns of hidden_size elements, the unit of a layer's matrices.
    attention = [0] * len(shares)
    feed_forward = 0
    for number, layers in counts.items():
        for tensor in block_tensors(spec, spec.kinds[number]):
            cut = tensor.cut
            if cut is None or tensor.vector:
                continue
            if cut.unit.kind in (UnitKind.FFN, UnitKind.EXPERT):
                feed_forward += layers * cut.unit.count * cut.size * tensor.parts
            else:
                for rank, span in enumerate(units[cut.unit]):
                    attention[rank] += layers * size(span) * cut.size
    total = math.fsum(shares)
    wanted = [
        share / total * (sum(attention) + feed_forward) - held
        for share, held in zip(shares, attention, strict=True)
    ]
    return [max(value, 1e-3 * feed_forward) for value in wanted]


def _nodes(
    spec: ModelSpec, tensor_type: Callable[[str], str], cut: _StageCut
) -> tuple[NodePlan, ...]:
    """The ranks of one stage."""
    nodes = []
    for rank in range(cut.ranks):
        place = Placement(cut.stage, cut.stages, rank, cut.ranks)
        embedding = cut.stage == 0 and rank == 0
        nodes.append(
            NodePlan(
                place=place,
                layers=cut.layers,
                units={unit: spans[rank] for unit, spans in cut.units.items()},
                vocab=cut.units[vocab_unit(spec)][rank] if cut.last else (0, 0),
                embedding=embedding,
                head_from_embedding=spec.tied and embedding and cut.last,
                slices=tuple(
                    _slice(tensor, _whole(tensor, tensor_type), cut, rank)
                    for tensor in spec.tensors
                    if _holds(tensor, cut, rank, embedding)
                ),
            )
        )
    return tuple(nodes)


def _holds(tensor: TensorSpec, cut: _StageCut, rank: int, embedding: bool) -> bool:
    """True if a rank has a slice of the tensor; embedding: the rank holds the embedding."""
    if tensor.first_rank and rank > 0:
        return False
    if tensor.place is Place.LAYER:
        return cut.layers[0] <= tensor.layer < cut.layers[1]
    if tensor.place is Place.INPUT:
        return embedding
    if tensor.place is Place.START:
        return cut.stage == 0
    # A node with both takes a tied model's head from the embedding.
    return cut.last and not (embedding and tensor.stored_as)


def _slice(tensor: TensorSpec, whole: str, cut: _StageCut, rank: int) -> Slice:
    """A rank's slice of a tensor; whole: the tensor's type when it is not cut."""
    parts = tensor.parts
    height, width = tensor.shape
    if tensor.vector:
        width //= parts
    else:
        height //= parts
    rows, columns = (0, height), (0, width)
    if tensor.cut is not None:
        span = scaled(cut.units[tensor.cut.unit][rank], tensor.cut.size)
        rows, columns = (rows, span) if tensor.cut.columns else (span, columns)
    return Slice(
        tensor.name,
        tensor.source,
        _kind(tensor, whole, cut),
        rows,
        columns,
        parts,
        width if tensor.vector else height,
        tensor.vector,
    )


def _whole(tensor: TensorSpec, tensor_type: Callable[[str], str]) -> str:
    """The type of a tensor that is not cut."""
    return "f32" if tensor.vector or tensor.exact else tensor_type(tensor.source)


def _kind(tensor: TensorSpec, whole: str, cut: _StageCut) -> str:
    """The type of a tensor's slices: where cuts miss the blocks of `whole`, q8_0 or f16."""
    if tensor.cut is None or not tensor.cut.columns:
        return whole
    spans, size = cut.units[tensor.cut.unit], tensor.cut.size
    kinds = (whole, "q8_0", "f16")
    return next(kind for kind in kinds if on_blocks(spans, size, FORMATS[kind].columns))


def _notes(spec: ModelSpec, tensor_type: Callable[[str], str], cut: _StageCut) -> list[str]:
    """Notes on tensors that have another type because of their cut."""
    # The types of each such part of a layer: (its own type, that of its slices); once, in order.
    changed: dict[tuple[str, str, int], dict[str, None]] = {}
    where = f"stage {cut.stage}: " if cut.stages > 1 else ""
    for tensor in spec.tensors:
        if not cut.layers[0] <= tensor.layer < cut.layers[1]:
            continue
        whole = _whole(tensor, tensor_type)
        kind = _kind(tensor, whole, cut)
        if kind != whole:
            changed.setdefault((tensor.part, kind, tensor.shape[1]), {})[whole] = None
    notes = []
    for (part, kind, columns), types in changed.items():
        blocks = " or ".join(str(n) for n in sorted({FORMATS[whole].columns for whole in types}))
        notes.append(
            f"{where}{part} becomes {kind} instead of {' and '.join(types)}: its {columns} columns "
            f"cannot be cut for {cut.ranks} nodes on blocks of {blocks}"
        )
    latent = {
        mixer_units(kind.mixer)[0]
        for kind in spec.kinds
        if isinstance(kind.mixer, LatentAttentionSpec)
    }
    for head in cut.units:
        if head.kind is not UnitKind.HEAD or cut.ranks <= head.beside:
            continue
        if head in latent:
            note = f"{where}each of {cut.ranks} nodes holds the whole KV cache of latent attention"
        else:
            note = (
                f"{where}{head.beside} KV heads for {cut.ranks} nodes: several hold the same KV "
                "head, and its part of the KV cache"
            )
        notes.append(note)
    return list(dict.fromkeys(notes))


def _invalid(message: str) -> HearthError:
    return HearthError(Reason.INVALID_ARGUMENT, message)
