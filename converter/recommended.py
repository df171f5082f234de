"""The sampling that a model's makers recommend, in generation_config.json or in a GGUF file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.hf_config import read_json

FILE = "generation_config.json"
# Settings, and the values that make sense.
_SETTINGS: Mapping[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value <= 100,
    "top_k": lambda value: 0 <= value < 1 << 32 and value == int(value),
    "top_p": lambda value: 0 < value <= 1,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 10,
}
# Their names in GGUF, which llama.cpp reads (common/common.cpp).
_GGUF = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def recommended_sampling(directory: Path) -> Mapping[str, float]:
    """The settings by name; those out of range recommend nothing, nor does an absent file.

    Raises ModelError for a file that is damaged.
    """
    path = directory / FILE
    return _sensible(read_json(path)) if path.is_file() else {}


def gguf_sampling(metadata: Mapping[str, Any]) -> Mapping[str, float]:
    """The settings of a GGUF file's metadata (general.sampling), as of `recommended_sampling`."""
    given = {}
    for name, key in _GGUF.items():
        value = metadata.get(f"general.sampling.{key}")
        # The shortest decimal of an f32: 0.95 and not 0.949999988.
        small = isinstance(value, float) and abs(value) < 1e30
        given[name] = float(str(np.float32(value))) if small else value
    return _sensible(given)


def sampling_file(settings: Mapping[str, float]) -> bytes:
    """A generation_config.json with these settings."""
    return (json.dumps(dict(settings), indent=2) + "\n").encode()


def _sensible(given: Mapping[str, Any]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for name, makes_sense in _SETTINGS.items():
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and makes_sense(value):
            found[name] = value
    return found
