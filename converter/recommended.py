"""The sampling that a model's makers recommend in generation_config.json."""

from collections.abc import Callable, Mapping
from pathlib import Path

from hearth.converter.hf_config import read_json

# Settings, and the values that make sense.
_SETTINGS: Mapping[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value <= 100,
    "top_k": lambda value: 0 <= value < 1 << 32 and value == int(value),
    "top_p": lambda value: 0 < value <= 1,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 10,
}


def recommended_sampling(directory: Path) -> Mapping[str, float]:
    """The settings by name; those out of range recommend nothing, nor does an absent file.

    Raises ModelError for a file that is damaged.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return {}
    given = read_json(path)
    found: dict[str, float] = {}
    for name, makes_sense in _SETTINGS.items():
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and makes_sense(value):
            found[name] = value
    return found
