"""distributed-llama's model files (`.m`): a header of numbers, then every tensor in a fixed order.

Two headers are in use. Today's is a list of (key, value) pairs of 32 bits after its magic and size.
The former one is nine numbers after a magic that names the architecture; it does not say the type
of the weights, which follows from the file's size. Matrices are f32, f16, or blocks of 32 as in
GGUF's Q4_0 and Q8_0; the embedding, norms and routers are f32. In Llama models the rows of queries
and keys lie in interleaved rotary pairs. The tokenizer is a file of its own (tokenizers/dllama.py).
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.families.base import (
    Family,
    Files,
    FileTensor,
    find,
    picked,
    rotary_pairs,
)
from hearth.converter.files import OpenFile
from hearth.converter.hf_config import read_spec
from hearth.converter.model import FileModel, TokenizerSource
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Stored
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.weights import row_bytes

SUFFIX, TOKENIZER_SUFFIX = ".m", ".t"
_MAGIC = 0x0A00ABCD
_FORMER_MAGICS = {0xABCD00: "Llama", 0xABCD01: "Grok-1", 0xABCD02: "Mixtral"}
MAGICS = tuple(struct.pack("<I", magic) for magic in (_MAGIC, *_FORMER_MAGICS))
_MAX_HEADER = 4096
_MAX_TENSORS = 1 << 18

# Keys of the header, by their numbers.
_KEYS = (
    "version", "architecture", "hidden size", "feed-forward size", "layers", "heads", "KV heads",
    "experts", "experts chosen", "vocabulary size", "context", "activation", "rope theta",
    "weight type", "rope scaling factor", "rope scaling low frequency factor",
    "rope scaling high frequency factor", "rope scaling original context", "rope type",
    "head size", "norm epsilon", "expert size",
)  # fmt: skip
# The former header's numbers, in its order.
_FORMER_KEYS = (*_KEYS[2:11],)
# By their names on Hugging Face.
_MIXTURE = "qwen3_moe"
_ARCHITECTURES = {0xABCD00: "llama", 0xABCD01: "qwen3", 0xABCD02: _MIXTURE}
# Settings of config.json, and the keys that say the same.
_SETTINGS = {
    "hidden_size": "hidden size",
    "intermediate_size": "feed-forward size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "vocab_size": "vocabulary size",
    "max_position_embeddings": "context",
}
_WEIGHT_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q8_0"}
_EPSILONS = {5: 1e-5, 6: 1e-6}
_SILU = 1
_ROPE_LLAMA, _ROPE_LLAMA3 = 0, 2
# The names that its tools give to files.
_MODEL_PREFIX, _TOKENIZER_PREFIX = "dllama_model_", "dllama_tokenizer_"
_TYPE_ENDINGS = ("_f32", "_f16", "_q40", "_q80")
_MOST_LISTED = 12


@dataclass(frozen=True)
class Header:
    """values: by the names of _KEYS. weights: the type of the matrices; None where the header does
    not say. size: bytes before the tensors."""

    values: dict[str, int]
    weights: str | None
    size: int


def open_dllama(
    path: Path, weights: str | None, pre: str | None = None, tokenizer: Path | None = None
) -> FileModel:
    """Open a `.m` file with the tokenizer beside it.

    pre: the rules that split a text, instead of those that its vocabulary is known by. tokenizer:
    its `.t` file, where several lie beside the model.

    Raises:
        ModelError: it is damaged, or of a kind that Hearth does not run.
    """
    file = OpenFile(path)
    try:
        header = read_header(file)
        config = _config(path, header.values)
        try:
            family, spec = read_spec(config, path.stem.removeprefix(_MODEL_PREFIX))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        tensors = _match(path, _place(file, header, config), family, spec)
    except BaseException:
        file.close()
        raise
    return FileModel(spec, weights, tensors, [file], _tokenizer_source(path, pre, tokenizer))


def read_header(file: OpenFile) -> Header:
    """Parse the header. Raises ModelError where it is damaged or of another kind of file."""
    path = file.path
    (magic,) = _numbers(file, 0, 1)
    if magic in _FORMER_MAGICS:
        if magic != 0xABCD00:
            raise ModelError(
                f"{path}: architecture {_FORMER_MAGICS[magic]} of dllama's former files is not "
                "supported; Hearth reads Llama in them"
            )
        numbers = _numbers(file, 4, len(_FORMER_KEYS))
        values = dict(zip(_FORMER_KEYS, numbers, strict=True)) | {"architecture": magic}
        return Header(values, None, 4 + 4 * len(numbers))
    if magic != _MAGIC:
        raise ModelError(f"{path} begins with {magic:#010x}, so it is not a dllama model")
    (size,) = _numbers(file, 4, 1)
    if not 8 <= size <= min(_MAX_HEADER, file.size) or size % 8:
        raise ModelError(
            f"{path}: the header claims {size} bytes; it must be a multiple of 8, at most "
            f"{_MAX_HEADER}, in a file of {file.size}"
        )
    numbers = _numbers(file, 8, (size - 8) // 4)
    values = {}
    for key, value in zip(numbers[::2], numbers[1::2], strict=True):
        if not 0 <= key < len(_KEYS):
            raise ModelError(f"{path}: the header has the unknown key {key}; it may be a newer one")
        if _KEYS[key] in values:
            raise ModelError(f"{path}: the header says {_KEYS[key]} twice")
        values[_KEYS[key]] = value
    number = _required(path, values, "weight type")
    if number not in _WEIGHT_TYPES:
        raise ModelError(
            f"{path}: weight type {number} is not known; known: "
            f"{', '.join(f'{key} ({name})' for key, name in _WEIGHT_TYPES.items())}"
        )
    return Header(values, _WEIGHT_TYPES[number], size)


def _numbers(file: OpenFile, offset: int, count: int) -> tuple[int, ...]:
    size = 4 * count
    if offset + size > file.size:
        raise ModelError(
            f"{file.path} has {file.size} bytes, and its header {offset + size} or more; it is "
            "truncated"
        )
    return struct.unpack(f"<{count}i", file.read(offset, size).tobytes())


def _required(path: Path, values: dict[str, int], key: str) -> int:
    if key not in values:
        raise ModelError(f"{path}: the header does not say its {key}")
    return values[key]


def _config(path: Path, values: dict[str, int]) -> dict[str, Any]:
    """The same settings as in a config.json of Hugging Face. Raises ModelError."""
    architecture = _required(path, values, "architecture")
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{path}: architecture {architecture:#x} is not supported; Hearth reads "
            f"{', '.join(_ARCHITECTURES.values())}"
        )
    kind = _ARCHITECTURES[architecture]
    experts = values.get("experts", 0)
    if bool(experts) != (kind == _MIXTURE):
        raise ModelError(f"{path}: a model of type {kind} with {experts} experts is not supported")
    if values.get("activation", _SILU) != _SILU:
        raise ModelError(
            f"{path}: activation {values['activation']} is not supported; Hearth reads {_SILU} "
            "(SiLU)"
        )
    # Qwen3's rotates halves, whatever the header says.
    rope = values.get("rope type", _ROPE_LLAMA)
    if kind == "llama" and rope not in (_ROPE_LLAMA, _ROPE_LLAMA3):
        raise ModelError(f"{path}: rope type {rope} is not supported; Hearth reads 0 and 2")
    epsilon = values.get("norm epsilon", 5)
    if epsilon not in _EPSILONS:
        raise ModelError(f"{path}: norm epsilon {epsilon} is not known; known: 5 (1e-5), 6 (1e-6)")
    config: dict[str, Any] = {name: _required(path, values, key) for name, key in _SETTINGS.items()}
    if config["num_attention_heads"] < 1:
        raise ModelError(f"{path}: the header says {config['num_attention_heads']} heads")
    config |= {"rms_norm_eps": _EPSILONS[epsilon], "rope_theta": values.get("rope theta", 10000)}
    head_size = values.get("head size") or config["hidden_size"] // config["num_attention_heads"]
    config |= {"model_type": kind, "head_dim": head_size, "tie_word_embeddings": False}
    if kind == "llama":
        config["rope_scaling"] = _scaling(values)
    if experts:
        config |= {
            "num_experts": experts,
            "num_experts_per_tok": _required(path, values, "experts chosen"),
            "moe_intermediate_size": _required(path, values, "expert size"),
            "norm_topk_prob": True,
        }
    return config


def _scaling(values: dict[str, int]) -> dict[str, Any] | None:
    """Llama 3's scaling, which dllama applies wherever a factor other than 1 is given."""
    factor = values.get("rope scaling factor", 1)
    if factor == 1:
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": values.get("rope scaling low frequency factor", 1),
        "high_freq_factor": values.get("rope scaling high frequency factor", 4),
        "original_max_position_embeddings": values.get("rope scaling original context", 8192),
    }


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file by its name on Hugging Face; matrix: it has the weights' type."""

    name: str
    shape: tuple[int, ...]
    matrix: bool = True

    def size(self, kind: str) -> int:
        """Bytes, with matrices of `kind`. Raises ModelError where blocks do not fit its rows."""
        used = kind if self.matrix else "f32"
        return math.prod(self.shape[:-1]) * row_bytes(used, self.shape[-1])


def _layer(config: dict[str, Any], prefix: str) -> Iterator[_Entry]:
    """The tensors of a layer, in the file's order."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    for part, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield _Entry(f"{prefix}self_attn.{part}_proj.weight", (rows, hidden))
    yield _Entry(f"{prefix}self_attn.o_proj.weight", (hidden, queries))
    experts, inner = config.get("num_experts", 0), config["intermediate_size"]
    if experts:
        yield _Entry(f"{prefix}mlp.gate.weight", (experts, hidden), matrix=False)
        inner = config["moe_intermediate_size"]
    folders = [f"mlp.experts.{expert}." for expert in range(experts)] or ["mlp."]
    for folder in folders:
        yield _Entry(f"{prefix}{folder}gate_proj.weight", (inner, hidden))
        yield _Entry(f"{prefix}{folder}down_proj.weight", (hidden, inner))
        yield _Entry(f"{prefix}{folder}up_proj.weight", (inner, hidden))
    if config["model_type"] != "llama":
        for part in "qk":
            yield _Entry(f"{prefix}self_attn.{part}_norm.weight", (head,), matrix=False)
    for part in ("input", "post_attention"):
        yield _Entry(f"{prefix}{part}_layernorm.weight", (hidden,), matrix=False)


def _entries(config: dict[str, Any]) -> Iterator[_Entry]:
    """All tensors, in the file's order."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield _Entry("model.embed_tokens.weight", (vocab, hidden), matrix=False)
    for layer in range(config["num_hidden_layers"]):
        yield from _layer(config, f"model.layers.{layer}.")
    yield _Entry("model.norm.weight", (hidden,), matrix=False)
    yield _Entry("lm_head.weight", (vocab, hidden))


def _place(file: OpenFile, header: Header, config: dict[str, Any]) -> dict[str, FileTensor]:
    """Every tensor's place. Raises ModelError unless they fill the file exactly."""
    path = file.path
    # Counted by one layer: the header may claim any number of them.
    layers = config["num_hidden_layers"]
    one = config | {"num_hidden_layers": 0}
    layer = list(_layer(config, ""))
    if len(layer) * layers > _MAX_TENSORS:
        raise ModelError(f"{path}: {len(layer) * layers} tensors; the limit is {_MAX_TENSORS}")
    sizes: dict[str, int] = {}
    for kind in _WEIGHT_TYPES.values() if header.weights is None else [header.weights]:
        try:
            each = sum(entry.size(kind) for entry in layer)
            rest = sum(entry.size(kind) for entry in _entries(one))
        except ModelError as error:
            if header.weights is not None:
                raise ModelError(f"{path}: {error}") from error
            continue
        sizes[kind] = header.size + rest + layers * each
    for kind, size in sizes.items():
        if size == file.size:
            return _placed(file, header.size, config, kind)
    wanted = " or ".join(f"{size} bytes ({kind})" for kind, size in sizes.items())
    raise ModelError(
        f"{path} has {file.size} bytes, but its header makes it {wanted}; it is truncated or "
        "damaged, or parts of it were not joined: download or join it again"
    )


def _placed(
    file: OpenFile, offset: int, config: dict[str, Any], kind: str
) -> dict[str, FileTensor]:
    tensors = {}
    for entry in _entries(config):
        used = kind if entry.matrix else "f32"
        tensors[entry.name] = FileTensor(file, offset, used, entry.shape)
        offset += entry.size(kind)
    return tensors


def _match(
    path: Path, entries: dict[str, FileTensor], family: Family, spec: ModelSpec
) -> dict[str, Stored]:
    """The tensors by Hearth's names; those of Llama's queries and keys in rotary pairs."""
    names = dict(family.tensors)
    if spec.architecture == "llama":
        for part in ("wq", "wk"):
            name = names[part]
            assert isinstance(name, str)
            names[part] = picked(name, rotary_pairs)
    files = Files(entries, str(path), "the header asks for it", tuple(_WEIGHT_TYPES.values()))
    wanted = (spec.tensor(name) for name in spec.tensor_names())
    return {tensor.name: find(files, spec, tensor, names[tensor.part]) for tensor in wanted}


def _tokenizer_source(path: Path, pre: str | None, chosen: Path | None) -> TokenizerSource:
    from hearth.converter.tokenizers.dllama import read_vocabulary

    def values() -> dict[str, object]:
        return read_vocabulary(chosen or _beside(path), pre)

    def load() -> Tokenizer:
        from hearth.converter.tokenizers.gguf import load_gguf_tokenizer

        read = values()
        try:
            return load_gguf_tokenizer(read, "the vocabulary", pre)
        except ModelError as error:
            raise ModelError(f"{chosen or _beside(path)}: {error}") from error

    def files() -> dict[str, Path | bytes]:
        from hearth.converter.readers.gguf import TOKENIZER_FILE
        from hearth.converter.readers.gguf_file import metadata_file

        return {TOKENIZER_FILE: metadata_file(values())}

    return TokenizerSource(load=load, files=files)


def _beside(path: Path) -> Path:
    """The tokenizer of a model: the one `.t` file beside it, or the one of its name."""
    found = sorted(path.parent.glob(f"*{TOKENIZER_SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(
            f"there is no tokenizer beside {path}; put its {TOKENIZER_SUFFIX} file there, or give "
            "it with --tokenizer FILE"
        )
    name = _plain_name(path)
    same = [file for file in found if _plain_name(file) == name]
    if len(same) == 1:
        return same[0]
    shown = ", ".join(file.name for file in found[:_MOST_LISTED])
    raise ModelError(
        f"{len(found)} tokenizers lie beside {path}; choose one with --tokenizer FILE: {shown}"
    )


def _plain_name(path: Path) -> str:
    """A file's name without what tells a model from its tokenizer."""
    name = path.stem.removeprefix(_MODEL_PREFIX).removeprefix(_TOKENIZER_PREFIX)
    for ending in _TYPE_ENDINGS:
        name = name.removesuffix(ending)
    return name
