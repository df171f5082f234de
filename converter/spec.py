"""A model's shape: the numbers that decide which tensors it has, how large each is, how it is cut.

Holds no weights and reads no file; the families (converter/families) make it from what files say.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from hearth.converter.blocks import (
    ACTIVATIONS,
    NORMS,
    ROUTERS,
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GatedDeltaSpec,
    LatentAttentionSpec,
    LayerInputsSpec,
    RopeSpec,
)
from hearth.converter.errors import ModelError
from hearth.converter.shown import shown
from hearth.converter.tensors import TensorSpec, model_tensors

# Upper limits on what a file may claim, checked before anything is allocated. Each is well above
# what the largest published model has, and none above what workers accept (services/worker/shape).
LIMITS = {
    "hidden_size": 1 << 16,
    "layers": 1024,
    "heads": 2048,
    "kv_heads": 2048,
    "head_size": 1024,
    # The KV cache's key is the latent with a rotated part behind it: 4,096 elements at most.
    "latent_size": 3072,
    "convolution": 256,
    "layer_input_size": 1 << 14,
    # Of all layers: a row of activations holds them.
    "layer_input_sizes": 1 << 18,
    "ffn_size": 1 << 20,
    "vocab_size": 1 << 21,
    "context_size": 1 << 28,
    "experts": 4096,
    "learned_positions": 1 << 24,
    "kinds": 64,
    "ropes": 16,
}
_MOST_NUMBERS = 1 << 46
# Numbers of a shape are f32 in the core: others would be 0 or infinite there.
_LEAST_F32, _LARGEST_F32 = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model. Sizes are counts of numbers (not bytes), `context_size` is in tokens.

    Validates itself: a spec that exists has sane, mutually consistent numbers.

    Raises:
        ModelError: a number is out of range, or two do not fit each other.
    """

    name: str
    # The family's name, which only people read.
    architecture: str
    hidden_size: int
    vocab_size: int
    context_size: int
    # The kinds of blocks, and for each layer the index of its kind.
    kinds: tuple[BlockSpec, ...]
    kind_of_layer: tuple[int, ...]
    # The rotary position embeddings of the blocks.
    ropes: tuple[RopeSpec, ...]
    norm_epsilon: float
    # True if the head is the embedding.
    tied: bool
    # "rms" or "layer": of all norms but those of heads, which are rms.
    norm: str = "rms"
    embedding_scale: float = 1.0
    # Rows of learned positions, which are added to the embedding; 0: none.
    learned_positions: int = 0
    head_bias: bool = False
    # Logits are multiplied by logit_scale, and then capped as AttentionSpec.softcap says.
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    layer_inputs: LayerInputsSpec | None = None

    def __post_init__(self) -> None:
        for field in ("hidden_size", "layers", "vocab_size", "context_size"):
            check_size(field, getattr(self, field))
        check_size("learned_positions", self.learned_positions, 0)
        if self.learned_positions and self.learned_positions < self.context_size:
            raise ModelError(
                f"{self.learned_positions} learned positions are fewer than the context of "
                f"{self.context_size} tokens"
            )
        _check_epsilon(self.norm_epsilon)
        if self.norm not in NORMS:
            raise ModelError(
                f"norm {shown(self.norm)} is not supported; there are {', '.join(NORMS)}"
            )
        check_positive("embedding_scale", self.embedding_scale)
        check_positive("logit_scale", self.logit_scale)
        _check_softcap(self.logit_softcap)
        check_size("kinds", len(self.kinds))
        if not all(0 <= kind < len(self.kinds) for kind in self.kind_of_layer):
            raise ModelError(f"a layer is of a kind that is not one of {len(self.kinds)}")
        check_size("ropes", len(self.ropes), 0)
        for rope in self.ropes:
            _check_frequencies(rope)
        for block in self.kinds:
            _check_block(block, self.ropes)
        for layer in range(self.layers):
            self._check_kv_layer(layer)
        if self.layer_inputs is not None:
            _check_layer_inputs(self.layer_inputs, self.layers)
        if self.parameters > _MOST_NUMBERS:
            raise ModelError(f"the model has {self.parameters} numbers; the limit is 2^46")

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.kind_of_layer)

    @property
    def row_size(self) -> int:
        """Elements of a row of activations: the residual stream, then all layers' inputs."""
        inputs = self.layer_inputs
        return self.hidden_size + (0 if inputs is None else self.layers * inputs.size)

    @cached_property
    def kept_together(self) -> tuple[int, int] | None:
        """The layers [first, end) that one stage must hold: keys of the first are read by others.

        None: every layer reads its own.
        """
        reads = [
            (mixer.kv_layer, layer)
            for layer, mixer in enumerate(self.kinds[kind].mixer for kind in self.kind_of_layer)
            if isinstance(mixer, AttentionSpec) and mixer.kv_layer is not None
        ]
        return (min(reads)[0], max(reads, key=lambda each: each[1])[1] + 1) if reads else None

    @property
    def heads(self) -> int:
        """Query heads of the attention that has the most; value heads where none attends."""
        attends = [block.mixer.heads for block in self.kinds if block.mixer.kv_heads]
        return max(attends or [block.mixer.heads for block in self.kinds])

    @property
    def kv_heads(self) -> int:
        """KV heads of the kind of block that has the most."""
        return max(block.mixer.kv_heads for block in self.kinds)

    @cached_property
    def parameters(self) -> int:
        """The model's count of numbers; a tied head is not counted twice."""
        counts = [0] * len(self.kinds)
        for kind in self.kind_of_layer:
            counts[kind] += 1
        # By kinds: a table of all tensors may be large, and this is checked before it is made.
        one_each = model_tensors(self, range(len(self.kinds)))
        total = 0
        for tensor in one_each:
            if not tensor.stored_as:
                times = counts[tensor.layer] if tensor.layer >= 0 else 1
                total += times * math.prod(tensor.shape)
        return total

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of a forward pass, in its order: shapes and cuts follow from this table."""
        return tuple(model_tensors(self, self.kind_of_layer))

    def tensor_names(self) -> list[str]:
        """Every tensor of the model's files, in the order of a forward pass.

        A tied model has no `head`.
        """
        return list(self._by_name)

    def tensor(self, name: str) -> TensorSpec:
        """A tensor of the model's files.

        Raises:
            KeyError: the model has no tensor of that name.
        """
        return self._by_name[name]

    def tensor_shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a tensor of the model's files. Raises KeyError as `tensor`."""
        return self._by_name[name].shape

    def _check_kv_layer(self, layer: int) -> None:
        own = self.kinds[self.kind_of_layer[layer]].mixer
        if not isinstance(own, AttentionSpec) or own.kv_layer is None:
            return
        what = f"layer {layer} reads the keys of layer {own.kv_layer}"
        if not 0 <= own.kv_layer < layer:
            raise ModelError(f"{what}, which is not an earlier one")
        other = self.kinds[self.kind_of_layer[own.kv_layer]].mixer
        if not isinstance(other, AttentionSpec) or other.kv_layer is not None:
            raise ModelError(f"{what}, which has none of its own")
        if own.row_norm:
            raise ModelError(f"{what}; it cannot have a norm of whole rows")
        sizes = [(each.heads, each.kv_heads, *each.cached_sizes) for each in (own, other)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"{what}, which has {sizes[1][0]} heads, {sizes[1][1]} KV heads of "
                f"{sizes[1][2]} and {sizes[1][3]} elements; it has {sizes[0][0]}, {sizes[0][1]} of "
                f"{sizes[0][2]} and {sizes[0][3]}"
            )

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {tensor.name: tensor for tensor in self.tensors if not tensor.stored_as}


def check_size(field: str, value: object, least: int = 1) -> int:
    """Return `value`. Raises ModelError unless it is a whole number from `least` to the limit."""
    limit = LIMITS[field]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
        raise ModelError(
            f"{field} is {shown(value)}; it must be a whole number, {least} to {limit}"
        )
    return value


def check_positive(field: str, value: float) -> None:
    """Raise ModelError unless `value` is a finite number above 0 in f32."""
    # Compared alone: an int may have more digits than a float can hold.
    if not _LEAST_F32 <= value <= _LARGEST_F32:
        raise ModelError(f"{field} is {value}; it must be a finite number above 0 in f32")


def _check_epsilon(value: float) -> None:
    if not _LEAST_F32 <= value < 1:
        raise ModelError(f"norm_epsilon is {value}; it must be between 0 and 1")


def _check_softcap(value: float) -> None:
    if not 0 <= value <= _LARGEST_F32:
        raise ModelError(f"a soft cap is {value}; it must be a finite number, 0 for none")


def _check_frequencies(rope: RopeSpec) -> None:
    check_positive("the magnitude of rotary positions", rope.magnitude)
    if not rope.frequencies:
        raise ModelError("rotary positions have no frequencies")
    if rope.long and len(rope.long) != len(rope.frequencies):
        raise ModelError(
            f"rotary positions have {len(rope.frequencies)} frequencies, and {len(rope.long)} for "
            "long contexts"
        )
    for frequency in (*rope.frequencies, *rope.long):
        if not abs(frequency) <= _LARGEST_F32:
            raise ModelError(f"a rotary frequency is {frequency}; it must be a finite number")
    if not 0 <= rope.long_context <= LIMITS["context_size"]:
        raise ModelError(f"contexts are long from {rope.long_context} tokens")
    if not 0 <= rope.most_positions <= LIMITS["context_size"]:
        raise ModelError(f"rotary positions hold for {rope.most_positions} positions")


def _check_block(block: BlockSpec, ropes: tuple[RopeSpec, ...]) -> None:
    if isinstance(block.mixer, LatentAttentionSpec):
        _check_latent_attention(block.mixer, ropes)
    elif isinstance(block.mixer, GatedDeltaSpec):
        _check_gated_delta(block.mixer)
    else:
        _check_attention(block.mixer, ropes)
    if block.feed_forward is None and block.experts is None:
        raise ModelError("a layer has neither a feed-forward nor experts")
    if block.feed_forward is not None:
        _check_feed_forward(block.feed_forward)
    if block.experts is not None:
        _check_experts(block.experts)
    check_positive("residual_scale", block.residual_scale)
    both = block.feed_forward is not None and block.experts is not None
    if block.separate_norms and (not both or block.feed_forward_gate):
        raise ModelError("separate norms need a feed-forward without a gate, and experts beside it")


def _check_layer_inputs(inputs: LayerInputsSpec, layers: int) -> None:
    check_size("layer_input_size", inputs.size)
    check_size("layer_input_sizes", layers * inputs.size)
    _check_activation(inputs.activation)
    check_positive("the scale of the layers' embedding", inputs.embedding_scale)
    check_positive("the scale of the layers' projection", inputs.projection_scale)
    check_positive("the scale of the layers' inputs", inputs.sum_scale)


def _check_attention(attention: AttentionSpec, ropes: tuple[RopeSpec, ...]) -> None:
    check_size("heads", attention.heads)
    check_size("kv_heads", attention.kv_heads)
    for size in (attention.key_size, attention.value_size):
        check_size("head_size", size)
    if attention.heads % attention.kv_heads:
        raise ModelError(
            f"{attention.heads} heads cannot be shared equally by {attention.kv_heads} KV heads"
        )
    check_positive("the scale of attention", attention.scale)
    _check_softcap(attention.softcap)
    if not 0 <= attention.window <= LIMITS["context_size"]:
        raise ModelError(f"a window is {attention.window} tokens")
    if attention.keys_as_values and attention.key_size != attention.value_size:
        raise ModelError(
            f"keys of {attention.key_size} elements cannot be values of {attention.value_size}"
        )
    if attention.head_norm and attention.row_norm:
        raise ModelError("attention has a norm of each head and one of whole rows")
    if attention.temperature is not None:
        if not 0 <= attention.temperature.slope <= _LARGEST_F32:
            raise ModelError(f"queries grow by {attention.temperature.slope}")
        check_positive("the length of queries' growth", attention.temperature.length)
    _check_rope(attention.rope, attention.key_size, ropes)


def _check_latent_attention(attention: LatentAttentionSpec, ropes: tuple[RopeSpec, ...]) -> None:
    check_size("heads", attention.heads)
    check_size("latent_size", attention.query_rank, 0)
    check_size("latent_size", attention.kv_rank)
    for size in (attention.nope_size, attention.rope_size, attention.value_size):
        check_size("head_size", size)
    check_positive("the scale of attention", attention.scale)
    _check_epsilon(attention.norm_epsilon)
    _check_rope(attention.rope, attention.rope_size, ropes)


def _check_gated_delta(delta: GatedDeltaSpec) -> None:
    check_size("heads", delta.key_heads)
    check_size("heads", delta.group)
    check_size("heads", delta.heads)
    check_size("head_size", delta.key_size)
    check_size("head_size", delta.value_size)
    check_size("convolution", delta.width)
    if not 1 <= delta.tile <= delta.key_heads or delta.key_heads % delta.tile:
        raise ModelError(f"{delta.key_heads} key heads are not whole tiles of {delta.tile}")
    _check_activation(delta.activation)


def _check_rope(rope: int | None, head_size: int, ropes: tuple[RopeSpec, ...]) -> None:
    if rope is None:
        return
    if not 0 <= rope < len(ropes):
        raise ModelError(f"rope {rope} of {len(ropes)} rotary position embeddings")
    pairs = len(ropes[rope].frequencies)
    if 2 * pairs > head_size:
        raise ModelError(
            f"rotary positions of {2 * pairs} elements are more than head_size, which is "
            f"{head_size}"
        )


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ModelError(
            f"activation {shown(name)} is not supported; Hearth runs {', '.join(ACTIVATIONS)}"
        )


def _check_feed_forward(feed_forward: FeedForwardSpec) -> None:
    check_size("ffn_size", feed_forward.size)
    _check_activation(feed_forward.activation)
    clamp = feed_forward.clamp
    if clamp is None:
        return
    if not feed_forward.gated:
        raise ModelError("a feed-forward has limits of a gate, and no gate")
    check_positive("the limit of a feed-forward", clamp.limit)
    check_positive("the factor of a feed-forward's gate", clamp.factor)
    if not 0 <= clamp.offset <= _LARGEST_F32:
        raise ModelError(f"the offset of a feed-forward is {clamp.offset}")


def _check_experts(experts: ExpertsSpec) -> None:
    check_size("experts", experts.count)
    _check_feed_forward(experts.expert)
    if experts.scores not in ROUTERS:
        raise ModelError(
            f"a router by {shown(experts.scores)} is not supported; Hearth runs "
            f"{', '.join(ROUTERS)}"
        )
    check_positive("the scale of experts", experts.scale)
    groups, used_groups = experts.groups, experts.used_groups
    if not 1 <= used_groups <= groups or experts.count % groups:
        raise ModelError(f"{used_groups} of {groups} groups of {experts.count} experts")
    if not 1 <= experts.used <= experts.count // groups * used_groups:
        raise ModelError(
            f"{experts.used} of {experts.count} experts are used, in {used_groups} of {groups} "
            "groups"
        )
