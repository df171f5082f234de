"""distributed-llama's model files (`.m`): a header of numbers, then every tensor in a fixed order.

Two headers are in use. Today's is a list of (key, value) pairs of 32 bits after its magic and size.
The former one is nine numbers after a magic that names the architecture; it does not say the type
of the weights, which follows from the file's size. Matrices are f32, f16, or blocks of 32 as in
GGUF's Q4_0 and Q8_0; the embedding and norms are f32. Rows of queries and keys lie in interleaved
rotary pairs. The tokenizer is a file of its own (tokenizers/dllama.py).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.model import FileModel, StoredTensor, TokenizerSource
from hearth.converter.spec import ModelSpec, RopeScaling, is_norm
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.weights import row_bytes

SUFFIX, TOKENIZER_SUFFIX = ".m", ".t"
_MAGIC = 0x0A00ABCD
_FORMER_MAGICS = {0xABCD00: "Llama", 0xABCD01: "Grok-1", 0xABCD02: "Mixtral"}
MAGICS = tuple(struct.pack("<I", magic) for magic in (_MAGIC, *_FORMER_MAGICS))
_MAX_HEADER = 4096

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
_ARCHITECTURES = {0xABCD00: "Llama", 0xABCD01: "Qwen3", 0xABCD02: "Qwen3-MoE"}
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
        spec = _spec(path, header.values)
        tensors = _place(file, header, spec)
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


def _spec(path: Path, values: dict[str, int]) -> ModelSpec:
    architecture = _required(path, values, "architecture")
    if _ARCHITECTURES.get(architecture) != "Llama":
        name = _ARCHITECTURES.get(architecture, f"{architecture:#x}")
        raise ModelError(f"{path}: architecture {name} is not supported; Hearth reads Llama")
    if values.get("experts", 0):
        raise ModelError(f"{path}: a Llama model of {values['experts']} experts is not supported")
    if values.get("activation", _SILU) != _SILU:
        raise ModelError(
            f"{path}: activation {values['activation']} is not supported; Hearth reads {_SILU} "
            "(SiLU)"
        )
    rope = values.get("rope type", _ROPE_LLAMA)
    if rope not in (_ROPE_LLAMA, _ROPE_LLAMA3):
        raise ModelError(f"{path}: rope type {rope} is not supported; Hearth reads 0 and 2")
    epsilon = values.get("norm epsilon", 5)
    if epsilon not in _EPSILONS:
        raise ModelError(f"{path}: norm epsilon {epsilon} is not known; known: 5 (1e-5), 6 (1e-6)")
    hidden_size, heads, kv_heads = (
        _required(path, values, key) for key in ("hidden size", "heads", "KV heads")
    )
    if heads < 1:
        raise ModelError(f"{path}: the header says {heads} heads")
    try:
        return ModelSpec(
            name=path.stem.removeprefix(_MODEL_PREFIX),
            hidden_size=hidden_size,
            layers=_required(path, values, "layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=values.get("head size") or hidden_size // heads,
            ffn_size=_required(path, values, "feed-forward size"),
            vocab_size=_required(path, values, "vocabulary size"),
            norm_epsilon=_EPSILONS[epsilon],
            rope_theta=float(values.get("rope theta", 10000)),
            context_size=_required(path, values, "context"),
            tied=False,
            rope_scaling=_scaling(values),
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _scaling(values: dict[str, int]) -> RopeScaling | None:
    """Llama 3's scaling, which dllama applies wherever a factor other than 1 is given."""
    factor = values.get("rope scaling factor", 1)
    if factor == 1:
        return None
    return RopeScaling(
        "llama3",
        float(factor),
        float(values.get("rope scaling low frequency factor", 1)),
        float(values.get("rope scaling high frequency factor", 4)),
        values.get("rope scaling original context", 8192),
    )


def _order(spec: ModelSpec) -> list[str]:
    """The tensors by Hearth's names, in the file's order."""
    parts = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "attn_norm", "ffn_norm")
    layers = [f"layers.{layer}.{part}" for layer in range(spec.layers) for part in parts]
    return ["embedding", *layers, "norm", "head"]


def _place(file: OpenFile, header: Header, spec: ModelSpec) -> dict[str, StoredTensor]:
    """Every tensor's place. Raises ModelError unless they fill the file exactly."""
    path = file.path
    if header.weights is not None:
        kinds = [header.weights]
    else:
        kinds = [kind for kind in _WEIGHT_TYPES.values() if _fits(spec, kind)]
    sizes = {kind: header.size + _bytes(path, spec, kind) for kind in kinds}
    for kind, size in sizes.items():
        if size == file.size:
            return _tensors(file, header.size, spec, kind)
    wanted = " or ".join(f"{size} bytes ({kind})" for kind, size in sizes.items())
    raise ModelError(
        f"{path} has {file.size} bytes, but its header makes it {wanted}; it is truncated or "
        "damaged, or parts of it were not joined: download or join it again"
    )


def _fits(spec: ModelSpec, kind: str) -> bool:
    try:
        _bytes(Path(), spec, kind)
    except ModelError:
        return False
    return True


def _bytes(path: Path, spec: ModelSpec, kind: str) -> int:
    """Bytes of all tensors with matrices of `kind`."""
    total = 0
    for name in _order(spec):
        rows, columns = spec.tensor_shape(name)
        try:
            total += rows * row_bytes(_kind(name, kind), columns)
        except ModelError as error:
            raise ModelError(f"{path}: tensor {name}: {error}") from error
    return total


def _tensors(file: OpenFile, offset: int, spec: ModelSpec, kind: str) -> dict[str, StoredTensor]:
    tensors = {}
    for name in _order(spec):
        rows, columns = spec.tensor_shape(name)
        rotary_head = spec.head_size if name.endswith((".wq", ".wk")) else 0
        tensor = StoredTensor(file, offset, _kind(name, kind), rows, columns, rotary_head)
        tensors[name] = tensor
        offset += tensor.place[1]
    return tensors


def _kind(name: str, matrices: str) -> str:
    return "f32" if name == "embedding" or is_norm(name) else matrices


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
