"""Files of distributed-llama (.m, .t), written for tests from models that Hearth reads."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import sentencepiece
from converter_builders import encode, interleave

from hearth.converter.blocks import AttentionSpec
from hearth.converter.model import Model
from hearth.converter.tokenizers.base import Tokenizer

WEIGHT_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 3}
ARCHITECTURES = {"llama": 0xABCD00, "qwen3": 0xABCD01, "qwen3moe": 0xABCD02}
MODEL_KEYS = {
    "version": 0, "arch": 1, "dim": 2, "hidden_dim": 3, "layers": 4, "heads": 5, "kv_heads": 6,
    "experts": 7, "active_experts": 8, "vocab": 9, "context": 10, "act": 11, "theta": 12,
    "weights": 13, "factor": 14, "low": 15, "high": 16, "original": 17, "rope": 18, "head_dim": 19,
    "epsilon": 20, "expert_dim": 21,
}  # fmt: skip
TOKENIZER_KEYS = {
    "version": 0, "vocab": 1, "longest": 2, "bos": 3, "eos": 4, "pad": 5, "chat_eos": 6,
    "template_bytes": 7, "stop": 8, "eos_count": 9, "add_bos": 10,
}  # fmt: skip


def pairs(magic: int, values: dict[str, int], keys: dict[str, int]) -> bytes:
    """A header of (key, value) pairs; its size counts itself and the magic."""
    body = b"".join(struct.pack("<ii", keys[key], value) for key, value in values.items())
    return struct.pack("<ii", magic, 8 + len(body)) + body


def model_values(model: Model, kind: str) -> dict[str, int]:
    """Today's header, without rope scaling."""
    spec = model.spec
    (block,) = {spec.kinds[each] for each in spec.kind_of_layer}
    mixer, inner, experts = block.mixer, block.feed_forward, block.experts
    assert isinstance(mixer, AttentionSpec)
    values = {
        "version": 0,
        "arch": ARCHITECTURES[spec.architecture],
        "act": 1,
        "dim": spec.hidden_size,
        "hidden_dim": inner.size if inner is not None else 96,
        "layers": spec.layers,
        "heads": mixer.heads,
        "kv_heads": mixer.kv_heads,
        "weights": WEIGHT_TYPES[kind],
        "context": spec.context_size,
        "vocab": spec.vocab_size,
        "experts": experts.count if experts is not None else 0,
        "active_experts": experts.used if experts is not None else 0,
        "theta": 10000,
        "head_dim": mixer.key_size,
        "epsilon": {1e-5: 5, 1e-6: 6}[spec.norm_epsilon],
    }
    return values | ({"expert_dim": experts.expert.size} if experts is not None else {})


def body(model: Model, kind: str) -> bytes:
    """The tensors in the file's order. A row that blocks do not fit cannot be written."""
    spec = model.spec
    out = [_written(model, "embedding", "f32")]
    for layer in range(spec.layers):
        block = spec.kinds[spec.kind_of_layer[layer]]
        prefix = f"layers.{layer}."
        out += [_written(model, prefix + part, kind) for part in ("wq", "wk", "wv", "wo")]
        if block.experts is None:
            out += [_written(model, prefix + part, kind) for part in ("w1", "w2", "w3")]
        else:
            out.append(_written(model, prefix + "router", "f32"))
            count = block.experts.count
            names = [prefix + part for part in ("experts_w1", "experts_w2", "experts_w3")]
            for expert in range(count):
                out += [_written(model, name, kind, (expert, count)) for name in names]
        if spec.architecture != "llama":
            out += [_written(model, prefix + part, "f32") for part in ("q_norm", "k_norm")]
        out += [_written(model, prefix + part, "f32") for part in ("attn_norm", "ffn_norm")]
    return b"".join(
        [
            *out,
            _written(model, "norm", "f32"),
            _written(model, "embedding" if spec.tied else "head", kind),
        ]
    )


def _written(model: Model, name: str, kind: str, part: tuple[int, int] = (0, 1)) -> bytes:
    """A tensor's bytes; part: (which, of how many) equal parts of its rows."""
    rows, columns = model.spec.tensor_shape(name)
    values = model.read(name, "f32").view(np.float32).reshape(rows, columns)
    values = np.split(values, part[1])[part[0]]
    if model.spec.architecture == "llama" and name.endswith((".wq", ".wk")):
        mixer = model.spec.kinds[0].mixer
        assert isinstance(mixer, AttentionSpec)
        values = interleave(values, mixer.key_size)
    return encode(values, kind).tobytes()


def write_model(
    path: Path,
    model: Model,
    kind: str = "f32",
    former: bool = False,
    changes: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """A `.m` file. former: with the header of nine numbers."""
    values = model_values(model, kind) | dict(changes)
    header = pairs(0x0A00ABCD, values, MODEL_KEYS)
    if former:
        order = ("dim", "hidden_dim", "layers", "heads", "kv_heads", "experts", "active_experts")
        numbers = [values[key] for key in (*order, "vocab", "context")]
        header = struct.pack("<10i", 0xABCD00, *numbers)
    path.write_bytes(header + body(model, kind))
    return path


def tokenizer_bytes(
    tokens: Sequence[bytes],
    scores: Sequence[float],
    bos: int = -1,
    eos: Sequence[int] = (),
    template: str = "",
    version: int = 2,
    **changes: int,
) -> bytes:
    """A `.t` file. version: 0 has no pairs, 1 two ids that end an answer, 2 a list of them."""
    listed = b"".join(
        struct.pack("<fI", score, len(token)) + token
        for token, score in zip(tokens, scores, strict=True)
    )
    longest = max(map(len, tokens))
    if version == 0:
        return struct.pack("<IIIiii", 0x567123, len(tokens), longest, bos, eos[0], -1) + listed
    values = {"bos": bos, "version": 1, "vocab": len(tokens), "longest": longest}
    chat = template.encode()
    if chat:
        values["template_bytes"] = len(chat)
    if version == 1:
        stop = b"<stop>" if chat else b""
        values |= dict(zip(("eos", "chat_eos"), eos, strict=False))
        values |= {"stop": len(stop)} if stop else {}
        after = chat + stop
    else:
        values |= {"eos_count": len(eos), "add_bos": 1}
        after = chat + struct.pack(f"<{len(eos)}i", *eos)
    return pairs(0x567124, values | changes, TOKENIZER_KEYS) + after + listed


def byte_level_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The tokens of a byte-level vocabulary; control tokens by their names."""
    ids = range(tokenizer.vocab_size)
    return [tokenizer.token_bytes(id) or tokenizer.token_text(id).encode() for id in ids]


def piece_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The pieces of a SentencePiece vocabulary: bytes as such, its mark as a space."""
    named = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    names = [tokenizer.token_text(id) for id in range(tokenizer.vocab_size)]
    return [named.get(name) or name.replace("\u2581", " ").encode() for name in names]


def piece_scores(testdata: Path) -> list[float]:
    """The scores of the vocabulary of stories260k."""
    model = str(testdata / "stories260k" / "tok512.model")
    inner = sentencepiece.SentencePieceProcessor(model_file=model)
    return [inner.get_score(id) for id in range(inner.vocab_size())]


def qwen3_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the tensors of a Qwen3 directory."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, queries)
        for name in "qk":
            yield f"{prefix}self_attn.{name}_norm.weight", (head,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (hidden,)
        folders, inner = [""], config["intermediate_size"]
        if "num_experts" in config:
            yield f"{prefix}mlp.gate.weight", (config["num_experts"], hidden)
            folders = [f"experts.{expert}." for expert in range(config["num_experts"])]
            inner = config["moe_intermediate_size"]
        for folder in folders:
            yield f"{prefix}mlp.{folder}gate_proj.weight", (inner, hidden)
            yield f"{prefix}mlp.{folder}up_proj.weight", (inner, hidden)
            yield f"{prefix}mlp.{folder}down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
