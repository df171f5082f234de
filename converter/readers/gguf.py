"""GGUF files of Llama models: shape, tensors and tokenizer from the one file."""

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.model import FileModel, StoredTensor, TokenizerSource
from hearth.converter.readers.gguf_file import (
    READABLE,
    GgufFile,
    metadata_only,
    parse,
    string_pair,
)
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
from hearth.converter.weights import row_bytes

ROPE_FACTORS = "rope_freqs.weight"
TOKENIZER_FILE = "tokenizer.gguf"


def open_gguf(path: Path, weights: str | None, pre: str | None = None) -> FileModel:
    """Open a GGUF file.

    pre: the rules that split a text, instead of the file's.

    Raises:
        ModelError: it is damaged, of an unsupported architecture or tensor type, or a tensor is
            missing or misshapen.
    """
    file = OpenFile(path)
    try:
        gguf = _parse(file)
        spec = _spec(gguf, file)
        tensors = _match(gguf, spec, file)
    except BaseException:
        file.close()
        raise
    # Lists of a large vocabulary are 20 MiB and used once; a second use reads them again.
    metadata = [gguf]

    def load() -> Tokenizer:
        read = metadata.pop() if metadata else _parse(file)
        return load_gguf_tokenizer(read.values, str(path), pre)

    source = TokenizerSource(
        load=load,
        files=lambda: {TOKENIZER_FILE: _tokenizer_file(_parse(file).pairs, pre)},
        bos_id=gguf_bos_id(gguf.values),
        eos_ids=gguf_eos_ids(gguf.values),
    )
    return FileModel(spec, weights, tensors, [file], source)


def read_gguf(path: Path) -> GgufFile:
    """Parse a GGUF file's metadata. Raises ModelError."""
    file = OpenFile(path)
    try:
        return _parse(file)
    finally:
        file.close()


def _parse(file: OpenFile) -> GgufFile:
    path = file.path
    if file.size < 24:
        raise ModelError(f"{path} has {file.size} bytes; that is too short for a GGUF file")
    try:
        with mmap.mmap(file.fileno(), file.size, access=mmap.ACCESS_READ) as mapped:
            with memoryview(mapped) as view:
                gguf = parse(path, view)
        now = file.current()
    except (OSError, ValueError) as error:  # ValueError: it is shorter by now
        raise ModelError(f"cannot read {path}: {error}") from error
    if now != file.state:
        raise file.changed(now)
    return gguf


def _tokenizer_file(pairs: dict[str, bytes], pre: str | None) -> bytes:
    """A GGUF file with the tokenizer alone, and the rules asked for."""
    if pre is not None:
        pairs = pairs | {PRE_KEY: string_pair(PRE_KEY, pre)}
    return metadata_only(pairs, _is_tokenizer_key)


def _is_tokenizer_key(key: str) -> bool:
    # Rules for some tokens follow from the model's name.
    return key.startswith("tokenizer.") or key == "general.name"


def _spec(gguf: GgufFile, file: OpenFile) -> ModelSpec:
    path, values = gguf.path, gguf.values
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"{path}: architecture {architecture!r} is not supported; Hearth runs llama"
        )
    experts = values.get("llama.expert_count", 0)
    if experts:
        raise ModelError(f"{path}: a mixture of {experts} experts is not supported")
    if not gguf.tensors:
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
    embedding = gguf.tensors.get(gguf_name("embedding"))
    if embedding is None:
        raise ModelError(f"{path}: tensor {gguf_name('embedding')} is missing")
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
            tied=gguf_name("head") not in gguf.tensors,
            rope_scaling=_scaling(gguf),
            rope_factors=_rope_factors(gguf, head_size, file),
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
    kind = gguf.values.get("llama.rope.scaling.type")
    factor = _number(gguf, "llama.rope.scaling.factor", 0.0)
    if kind is None:
        # The spelling in files of 2023.
        factor = _number(gguf, "llama.rope.scale_linear", 0.0)
        kind = "linear" if factor else "none"
    if kind == "none" or factor == 1.0:
        return None
    if kind != "linear":
        raise ModelError(f"rope scaling {kind!r} is not supported; Hearth reads none and linear")
    return RopeScaling("linear", factor)


def _rope_factors(gguf: GgufFile, head_size: int, file: OpenFile) -> tuple[float, ...] | None:
    tensor = gguf.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.kind != "F32" or tensor.shape != (head_size // 2,) or head_size > 1 << 16:
        raise ModelError(
            f"tensor {ROPE_FACTORS} is {tensor.kind} {list(tensor.shape)}; it must be F32 "
            f"[{head_size // 2}]"
        )
    data = file.read(tensor.offset, head_size // 2 * 4)
    return tuple(float(value) for value in data.view("<f4"))


def _match(gguf: GgufFile, spec: ModelSpec, file: OpenFile) -> dict[str, StoredTensor]:
    path, left = gguf.path, dict(gguf.tensors)
    left.pop(ROPE_FACTORS, None)
    tensors = {}
    for name in spec.tensor_names():
        stored_name = gguf_name(name)
        tensor = left.pop(stored_name, None)
        if tensor is None:
            raise ModelError(
                f"{path}: tensor {stored_name} is missing; the metadata asks for {spec.layers} "
                f"layers and so {len(spec.tensor_names())} tensors"
            )
        kind = READABLE.get(tensor.kind)
        if kind is None:
            raise ModelError(
                f"{path}: tensor {stored_name} is {tensor.kind}, which Hearth can't read yet; "
                f"types it reads: {', '.join(READABLE)}"
            )
        rows, columns = spec.tensor_shape(name)
        wanted = (columns,) if is_norm(name) else (rows, columns)
        if tensor.shape != wanted:
            raise ModelError(
                f"{path}: tensor {stored_name} has shape {list(tensor.shape)}, but the metadata "
                f"makes it {list(wanted)}"
            )
        size = rows * row_bytes(kind, columns)
        if tensor.offset + size > file.size:
            raise ModelError(
                f"{path}: tensor {stored_name} ends at byte {tensor.offset + size}, but the file "
                f"has {file.size}; it is truncated, download it again"
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
