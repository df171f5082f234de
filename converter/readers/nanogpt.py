"""nanoGPT's checkpoints (`ckpt.pt`, `model.pt`): a GPT-2, with or without biases.

The vocabulary is character-level, in the file `meta.pkl` of its data, or GPT-2's.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.families.base import Files, FileTensor, Names, find
from hearth.converter.families.gpt2 import FAMILY, VECTORS, gpt2_spec, third
from hearth.converter.families.settings import Settings
from hearth.converter.files import OpenFile
from hearth.converter.hf_config import read_json
from hearth.converter.hub import cached_snapshot
from hearth.converter.model import FileModel, TokenizerSource
from hearth.converter.readers.pickled import MAX_BYTES, read_pickle
from hearth.converter.readers.torch_checkpoint import Tensor, read_checkpoint
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Stored, Zeros
from hearth.converter.tokenizers import load_pair, load_tokenizer, tokenizer_files
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.characters import FILE, CharacterTokenizer

_META = "meta.pkl"
# What torch.compile and DistributedDataParallel put before names.
_WRAPPERS = ("_orig_mod.", "module.")
_LAYER = "transformer.h.{layer}."
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_READABLE = ("f32", "f16", "bf16")
# Beside tensors alone: what train.py would have saved with them.
_ARGS = "model_args.json"
_MATRICES: Names = {
    "wo": _LAYER + "attn.c_proj.weight",
    "w1": _LAYER + "mlp.c_fc.weight",
    "w2": _LAYER + "mlp.c_proj.weight",
    **{
        part: third(_LAYER + "attn.c_attn.weight", place)
        for place, part in enumerate(("wq", "wk", "wv"))
    },
}
_GPT2_SIZE = 50257
_END_OF_TEXT = 50256
_GPT2_REPOSITORY = "openai-community/gpt2"
# The files that tiktoken keeps for "gpt2": its name for them (SHA-1 of their address), SHA-256.
_TIKTOKEN = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_MAX_TIKTOKEN_BYTES = 4 << 20
_TIKTOKEN_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def open_nanogpt(path: Path, weights: str | None) -> FileModel:
    """Open a checkpoint.

    Raises:
        ModelError: it is damaged, holds more than data, or is of another kind of model.
    """
    file = OpenFile(path)
    try:
        value = read_checkpoint(file)
        entries = _entries(file, value)
        spec = _spec(path, value, entries)
        tensors = _match(path, spec, entries)
    except BaseException:
        file.close()
        raise
    source = _tokenizer_source(path, spec, _text(value, "config", "dataset"))
    return FileModel(spec, weights, tensors, [file], source)


def _entries(file: OpenFile, value: Any) -> dict[str, FileTensor]:
    """The tensors of the model by their names, without those of the optimizer."""
    state = value.get("model", value) if isinstance(value, dict) else None
    if not isinstance(state, dict):
        raise ModelError(f"{file.path} does not hold a model's tensors")
    entries = {}
    for name, tensor in state.items():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            for wrapper in _WRAPPERS:
                name = name.removeprefix(wrapper)
            entries[name] = FileTensor(file, tensor.offset, tensor.kind, tensor.shape)
    if _EMBEDDING not in entries:
        shown = ", ".join(list(entries)[:3]) or "none"
        raise ModelError(
            f"{file.path} is not a checkpoint of nanoGPT: tensor {_EMBEDDING} is missing; its "
            f"{len(entries)} tensors begin with {shown}"
        )
    return entries


def _text(value: Any, *keys: str) -> str:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def _spec(path: Path, value: Any, entries: Mapping[str, FileTensor]) -> ModelSpec:
    args = value.get("model_args") if isinstance(value, dict) else None
    if not isinstance(args, dict):
        args = _args_of(path, entries)
    settings = {
        "n_embd": args.get("n_embd"),
        "n_layer": args.get("n_layer"),
        "n_head": args.get("n_head"),
        "n_positions": args.get("block_size"),
        "vocab_size": args.get("vocab_size"),
        "activation_function": "gelu",
        "tie_word_embeddings": _tied(entries),
    }
    bias = "transformer.h.0.mlp.c_fc.bias" in entries
    try:
        return gpt2_spec(Settings(settings, label="model_args."), path.resolve().parent.name, bias)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _args_of(path: Path, entries: Mapping[str, FileTensor]) -> dict[str, Any]:
    """The sizes of a model that was saved without them, by its tensors; heads by a file beside."""
    vocab, hidden = _matrix(entries, _EMBEDDING)
    beside = path.with_name(_ARGS)
    heads = read_json(beside).get("n_head") if beside.is_file() else None
    if heads is None:
        raise ModelError(
            f"{path} holds tensors alone, which do not say the number of heads: put {_ARGS} with "
            '{"n_head": COUNT} beside it, or save {"model": tensors, "model_args": arguments} as '
            "nanoGPT's train.py does"
        )
    layers = {name.split(".")[2] for name in entries if name.startswith("transformer.h.")}
    return {
        "n_embd": hidden,
        "n_layer": len(layers),
        "n_head": heads,
        "block_size": _matrix(entries, "transformer.wpe.weight")[0],
        "vocab_size": vocab,
    }


def _matrix(entries: Mapping[str, FileTensor], name: str) -> tuple[int, int]:
    shape = entries[name].shape if name in entries else ()
    if len(shape) != 2:
        raise ModelError(f"tensor {name} is missing, or is not a matrix")
    return shape[0], shape[1]


def _tied(entries: Mapping[str, FileTensor]) -> bool:
    """True if the head is the embedding: absent, or the same numbers in the file."""
    head = entries.get(_HEAD)
    return head is None or head.offset == entries[_EMBEDDING].offset


def _match(path: Path, spec: ModelSpec, entries: Mapping[str, FileTensor]) -> dict[str, Stored]:
    names = {**VECTORS, **_MATRICES}
    missing = f"model_args asks for {spec.layers} layers"
    files = Files(entries, str(path), missing, _READABLE)
    tensors: dict[str, Stored] = {}
    for name in spec.tensor_names():
        tensor = spec.tensor(name)
        recipe = names[tensor.part]
        stored = recipe.replace("{layer}", str(tensor.layer)) if isinstance(recipe, str) else ""
        if tensor.part.endswith("norm.bias") and stored not in files:
            tensors[name] = Zeros(tensor.shape[1])
        else:
            tensors[name] = find(files, spec, tensor, recipe)
    left = [name for name in files.left() if not name.endswith(FAMILY.unused_endings)]
    if spec.tied and _HEAD in left:
        left.remove(_HEAD)
    if left:
        raise ModelError(
            f"{path}: tensor {left[0]} does not belong to a GPT of {spec.layers} layers "
            f"({len(left)} such tensors); the result would be wrong without it"
        )
    return tensors


def _tokenizer_source(path: Path, spec: ModelSpec, dataset: str) -> TokenizerSource:
    folder = path.resolve().parent
    places = [folder / _META]
    if dataset and Path(dataset).name == dataset:
        places.append(folder.parent / "data" / dataset / _META)
    meta = next((place for place in places if place.is_file()), None)

    def load() -> Tokenizer:
        return _characters(meta) if meta is not None else _gpt2_tokenizer(folder, spec)[0]

    def files() -> dict[str, Path | bytes]:
        if meta is not None:
            return {FILE: _characters(meta).content()}
        return _gpt2_tokenizer(folder, spec)[1]

    return TokenizerSource(load=load, files=files)


def _characters(meta: Path) -> CharacterTokenizer:
    """The character-level vocabulary of a meta.pkl: `itos`, from ids to characters."""
    try:
        if meta.stat().st_size > MAX_BYTES:
            raise ModelError(f"{meta} has more than {MAX_BYTES} bytes")
        data = meta.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {meta}: {error.strerror or error}") from error
    value = read_pickle(data, str(meta), {})
    characters = value.get("itos") if isinstance(value, dict) else None
    if not isinstance(characters, dict) or set(characters) != set(range(len(characters))):
        raise ModelError(f"{meta} has no `itos` from ids 0, 1, 2 ... to characters")
    return CharacterTokenizer([characters[id] for id in range(len(characters))], str(meta))


def _gpt2_tokenizer(folder: Path, spec: ModelSpec) -> tuple[Tokenizer, dict[str, Path | bytes]]:
    """GPT-2's tokenizer and its files: beside the model, or in a cache. Raises ModelError."""
    ends = frozenset({_END_OF_TEXT})
    if spec.vocab_size < _GPT2_SIZE:
        raise ModelError(
            f"the model has {spec.vocab_size} tokens, and no {_META} of its data beside it; copy "
            f"it there (nanoGPT's data/DATASET/{_META})"
        )
    for directory in (folder, cached_snapshot(_GPT2_REPOSITORY)):
        names = dict(tokenizer_files(directory)) if directory is not None else {}
        if directory is not None and names:
            return load_tokenizer(directory, eos_ids=ends), {**names}
    pair = _tiktoken_files()
    if pair is None:
        raise ModelError(
            "the model uses GPT-2's vocabulary, which is neither beside it nor in a cache of this "
            f"machine; `hearth pull {_GPT2_REPOSITORY}` gets it, or put its vocab.json and "
            f"merges.txt into {folder}"
        )
    return load_pair(pair["encoder.json"], pair["vocab.bpe"], eos_ids=ends), {**pair}


def _tiktoken_files() -> dict[str, Path] | None:
    """The files that tiktoken has downloaded before; None without them, or with others."""
    usual = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(usual) if usual else Path(tempfile.gettempdir()) / "data-gym-cache"
    found = {}
    for name, digest in _TIKTOKEN_FILES.items():
        path = folder / hashlib.sha1((_TIKTOKEN + name).encode()).hexdigest()
        try:
            # The directory may be anyone's.
            if path.stat().st_size > _MAX_TIKTOKEN_BYTES:
                return None
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                return None
        except OSError:
            return None
        found[name] = path
    return found
