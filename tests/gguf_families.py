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
    values = {"general.architecture": case.architecture, "general.name": case.architecture}
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


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
MOE = {"expert_count": 5, "expert_used_count": 2}
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
}
