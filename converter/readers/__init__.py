"""Readers of model formats, and `open_model`, which chooses among them."""

from importlib import resources
from pathlib import Path

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json
from hearth.converter.hub import cached_model, parse_name
from hearth.converter.model import Model
from hearth.converter.readers.gguf_file import MAGIC
from hearth.converter.readers.gguf_parts import part_names
from hearth.converter.readers.hearth import is_hearth_config, open_hearth
from hearth.converter.readers.huggingface import open_huggingface
from hearth.converter.readers.random import PREFIX, SHAPES, open_random

DEMO = "demo"
_MOST_LISTED = 24


def open_model(source: str, weights: str | None = None, pre: str | None = None) -> Model:
    """Open a model for reading; no weights are loaded.

    source: a Hugging Face or Hearth directory, a .gguf file (or a directory with one), or a name:
    "demo" (the model that comes with Hearth), "random:SHAPE[:SEED]", or one in the Hugging Face
    cache.
    weights: the type to load tensors in ("f32", "f16", "q80", "q40"); None for their stored types.
    pre: the rules that split a text, for a GGUF file that does not name them, or names others.

    Raises:
        ModelError: it cannot be found, read or run; the message gives the reason.
    """
    if source.startswith(PREFIX):
        _no_rules(pre, source)
        return open_random(source, weights)
    path = _path_of(source)
    if path.is_dir():
        return _open_directory(path, weights, pre)
    if not path.is_file():
        raise ModelError(f"there is no model at {source!r}; {_hint(source)}")
    if path.suffix == ".gguf" or _begins_with_magic(path):
        return _open_gguf(path, weights, pre)
    raise ModelError(
        f"{path} is not a GGUF file; for safetensors give the directory that also holds config.json"
    )


def _path_of(source: str) -> Path:
    """The path of a model: itself, the demo model's, or its place in the Hugging Face cache."""
    path = Path(source)
    if not source or path.exists():
        return path
    return demo_directory() if source == DEMO else cached_model(source) or path


def _hint(source: str) -> str:
    """Advice for a model that is not there."""
    try:
        parse_name(source)
    except ModelError:
        return (
            f"give a directory, a .gguf file, OWNER/MODEL as on Hugging Face, {DEMO!r}, or "
            f"{PREFIX}SHAPE with one of {', '.join(SHAPES)}"
        )
    return f"no such path, and not in the Hugging Face cache: `hearth pull {source}` downloads it"


def demo_directory() -> Path:
    """Path of the model that comes with Hearth. Raises ModelError where it is not installed."""
    try:
        # A namespace package has several possible homes; the first that holds the model counts.
        for root in resources.files("hearth.models").iterdir():
            if root.name == DEMO and isinstance(root, Path) and (root / "config.json").is_file():
                return root
    except (ModuleNotFoundError, FileNotFoundError, NotADirectoryError):
        pass
    raise ModelError("the demo model is not part of this installation; give a path instead")


def _open_directory(path: Path, weights: str | None, pre: str | None) -> Model:
    config = path / "config.json"
    if config.is_file():
        raw = read_json(config)
        _no_rules(pre, str(path))
        return (open_hearth if is_hearth_config(raw) else open_huggingface)(path, weights)
    models = _gguf_models(path)
    if len(models) == 1:
        return _open_gguf(models[0], weights, pre)
    if models:
        shown = ", ".join(file.name for file in models[:_MOST_LISTED])
        more = f", ... ({len(models) - _MOST_LISTED} more)" if len(models) > _MOST_LISTED else ""
        raise ModelError(f"{path} holds {len(models)} GGUF models; name one: {shown}{more}")
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"{path} holds an adapter, not a model; merge it into its model first")
    raise ModelError(f"{path} holds neither a config.json nor a .gguf file")


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


def _no_rules(pre: str | None, source: str) -> None:
    if pre is not None:
        raise ModelError(f"--pre {pre} is for GGUF files; {source} has a tokenizer of another kind")


def _begins_with_magic(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
