"""Numbers of a config.json or of GGUF metadata, read with their types checked."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.shown import shown

_MISSING: Any = object()


class Settings:
    """Settings by key. A key whose value is null counts as absent.

    prefix: before every key, in the file and in errors. label: before the key in errors.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "", label: str = "") -> None:
        self.values = values
        self._prefix = prefix
        self._label = label

    def __contains__(self, key: str) -> bool:
        return self.values.get(self._prefix + key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is in the file."""
        value = self.values.get(self._prefix + key)
        return default if value is None else value

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """A whole number. Raises ModelError where it is absent (without a default) or another."""
        value = self._value(key, default)
        if isinstance(value, list) and value:
            # Some writers list a number of each layer even where all are equal.
            if any(item != value[0] for item in value):
                raise ModelError(
                    f"{self.name(key)} is {shown(value)}: it differs from layer to layer; Hearth "
                    "runs models of this family whose layers all have the same"
                )
            value = value[0]
        return self._whole(key, value)

    def integers(self, key: str, count: int, default: Any = _MISSING) -> tuple[int, ...]:
        """A whole number for each of `count` layers: a list, or one number for all."""
        value = self._value(key, default)
        values = value if isinstance(value, list) else [value] * count
        if len(values) < count:
            raise ModelError(f"{self.name(key)} has {len(values)} numbers for {count} layers")
        return tuple(self._whole(key, item) for item in values[:count])

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number. Raises ModelError as `integer`."""
        return checked_number(self._value(key, default), self.name(key))

    def numbers(self, key: str, default: Any = _MISSING) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._value(key, default)
        if not isinstance(value, (list, tuple)):
            raise ModelError(f"{self.name(key)} is not a list of numbers")
        return tuple(checked_number(item, self.name(key)) for item in value)

    def numbered(self, key: str) -> frozenset[int]:
        """A list of layers by their numbers; empty where it is absent."""
        value = self.get(key, [])
        if not isinstance(value, list):
            raise ModelError(f"{self.name(key)} is {shown(value)}; a list of layers is needed")
        return frozenset(self._whole(key, item) for item in value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.name(key)} is {shown(value)}; true or false is needed")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.name(key)} is {shown(value)}; a text is needed")
        return value

    def texts(self, key: str, count: int, default: Any = _MISSING) -> tuple[str, ...]:
        """A string for each of `count` layers."""
        value = self._value(key, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ModelError(f"{self.name(key)} is {shown(value)}; a list of texts is needed")
        if len(value) < count:
            raise ModelError(f"{self.name(key)} has {len(value)} texts for {count} layers")
        return tuple(value[:count])

    def section(self, key: str) -> "Settings":
        """Settings within an object; empty where it is absent."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise ModelError(f"{self.name(key)} is {shown(value)}; an object is needed")
        return Settings(value, "", f"{self._label}{self._prefix}{key}.")

    def refuse(self, key: str, *allowed: Any, why: str) -> None:
        """Raise ModelError unless the value is absent or one of `allowed`."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise ModelError(f"{self.name(key)} is {shown(value)}; {why}")

    def name(self, key: str) -> str:
        """The key as errors show it."""
        return f"{self._label}{self._prefix}{key}"

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise ModelError(f"{self.name(key)} is missing")
        return default

    def _whole(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelError(f"{self.name(key)} is {shown(value)}; a whole number is needed")
        if not -(1 << 63) <= value < 1 << 64:
            raise ModelError(f"{self.name(key)} is {shown(value)}; at most 64 bits are read")
        return value


class GgufSettings(Settings):
    """Metadata of a GGUF file under the name of its architecture."""

    def number(self, key: str, default: Any = _MISSING) -> float:
        # The shortest decimal of an f32: 1e-5 stored as f32 is 1e-5 and not 9.99999974e-06.
        value = super().number(key, default)
        return float(str(np.float32(value))) if abs(value) < 3e38 else value


def checked_number(value: Any, name: str) -> float:
    """`value` as a float. Raises ModelError unless it is a finite number."""
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number):
        raise ModelError(f"{name} is {shown(value)}; a number is needed")
    return number
