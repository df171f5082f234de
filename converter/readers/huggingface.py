"""A Hugging Face directory: config.json, one or several safetensors files, a tokenizer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.families import is_body
from hearth.converter.families.base import Family, Files, FileTensor, Recipe, find
from hearth.converter.families.settings import Settings
from hearth.converter.families.text_parts import OTHER_PARTS
from hearth.converter.files import OpenFile, check_pointer
from hearth.converter.hf_config import HfConfig, read_config, read_json
from hearth.converter.model import TEXT_PART, FileModel, TokenizerSource
from hearth.converter.pooling import pooling_of_directory
from hearth.converter.quantized import quantization
from hearth.converter.readers.conversions import conversion_remarks
from hearth.converter.readers.quantization import merge
from hearth.converter.readers.safetensors_file import Header, TensorEntry, read_header
from hearth.converter.recommended import recommended_sampling
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Stored
from hearth.converter.tokenizers import load_tokenizer, tokenizer_files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# Types of tensors that no method of quantization made, and of those that a family reads itself.
_AS_THEY_ARE = (*_KINDS.values(), "mxfp4")
_MAX_SHARDS = 4096
_MOST_FURTHER_LAYERS = 64

# Entries of older exports besides the weights.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

# The text part of a model that also reads images is beneath one of these.
_TEXT_PREFIXES = (
    "model.language_model.",
    "model.language_model.model.",
    "language_model.model.",
    "language_model.",
    "model.text_model.",
    "text_model.",
)
_HEAD = "lm_head.weight"
_COMPARED_BYTES = 4 << 20

# (name, entry, header) -> (the type it is stored in, its shape in elements). A type that cannot be
# read is an error where the tensor is used.
Kind = Callable[[str, TensorEntry, Header], tuple[str, tuple[int, ...]]]
Entries = dict[str, FileTensor]


def open_huggingface(directory: Path, weights: str | None) -> FileModel:
    """Open a Hugging Face directory.

    Raises:
        ModelError: a file is absent or damaged, a tensor is missing or misshapen, or the model is
            not supported.
    """
    config = read_config(directory)
    for _, path in tokenizer_files(directory):
        _check_pointer(path)
    entries, files = open_entries(directory, _kind)
    try:
        entries = merge(str(directory), config.raw, entries)
        unused = further_layers(config.family, config.spec, config.raw)
        if config.text_part:
            unused += OTHER_PARTS
        spec, headless = config.spec, False
        if not spec.tied and not any(name.endswith(_HEAD) for name in entries):
            headless = not config.tied_if_headless and _is_body(config, entries)
            spec = replace(spec, tied=headless or config.tied_if_headless)
        tensors = match(directory, spec, config.family, entries, unused)
    except BaseException:
        close_all(files)
        raise
    source = TokenizerSource(
        load=lambda: load_tokenizer(directory, config.bos_id, config.eos_ids),
        files=lambda: dict(tokenizer_files(directory)),
        bos_id=config.bos_id,
        eos_ids=config.eos_ids,
    )
    model = FileModel(spec, weights, tensors, files, source, config.raw)
    model.sampling_defaults = recommended_sampling(directory)
    model.pooling = pooling_of_directory(directory)
    if headless:
        model.remarks.append("it has no head: it makes vectors of texts, and generates noise")
    if config.text_part:
        model.remarks.append(TEXT_PART)
    quantized = quantization(config.raw)
    method = str(quantized["quant_method"]) if quantized is not None else ""

    def label(kind: str) -> str:
        return "" if kind in _AS_THEY_ARE else method

    model.remarks.extend(conversion_remarks(model, tensors, label, sizes=False))
    return model


def _check_pointer(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            check_pointer(path, stream.read(64))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _kind(name: str, entry: TensorEntry, header: Header) -> tuple[str, tuple[int, ...]]:
    return _KINDS.get(entry.dtype, entry.dtype), entry.shape


def open_entries(directory: Path, kind_of: Kind) -> tuple[Entries, list[OpenFile]]:
    """Every tensor of a directory's safetensors files, by its name there, and the open files."""
    files: list[OpenFile] = []
    try:
        entries: Entries = {}
        for path in weight_files(directory):
            file = OpenFile(path)
            files.append(file)
            header = read_header(file)
            for name, entry in header.tensors.items():
                if name in entries:
                    raise ModelError(f"tensor {name} is in {entries[name].file.path} and in {path}")
                kind, shape = kind_of(name, entry, header)
                entries[name] = FileTensor(file, entry.offset, kind, shape)
        return entries, files
    except BaseException:
        close_all(files)
        raise


def close_all(files: list[OpenFile]) -> None:
    """Close the files of a model that could not be opened."""
    for file in files:
        file.close()


def further_layers(family: Family, spec: ModelSpec, raw: dict[str, Any]) -> tuple[str, ...]:
    """Beginnings of names of the layers behind the model's that guess further tokens."""
    if family.further_layers is None:
        return ()
    key = "num_nextn_predict_layers"
    count = Settings(raw).integer(key, family.further_layers)
    if not 0 <= count <= _MOST_FURTHER_LAYERS:
        raise ModelError(f"{key} is {count}; it must be 0 to {_MOST_FURTHER_LAYERS}")
    return tuple(f"{family.prefix}layers.{spec.layers + each}." for each in range(count))


def match(
    directory: Path,
    spec: ModelSpec,
    family: Family,
    entries: Entries,
    unused: tuple[str, ...] = (),
) -> dict[str, Stored]:
    """Every tensor of `spec`, by Hearth's names.

    unused: beginnings of names of tensors that are left out, beside the family's.
    """
    entries = _with_prefix(family, entries)
    if spec.tied:
        _tie(directory, family.embedding, entries)
    missing = (
        f"config.json asks for {spec.layers} layers, {'a tied' if spec.tied else 'an untied'} "
        f"head, and so {len(spec.tensor_names())} tensors"
    )
    files = Files(entries, str(directory), missing, tuple(_KINDS))
    tensors = {}
    for name in spec.tensor_names():
        tensor = spec.tensor(name)
        tensors[name] = find(files, spec, tensor, _recipe(family, tensor.part))
    unknown = [
        name
        for name in files.left()
        if not name.endswith((*_IGNORED_SUFFIXES, *family.unused_endings))
        and not name.startswith((*family.unused, *unused))
    ]
    if unknown:
        raise ModelError(
            f"{directory}: tensor {unknown[0]} does not belong to a {family.name} model of "
            f"{spec.layers} layers ({len(unknown)} such tensors); the result would be wrong "
            "without it"
        )
    return tensors


def _recipe(family: Family, part: str) -> Recipe:
    try:
        return family.tensors[part]
    except KeyError:
        raise ModelError(f"Hearth does not know how {family.name} models store {part}") from None


def _is_body(config: HfConfig, entries: Entries) -> bool:
    """True for a checkpoint of the model below the head, as those for embeddings are."""
    classes = config.raw.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else ""
    return (
        is_body(str(name)) or config.family.embedding.removeprefix(config.family.prefix) in entries
    )


def _with_prefix(family: Family, entries: Entries) -> Entries:
    """Entries by the names of a text model with a head.

    Some files hold the model below the head alone, some a model that also reads images.
    """
    embedding = family.embedding
    if embedding in entries:
        return entries
    inner = embedding.removeprefix(family.prefix)
    for prefix in (*_TEXT_PREFIXES, ""):
        if prefix + inner in entries:
            return {_text_name(family, name, prefix): entry for name, entry in entries.items()}
    return entries


def _text_name(family: Family, name: str, prefix: str) -> str:
    if name.endswith(_HEAD):
        return _HEAD
    return family.prefix + name.removeprefix(prefix) if name.startswith(prefix) else name


def _tie(directory: Path, embedding_name: str, entries: Entries) -> None:
    """Leave the embedding alone of a tied model, which may be stored as either or as both."""
    head = entries.pop(_HEAD, None)
    if head is None:
        return
    embedding = entries.setdefault(embedding_name, head)
    if embedding is not head and not _same_bytes(embedding, head):
        raise ModelError(
            f"{directory}: by config.json the head is the embedding (tie_word_embeddings), but "
            f"{_HEAD} and {embedding_name} differ; set it to false if the head is trained, else "
            f"remove {_HEAD}"
        )


def _same_bytes(one: FileTensor, two: FileTensor) -> bool:
    if (one.kind, one.shape) != (two.kind, two.shape):
        return False
    size = one.size_bytes
    for begin in range(0, size, _COMPARED_BYTES):
        count = min(_COMPARED_BYTES, size - begin)
        first = one.file.read(one.offset + begin, count)
        if not np.array_equal(first, two.file.read(two.offset + begin, count)):
            return False
    return True


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: the single one, or those its index lists.

    In this order, as transformers looks for them.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index_path = directory / INDEX
    if not index_path.is_file():
        raise ModelError(f"{directory} has neither {SINGLE} nor {INDEX}{_hint(directory)}")
    weight_map = read_json(index_path, 16 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index_path} has no weight_map")
    names = set()
    for name in weight_map.values():
        # A name that contains a folder could leave the model's directory.
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise ModelError(
                f"{index_path} names {shown(name)}, which is not a safetensors file beside it"
            )
        names.add(name)
    if len(names) > _MAX_SHARDS:
        raise ModelError(f"{index_path} lists {len(names)} files; the limit is {_MAX_SHARDS}")
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise ModelError(
            f"{directory}: {len(missing)} of {len(names)} weight files are absent, first "
            f"{missing[0]}; download the rest"
        )
    return [directory / name for name in sorted(names)]


def _hint(directory: Path) -> str:
    """The files that a directory has instead of weights, for its error."""
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    adapters = [name for name in others if name.startswith("adapter")]
    if adapters:
        return f"; {adapters[0]} is an adapter: merge it into its model first"
    if others:
        shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        return f", but {shown}; get the files under the names that transformers reads"
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        return "; pickled weights (.bin, .pth) are never read, get the safetensors files"
    return ""
