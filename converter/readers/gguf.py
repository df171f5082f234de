"""GGUF files of Llama models: shape, tensors and tokenizer from one file, or its parts."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.model import FileModel, StoredTensor, TokenizerSource
from hearth.converter.readers.gguf_file import READABLE, GgufFile, metadata_only, string_pair
from hearth.converter.readers.gguf_parts import GgufParts, open_parts, parse_open
from hearth.converter.readers.names import gguf_name
from hearth.converter.spec import ModelSpec, RopeScaling, is_norm
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.gguf import (
    PRE_KEY,
    gguf_bos_id,
    gguf_eos_ids,
    load_gguf_tokenizer,
    vocabulary_size,
)
from hearth.converter.weights import PACKED, row_bytes

log = logging.getLogger(__name__)

ROPE_FACTORS = "rope_freqs.weight"
TOKENIZER_FILE = "tokenizer.gguf"


def open_gguf(path: Path, weights: str | None, pre: str | None = None) -> FileModel:
    """Open a GGUF model by its file, or by any of its parts.

    pre: the rules that split a text, instead of the file's.

    Raises:
        ModelError: it is damaged, of an unsupported architecture or tensor type, or a tensor or a
            part is missing or misshapen.
    """
    parts = open_parts(path)
    try:
        spec = _spec(parts)
        tensors = _match(parts, spec)
    except BaseException:
        parts.close()
        raise
    first = next(file for file in parts.files if file.path == parts.first.path)
    # Lists of a large vocabulary are 20 MiB and used once; a second use reads them again.
    metadata = [parts.first]

    def load() -> Tokenizer:
        read = metadata.pop() if metadata else parse_open(first)
        return load_gguf_tokenizer(read.values, str(first.path), pre)

    source = TokenizerSource(
        load=load,
        files=lambda: {TOKENIZER_FILE: _tokenizer_file(parse_open(first).pairs, pre)},
        bos_id=gguf_bos_id(parts.first.values),
        eos_ids=gguf_eos_ids(parts.first.values),
    )
    model = FileModel(spec, weights, tensors, parts.files, source)
    _log_conversion(path, parts, model, tensors)
    return model


def read_gguf(path: Path) -> GgufFile:
    """Parse a GGUF file's metadata. Raises ModelError."""
    file = OpenFile(path)
    try:
        return parse_open(file)
    finally:
        file.close()


def _log_conversion(
    path: Path, parts: GgufParts, model: FileModel, tensors: dict[str, StoredTensor]
) -> None:
    """One line for a file whose types are not held as they are."""
    kinds, stored, loaded = set(), 0, 0
    for name, tensor in tensors.items():
        kind = model.tensor_type(name)
        if tensor.kind not in PACKED and tensor.kind != "bf16":
            kinds.add(parts.tensors[gguf_name(name)][1].kind)
        stored += tensor.place[1]
        loaded += tensor.rows * row_bytes(kind, tensor.columns)
    if kinds:
        log.info(
            "%s: tensors in %s are converted to %s while loading (%.1f GiB become %.1f)",
            path.name,
            ", ".join(sorted(kinds)),
            model.requested_type or "q8_0",
            stored / (1 << 30),
            loaded / (1 << 30),
        )


def _tokenizer_file(pairs: dict[str, bytes], pre: str | None) -> bytes:
    """A GGUF file with the tokenizer alone, and the rules asked for."""
    if pre is not None:
        pairs = pairs | {PRE_KEY: string_pair(PRE_KEY, pre)}
    return metadata_only(pairs, _is_tokenizer_key)


def _is_tokenizer_key(key: str) -> bool:
    # Rules for some tokens follow from the model's name.
    return key.startswith("tokenizer.") or key == "general.name"


def _spec(parts: GgufParts) -> ModelSpec:
    gguf = parts.first
    path, values = gguf.path, gguf.values
    if values.get("general.type", "model") in ("adapter", "mmproj", "imatrix"):
        raise ModelError(
            f"{path} is {values['general.type']} data, not a model; give the model's own file"
        )
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"{path}: architecture {architecture!r} is not supported; Hearth runs llama"
        )
    if values.get("llama.attention.causal", True) is not True:
        raise ModelError(
            f"{path}: llama.attention.causal is {values['llama.attention.causal']!r}; Hearth runs "
            "models that generate text, not encoders"
        )
    experts = values.get("llama.expert_count", 0)
    if experts:
        raise ModelError(f"{path}: a mixture of {experts} experts is not supported")
    if not parts.tensors:
        raise ModelError(f"{path} holds no tensors, only a vocabulary or metadata")
    hidden_size = _integer(gguf, "llama.embedding_length")
    heads = _integer(gguf, "llama.attention.head_count")
    if heads < 1:
        raise ModelError(f"{path}: llama.attention.head_count is {heads}")
    head_size = _integer(gguf, "llama.attention.key_length", hidden_size // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        other = _integer(gguf, key, head_size)
        if other != head_size:
            raise ModelError(
                f"{path}: {key} is {other}, but a head has {head_size}; Hearth runs models where "
                "the two are equal"
            )
    if gguf_name("embedding") not in parts.tensors:
        raise ModelError(f"{path}: tensor {gguf_name('embedding')} is missing")
    embedding = parts.tensors[gguf_name("embedding")][1]
    name = values.get("general.name")
    try:
        return ModelSpec(
            name=name if isinstance(name, str) and name else path.stem,
            hidden_size=hidden_size,
            layers=_integer(gguf, "llama.block_count"),
            heads=heads,
            kv_heads=_integer(gguf, "llama.attention.head_count_kv", heads),
            head_size=head_size,
            ffn_size=_integer(gguf, "llama.feed_forward_length"),
            vocab_size=_vocab_size(gguf, embedding.shape),
            norm_epsilon=_rounded(_number(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=_rounded(_number(gguf, "llama.rope.freq_base", 10000.0)),
            context_size=_integer(gguf, "llama.context_length", 2048),
            tied=gguf_name("head") not in parts.tensors,
            rope_scaling=_scaling(gguf),
            rope_factors=_rope_factors(parts, head_size),
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _vocab_size(gguf: GgufFile, shape: tuple[int, ...]) -> int:
    rows = shape[0]
    for key, count in (
        ("llama.vocab_size", _integer(gguf, "llama.vocab_size", rows)),
        ("tokenizer.ggml.tokens", vocabulary_size(gguf.values)),
    ):
        if count is not None and count > rows:
            raise ModelError(f"{key} says {count} tokens, but the embedding has only {rows} rows")
    return rows


def _scaling(gguf: GgufFile) -> RopeScaling | None:
    """The scaling that llama.cpp applies: linear where a factor comes without a type."""
    attention = _number(gguf, "llama.rope.scaling.attn_factor", 1.0)
    if attention != 1.0:
        raise ModelError(
            f"llama.rope.scaling.attn_factor is {attention:g}; Hearth runs models without it"
        )
    # The second key is the spelling in files of 2023.
    keys = ("llama.rope.scaling.factor", "llama.rope.scale_linear")
    factor = next((_number(gguf, key, 0.0) for key in keys if key in gguf.values), 0.0)
    kind = gguf.values.get("llama.rope.scaling.type", "linear")
    if kind == "none" or factor == 1.0:
        return None
    if kind != "linear":
        raise ModelError(f"rope scaling {kind!r} is not supported; Hearth reads none and linear")
    if factor == 0.0:
        return None
    return RopeScaling("linear", _rounded(factor))


def _rope_factors(parts: GgufParts, head_size: int) -> tuple[float, ...] | None:
    if ROPE_FACTORS not in parts.tensors:
        return None
    file, tensor = parts.tensors[ROPE_FACTORS]
    if tensor.kind != "F32" or tensor.shape != (head_size // 2,) or head_size > 1 << 16:
        raise ModelError(
            f"tensor {ROPE_FACTORS} is {tensor.kind} {list(tensor.shape)}; it must be F32 "
            f"[{head_size // 2}]"
        )
    data = file.read(tensor.offset, head_size // 2 * 4)
    return tuple(float(value) for value in data.view("<f4"))


def _match(parts: GgufParts, spec: ModelSpec) -> dict[str, StoredTensor]:
    path, left = parts.first.path, dict(parts.tensors)
    left.pop(ROPE_FACTORS, None)
    tensors = {}
    for name in spec.tensor_names():
        stored_name = gguf_name(name)
        found = left.pop(stored_name, None)
        if found is None:
            raise ModelError(
                f"{path}: tensor {stored_name} is missing; the metadata asks for {spec.layers} "
                f"layers and so {len(spec.tensor_names())} tensors"
            )
        file, tensor = found
        kind = READABLE.get(tensor.kind)
        if kind is None:
            raise ModelError(
                f"{file.path}: tensor {stored_name} is {tensor.kind}, which Hearth can't read yet; "
                f"types it reads: {', '.join(READABLE)}"
            )
        rows, columns = spec.tensor_shape(name)
        wanted = (columns,) if is_norm(name) else (rows, columns)
        if tensor.shape != wanted:
            raise ModelError(
                f"{file.path}: tensor {stored_name} has shape {list(tensor.shape)}, but the "
                f"metadata makes it {list(wanted)}"
            )
        try:
            size = rows * row_bytes(kind, columns)
        except ModelError as error:
            raise ModelError(f"{file.path}: tensor {stored_name}: {error}") from error
        if tensor.offset + size > file.size:
            raise ModelError(
                f"{file.path}: tensor {stored_name} ends at byte {tensor.offset + size}, but the "
                f"file has {file.size}; it is truncated, download it again"
            )
        rotary_head = spec.head_size if name.endswith((".wq", ".wk")) else 0
        tensors[name] = StoredTensor(file, tensor.offset, kind, rows, columns, rotary_head)
    if left:
        raise ModelError(
            f"{path}: tensor {min(left)} does not belong to a Llama model of {spec.layers} layers "
            f"({len(left)} such tensors); the result would be wrong without it"
        )
    return tensors


def _integer(gguf: GgufFile, key: str, default: int | None = None) -> int:
    value: Any = gguf.values.get(key, default)
    if value is None:
        raise ModelError(f"{gguf.path}: metadata key {key} is missing")
    if isinstance(value, list) and value and all(v == value[0] for v in value):
        value = value[0]  # some writers give a per-layer list even where all are equal
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"{gguf.path}: {key} is {str(value)[:80]!r}; a whole number is needed")
    return value


def _number(gguf: GgufFile, key: str, default: float) -> float:
    value: Any = gguf.values.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ModelError(f"{gguf.path}: {key} is {str(value)[:80]!r}; a number is needed")
    return float(value)


def _rounded(value: float) -> float:
    """The shortest decimal of an f32, so that 1e-5 stored as f32 is 1e-5 and not 9.99999974e-06."""
    return float(str(np.float32(value)))
