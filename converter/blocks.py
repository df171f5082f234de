"""Blocks of a model as data: the numbers of a mixer, of a feed-forward, and of what lies between.

A block is one layer of the model. Layers of one kind have the same numbers. Nothing but the readers
of a family's files knows which family a model is of.
"""

from dataclasses import dataclass

import numpy as np

# Names of kinds, as in services/common/types.py.
NORMS = ("rms", "layer")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu_squared")
ROUTERS = ("softmax", "sigmoid")


def attention_scale(key_size: int) -> float:
    """The usual scale of scores, 1 / sqrt(key_size), rounded as f32 arithmetic rounds it."""
    return float(np.float32(1) / np.sqrt(np.float32(key_size)))


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """A rotary position embedding (Su et al.: RoFormer, 2021), scaling applied.

    It rotates the first 2 n elements of a head, in pairs (i, i + n), of n frequencies.
    frequencies: radians per position of each pair. magnitude: factor of cos and sin.
    long, long_context: frequencies used instead where the cluster's context has more tokens than
    long_context (LongRoPE).
    most_positions: contexts beyond it need frequencies that grow with each sequence (dynamic
    scaling), which Hearth does not compute; 0: there is no such bound.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    long: tuple[float, ...] = ()
    long_context: int = 0
    most_positions: int = 0

    def for_context(self, tokens: int) -> tuple[float, ...]:
        """The frequencies for a context of so many tokens."""
        return self.long if self.long and tokens > self.long_context else self.frequencies


@dataclass(frozen=True, slots=True)
class TemperatureSpec:
    """Queries grow with their position: times 1 + slope * log(1 + floor(position / length))."""

    slope: float
    length: float


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention. Sizes are counts of elements."""

    heads: int
    kv_heads: int
    # Of a query head and a key head, and of a value head.
    key_size: int
    value_size: int
    # Factor of the scores.
    scale: float
    # Index of a rotary position embedding in ModelSpec.ropes; None for no rotation.
    rope: int | None
    # Positions that a query sees, its own included; 0 for all up to its own.
    window: int = 0
    # Scores become softcap * tanh(scores / softcap); 0: they stay.
    softcap: float = 0.0
    # Biases of queries, keys and values; of the output.
    bias: bool = False
    output_bias: bool = False
    # RMS norm of each query and key head, before the rotation.
    head_norm: bool = False
    # One more score for each head, which has no value.
    sinks: bool = False
    # The result is multiplied by the sigmoid of a product of its own.
    gate: bool = False
    # RMS norm of all queries of a position together, and of all keys, before the rotation.
    row_norm: bool = False
    temperature: TemperatureSpec | None = None
    # RMS norm of each value head, without weights.
    value_norm: bool = False
    # Values are the keys before their norm and rotation.
    keys_as_values: bool = False
    # An earlier layer, with as many heads, whose keys and values are read; None: its own.
    kv_layer: int | None = None

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def cached_sizes(self) -> tuple[int, int]:
        """Elements of the key and of the value that the KV cache holds for a KV head."""
        return self.key_size, self.value_size


@dataclass(frozen=True, slots=True)
class LatentAttentionSpec:
    """Multi-head latent attention (DeepSeek-AI: DeepSeek-V2, 2024). Sizes are counts of elements.

    Keys and values of all heads are products of one normed vector, the latent. The KV cache holds
    only that, and one rotated key that all heads share: on every rank.
    """

    heads: int
    # Width of a normed vector whose products the queries are; 0: they are products of the input.
    query_rank: int
    # Width of the latent.
    kv_rank: int
    # Of a query head: the part that is not rotated, and the part behind it that is. The second is
    # also the width of the rotated key.
    nope_size: int
    rope_size: int
    # Of a value head.
    value_size: int
    # Factor of the scores.
    scale: float
    # Index of a rotary position embedding in ModelSpec.ropes; None for no rotation.
    rope: int | None
    # Of the latents' norms.
    norm_epsilon: float = 1e-6

    @property
    def kv_heads(self) -> int:
        """KV heads: the latent is the one that all query heads share."""
        return 1

    @property
    def group(self) -> int:
        """Query heads that share a KV head: all of them."""
        return self.heads

    @property
    def query_size(self) -> int:
        """Elements of a query head."""
        return self.nope_size + self.rope_size

    @property
    def cached_sizes(self) -> tuple[int, int]:
        """Elements of the key and of the value that the KV cache holds for a position."""
        return self.kv_rank + self.rope_size, 0


@dataclass(frozen=True, slots=True)
class GatedDeltaSpec:
    """The gated delta rule (Yang, Kautz, Hatamizadeh: Gated delta networks, 2024).

    A recurrent mixer with a short convolution before it, as in Qwen3-Next. Each sequence has a
    state of a fixed size, and no pages. Sizes are counts of elements. What it computes is defined
    in native/src/layers/gated_delta.h.
    """

    key_heads: int
    # Value heads of each key head.
    group: int
    # Of a key head, and of a value head.
    key_size: int
    value_size: int
    # Positions that the convolution sees, its own included.
    width: int
    # After the convolution.
    activation: str = "silu"
    # Key heads whose value heads lie by turns: value head i of a tile reads its key head i % tile.
    tile: int = 1

    @property
    def heads(self) -> int:
        """Value heads."""
        return self.key_heads * self.group

    @property
    def kv_heads(self) -> int:
        """KV heads: it has no part of the KV cache."""
        return 0

    @property
    def cached_sizes(self) -> tuple[int, int]:
        """Elements of the key and of the value that the KV cache holds: none."""
        return 0, 0


@dataclass(frozen=True, slots=True)
class GateClampSpec:
    """Limits of a gated feed-forward, as gpt-oss has them.

    With gate' = min(gate, limit) and up' within [-limit, limit], its inner values are
    activation(factor * gate') / factor * (up' + offset).
    """

    limit: float
    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """down (activation(gate x) * (up x)), or without a gate down activation(gate x).

    size: the inner width. activation: one of ACTIVATIONS.
    """

    size: int
    activation: str = "silu"
    gated: bool = True
    # Biases of gate and up; of the output.
    bias: bool = False
    output_bias: bool = False
    clamp: GateClampSpec | None = None


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """Experts (Shazeer et al.: Outrageously large neural networks, 2017).

    Feed-forwards of one shape, of which a router chooses `used` of `count` for every token.
    """

    count: int
    used: int
    expert: FeedForwardSpec
    # Scores of all experts by softmax, or of each by sigmoid.
    scores: str = "softmax"
    # The scores of the chosen are divided by their sum, and then multiplied by scale.
    normalize: bool = True
    scale: float = 1.0
    # Biases of the router's products, and of the scores for the choice alone.
    router_bias: bool = False
    choice_bias: bool = False
    # Only experts of the best `used_groups` of `groups` are chosen (DeepSeek-V3).
    groups: int = 1
    used_groups: int = 1
    # Each expert's weight is multiplied by a number of its own, after all else.
    expert_scales: bool = False


@dataclass(frozen=True, slots=True)
class LayerInputsSpec:
    """Inputs of each layer's own, `size` elements a row: per-layer embeddings, as in Gemma 3n.

    Of the embedding x and of a row e of a second embedding, the inputs are
    (norm(projection x * projection_scale) + e * embedding_scale) * sum_scale. A layer ends with
    norm(out (activation(gate x) * input)), which is added to the residual stream x.
    """

    size: int
    activation: str
    embedding_scale: float = 1.0
    projection_scale: float = 1.0
    sum_scale: float = 1.0


# Kinds of mixers, by the names that files of Hearth give them.
MIXERS = {
    "attention": AttentionSpec,
    "latent_attention": LatentAttentionSpec,
    "gated_delta": GatedDeltaSpec,
}
Attends = AttentionSpec | LatentAttentionSpec
Mixer = Attends | GatedDeltaSpec


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A kind of block: a mixer, then a feed-forward; both add to the residual stream.

    With experts, the results of the feed-forward (shared experts) and of the chosen are added.
    """

    mixer: Mixer
    feed_forward: FeedForwardSpec | None
    experts: ExpertsSpec | None = None
    # Beside experts: the feed-forward's result is multiplied by the sigmoid of its own product.
    feed_forward_gate: bool = False
    # Norms of what the mixer and the feed-forward read, and of what they add.
    input_norms: bool = True
    output_norms: bool = False
    # Factor of what they add.
    residual_scale: float = 1.0
    # The feed-forward and the experts beside it each read a norm of their own, and the router an
    # RMS norm; and each of their two results is normed before they are added.
    separate_norms: bool = False
    # After the block, the residual stream is multiplied by a number.
    layer_scale: bool = False
