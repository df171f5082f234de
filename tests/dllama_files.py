"""Files of distributed-llama (.m, .t), written for tests from models that Hearth reads."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import sentencepiece
from converter_builders import encode, interleave

from hearth.converter.model import Model
from hearth.converter.spec import is_norm
from hearth.converter.tokenizers.base import Tokenizer

WEIGHT_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 3}
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
    """Today's header of a Llama model without rope scaling."""
    spec = model.spec
    return {
        "version": 0,
        "arch": 0xABCD00,
        "act": 1,
        "dim": spec.hidden_size,
        "hidden_dim": spec.ffn_size,
        "layers": spec.layers,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "weights": WEIGHT_TYPES[kind],
        "context": spec.context_size,
        "vocab": spec.vocab_size,
        "experts": 0,
        "active_experts": 0,
        "theta": int(spec.rope_theta),
        "head_dim": spec.head_size,
        "epsilon": {1e-5: 5, 1e-6: 6}[spec.norm_epsilon],
    }


def body(model: Model, kind: str) -> bytes:
    """The tensors in the file's order. A row that blocks do not fit cannot be written."""
    parts = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "attn_norm", "ffn_norm")
    names = [f"layers.{layer}.{part}" for layer in range(model.spec.layers) for part in parts]
    out = []
    for name in ("embedding", *names, "norm", "head"):
        source = "embedding" if name == "head" and model.spec.tied else name
        rows, columns = model.spec.tensor_shape(source)
        values = model.read(source, "f32").view(np.float32).reshape(rows, columns)
        if name.endswith((".wq", ".wk")):
            values = interleave(values, model.spec.head_size)
        own = "f32" if name == "embedding" or is_norm(name) else kind
        out.append(encode(values, own).tobytes())
    return b"".join(out)


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
