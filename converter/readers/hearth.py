"""A Hearth directory, as `hearth convert` writes it: config.json, tokenizer, one safetensors file.

config.json has an object `hearth`: `version`, `weights` (the requested type or mix), and `spec`,
the model's shape as data. Tensors have Hearth's names and order of rows. Those in f32, f16 and bf16
are plain safetensors. One of a quantized type is U8 [rows, bytes of a row], with its type in the
file's `__metadata__` under the tensor's name.

Version 1 has no `spec`: its config.json and names of tensors are those of a Hugging Face directory.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, Files, find
from hearth.converter.hf_config import read_json, read_spec, token_ids
from hearth.converter.model import FileModel, TokenizerSource
from hearth.converter.pooling import pooling_of_directory
from hearth.converter.readers.huggingface import close_all, match, open_entries
from hearth.converter.readers.safetensors_file import Header, TensorEntry
from hearth.converter.recommended import recommended_sampling
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec
from hearth.converter.spec_json import spec_from_json
from hearth.converter.stored import Stored
from hearth.converter.tokenizers import load_tokenizer, tokenizer_files
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.weights import FORMATS, type_name

VERSION = 2
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def is_hearth_config(raw: dict[str, Any]) -> bool:
    return "hearth" in raw


def open_hearth(directory: Path, weights: str | None) -> FileModel:
    """Open a Hearth directory. Raises ModelError where it is damaged or of a newer version."""
    path = directory / "config.json"
    raw = read_json(path)
    hearth = raw.get("hearth")
    version = hearth.get("version") if isinstance(hearth, dict) else None
    if not isinstance(hearth, dict) or version not in range(1, VERSION + 1):
        raise ModelError(
            f"{directory} is of Hearth format version {shown(version)}; this Hearth reads 1 to "
            f"{VERSION}. Convert the model again, or update Hearth"
        )
    try:
        family, spec = _read_spec(raw, hearth, directory.resolve().name)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    bos_id, eos_ids = token_ids(directory, raw)
    entries, files = open_entries(directory, _kind)
    try:
        if family is None:
            tensors = _own(Files(entries, str(directory), "config.json asks for it", ()), spec)
        else:
            tensors = match(directory, spec, family, entries)
    except BaseException:
        close_all(files)
        raise

    plain = hearth.get("tokenizer") == PlainTokenizer.NAME

    def load() -> Tokenizer:
        if plain:
            return PlainTokenizer(spec.vocab_size)
        return load_tokenizer(directory, bos_id, eos_ids)

    source = TokenizerSource(
        load=load,
        files=lambda: dict(tokenizer_files(directory)),
        bos_id=bos_id,
        eos_ids=eos_ids,
        plain=plain,
    )
    config = {key: value for key, value in raw.items() if key != "hearth"}
    model = FileModel(spec, weights, tensors, files, source, config)
    model.sampling_defaults = recommended_sampling(directory)
    model.pooling = pooling_of_directory(directory)
    return model


def _read_spec(
    raw: dict[str, Any], hearth: dict[str, Any], name: str
) -> tuple[Family | None, ModelSpec]:
    """The shape, and for version 1 the family."""
    if hearth["version"] > 1:
        return None, spec_from_json(hearth.get("spec"))
    family, spec = read_spec(raw, name)
    own = hearth.get("name")
    return family, replace(spec, name=own) if isinstance(own, str) and own else spec


def _own(files: Files, spec: ModelSpec) -> dict[str, Stored]:
    """Tensors by the names of Hearth."""
    tensors = {name: find(files, spec, spec.tensor(name), name) for name in spec.tensor_names()}
    left = files.left()
    if left:
        raise ModelError(f"tensor {left[0]} does not belong to the model of config.json")
    return tensors


def _kind(name: str, entry: TensorEntry, header: Header) -> tuple[str, tuple[int, ...]]:
    if entry.dtype in _PLAIN:
        return _PLAIN[entry.dtype], entry.shape
    kind = type_name(header.metadata.get(name, ""))
    form = FORMATS.get(kind)
    if entry.dtype != "U8" or form is None or not form.quantized or len(entry.shape) != 2:
        known = ", ".join(each.name for each in FORMATS.values() if each.quantized)
        raise ModelError(
            f"tensor {name} is {entry.dtype} {list(entry.shape)} of type {shown(kind)}; a Hearth "
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
