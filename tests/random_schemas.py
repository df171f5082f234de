"""Random JSON Schemas whose documents are of limited length."""

from __future__ import annotations

from typing import Any

import numpy as np

Schema = dict[str, Any]

_WORDS = ("name", "age", "tags", "größe", "a b", 'quote"d', "x", "street", "id", "list")


def random_schema(seed: int) -> Schema:
    """An object; the same for the same seed."""
    random = np.random.default_rng(seed)
    node = {"type": "object", "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}}}
    made = _object(random, 2)
    if seed % 5 == 0:
        made["properties"]["node"] = {"$ref": "#/$defs/node"}
        made["required"] = [*made["required"], "node"]
        made["$defs"] = {"node": {**node, "required": ["v"], "additionalProperties": False}}
    return made


def _object(random: np.random.Generator, depth: int) -> Schema:
    names = random.choice(_WORDS, size=random.integers(1, 4), replace=False).tolist()
    required = [name for name in names if random.random() < 0.7]
    return {
        "type": "object",
        "properties": {name: _value(random, depth) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _value(random: np.random.Generator, depth: int) -> Schema:
    low = int(random.integers(-100, 100))
    leaves: list[Schema] = [
        {"type": "string", "maxLength": int(random.integers(0, 12))},
        {"type": "string", "minLength": 2, "maxLength": 6},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        {"type": "string", "format": "date"},
        {"type": "integer", "minimum": low, "maximum": low + int(random.integers(0, 1000))},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", "größer", 3, None]},
        {"const": {"fixed": [1, 2]}},
    ]
    if depth and random.random() < 0.5:
        match int(random.integers(3)):
            case 0:
                return _object(random, depth - 1)
            case 1:
                least = int(random.integers(0, 2))
                items = _value(random, depth - 1)
                return {"type": "array", "items": items, "minItems": least, "maxItems": 3}
            case _:
                return {"anyOf": [_value(random, depth - 1), {"type": "boolean"}]}
    return leaves[int(random.integers(len(leaves)))]
