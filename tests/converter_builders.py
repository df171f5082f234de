"""Small models as files, for tests: written by other code than the readers that are under test."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from hearth import _native
from hearth.converter.blocks import AttentionSpec, BlockSpec, FeedForwardSpec, attention_scale
from hearth.converter.families.rope import RopeScaling, make_rope
from hearth.converter.spec import ModelSpec

Tensors = dict[str, npt.NDArray[np.float32]]

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
GGUF_NAMES = {
    "attn_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}
GGUF_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}


def tiny_spec(**changes: Any) -> ModelSpec:
    settings: dict[str, Any] = {
        "name": "tiny",
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "ffn_size": 96,
        "vocab_size": 300,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "context_size": 128,
        "tied": False,
    }
    return llama_spec(**(settings | changes))


def llama_spec(
    *,
    heads: int,
    kv_heads: int,
    head_size: int,
    ffn_size: int,
    layers: int,
    rope_theta: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    rope_factors: tuple[float, ...] | None = None,
    **more: Any,
) -> ModelSpec:
    """A Llama's spec by its numbers."""
    attention = AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        key_size=head_size,
        value_size=head_size,
        scale=attention_scale(head_size),
        rope=0,
    )
    return ModelSpec(
        architecture="llama",
        kinds=(BlockSpec(attention, FeedForwardSpec(ffn_size)),),
        kind_of_layer=(0,) * layers,
        ropes=(make_rope(head_size, rope_theta, rope_scaling, rope_factors),),
        **more,
    )


def is_norm(name: str) -> bool:
    """True for the vectors of a Llama: the weights of its norms."""
    return name.rpartition(".")[2].endswith("norm")


def rotary(spec: ModelSpec) -> npt.NDArray[np.float64]:
    """Radians per position of each pair."""
    return np.asarray(spec.ropes[0].frequencies)


def llama_numbers(spec: ModelSpec) -> tuple[AttentionSpec, FeedForwardSpec]:
    """The attention and the feed-forward of every layer of a Llama."""
    (block,) = spec.kinds
    assert isinstance(block.mixer, AttentionSpec) and block.feed_forward is not None
    return block.mixer, block.feed_forward


def rope_theta(spec: ModelSpec) -> float:
    """The base of an unscaled rope, from its second frequency."""
    size = llama_numbers(spec)[0].key_size
    return float(f"{spec.ropes[0].frequencies[1] ** (-size / 2):.5g}")


def random_tensors(spec: ModelSpec, seed: int = 0) -> Tensors:
    """f32 [rows, columns] of every tensor, in Hearth's names and order of rows."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(spec.tensor_shape(name), dtype=np.float32)
        for name in spec.tensor_names()
    }


def encode(values: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.uint8]:
    """Rows as bytes of a type; bf16 by cutting off the low half of each number."""
    if kind == "bf16":
        return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    return np.asarray(_native.quantize(np.ascontiguousarray(values), kind))


def hf_name(name: str) -> str:
    top = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    if name in top:
        return f"{top[name]}.weight"
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.weight"


def hf_config(spec: ModelSpec) -> dict[str, Any]:
    attention, feed_forward = llama_numbers(spec)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.key_size,
        "intermediate_size": feed_forward.size,
        "vocab_size": spec.vocab_size,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": rope_theta(spec),
        "max_position_embeddings": spec.context_size,
        "tie_word_embeddings": spec.tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def write_safetensors(path: Path, tensors: Tensors, kind: str) -> None:
    """A safetensors file: by the library where numpy has the type, by hand for bf16."""
    if kind != "bf16":
        dtype = {"f32": np.float32, "f16": np.float16, "f64": np.float64}[kind]
        save_file({name: values.astype(dtype) for name, values in tensors.items()}, path)
        return
    header, body = {}, b""
    for name, values in tensors.items():
        data = encode(np.atleast_2d(values), "bf16").tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
        body += data
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def write_hf(
    directory: Path,
    spec: ModelSpec,
    tensors: Tensors,
    kind: str = "f32",
    shards: int = 1,
    config: dict[str, Any] | None = None,
) -> Path:
    """A Hugging Face directory, its tensors dealt out over `shards` files."""
    directory.mkdir(parents=True, exist_ok=True)
    parts: list[Tensors] = [{} for _ in range(shards)]
    for place, (name, values) in enumerate(tensors.items()):
        parts[place % shards][hf_name(name)] = values[0] if is_norm(name) else values
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        name = (
            f"model-{number:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        )
        write_safetensors(directory / name, part, kind)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (directory / "model.safetensors.index.json").write_text(index)
    (directory / "config.json").write_text(json.dumps(config or hf_config(spec)))
    return directory


def gguf_value(value: Any) -> bytes:
    """A metadata value with its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    # As llama.cpp's converter writes lists of numbers.
    if value and all(type(item) is int and -(1 << 31) <= item < 1 << 31 for item in value):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    items = [gguf_value(item) for item in value]
    return (
        struct.pack("<I", 9)
        + items[0][:4]
        + struct.pack("<Q", len(items))
        + b"".join(item[4:] for item in items)
    )


def gguf_string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_bytes(
    values: dict[str, Any],
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file. tensors: name to (ggml type, shape with rows first, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        out += gguf_string(key) + gguf_value(value)
    body, size = [], 0
    for name, (kind, shape, data) in tensors.items():
        out += gguf_string(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", length) for length in reversed(shape))
        out += struct.pack("<IQ", kind, size)
        padded = data + b"\0" * (-len(data) % alignment)
        body.append(padded)
        size += len(padded)
    return b"".join([out, b"\0" * (-len(out) % alignment), *body])


def interleave(values: npt.NDArray[Any], head_size: int) -> npt.NDArray[Any]:
    """Rows of Q or K as GGUF files of Llama models hold them: rotary pairs side by side."""
    heads, columns = values.shape[0] // head_size, values.shape[1]
    halves = values.reshape(heads, 2, head_size // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def gguf_metadata(spec: ModelSpec) -> dict[str, Any]:
    attention, feed_forward = llama_numbers(spec)
    return {
        "general.architecture": "llama",
        "general.name": spec.name,
        "llama.context_length": spec.context_size,
        "llama.embedding_length": spec.hidden_size,
        "llama.block_count": spec.layers,
        "llama.feed_forward_length": feed_forward.size,
        "llama.attention.head_count": attention.heads,
        "llama.attention.head_count_kv": attention.kv_heads,
        "llama.attention.key_length": attention.key_size,
        "llama.attention.value_length": attention.value_size,
        "llama.rope.dimension_count": attention.key_size,
        "llama.rope.freq_base": rope_theta(spec),
        "llama.attention.layer_norm_rms_epsilon": spec.norm_epsilon,
    }


def gguf_name(name: str) -> str:
    """A tensor's name in a GGUF file."""
    top = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
    if name in top:
        return f"{top[name]}.weight"
    _, layer, part = name.split(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def spm_metadata(vocab_size: int = 300) -> dict[str, Any]:
    """A SentencePiece vocabulary: controls, the 256 bytes, then pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "a", "b", "▁a", "ab", "▁ab", "e", "t", "th", "▁th", "▁the"]
    tokens += [f"<pad{number}>" for number in range(len(tokens), vocab_size)]
    types = [2, 3, 3, *[6] * 256, *[1] * 11, *[5] * (vocab_size - 270)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-place) for place in range(vocab_size)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def gguf_tensors(
    spec: ModelSpec, tensors: Tensors, kind: str
) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Tensors as gguf_bytes takes them; norms, and rows that blocks do not fit, as F32."""
    stored = {}
    for name, values in tensors.items():
        stored_name = gguf_name(name)
        fits = kind not in ("q8_0", "q4_0") or values.shape[1] % 32 == 0
        used = kind if fits and not is_norm(name) else "f32"
        if name.endswith((".wq", ".wk")):
            values = interleave(values, llama_numbers(spec)[0].key_size)
        shape = (values.shape[1],) if is_norm(name) else values.shape
        stored[stored_name] = GGUF_TYPES[used], shape, encode(values, used).tobytes()
    return stored


def write_gguf(path: Path, spec: ModelSpec, tensors: Tensors, kind: str = "f32") -> Path:
    """A GGUF file of a whole model, with a SentencePiece tokenizer."""
    values = gguf_metadata(spec) | spm_metadata(spec.vocab_size)
    path.write_bytes(gguf_bytes(values, gguf_tensors(spec, tensors, kind)))
    return path


def rename_tensors(path: Path, prefixes: Mapping[str, str]) -> None:
    """Rewrite a safetensors file with other beginnings of names: the first that fits each."""
    tensors = load_file(path)
    renamed = {}
    for name, values in tensors.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name.removeprefix(old)] = values
    save_file(renamed, path, {"format": "pt"})
