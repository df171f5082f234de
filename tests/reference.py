"""The Llama forward pass in NumPy, as a second reference beside transformers: no PyTorch needed.

Plain float64 arithmetic on whole matrices: no cache, no cut, no kernel. Of Hearth's own code only
the numbers of a ModelSpec are used. Quantized weights are unpacked here (llama.cpp's Q8_0 and Q4_0
blocks of 32), and activations are rounded as Hearth's integer products round them.

Sources: Touvron et al., "LLaMA" (arXiv 2302.13971): the block. Su et al., "RoFormer" (2104.09864):
rotary positions, here on the halves of a head. Ainslie et al., "GQA" (2305.13245): shared KV heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth.converter.families.rope import RopeScaling
from hearth.converter.spec import ModelSpec

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
_BLOCK = 32


@dataclass(frozen=True)
class Weight:
    """A matrix [rows, columns]; `rounds`: products with it round activations to int8."""

    values: F64
    rounds: bool = False

    def __matmul__(self, x: F64) -> F64:
        """[tokens, columns] -> [tokens, rows]: each row of x times the matrix."""
        return (rounded(x) if self.rounds else x) @ self.values.T


def unpack(data: npt.NDArray[np.uint8], kind: str) -> F64:
    """Rows of a weight type, uint8 [rows, bytes], as numbers [rows, columns]."""
    if kind in ("f32", "f16"):
        return data.view({"f32": "<f4", "f16": "<f2"}[kind]).astype(np.float64)
    size = {"q8_0": 34, "q4_0": 18}[kind]
    blocks = data.reshape(len(data), -1, size)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float64)
    if kind == "q8_0":
        numbers = blocks[..., 2:].view(np.int8)
    else:  # low halves of the 16 bytes first, then the high ones; 8 stands for zero
        numbers = (
            np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).astype(np.int8)
            - 8
        )
    return (scales * numbers).reshape(len(data), -1)


def rounded(x: F64) -> F64:
    """Activations as int8 in blocks of 32, the largest number of each being 127."""
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, _BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    steps = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    near: F64 = (steps.astype(np.float64) * scale).reshape(x.shape)
    return near


def norm(x: F64, weight: F64, epsilon: float) -> F64:
    """RMS norm of each row."""
    scaled: F64 = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight
    return scaled


@dataclass(frozen=True)
class Rope:
    """Base and scaling of rotary positions."""

    theta: float = 10000.0
    scaling: RopeScaling | None = None


def frequencies(rope: Rope, head_size: int) -> F64:
    """Radians per position of each pair of a head, [head_size / 2]."""
    plain = rope.theta ** (-np.arange(head_size // 2) * 2 / head_size)
    scaling = rope.scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    scaled = []
    for f in plain:  # Llama 3: fast pairs stay, slow ones are divided, with a ramp between
        turns = scaling.original_context * f / (2 * math.pi)
        ramp = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        keep = min(max(ramp, 0.0), 1.0)
        scaled.append(keep * f + (1 - keep) * f / scaling.factor)
    return np.array(scaled)


def rotate(x: F64, angles: F64) -> F64:
    """Heads [tokens, heads, size] turned by [tokens, size / 2]: i and i + size / 2 are a pair."""
    first, second = np.split(x, 2, axis=-1)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def attention(q: F64, k: F64, v: F64) -> F64:
    """Causal attention: q [tokens, heads, size], k and v [tokens, KV heads, size] -> like q."""
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: F64 = np.einsum("hqk,khd->qhd", weights, v)
    return mixed


def logits(spec: ModelSpec, weights: Mapping[str, Weight], ids: Sequence[int], rope: Rope) -> F64:
    """Logits after each of `ids`, [tokens, vocabulary]. weights: by Hearth's names of tensors."""
    head_size = spec.kinds[0].mixer.cached_sizes[0]
    angles = np.arange(len(ids))[:, None] * frequencies(rope, head_size)
    x = weights["embedding"].values[list(ids)]
    for layer in range(spec.layers):
        w = {
            name.rpartition(".")[2]: t
            for name, t in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        h = norm(x, w["attn_norm"].values, spec.norm_epsilon)
        q, k, v = ((w[name] @ h).reshape(len(ids), -1, head_size) for name in ("wq", "wk", "wv"))
        mixed = attention(rotate(q, angles), rotate(k, angles), v)
        x = x + (w["wo"] @ mixed.reshape(len(ids), -1))
        h = norm(x, w["ffn_norm"].values, spec.norm_epsilon)
        gate = w["w1"] @ h
        x = x + (w["w2"] @ (gate / (1 + np.exp(-gate)) * (w["w3"] @ h)))
    return weights["embedding" if spec.tied else "head"] @ norm(
        x, weights["norm"].values, spec.norm_epsilon
    )
