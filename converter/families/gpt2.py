"""GPT-2 in all its sizes: learned positions, layer norms, biases, one matrix for Q, K and V."""

from typing import Any

import numpy as np

from hearth.converter.blocks import AttentionSpec, BlockSpec, FeedForwardSpec, attention_scale
from hearth.converter.errors import ModelError
from hearth.converter.families.base import (
    Family,
    Files,
    GgufFacts,
    Names,
    Recipe,
    rows_of,
    transposed,
)
from hearth.converter.families.common import (
    GGUF_TENSORS,
    activation,
    gguf_attention,
    gguf_model,
    layer_count,
    model,
)
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec, check_size
from hearth.converter.stored import PickedRows, Stored, Transposed
from hearth.converter.tensors import TensorSpec

_LAYER = "transformer.h.{layer}."


def gpt2_spec(config: Settings, name: str, bias: bool = True) -> ModelSpec:
    """The shape of a GPT-2 by its config.json. bias: of attention and feed-forward."""
    hidden, heads = config.integer("n_embd", 768), config.integer("n_head", 12)
    if heads < 1 or hidden % heads:
        raise ModelError(f"{config.name('n_embd')} {hidden} is not a multiple of n_head {heads}")
    size = check_size("head_size", hidden // heads)
    layers = layer_count(config, "n_layer")
    scale = attention_scale(size) if config.boolean("scale_attn_weights", True) else 1.0
    feed_forward = FeedForwardSpec(
        config.integer("n_inner", 4 * hidden),
        activation(config, "activation_function", "gelu_new"),
        gated=False,
        bias=bias,
        output_bias=bias,
    )
    by_layer = config.boolean("scale_attn_by_inverse_layer_idx", False)
    scales = [scale / (layer + 1) for layer in range(layers)] if by_layer else [scale]
    kinds = [
        BlockSpec(
            AttentionSpec(heads, heads, size, size, each, None, bias=bias, output_bias=bias),
            feed_forward,
        )
        for each in scales
    ]
    positions = config.integer("n_positions", 1024)
    shape = Settings(
        {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "vocab_size": config.integer("vocab_size", 50257),
            "max_position_embeddings": positions,
            "tie_word_embeddings": config.boolean("tie_word_embeddings", True),
        }
    )
    return model(
        shape,
        name,
        "gpt2",
        kinds,
        [],
        list(range(layers)) if by_layer else None,
        norm="layer",
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        learned_positions=positions,
    )


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    mixer = gguf_attention(metadata, rope=None, bias=True, output_bias=True)
    inner = FeedForwardSpec(
        metadata.integer("feed_forward_length"), "gelu_tanh", False, bias=True, output_bias=True
    )
    more: dict[str, Any] = {
        "norm": "layer",
        "norm_epsilon": metadata.number("attention.layer_norm_epsilon", 1e-5),
        "learned_positions": metadata.integer("context_length"),
    }
    return gguf_model(metadata, name, "gpt2", facts, [BlockSpec(mixer, inner)], [], **more)


def third(name: str, place: int) -> Recipe:
    """A third of a tensor that holds Q, K and V, one below the other."""

    def rows(spec: ModelSpec, tensor: TensorSpec) -> tuple[int, int]:
        count = tensor.shape[1] if tensor.vector else tensor.shape[0]
        return place * count, 3 * count

    return rows_of(name, rows)


def _transposed_third(name: str, place: int) -> Recipe:
    """The same of a matrix that is stored [columns, rows]."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        rows, columns = tensor.shape
        stored = files.matrix(name.replace("{layer}", str(tensor.layer)), columns, 3 * rows)
        return PickedRows(Transposed(stored), np.arange(place * rows, (place + 1) * rows))

    return recipe


# Names of vectors, and of the tensors outside layers.
VECTORS: Names = {
    "embedding": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "norm": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head": "lm_head.weight",
    "attn_norm": _LAYER + "ln_1.weight",
    "attn_norm.bias": _LAYER + "ln_1.bias",
    "bo": _LAYER + "attn.c_proj.bias",
    "ffn_norm": _LAYER + "ln_2.weight",
    "ffn_norm.bias": _LAYER + "ln_2.bias",
    "b1": _LAYER + "mlp.c_fc.bias",
    "b2": _LAYER + "mlp.c_proj.bias",
    **{
        part: third(_LAYER + "attn.c_attn.bias", place)
        for place, part in enumerate(("bq", "bk", "bv"))
    },
}
_MATRICES: Names = {
    "wo": transposed(_LAYER + "attn.c_proj.weight"),
    "w1": transposed(_LAYER + "mlp.c_fc.weight"),
    "w2": transposed(_LAYER + "mlp.c_proj.weight"),
    **{
        part: _transposed_third(_LAYER + "attn.c_attn.weight", place)
        for place, part in enumerate(("wq", "wk", "wv"))
    },
}
_GGUF: Names = {
    "w1": "blk.{layer}.ffn_up.weight",
    "b1": "blk.{layer}.ffn_up.bias",
    **{
        f"{kind}{letter}": third(f"blk.{{layer}}.attn_qkv.{ending}", place)
        for kind, ending in (("w", "weight"), ("b", "bias"))
        for place, letter in enumerate("qkv")
    },
}

FAMILY = Family(
    name="GPT-2",
    model_types=("gpt2",),
    aliases=(
        ("hidden_size", "n_embd"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
        ("max_position_embeddings", "n_positions"),
    ),
    classes=("GPT2LMHeadModel",),
    config=gpt2_spec,
    tensors={**VECTORS, **_MATRICES},
    prefix="transformer.",
    # Masks, which old files have.
    unused_endings=(".attn.bias", ".attn.masked_bias"),
    architectures=("gpt2",),
    gguf=_gguf,
    gguf_tensors={**GGUF_TENSORS, **_GGUF},
)
