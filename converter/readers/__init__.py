"""Readers of model formats, and `open_model`, which chooses among them."""

import difflib
from pathlib import Path

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json
from hearth.converter.hub import cached_model, cached_names, parse_name
from hearth.converter.model import Model
from hearth.converter.names import names_of
from hearth.converter.packaged import NAMES, packaged_model
from hearth.converter.readers.dllama import MAGICS, SUFFIX, open_dllama
from hearth.converter.readers.gguf_file import MAGIC
from hearth.converter.readers.gguf_parts import part_names
from hearth.converter.readers.hearth import is_hearth_config, open_hearth
from hearth.converter.readers.huggingface import open_huggingface
from hearth.converter.readers.random import PREFIX, open_random
from hearth.converter.readers.shapes import SHAPES

LITGPT_CONFIG = "model_config.yaml"
# Names of checkpoints in nanoGPT's output, the first that is there.
CHECKPOINTS = ("ckpt.pt", "model.pt")
_CHECKPOINT_SUFFIXES = (".pt", ".pth")
_MOST_LISTED = 24


def open_model(
    source: str,
    weights: str | None = None,
    pre: str | None = None,
    tokenizer: str | None = None,
) -> Model:
    """Open a model for reading; no weights are loaded.

    source: a Hugging Face or Hearth directory, a .gguf or .m file (or a directory with one), or a
    name: "demo" (the model that comes with Hearth), "smollm2" (a packaged assistant),
    "random:SHAPE[@LAYERS][:SEED]", or one in the Hugging Face cache.
    weights: a type or a mix of converter/mixes.py to load tensors in; None for their stored types.
    pre: the rules that split a text, for a GGUF file that does not name them, or names others.
    tokenizer: the tokenizer's file, for a .m file with several beside it.

    Raises:
        ModelError: it cannot be found, read or run; the message gives the reason.
    """
    if source.startswith(PREFIX):
        _no_rules(pre, source)
        _no_tokenizer(tokenizer, source)
        return open_random(source, weights)
    path = _path_of(source)
    model = _open(source, path, weights, pre, tokenizer)
    model.name(names_of(source, path.absolute(), model.spec.name))
    return model


def _open(
    source: str, path: Path, weights: str | None, pre: str | None, tokenizer: str | None
) -> Model:
    if path.is_dir():
        path = _file_in(path)
    if path.is_dir() or path.suffix in _CHECKPOINT_SUFFIXES:
        _no_rules(pre, str(path))
        _no_tokenizer(tokenizer, str(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            return _open_litgpt(path, weights)
        own = is_hearth_config(read_json(path / "config.json"))
        return (open_hearth if own else open_huggingface)(path, weights)
    if not path.is_file():
        raise ModelError(f"there is no model at {source!r}; {_hint(source)}")
    magic = _magic(path)
    if path.suffix in _CHECKPOINT_SUFFIXES:
        beside = path.with_name(LITGPT_CONFIG).is_file()
        return _open_litgpt(path.parent, weights) if beside else _open_checkpoint(path, weights)
    if path.suffix == SUFFIX or magic in MAGICS:
        chosen = Path(tokenizer) if tokenizer is not None else None
        return open_dllama(path, weights, pre, chosen)
    _no_tokenizer(tokenizer, str(path))
    if path.suffix == ".gguf" or magic == MAGIC:
        return _open_gguf(path, weights, pre)
    raise ModelError(
        f"{path} is not a GGUF file or a dllama model; for safetensors give the directory that "
        "also holds config.json"
    )


def _path_of(source: str) -> Path:
    """The path of a model: itself, a packaged one's, or its place in the Hugging Face cache."""
    path = Path(source)
    if not source or path.exists():
        return path
    return packaged_model(source) or cached_model(source) or path


def _hint(source: str) -> str:
    """Advice for a model that is not there."""
    names = [*NAMES, *(name for name, _ in cached_names())]
    close = difflib.get_close_matches(source, names, 1)
    return (f"did you mean {close[0]}? Else " if close else "") + _advice(source)


def _advice(source: str) -> str:
    """The names that a model may have, or how to download it."""
    try:
        parse_name(source)
    except ModelError:
        return (
            f"give a directory, a .gguf or {SUFFIX} file, OWNER/MODEL as on Hugging Face (`hearth "
            f"pull OWNER/MODEL` downloads one), "
            f"{', '.join(map(repr, NAMES))}, or {PREFIX}SHAPE with one of {', '.join(SHAPES)}"
        )
    return f"no such path, and not in the Hugging Face cache: `hearth pull {source}` downloads it"


def _file_in(path: Path) -> Path:
    """The one model file of a directory; the directory itself where it has a configuration."""
    if (path / "config.json").is_file() or (path / LITGPT_CONFIG).is_file():
        return path
    models = _gguf_models(path) or sorted(path.glob(f"*{SUFFIX}"))
    if not models:
        models = [path / name for name in CHECKPOINTS if (path / name).is_file()][:1]
    if len(models) == 1:
        return models[0]
    if models:
        shown = ", ".join(file.name for file in models[:_MOST_LISTED])
        more = f", ... ({len(models) - _MOST_LISTED} more)" if len(models) > _MOST_LISTED else ""
        kind = "dllama" if models[0].suffix == SUFFIX else "GGUF"
        raise ModelError(f"{path} holds {len(models)} {kind} models; name one: {shown}{more}")
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"{path} holds an adapter, not a model; merge it into its model first")
    raise ModelError(f"{path} holds neither a config.json nor a .gguf or {SUFFIX} file")


def _gguf_models(directory: Path) -> list[Path]:
    """The GGUF models of a directory: of one in parts the first part that is there.

    Without image encoders (mmproj-*.gguf), which lie beside the models that they belong to.
    """
    models: dict[str, Path] = {}
    for file in sorted(directory.glob("*.gguf")):
        if not file.name.lower().startswith("mmproj"):
            models.setdefault(part_names(file.name)[0], file)
    return list(models.values())


def _open_gguf(path: Path, weights: str | None, pre: str | None) -> Model:
    from hearth.converter.readers.gguf import open_gguf  # late: it needs tokenizer libraries

    return open_gguf(path, weights, pre)


# What is imported late needs libraries of tokenizers or of YAML.
def _open_checkpoint(path: Path, weights: str | None) -> Model:
    from hearth.converter.readers.nanogpt import open_nanogpt

    return open_nanogpt(path, weights)


def _open_litgpt(path: Path, weights: str | None) -> Model:
    from hearth.converter.readers.litgpt import open_litgpt

    return open_litgpt(path, weights)


def _no_rules(pre: str | None, source: str) -> None:
    if pre is not None:
        raise ModelError(
            f"--pre {pre} is for GGUF and dllama files; {source} has a tokenizer of another kind"
        )


def _no_tokenizer(tokenizer: str | None, source: str) -> None:
    if tokenizer is not None:
        raise ModelError(
            f"--tokenizer {tokenizer} is for dllama's {SUFFIX} files; {source} has a tokenizer"
        )


def _magic(path: Path) -> bytes:
    """The first bytes of a file. Raises ModelError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(4)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
