"""A Hearth directory, as `hearth convert` writes it: config.json, tokenizer, one safetensors file.

config.json is a Llama one with an object `hearth`: `version`, and `weights`, the requested type or
mix.
Tensors in f32, f16 and bf16 are plain safetensors. One of a quantized type is U8 [rows, bytes of a
row], with its type in the file's `__metadata__` under the tensor's name.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_config
from hearth.converter.model import FileModel, TokenizerSource
from hearth.converter.readers.huggingface import open_tensors
from hearth.converter.readers.safetensors_file import Header, TensorEntry
from hearth.converter.tokenizers import load_tokenizer, tokenizer_files
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.weights import FORMATS, type_name

VERSION = 1
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def is_hearth_config(raw: dict[str, Any]) -> bool:
    return "hearth" in raw


def open_hearth(directory: Path, weights: str | None) -> FileModel:
    """Open a Hearth directory. Raises ModelError where it is damaged or of a newer version."""
    config = read_config(directory)
    hearth = config.raw.get("hearth")
    if not isinstance(hearth, dict) or hearth.get("version") != VERSION:
        version = hearth.get("version") if isinstance(hearth, dict) else hearth
        raise ModelError(
            f"{directory} is of Hearth format version {version!r}; this Hearth reads {VERSION}. "
            "Convert the model again, or update Hearth"
        )
    tensors, files = open_tensors(directory, config.spec, _kind)

    plain = hearth.get("tokenizer") == PlainTokenizer.NAME

    def load() -> Tokenizer:
        if plain:
            return PlainTokenizer(config.spec.vocab_size)
        return load_tokenizer(directory, config.bos_id, config.eos_ids)

    source = TokenizerSource(
        load=load,
        files=lambda: dict(tokenizer_files(directory)),
        bos_id=config.bos_id,
        eos_ids=config.eos_ids,
        plain=plain,
    )
    name = hearth.get("name")
    spec = replace(config.spec, name=name) if isinstance(name, str) and name else config.spec
    return FileModel(spec, weights, tensors, files, source)


def _kind(name: str, entry: TensorEntry, header: Header) -> tuple[str, tuple[int, ...]]:
    if entry.dtype in _PLAIN:
        return _PLAIN[entry.dtype], entry.shape
    kind = type_name(header.metadata.get(name, ""))
    form = FORMATS.get(kind)
    if entry.dtype != "U8" or form is None or not form.quantized or len(entry.shape) != 2:
        known = ", ".join(each.name for each in FORMATS.values() if each.quantized)
        raise ModelError(
            f"tensor {name} is {entry.dtype} {list(entry.shape)} of type {kind[:32]!r}; a Hearth "
            f"directory holds {', '.join(_PLAIN)}, and U8 [rows, bytes] of a type of {known}"
        )
    rows, width = entry.shape
    blocks, rest = divmod(width, form.size)
    if rest:
        raise ModelError(
            f"tensor {name} has rows of {width} bytes, not a multiple of a {kind} block's "
            f"{form.size}"
        )
    return kind, (rows, blocks * form.columns)
