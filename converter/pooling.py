"""The pooling that a model's files name: how its hidden states become one vector of a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json, read_value
from hearth.converter.shown import shown

# Mean of all positions; the first position; the last one.
POOLINGS = ("mean", "cls", "last")

MODULES = "modules.json"
_MAX_MODULES = 16
# Of modules.json: types that need nothing beyond the model itself.
_PLAIN = ("Transformer", "Normalize")
# Settings of sentence-transformers' pooling, and the names here.
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
# Values of GGUF's pooling_type (llama.cpp); 0 is none.
_GGUF = {0: "", 1: "mean", 2: "cls", 3: "last"}


@dataclass(frozen=True, slots=True)
class Pooling:
    """kind: one of POOLINGS; "" where the files name none.

    problem: why the vectors of this model cannot be computed; "" where they can.
    """

    kind: str = ""
    problem: str = ""


def pooling_of_directory(directory: Path) -> Pooling:
    """The pooling by sentence-transformers' modules.json.

    Never raises: a damaged file only means that the model makes no vectors.
    """
    path = directory / MODULES
    if not path.is_file():
        return Pooling()
    try:
        return _of_modules(directory, path)
    except ModelError as error:
        return Pooling(problem=str(error))


def _of_modules(directory: Path, path: Path) -> Pooling:
    kind = ""
    modules = read_value(path)
    if not isinstance(modules, list) or len(modules) > _MAX_MODULES:
        raise ModelError(f"{MODULES} is not a list of at most {_MAX_MODULES} modules")
    for module in modules:
        name = str(module.get("type")) if isinstance(module, dict) else ""
        name = name.rpartition(".")[2]
        if name == "Pooling":
            kind = _mode(read_json(_inside(directory, module) / "config.json"))
        elif name not in _PLAIN:
            return Pooling(problem=f"{MODULES} asks for a module {shown(name)}")
    return Pooling(kind)


def _inside(directory: Path, module: dict[str, Any]) -> Path:
    name = module.get("path")
    if not isinstance(name, str) or Path(name).name != name:
        raise ModelError(f"{MODULES} has a module in {shown(name)}, which is not a directory of it")
    return directory / name


def _mode(config: dict[str, Any]) -> str:
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        wanted = ", ".join(map(shown, chosen)) or "none"
        raise ModelError(f"its pooling is {wanted}; Hearth has mean, cls and last")
    return _MODES[chosen[0]]


def pooling_of_gguf(value: object) -> Pooling:
    """The pooling by a GGUF file's ARCHITECTURE.pooling_type, which may be absent (None)."""
    if value is None:
        return Pooling()
    if isinstance(value, int) and value in _GGUF:
        return Pooling(_GGUF[value])
    return Pooling(problem=f"its pooling_type is {shown(value)}; Hearth has 1 (mean), 2, 3")
