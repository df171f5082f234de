"""A Hugging Face Llama directory: config.json, one or several safetensors files, a tokenizer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile, check_pointer
from hearth.converter.hf_config import read_config, read_json
from hearth.converter.model import FileModel, StoredTensor, TokenizerSource
from hearth.converter.readers.names import huggingface_name
from hearth.converter.readers.safetensors_file import Header, TensorEntry, read_header
from hearth.converter.spec import ModelSpec, is_norm
from hearth.converter.tokenizers import load_tokenizer, tokenizer_files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_MAX_SHARDS = 4096

# Entries of older exports besides the weights.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

_PREFIX = "model."
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPARED_BYTES = 4 << 20

Kind = Callable[[str, TensorEntry, Header], tuple[str, tuple[int, ...]]]
Entry = tuple[OpenFile, TensorEntry, Header]
Entries = dict[str, Entry]


def open_huggingface(directory: Path, weights: str | None) -> FileModel:
    """Open a Hugging Face directory.

    Raises:
        ModelError: a file is absent or damaged, a tensor is missing or misshapen, or the model is
            not supported.
    """
    config = read_config(directory)
    for _, path in tokenizer_files(directory):
        _check_pointer(path)
    tensors, files = open_tensors(directory, config.spec, _kind)
    source = TokenizerSource(
        load=lambda: load_tokenizer(directory, config.bos_id, config.eos_ids),
        files=lambda: dict(tokenizer_files(directory)),
        bos_id=config.bos_id,
        eos_ids=config.eos_ids,
    )
    return FileModel(config.spec, weights, tensors, files, source)


def _check_pointer(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            check_pointer(path, stream.read(64))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _kind(name: str, entry: TensorEntry, header: Header) -> tuple[str, tuple[int, ...]]:
    if entry.dtype not in _KINDS:
        raise ModelError(
            f"tensor {name} is {entry.dtype}, which Hearth can't read; types it reads here: "
            f"{', '.join(_KINDS)}"
        )
    return _KINDS[entry.dtype], entry.shape


def open_tensors(
    directory: Path, spec: ModelSpec, kind_of: Kind
) -> tuple[dict[str, StoredTensor], list[OpenFile]]:
    """Find every tensor of `spec` in a directory's safetensors files.

    kind_of: (name, entry, header) -> (the type it is stored in, its shape in elements).
    Returns the tensors by Hearth's names, and the open files.
    """
    files: list[OpenFile] = []
    try:
        entries: Entries = {}
        for path in weight_files(directory):
            file = OpenFile(path)
            files.append(file)
            header = read_header(file)
            for name, entry in header.tensors.items():
                if name in entries:
                    raise ModelError(f"tensor {name} is in {entries[name][0].path} and in {path}")
                entries[name] = file, entry, header
        return _match(directory, spec, entries, kind_of), files
    except BaseException:
        for file in files:
            file.close()
        raise


def _match(
    directory: Path,
    spec: ModelSpec,
    entries: Entries,
    kind_of: Kind,
) -> dict[str, StoredTensor]:
    tensors = {}
    entries = _with_prefix(entries)
    if spec.tied:
        _tie(directory, entries)
    for name in spec.tensor_names():
        stored_name = huggingface_name(name)
        found = entries.pop(stored_name, None)
        if found is None:
            raise ModelError(
                f"{directory}: tensor {stored_name} is missing; config.json asks for "
                f"{spec.layers} layers, {'a tied' if spec.tied else 'an untied'} head, and so "
                f"{len(spec.tensor_names())} tensors"
            )
        file, entry, header = found
        kind, shape = kind_of(stored_name, entry, header)
        rows, columns = spec.tensor_shape(name)
        wanted = (columns,) if is_norm(name) else (rows, columns)
        if shape != wanted:
            raise ModelError(
                f"{file.path}: tensor {stored_name} has shape {list(shape)}, but config.json makes "
                f"it {list(wanted)}; the two belong to different models"
            )
        tensors[name] = StoredTensor(file, entry.offset, kind, rows, columns)
    unknown = sorted(name for name in entries if not name.endswith(_IGNORED_SUFFIXES))
    if unknown:
        raise ModelError(
            f"{directory}: tensor {unknown[0]} does not belong to a Llama model of {spec.layers} "
            f"layers ({len(unknown)} such tensors); the result would be wrong without it"
        )
    return tensors


def _with_prefix(entries: Entries) -> Entries:
    """Entries by the names of a model with a head; some files hold the model below it alone."""
    if _EMBEDDING in entries or _EMBEDDING.removeprefix(_PREFIX) not in entries:
        return entries
    return {n if n == _HEAD else _PREFIX + n: entry for n, entry in entries.items()}


def _tie(directory: Path, entries: Entries) -> None:
    """Leave the embedding alone of a tied model, which may be stored as either or as both."""
    head = entries.pop(_HEAD, None)
    if head is None:
        return
    embedding = entries.setdefault(_EMBEDDING, head)
    if embedding is not head and not _same_bytes(embedding, head):
        raise ModelError(
            f"{directory}: by config.json the head is the embedding (tie_word_embeddings), but "
            f"{_HEAD} and {_EMBEDDING} differ; set it to false if the head is trained, else "
            f"remove {_HEAD}"
        )


def _same_bytes(one: Entry, two: Entry) -> bool:
    (file, entry, _), (other_file, other, _) = one, two
    if (entry.dtype, entry.shape, entry.size) != (other.dtype, other.shape, other.size):
        return False
    for begin in range(0, entry.size, _COMPARED_BYTES):
        size = min(_COMPARED_BYTES, entry.size - begin)
        first = file.read(entry.offset + begin, size)
        if not np.array_equal(first, other_file.read(other.offset + begin, size)):
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
                f"{index_path} names {name!r}, which is not a safetensors file beside it"
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
