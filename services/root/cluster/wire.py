"""Plans and steps as messages of hearth.v1. No I/O."""

from typing import TYPE_CHECKING

from hearth.common import channels
from hearth.common.candidates import Candidates
from hearth.common.types import ACTIVATION, KV, LANE, NORM, ROUTER, SYNC, WEIGHT
from hearth.converter import Model, ModelSpec
from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GatedDeltaSpec,
    LatentAttentionSpec,
)
from hearth.converter.tensors import expert_unit, ffn_unit, head_units, key_unit
from hearth.root.planning.plan import NodePlan, Slice
from hearth.root.scheduling.batch import Batch, Limits
from hearth.root.status.describe import placement
from hearth.v1 import common_pb2, worker_pb2

if TYPE_CHECKING:
    from hearth.root.settings import ClusterSettings


def activation_type(sync_type: str) -> common_pb2.SyncType.ValueType:
    """The type of a step's input on the wire: q80 would be too coarse for embeddings."""
    return SYNC["f32"] if sync_type == "f32" else SYNC["f16"]


def shard_config(
    spec: ModelSpec, node: NodePlan, settings: "ClusterSettings", limits: Limits
) -> common_pb2.ShardConfig:
    """Everything that a node receives about the model."""
    kind_of_layer = spec.kind_of_layer[node.layers[0] : node.layers[1]]
    kinds = sorted(set(kind_of_layer))
    return common_pb2.ShardConfig(
        hidden_size=spec.hidden_size,
        layers=_range(node.layers),
        vocab=_range(node.vocab),
        norm=NORM[spec.norm],
        norm_epsilon=spec.norm_epsilon,
        ropes=[
            common_pb2.Rope(
                frequencies=rope.for_context(limits.context_size), magnitude=rope.magnitude
            )
            for rope in spec.ropes
        ],
        kinds=[_block(spec.kinds[kind], node) for kind in kinds],
        kind_of_layer=[kinds.index(kind) for kind in kind_of_layer],
        embedding_scale=spec.embedding_scale,
        learned_positions=spec.learned_positions,
        head_bias=spec.head_bias,
        logit_scale=spec.logit_scale,
        logit_softcap=spec.logit_softcap,
        kv_type=KV[settings.kv_type],
        page_size=limits.page_size,
        max_pages=limits.max_pages,
        max_step_tokens=limits.max_step_tokens,
        max_sequences=limits.max_running + limits.snapshots,
        max_undo=limits.most_drafts if limits.stateful else 0,
        embedding=node.embedding,
        vocab_size=spec.vocab_size,
        head_from_embedding=node.head_from_embedding,
        layer_inputs=_layer_inputs(spec),
        disk_layers=node.disk_layers,
    )


def _layer_inputs(spec: ModelSpec) -> common_pb2.LayerInputs | None:
    inputs = spec.layer_inputs
    return (
        None
        if inputs is None
        else common_pb2.LayerInputs(
            size=inputs.size,
            layers=spec.layers,
            activation=ACTIVATION[inputs.activation],
            embedding_scale=inputs.embedding_scale,
            projection_scale=inputs.projection_scale,
            sum_scale=inputs.sum_scale,
        )
    )


def _block(block: BlockSpec, node: NodePlan) -> common_pb2.Block:
    """A node's part of a kind of block."""
    mixer, feed_forward, experts = block.mixer, block.feed_forward, block.experts
    return common_pb2.Block(
        attention=_attention(mixer, node) if isinstance(mixer, AttentionSpec) else None,
        latent_attention=_latent_attention(mixer, node)
        if isinstance(mixer, LatentAttentionSpec)
        else None,
        gated_delta=_gated_delta(mixer, node) if isinstance(mixer, GatedDeltaSpec) else None,
        feed_forward=None
        if feed_forward is None
        else _feed_forward(feed_forward, node.units[ffn_unit(feed_forward)], node),
        experts=None if experts is None else _experts(experts, node),
        feed_forward_gate=block.feed_forward_gate,
        input_norms=block.input_norms,
        output_norms=block.output_norms,
        residual_scale=block.residual_scale,
        separate_norms=block.separate_norms,
        layer_scale=block.layer_scale,
    )


def _attention(attention: AttentionSpec, node: NodePlan) -> common_pb2.Attention:
    heads, kv_heads = (node.units[unit] for unit in head_units(attention))
    return common_pb2.Attention(
        heads=_range(heads),
        kv_heads=_range(kv_heads),
        key_size=attention.key_size,
        value_size=attention.value_size,
        scale=attention.scale,
        rope=attention.rope,
        window=attention.window,
        softcap=attention.softcap,
        bias=attention.bias,
        output_bias=attention.output_bias and node.place.rank == 0,
        head_norm=attention.head_norm,
        sinks=attention.sinks,
        gate=attention.gate,
        row_norm=common_pb2.RowNorm(heads=attention.heads, kv_heads=attention.kv_heads)
        if attention.row_norm
        else None,
        temperature=None
        if attention.temperature is None
        else common_pb2.Temperature(
            slope=attention.temperature.slope, length=attention.temperature.length
        ),
        value_norm=attention.value_norm,
        keys_as_values=attention.keys_as_values,
        kv_layer=attention.kv_layer,
    )


def _latent_attention(attention: LatentAttentionSpec, node: NodePlan) -> common_pb2.LatentAttention:
    return common_pb2.LatentAttention(
        heads=_range(node.units[head_units(attention)[0]]),
        query_rank=attention.query_rank,
        kv_rank=attention.kv_rank,
        nope_size=attention.nope_size,
        rope_size=attention.rope_size,
        value_size=attention.value_size,
        scale=attention.scale,
        rope=attention.rope,
        norm_epsilon=attention.norm_epsilon,
    )


def _gated_delta(delta: GatedDeltaSpec, node: NodePlan) -> common_pb2.GatedDelta:
    begin, end = node.units[key_unit(delta)]
    return common_pb2.GatedDelta(
        key_heads=_range((begin * delta.tile, end * delta.tile)),
        group=delta.group,
        tile=delta.tile,
        key_size=delta.key_size,
        value_size=delta.value_size,
        width=delta.width,
        activation=ACTIVATION[delta.activation],
    )


def _feed_forward(
    feed_forward: FeedForwardSpec, units: tuple[int, int], node: NodePlan
) -> common_pb2.FeedForward:
    return common_pb2.FeedForward(
        units=_range(units),
        activation=ACTIVATION[feed_forward.activation],
        gated=feed_forward.gated,
        bias=feed_forward.bias,
        output_bias=feed_forward.output_bias and node.place.rank == 0,
        clamp=None
        if feed_forward.clamp is None
        else common_pb2.GateClamp(
            limit=feed_forward.clamp.limit,
            factor=feed_forward.clamp.factor,
            offset=feed_forward.clamp.offset,
        ),
    )


def _experts(experts: ExpertsSpec, node: NodePlan) -> common_pb2.Experts:
    return common_pb2.Experts(
        count=experts.count,
        used=experts.used,
        expert=_feed_forward(experts.expert, node.units[expert_unit(experts)], node),
        scores=ROUTER[experts.scores],
        normalize=experts.normalize,
        scale=experts.scale,
        router_bias=experts.router_bias,
        choice_bias=experts.choice_bias,
        groups=experts.groups,
        used_groups=experts.used_groups,
        expert_scales=experts.expert_scales,
    )


def load_begin(
    model: Model,
    node: NodePlan,
    config: common_pb2.ShardConfig,
    lease: worker_pb2.Lease,
    settings: "ClusterSettings",
) -> worker_pb2.LoadBegin:
    """The first message of a worker's weight stream; `model.identify` comes before."""
    return worker_pb2.LoadBegin(
        protocol_version=channels.PROTOCOL_VERSION,
        lease=lease,
        placement=placement(node.place),
        shard=config,
        manifest=[slice_entry(part, model.identity(part.tensor)) for part in node.slices],
        lane=LANE[settings.lane],
        sync_type=SYNC[settings.sync_type],
    )


def slice_entry(part: Slice, content: bytes) -> worker_pb2.SliceEntry:
    """A slice in a manifest. content: the identity of its whole tensor."""
    return worker_pb2.SliceEntry(
        name=part.name,
        type=WEIGHT[part.kind],
        rows=part.shape[0],
        columns=part.shape[1],
        parts=1 if part.vector else part.parts,
        identity=part.identity(content),
        size_bytes=part.size_bytes,
    )


def step(
    step_id: int,
    batch: Batch,
    activations: bytes,
    activation_type: common_pb2.SyncType.ValueType,
    candidates: Candidates,
    *,
    last: bool = True,
    hidden: bool = False,
) -> worker_pb2.ForwardRequest:
    """A step for the ranks of one stage.

    activations: encoded in `activation_type`. last: it is the stage that makes logits. hidden: and
    returns the final hidden states.
    """
    return worker_pb2.ForwardRequest(
        step=worker_pb2.Step(
            step_id=step_id,
            sequences=[
                worker_pb2.SequenceStep(
                    rows=len(s.tokens),
                    position=s.position,
                    sequence_id=s.seq_id,
                    kept_pages=s.kept_pages,
                    new_pages=s.new_pages,
                    restore=s.restore,
                    save=s.save,
                    undo=s.undo,
                )
                for s in batch.sequences
            ],
            ended=batch.ended,
            reset=batch.reset,
            activations=activations,
            output_rows=batch.output_rows if last else (),
            activation_type=activation_type,
            hidden=last and hidden,
            candidates=None
            if not last
            else worker_pb2.Candidates(
                count=candidates.count,
                allowed=[
                    worker_pb2.AllowedTokens(row=row, bits=mask.tobytes())
                    for row, mask in candidates.allowed.items()
                ],
                draws=[
                    worker_pb2.Draw(
                        row=row,
                        temperature=draw.temperature,
                        seed=draw.seed,
                        number=draw.number,
                        nucleus=draw.nucleus,
                    )
                    for row, draw in candidates.draws.items()
                ],
            ),
        )
    )


def _range(span: tuple[int, int]) -> common_pb2.Range:
    return common_pb2.Range(begin=span[0], end=span[1])
