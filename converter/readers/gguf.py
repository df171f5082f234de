"""GGUF files: shape, tensors and tokenizer from one file, or its parts."""

import math
from dataclasses import replace
from pathlib import Path

from hearth.converter.errors import ModelError
from hearth.converter.families import family_of_gguf
from hearth.converter.families.base import Family, Files, FileTensor, GgufFacts, find
from hearth.converter.families.settings import GgufSettings, Settings
from hearth.converter.files import OpenFile
from hearth.converter.model import TEXT_PART, FileModel, TokenizerSource
from hearth.converter.pooling import pooling_of_gguf
from hearth.converter.quantized import Multiplied, Raw
from hearth.converter.readers.conversions import conversion_remarks
from hearth.converter.readers.gguf_file import READABLE, GgufFile, metadata_only, string_pair
from hearth.converter.readers.gguf_parts import GgufParts, open_parts, parse_open
from hearth.converter.recommended import gguf_sampling
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Stored, StoredTensor
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.gguf import (
    PRE_KEY,
    gguf_bos_id,
    gguf_eos_ids,
    load_gguf_tokenizer,
    vocabulary_size,
)
from hearth.converter.weights import FORMATS

ROPE_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
_EMBEDDING = "token_embd.weight"
_MOST_ROPE_FACTORS = 1 << 15
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
        family, spec = _spec(parts)
        tensors = _match(parts, family, spec)
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
    model.sampling_defaults = gguf_sampling(parts.first.values)
    architecture = parts.first.values.get("general.architecture")
    model.pooling = pooling_of_gguf(parts.first.values.get(f"{architecture}.pooling_type"))
    # Several axes of positions, which are equal in a text, are those of images.
    sections = parts.first.values.get(f"{architecture}.rope.dimension_sections")
    if isinstance(sections, list) and sum(map(bool, sections)) > 1:
        model.remarks.append(TEXT_PART)
    model.remarks.extend(conversion_remarks(model, tensors, str.upper))
    return model


def read_gguf(path: Path) -> GgufFile:
    """Parse a GGUF file's metadata. Raises ModelError."""
    file = OpenFile(path)
    try:
        return parse_open(file)
    finally:
        file.close()


def _tokenizer_file(pairs: dict[str, bytes], pre: str | None) -> bytes:
    """A GGUF file with the tokenizer alone, and the rules asked for."""
    if pre is not None:
        pairs = pairs | {PRE_KEY: string_pair(PRE_KEY, pre)}
    return metadata_only(pairs, _is_tokenizer_key)


def _is_tokenizer_key(key: str) -> bool:
    # Rules for some tokens follow from the model's name.
    return key.startswith("tokenizer.") or key == "general.name"


def _spec(parts: GgufParts) -> tuple[Family, ModelSpec]:
    """The family and the shape."""
    gguf = parts.first
    path, values = gguf.path, gguf.values
    if values.get("general.type", "model") in ("adapter", "mmproj", "imatrix"):
        raise ModelError(
            f"{path} is {values['general.type']} data, not a model; give the model's own file"
        )
    architecture = values.get("general.architecture")
    name = values.get("general.name")
    try:
        family = family_of_gguf(architecture)
        metadata = GgufSettings(values, f"{architecture}.")
        if metadata.get("attention.causal", True) is not True:
            raise ModelError(
                f"{metadata.name('attention.causal')} is "
                f"{shown(metadata.get('attention.causal'))}; Hearth runs models that generate "
                "text, not encoders"
            )
        if not parts.tensors:
            raise ModelError("it holds no tensors, only a vocabulary or metadata")
        assert family.gguf is not None
        name = name if isinstance(name, str) and name else path.stem
        spec = family.gguf(metadata, name, _facts(parts, metadata))
        tensors = {**family.gguf_tensors, **family.gguf_layout(metadata)}
        return replace(family, gguf_tensors=tensors), spec
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _facts(parts: GgufParts, metadata: Settings) -> GgufFacts:
    if _EMBEDDING not in parts.tensors:
        raise ModelError(f"tensor {_EMBEDDING} is missing")
    rows = parts.tensors[_EMBEDDING][1].shape[0]
    for key, count in (
        (metadata.name("vocab_size"), metadata.integer("vocab_size", rows)),
        ("tokenizer.ggml.tokens", vocabulary_size(parts.first.values)),
    ):
        if count is not None and count > rows:
            raise ModelError(f"{key} says {count} tokens, but the embedding has only {rows} rows")
    factors = {}
    for name in ROPE_FACTORS:
        if f"{name}.weight" in parts.tensors:
            factors[name] = _rope_factors(parts, f"{name}.weight")
    return GgufFacts(rows, factors, parts.tensors.__contains__, lambda name: _block(parts, name))


def _block(parts: GgufParts, name: str) -> int:
    if name not in parts.tensors:
        return 1
    kind = parts.tensors[name][1].kind
    found = FORMATS.get(READABLE.get(kind, kind))
    return 1 if found is None else found.columns


def _rope_factors(parts: GgufParts, name: str) -> tuple[float, ...]:
    file, tensor = parts.tensors[name]
    size = tensor.shape[0] if len(tensor.shape) == 1 else 0
    if tensor.kind != "F32" or not 1 <= size <= _MOST_ROPE_FACTORS:
        raise ModelError(
            f"tensor {name} is {tensor.kind} {list(tensor.shape)}; it must be F32, a number for "
            "each pair of a head"
        )
    return tuple(float(value) for value in file.read(tensor.offset, size * 4).view("<f4"))


def _with_scales(entries: dict[str, FileTensor]) -> dict[str, FileTensor]:
    """Entries where each matrix in NVFP4 is multiplied by the scale that is stored beside it."""
    found = dict(entries)
    for name, entry in entries.items():
        stem = name.removesuffix(".weight")
        scale = entries.get(f"{stem}.scale")
        if entry.kind != "nvfp4" or scale is None:
            continue
        rows, count = math.prod(entry.shape[:-1]), math.prod(scale.shape)
        if scale.kind != "f32" or count not in (1, entry.shape[0]) or rows % count:
            raise ModelError(
                f"{entry.file.path}: tensor {stem}.scale is {scale.kind} {list(scale.shape)}; it "
                f"must be one f32 for {name}, or one for each expert"
            )
        stored = StoredTensor(entry.file, entry.offset, entry.kind, rows, entry.shape[-1])
        scales = Raw(scale.file, scale.offset, "F32", 1, count)
        for place, offset, size in (*stored.places(), scales.place):
            if offset + size > place.size:
                raise ModelError(
                    f"{place.path}: tensor {stem} ends at byte {offset + size}, but the file has "
                    f"{place.size}; it is truncated, download it again"
                )
        made = Multiplied(stored, scales)
        found[name] = replace(entry, kind=made.kind, shape=entry.shape, made=made)
        # Scales of activations, which stay in f32 here.
        for part in ("scale", "input_scale"):
            found.pop(f"{stem}.{part}", None)
    return found


def _further_tokens(parts: GgufParts, layers: int) -> list[str]:
    """Tensors of the layers that guess further tokens: they lie behind the model's, unused."""
    values = parts.first.values
    count = values.get(f"{values.get('general.architecture')}.nextn_predict_layers")
    if not isinstance(count, int) or count < 1:
        return []
    # The shape's reader has checked that it is below the number of layers.
    prefixes = tuple(f"blk.{layer}." for layer in range(layers, layers + count))
    return [name for name in parts.tensors if name.startswith(prefixes)]


def _match(parts: GgufParts, family: Family, spec: ModelSpec) -> dict[str, Stored]:
    path = parts.first.path
    entries = {
        name: FileTensor(file, tensor.offset, READABLE.get(tensor.kind, tensor.kind), tensor.shape)
        for name, (file, tensor) in parts.tensors.items()
    }
    missing = (
        f"the metadata asks for {spec.layers} layers and so {len(spec.tensor_names())} tensors"
    )
    entries = _with_scales(entries)
    files = Files(entries, str(path), missing, tuple(READABLE))
    files.ignore(f"{name}.weight" for name in ROPE_FACTORS)
    files.ignore(_further_tokens(parts, spec.layers))
    tensors = {}
    for name in spec.tensor_names():
        tensor = spec.tensor(name)
        recipe = family.gguf_tensors.get(tensor.part)
        if recipe is None:
            raise ModelError(f"Hearth does not know how {family.name} GGUF files store {name}")
        tensors[name] = find(files, spec, tensor, recipe)
    left = files.left()
    if left:
        raise ModelError(
            f"{path}: tensor {left[0]} does not belong to a {family.name} model of {spec.layers} "
            f"layers ({len(left)} such tensors); the result would be wrong without it"
        )
    return tensors
