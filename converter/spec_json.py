"""A ModelSpec as JSON, as a Hearth directory holds it, and back."""

import dataclasses
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from hearth.converter.blocks import MIXERS
from hearth.converter.errors import ModelError
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec

# Names a mixer's kind, beside its numbers.
_KIND = "mixer"


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """The spec as an object of JSON."""
    return _encode(spec)  # type: ignore[no-any-return]


def spec_from_json(raw: object) -> ModelSpec:
    """The spec of an object that `spec_to_json` made. Raises ModelError for any other."""
    spec = _decode(ModelSpec, raw, "spec")
    assert isinstance(spec, ModelSpec)
    return spec


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    found = {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for name, kind in MIXERS.items():
        if isinstance(value, kind):
            found[_KIND] = name
    return found


def _decode(kind: Any, value: object, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        classes = [option for option in options if option is not type(None)]
        return _decode(classes[0] if len(classes) == 1 else _tagged(value, where), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ModelError(f"{where} is not a list")
        return tuple(_decode(get_args(kind)[0], item, where) for item in value)
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ModelError(f"{where} is a number of {value.bit_length()} bits") from None
    if type(value) is not kind:
        raise ModelError(f"{where} is {shown(value)}; {kind.__name__} is needed")
    return value


def _tagged(value: object, where: str) -> Any:
    """The class of a mixer."""
    name = value.get(_KIND) if isinstance(value, dict) else None
    if name not in MIXERS:
        raise ModelError(f"{where} is a mixer {shown(name)}; Hearth runs {', '.join(MIXERS)}")
    return MIXERS[name]


def _decode_object(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ModelError(f"{where} is not an object")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = value.keys() - fields.keys() - {_KIND}
    if unknown:
        # Made by a newer Hearth: without it the model would be another.
        raise ModelError(f"{where} has {shown(min(unknown))}, which this Hearth does not know")
    found = {
        name: _decode(hints[name], value[name], f"{where}.{name}")
        for name in fields
        if name in value
    }
    try:
        return kind(**found)
    except TypeError:
        missing = min(
            name
            for name, field in fields.items()
            if name not in value and field.default is dataclasses.MISSING
        )
        raise ModelError(f"{where}.{missing} is missing") from None
