"""Tiny GGUF files of every architecture with random weights, the same wherever they are made.

Names and shapes follow llama.cpp's, which computed the logits in tests/known/gguf_families.npz from
these files (tests/known/make_gguf_families.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from converter_builders import gguf_bytes, spm_metadata

KNOWN = Path(__file__).resolve().parent / "known" / "gguf_families.npz"
VOCAB = 300
TOKENS = 12
# Of the logits of a token, those that are kept: a wrong one changes all.
EVERY = 5
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """Numbers that all architectures have."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head: int = 16
    ffn: int = 96
    tied: bool = False


@dataclass(frozen=True)
class Case:
    """An architecture's file: sizes, metadata under its name, and its tensors."""

    architecture: str
    sizes: Sizes = field(default_factory=Sizes)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    # Tensors of a layer beside a Llama's, or instead of them; () takes one away.
    layer: Callable[[Sizes], Shapes] = field(default=lambda sizes: {})
    top: Callable[[Sizes], Shapes] = field(default=lambda sizes: {})
    # (tensor's name) -> its mean and deviation, where others than usual.
    spread: Callable[[str], tuple[float, float] | None] = field(default=lambda name: None)
    # Tensors whose numbers are not random.
    fixed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # Allowed difference from llama.cpp's logits, of their spread.
    tolerance: float = 2e-3


def metadata(case: Case) -> dict[str, Any]:
    """All metadata of the file. A value of None takes a key away."""
    sizes = case.sizes
    own = {
        "context_length": 512,
        "embedding_length": sizes.hidden,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.ffn,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
        "rope.dimension_count": sizes.head,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | dict(case.metadata)
    values = {"general.architecture": case.architecture, "general.name": "tiny"}
    values |= {
        f"{case.architecture}.{key}": value for key, value in own.items() if value is not None
    }
    return values | spm_metadata(VOCAB)


def shapes(case: Case) -> Shapes:
    """Name to shape, rows first, of all tensors."""
    sizes = case.sizes
    queries, keys = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    found: Shapes = {"token_embd.weight": (VOCAB, sizes.hidden)}
    layer: Shapes = {
        "attn_norm.weight": (sizes.hidden,),
        "attn_q.weight": (queries, sizes.hidden),
        "attn_k.weight": (keys, sizes.hidden),
        "attn_v.weight": (keys, sizes.hidden),
        "attn_output.weight": (sizes.hidden, queries),
        "ffn_norm.weight": (sizes.hidden,),
        "ffn_gate.weight": (sizes.ffn, sizes.hidden),
        "ffn_up.weight": (sizes.ffn, sizes.hidden),
        "ffn_down.weight": (sizes.hidden, sizes.ffn),
    } | case.layer(sizes)
    for number in range(sizes.layers):
        found |= {f"blk.{number}.{name}": shape for name, shape in layer.items()}
    found["output_norm.weight"] = (sizes.hidden,)
    if not sizes.tied:
        found["output.weight"] = (VOCAB, sizes.hidden)
    found |= case.top(sizes)
    return {name: shape for name, shape in found.items() if shape}


def write(case: Case, path: Path) -> list[int]:
    """Write the file; returns a text of TOKENS ids."""
    random = np.random.default_rng(len(case.architecture) + case.sizes.hidden)
    tensors = {}
    for name, shape in shapes(case).items():
        usual = (1.0, 0.3) if len(shape) == 1 else (0.0, 1.5 / shape[-1] ** 0.5)
        if name.endswith((".bias", "sinks.weight")):
            usual = (0.0, 0.3)
        mean, deviation = case.spread(name) or usual
        values = (mean + deviation * random.standard_normal(shape)).astype("<f4")
        if name in case.fixed:
            values = np.array(case.fixed[name], "<f4")
        tensors[name] = (0, shape, values.tobytes())
    path.write_bytes(gguf_bytes(metadata(case), tensors))
    return [int(id) for id in random.integers(3, VOCAB, TOKENS)]


def biases(*names: str) -> Callable[[Sizes], Shapes]:
    """Biases of products of attention."""

    def make(sizes: Sizes) -> Shapes:
        queries, keys = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
        widths = {"attn_q": queries, "attn_k": keys, "attn_v": keys, "attn_output": sizes.hidden}
        return {f"{name}.bias": (widths[name],) for name in names}

    return make


def head_norms(sizes: Sizes) -> Shapes:
    """Norms of each query and key head."""
    return {"attn_q_norm.weight": (sizes.head,), "attn_k_norm.weight": (sizes.head,)}


def experts(count: int, ffn: int) -> Callable[[Sizes], Shapes]:
    """Experts instead of the feed-forward."""

    def make(sizes: Sizes) -> Shapes:
        return {
            "ffn_gate.weight": (),
            "ffn_up.weight": (),
            "ffn_down.weight": (),
            "ffn_gate_inp.weight": (count, sizes.hidden),
            "ffn_gate_exps.weight": (count, ffn, sizes.hidden),
            "ffn_up_exps.weight": (count, ffn, sizes.hidden),
            "ffn_down_exps.weight": (count, sizes.hidden, ffn),
        }

    return make


def joined(*makers: Callable[[Sizes], Shapes]) -> Callable[[Sizes], Shapes]:
    """Several sets of tensors in one."""

    def make(sizes: Sizes) -> Shapes:
        found: Shapes = {}
        for maker in makers:
            found |= maker(sizes)
        return found

    return make


def output_norms(sizes: Sizes) -> Shapes:
    """Norms of what attention and the feed-forward add."""
    return {"post_attention_norm.weight": (sizes.hidden,), "post_ffw_norm.weight": (sizes.hidden,)}


def no_input_norms(sizes: Sizes) -> Shapes:
    """Only norms of what they add, and of whole rows of queries and keys (OLMo 2)."""
    norms = {"attn_q_norm.weight": (sizes.heads * sizes.head,)}
    norms["attn_k_norm.weight"] = (sizes.kv_heads * sizes.head,)
    return {"attn_norm.weight": (), "ffn_norm.weight": ()} | output_norms(sizes) | norms


def fused_qkv(sizes: Sizes) -> Shapes:
    """Queries, keys and values in one tensor."""
    rows = (sizes.heads + 2 * sizes.kv_heads) * sizes.head
    separate: Shapes = {"attn_q.weight": (), "attn_k.weight": (), "attn_v.weight": ()}
    return separate | {"attn_qkv.weight": (rows, sizes.hidden)}


def fused_qkv_bias(sizes: Sizes) -> Shapes:
    """Their biases in one too."""
    return {"attn_qkv.bias": ((sizes.heads + 2 * sizes.kv_heads) * sizes.head,)}


def fused_gate_up(sizes: Sizes) -> Shapes:
    """Gate and up in one tensor."""
    return {"ffn_gate.weight": (), "ffn_up.weight": (2 * sizes.ffn, sizes.hidden)}


def gpt2_layer(sizes: Sizes) -> Shapes:
    """Layer norms and biases everywhere, and no gate."""
    fused = fused_qkv(sizes)
    found = {
        "attn_norm.bias": (sizes.hidden,),
        "attn_qkv.bias": (fused["attn_qkv.weight"][0],),
        "attn_output.bias": (sizes.hidden,),
        "ffn_norm.bias": (sizes.hidden,),
        "ffn_gate.weight": (),
        "ffn_up.bias": (sizes.ffn,),
        "ffn_down.bias": (sizes.hidden,),
    }
    return fused | found


def gpt_oss_layer(sizes: Sizes) -> Shapes:
    """Sinks, experts with biases; the norm before the experts has another name."""
    count, ffn = 5, 64
    found = {
        "ffn_norm.weight": (),
        "post_attention_norm.weight": (sizes.hidden,),
        "attn_sinks.weight": (sizes.heads,),
        "ffn_gate_inp.bias": (count,),
        "ffn_gate_exps.bias": (count, ffn),
        "ffn_up_exps.bias": (count, ffn),
        "ffn_down_exps.bias": (count, sizes.hidden),
    }
    return (
        joined(biases("attn_q", "attn_k", "attn_v", "attn_output"), experts(count, ffn))(sizes)
        | found
    )


def latent(
    q_rank: int, kv_rank: int, nope: int, rope: int, value: int
) -> Callable[[Sizes], Shapes]:
    """Attention over latents (DeepSeek-V2), keys and values stored apart."""

    def make(sizes: Sizes) -> Shapes:
        queries = sizes.heads * (nope + rope)
        found: Shapes = {
            "attn_k.weight": (),
            "attn_v.weight": (),
            "attn_kv_a_mqa.weight": (kv_rank + rope, sizes.hidden),
            "attn_kv_a_norm.weight": (kv_rank,),
            "attn_k_b.weight": (sizes.heads, kv_rank, nope),
            "attn_v_b.weight": (sizes.heads, value, kv_rank),
            "attn_output.weight": (sizes.hidden, sizes.heads * value),
            "attn_q.weight": (queries, sizes.hidden),
        }
        if q_rank:
            found |= {
                "attn_q.weight": (),
                "attn_q_a.weight": (q_rank, sizes.hidden),
                "attn_q_a_norm.weight": (q_rank,),
                "attn_q_b.weight": (queries, q_rank),
            }
        return found

    return make


def joint_latent(kv_rank: int, nope: int, value: int) -> Callable[[Sizes], Shapes]:
    """Keys and values of a head in one tensor, as files of before 2025 have them."""

    def make(sizes: Sizes) -> Shapes:
        return {
            "attn_k_b.weight": (),
            "attn_v_b.weight": (),
            "attn_kv_b.weight": (sizes.heads * (nope + value), kv_rank),
        }

    return make


def shared_experts(ffn: int, gate: bool = False) -> Callable[[Sizes], Shapes]:
    """A feed-forward beside the experts; gate: with one number that scales it."""

    def make(sizes: Sizes) -> Shapes:
        found: Shapes = {
            "ffn_gate_shexp.weight": (ffn, sizes.hidden),
            "ffn_up_shexp.weight": (ffn, sizes.hidden),
            "ffn_down_shexp.weight": (sizes.hidden, ffn),
        }
        return found | ({"ffn_gate_inp_shexp.weight": (sizes.hidden,)} if gate else {})

    return make


def choice_bias(sizes: Sizes) -> Shapes:
    """A bias for the choice of experts alone."""
    return {"exp_probs_b.bias": (8,)}


def delta(key_heads: int, value_heads: int, size: int, fused_beta: bool) -> Callable[..., Shapes]:
    """Every layer recurrent (gated delta rule), but the last of four."""
    key, value = key_heads * size, value_heads * size
    channels = 2 * key + value

    def make(sizes: Sizes) -> Shapes:
        full = (("attn_q", 2 * sizes.heads * sizes.head), ("attn_k", sizes.kv_heads * sizes.head))
        found: Shapes = {}
        for layer in range(sizes.layers):
            if (layer + 1) % 4 == 0:
                own: Shapes = {f"{name}.weight": (rows, sizes.hidden) for name, rows in full}
                own |= head_norms(sizes)
            else:
                own = {
                    "attn_q.weight": (),
                    "attn_k.weight": (),
                    "attn_v.weight": (),
                    "attn_output.weight": (),
                    "attn_qkv.weight": (channels, sizes.hidden),
                    "attn_gate.weight": (value, sizes.hidden),
                    "ssm_conv1d.weight": (channels, 4),
                    "ssm_dt.bias": (value_heads,),
                    "ssm_a": (value_heads,),
                    "ssm_norm.weight": (size,),
                    "ssm_out.weight": (sizes.hidden, value),
                }
                beta = {"ssm_beta.weight": value_heads, "ssm_alpha.weight": value_heads}
                if fused_beta:
                    beta = {"ssm_ba.weight": 2 * value_heads}
                own |= {name: (rows, sizes.hidden) for name, rows in beta.items()}
            found |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
        return found

    return make


def delta_spread(name: str) -> tuple[float, float] | None:
    """Decays below 1: ssm_a is negative."""
    return (-1.5, 0.3) if name.endswith("ssm_a") else None


def after_attention(sizes: Sizes) -> Shapes:
    """The norm before the feed-forward by another name."""
    return {"ffn_norm.weight": (), "post_attention_norm.weight": (sizes.hidden,)}


GEMMA4_WINDOWS = [True, True, False, True, False]


def gemma4(
    full_head: int, full_kv_heads: int, keys_as_values: bool, shared: int = 0, wide: bool = False
) -> Callable[[Sizes], Shapes]:
    """Layers in turn with a window and without, which have other heads.

    shared: the last layers, which read keys of earlier ones; wide: they have twice the width.
    """

    def make(sizes: Sizes) -> Shapes:
        found: Shapes = {"rope_freqs.weight": (full_head // 2,)}
        for layer, windowed in enumerate(GEMMA4_WINDOWS):
            head = sizes.head if windowed else full_head
            keys = (sizes.kv_heads if windowed else full_kv_heads) * head
            ffn = sizes.ffn * (2 if wide and layer >= sizes.layers - shared else 1)
            own: Shapes = {
                "attn_q.weight": (sizes.heads * head, sizes.hidden),
                "attn_k.weight": (keys, sizes.hidden),
                "attn_v.weight": () if keys_as_values and not windowed else (keys, sizes.hidden),
                "attn_output.weight": (sizes.hidden, sizes.heads * head),
                "attn_q_norm.weight": (head,),
                "attn_k_norm.weight": (head,),
                "layer_output_scale.weight": (1,),
                "ffn_gate.weight": (ffn, sizes.hidden),
                "ffn_up.weight": (ffn, sizes.hidden),
                "ffn_down.weight": (sizes.hidden, ffn),
            }
            if layer == sizes.layers - 1 and shared:  # some files have those of such a layer
                own |= {"attn_k.weight": (), "attn_v.weight": (), "attn_k_norm.weight": ()}
            found |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
        return found

    return make


def gemma4_experts(count: int, ffn: int) -> Callable[[Sizes], Shapes]:
    """Experts beside the feed-forward, gate and up in one tensor, with norms of their own."""

    def make(sizes: Sizes) -> Shapes:
        norms = ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        return {f"{name}.weight": (sizes.hidden,) for name in norms} | {
            "ffn_gate_inp.weight": (count, sizes.hidden),
            "ffn_gate_inp.scale": (sizes.hidden,),
            "ffn_gate_up_exps.weight": (count, 2 * ffn, sizes.hidden),
            "ffn_down_exps.weight": (count, sizes.hidden, ffn),
            "ffn_down_exps.scale": (count,),
        }

    return make


def layer_inputs(size: int) -> Callable[[Sizes], Shapes]:
    """Of each layer: what it does with an input of its own."""

    def make(sizes: Sizes) -> Shapes:
        return {
            "inp_gate.weight": (size, sizes.hidden),
            "proj.weight": (sizes.hidden, size),
            "post_norm.weight": (sizes.hidden,),
        }

    return make


def layer_inputs_top(size: int) -> Callable[[Sizes], Shapes]:
    """The second embedding, and the projection of the first."""

    def make(sizes: Sizes) -> Shapes:
        width = sizes.layers * size
        return {
            "per_layer_token_embd.weight": (VOCAB, width),
            "per_layer_model_proj.weight": (width, sizes.hidden),
            "per_layer_proj_norm.weight": (size,),
        }

    return make


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
MOE = {"expert_count": 5, "expert_used_count": 2}
LATENT = {
    "attention.kv_lora_rank": 32,
    "attention.head_count_kv": 1,
    "attention.key_length": 32 + 8,
    "attention.value_length": 32,
    "attention.key_length_mla": 16 + 8,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
    "leading_dense_block_count": 0,
    "expert_count": 8,
    "expert_used_count": 3,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
}
DELTA = {
    "rope.dimension_count": 8,
    "rope.dimension_sections": [2, 1, 1, 0],
    "full_attention_interval": 4,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 64,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
}
GEMMA4 = {
    "attention.head_count_kv": [2 if windowed else 1 for windowed in GEMMA4_WINDOWS],
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "attention.sliding_window": 5,
    "attention.sliding_window_pattern": GEMMA4_WINDOWS,
    "attention.shared_kv_layers": 0,
    "embedding_length_per_layer_input": 0,
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": 16,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
    "final_logit_softcapping": 9.0,
}
# A quarter of the pairs turns.
GEMMA4_ROPE = {"rope_freqs.weight": (1.0,) * 4 + (1e30,) * 12}
# The norm of a result enlarges what llama.cpp's table of GELU in f16 rounds. With such a table
# tests/blocks.py is within 3e-4 of llama.cpp in all three cases.
GEMMA4_TOLERANCE = 1.5e-2
SHARED = {**MOE, "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48}
# Positions of three axes, as models that also read images have them.
AXES: Mapping[str, Any] = {"rope.dimension_sections": [4, 2, 2, 0], "rope.freq_base": 1e6}

CASES = {
    "llama": Case("llama"),
    "llama, tied, yarn": Case("llama", Sizes(tied=True, heads=6, kv_heads=3), YARN),
    "llama, biases": Case(
        "llama",
        Sizes(hidden=96, head=24),
        layer=biases("attn_q", "attn_k", "attn_v", "attn_output"),
    ),
    "mixtral": Case("llama", metadata=MOE, layer=experts(5, 96)),
    "qwen2": Case("qwen2", layer=biases("attn_q", "attn_k", "attn_v")),
    "qwen3": Case("qwen3", layer=head_norms),
    "qwen3, tied": Case("qwen3", Sizes(tied=True, heads=6, kv_heads=2, head=32), layer=head_norms),
    "qwen3moe": Case(
        "qwen3moe",
        metadata={**MOE, "expert_feed_forward_length": 64},
        layer=joined(head_norms, experts(5, 64)),
    ),
    "qwen2vl": Case("qwen2vl", metadata=AXES, layer=biases("attn_q", "attn_k", "attn_v")),
    "qwen3vl": Case(
        "qwen3vl", Sizes(tied=True), {**AXES, "n_deepstack_layers": 0}, layer=head_norms
    ),
    "qwen3vlmoe": Case(
        "qwen3vlmoe",
        metadata={**AXES, **MOE, "n_deepstack_layers": 0, "expert_feed_forward_length": 64},
        layer=joined(head_norms, experts(5, 64)),
    ),
    "gemma2": Case(
        "gemma2",
        Sizes(tied=True, layers=3),
        {
            "attention.sliding_window": 5,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 6.0,
        },
        output_norms,
    ),
    "gemma3": Case(
        "gemma3",
        Sizes(tied=True, layers=7),
        {
            "attention.sliding_window": 5,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        joined(head_norms, output_norms),
    ),
    "gemma3, untied": Case(
        "gemma3",
        Sizes(heads=6, kv_heads=3),
        {"attention.sliding_window": 4},
        joined(head_norms, output_norms),
    ),
    "gemma4": Case(
        "gemma4",
        Sizes(tied=True, layers=5),
        GEMMA4,
        joined(head_norms, output_norms),
        gemma4(32, 1, True),
        fixed=GEMMA4_ROPE,
        tolerance=GEMMA4_TOLERANCE,
    ),
    "gemma4, experts": Case(
        "gemma4",
        Sizes(tied=True, layers=5, hidden=96),
        {**GEMMA4, **MOE, "expert_feed_forward_length": 32, "rope.freq_base_swa": 500.0},
        joined(head_norms, output_norms, gemma4_experts(5, 32)),
        gemma4(32, 1, True),
        fixed=GEMMA4_ROPE,
        tolerance=GEMMA4_TOLERANCE,
    ),
    "gemma4, inputs of layers": Case(
        "gemma4",
        Sizes(layers=5, heads=6, kv_heads=3, ffn=64),
        {
            **GEMMA4,
            "attention.head_count_kv": 3,
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
            "feed_forward_length": [64, 64, 64, 128, 128],
        },
        joined(head_norms, output_norms, layer_inputs(32)),
        joined(gemma4(32, 3, False, shared=2, wide=True), layer_inputs_top(32)),
        fixed=GEMMA4_ROPE,
        tolerance=GEMMA4_TOLERANCE,
    ),
    "phi3": Case(
        "phi3",
        Sizes(tied=True),
        {"rope.scaling.original_context_length": 512, "attention.sliding_window": 0},
        joined(fused_qkv, fused_gate_up),
    ),
    "phi3, longrope, part of a head": Case(
        "phi3",
        metadata={
            "rope.dimension_count": 12,
            # Below the context of either side: llama.cpp's is 256 at least.
            "rope.scaling.original_context_length": 16,
            "rope.scaling.attn_factor": 1.19,
            "attention.sliding_window": 0,
        },
        layer=joined(fused_qkv, fused_gate_up),
        top=lambda sizes: {"rope_factors_long.weight": (6,), "rope_factors_short.weight": (6,)},
        spread=lambda name: (2.0, 0.2) if name.startswith("rope_factors") else None,
    ),
    "glm4": Case(
        "glm4",
        metadata={"rope.dimension_count": 8},
        layer=joined(biases("attn_q", "attn_k", "attn_v"), fused_gate_up, output_norms),
    ),
    "chatglm": Case(
        "chatglm",
        metadata={"rope.dimension_count": 8},
        layer=joined(fused_qkv, fused_qkv_bias, fused_gate_up),
    ),
    "smollm3": Case("smollm3", Sizes(layers=5, tied=True)),
    "granite": Case(
        "granite",
        Sizes(tied=True),
        {
            "logit_scale": 2.0,
            "residual_scale": 0.22,
            "embedding_scale": 3.0,
            "attention.scale": 0.1,
        },
    ),
    "granitemoe": Case(
        "granitemoe",
        Sizes(tied=True, ffn=64),
        {
            **MOE,
            "logit_scale": 2.0,
            "residual_scale": 0.22,
            "embedding_scale": 3.0,
            "attention.scale": 0.1,
            "expert_shared_feed_forward_length": 48,
        },
        joined(experts(5, 64), shared_experts(48)),
    ),
    "olmo2": Case("olmo2", layer=no_input_norms),
    "gpt2": Case(
        "gpt2",
        Sizes(kv_heads=4, ffn=256),
        {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5},
        gpt2_layer,
        lambda sizes: {
            "position_embd.weight": (512, sizes.hidden),
            "output_norm.bias": (sizes.hidden,),
        },
    ),
    "gpt-oss": Case(
        "gpt-oss",
        Sizes(layers=3),
        {
            **YARN,
            **MOE,
            "expert_feed_forward_length": 64,
            "attention.sliding_window": 5,
            # YaRN's ramp ends at pair 2. llama.cpp rounds that up, for which the model was not
            # trained, and Hearth does not.
            "rope.freq_base": 672.9,
        },
        gpt_oss_layer,
    ),
    "deepseek2, lite": Case(
        "deepseek2",
        Sizes(layers=26),  # by which llama.cpp knows it
        {**LATENT, "expert_weights_scale": 1.0, "expert_weights_norm": False},
        joined(latent(0, 32, 16, 8, 16), experts(8, 32), shared_experts(32)),
    ),
    "deepseek2, lite, joint": Case(
        "deepseek2",
        Sizes(layers=27, heads=3, kv_heads=3),
        {
            **LATENT,
            "attention.head_count_kv": 3,
            "attention.key_length": 16 + 8,
            "attention.value_length": 12,
            "attention.key_length_mla": None,
            "attention.value_length_mla": None,
            "expert_weights_scale": 1.5,
        },
        joined(
            latent(0, 32, 16, 8, 12), joint_latent(32, 16, 12), experts(8, 32), shared_experts(32)
        ),
    ),
    "deepseek2, sigmoid, groups, yarn": Case(
        "deepseek2",
        metadata={
            **LATENT,
            **YARN,
            "rope.scaling.yarn_log_multiplier": 0.1,
            "attention.q_lora_rank": 24,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        },
        layer=joined(latent(24, 32, 16, 8, 16), experts(8, 32), shared_experts(32), choice_bias),
    ),
    "mistral3": Case(
        "mistral3",
        metadata={
            **YARN,
            "attention.temperature_scale": 0.1,
            "rope.scaling.original_context_length": 4,
            "rope.scaling.yarn_log_multiplier": 1.0,
        },
    ),
    "qwen35": Case(
        "qwen35",
        Sizes(layers=4),
        DELTA,
        after_attention,
        delta(2, 4, 16, False),
        delta_spread,
    ),
    "qwen35moe": Case(
        "qwen35moe",
        Sizes(layers=5, tied=True),
        {**DELTA, **SHARED},
        joined(after_attention, experts(5, 32), shared_experts(48, gate=True)),
        delta(2, 4, 16, False),
        delta_spread,
    ),
    "qwen3next": Case(
        "qwen3next",
        Sizes(layers=4),
        {**DELTA, **SHARED, "rope.dimension_sections": None},
        joined(after_attention, experts(5, 32), shared_experts(48, gate=True)),
        delta(2, 4, 16, True),
        delta_spread,
    ),
}
