"""Arguments of forced calls by their schema, for forms that put commas between them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hearth.root.api.tools.formats.base import Schema
from hearth.root.engine.structure.constraint import MAX_BYTES
from hearth.root.engine.structure.grammar import Piece, Shared

# Keywords that limit nothing.
_NOTES = {"type", "title", "description", "default", "examples", "deprecated"}
_ALTERNATIVES = {"$ref", "anyOf", "oneOf", "allOf"}
_REFERENCE = '"$ref"'
# Optional properties of an object without required ones.
_MOST_OPTIONAL = 32


def is_plain(given: Schema, kind: str, *keywords: str) -> bool:
    """Test whether a schema takes every value of one type, but for limits by these keywords."""
    return given.get("type") == kind and not given.keys() - _NOTES - {*keywords}


def with_definitions(given: Schema, schema: Schema) -> dict[str, Any]:
    """The schema of one argument, with what its references name."""
    return {**given, **(_definitions(schema) if _REFERENCE in json.dumps(given) else {})}


def _definitions(schema: Schema) -> dict[str, Any]:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def copies_too_much(schema: Schema) -> bool:
    """Test whether definitions, copied for each reference, would pass a constraint's size."""
    copies = json.dumps(schema.get("properties")).count(_REFERENCE)
    return copies * len(json.dumps(_definitions(schema))) > MAX_BYTES


def properties_of(schema: Schema) -> tuple[dict[str, Schema], dict[str, Schema]] | None:
    """The schemas of required properties and of the others.

    None where they are alternatives, or so many optional ones alone that `with_commas` would write
    their square.
    """
    properties = schema.get("properties")
    if schema.keys() & _ALTERNATIVES and not properties:
        return None
    required = schema.get("required")
    listed = required if isinstance(required, Sequence) else ()
    needed: dict[str, Schema] = {}
    others: dict[str, Schema] = {}
    for key, given in properties.items() if isinstance(properties, Mapping) else ():
        kind = needed if key in listed else others
        kind[key] = given if isinstance(given, Mapping) else {}
    return (needed, others) if needed or len(others) <= _MOST_OPTIONAL else None


def with_commas(
    needed: Sequence[Sequence[Piece]], others: Sequence[Sequence[Piece]], comma: str
) -> list[Piece]:
    """Lark for all of `needed`, then any of `others`, each in order. comma: Lark between two."""
    if not needed:
        parts = [Shared(tuple(each)) for each in others]
        found: list[Piece] = []
        for number, first in enumerate(parts):
            found += ["|" if found else "(", first, *_each_or_none(parts[number + 1 :], comma)]
        return [*found, ")?"] if found else []
    found = [*needed[0]]
    for each in needed[1:]:
        found += [comma, *each]
    return [*found, *_each_or_none([Shared(tuple(each)) for each in others], comma)]


def _each_or_none(parts: Sequence[Piece], comma: str) -> list[Piece]:
    return [piece for part in parts for piece in ("(", comma, part, ")?")]
