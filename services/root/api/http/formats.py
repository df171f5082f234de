"""The form that a request wants its answer in: JSON, a schema, a choice, a regex, a grammar.

The fields of OpenAI, Anthropic, vLLM and llama.cpp's server have names of their own, so that each
is read wherever it stands. Ollama's `format` is a text on other faces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.engine.structure import grammar
from hearth.root.engine.structure.constraint import Constraint, Kind

_MAX_CHOICES = 1000


def constraint_of(body: Fields) -> Constraint | None:
    """The constraint of a request; None for any text. Raises HttpError, HearthError."""
    found = list(_constraints(body))
    if len(found) > 1:
        names = " and ".join(each.field for each in found[:2])
        raise bad_request(f"{names} are both given; an answer has one form", found[1].field)
    return found[0] if found else None


def constraint_of_ollama(body: Fields) -> Constraint | None:
    """Ollama's `format`: "json" or a JSON Schema."""
    given = body.raw("format")
    if given in (None, ""):
        return None
    if given == "json":
        return Constraint(Kind.JSON_OBJECT, field="format")
    if not isinstance(given, dict):
        raise body.wrong("format", given, '"json" or a JSON Schema')
    return _schema(given, "format")


def _constraints(body: Fields) -> Iterator[Constraint]:
    if body.has("response_format"):
        yield from _form(body, "response_format")
    for name in ("text", "output_config"):  # (`text` is a string in other requests)
        inner = body.child(name) if isinstance(body.values.get(name), dict) else None
        if inner is not None and inner.has("format"):
            yield from _form(inner, "format")
    if body.has("output_format"):
        yield from _form(body, "output_format")
    yield from _words(body, "guided_")
    if outputs := body.child("structured_outputs"):
        yield from _words(outputs, "")
    if body.has("json_schema"):
        yield _schema(body.raw("json_schema"), "json_schema")
    if body.text("grammar"):
        yield Constraint(Kind.GRAMMAR, body.text("grammar"), field="grammar")


def _form(outer: Fields, name: str) -> Iterator[Constraint]:
    """A format with a type: OpenAI's, in both of its shapes, Anthropic's and llama.cpp's."""
    form = outer.child(name)
    if form is None:
        return
    kind = form.text("type", "text")
    inner = form.child("json_schema") or form
    match kind:
        case "text":
            return
        case "json_object" if not inner.has("schema"):
            yield Constraint(Kind.JSON_OBJECT, field=outer.place(name))
        case "json_object" | "json_schema":
            place = inner.place("schema")
            if not inner.has("schema"):
                raise bad_request(f"{place} is missing; give a JSON Schema", place)
            yield _schema(inner.raw("schema"), place)
        case _:
            place = form.place("type")
            raise bad_request(
                f"{place} is {kind[:40]!r}; it must be text, json_object or json_schema", place
            )


def _words(fields: Fields, prefix: str) -> Iterator[Constraint]:
    """vLLM's: a field for each kind."""
    if fields.raw(f"{prefix}json") is not None:
        yield _schema(fields.raw(f"{prefix}json"), fields.place(f"{prefix}json"))
    if fields.flag(f"{prefix}json_object"):
        yield Constraint(Kind.JSON_OBJECT, field=fields.place(f"{prefix}json_object"))
    for name in ("regex", "grammar"):
        if text := fields.text(prefix + name):
            yield Constraint(Kind(name), text, field=fields.place(prefix + name))
    if fields.has(f"{prefix}choice"):
        yield _choice(fields, f"{prefix}choice")


def _choice(fields: Fields, name: str) -> Constraint:
    place = fields.place(name)
    texts = fields.items(name)
    if not 1 <= len(texts) <= _MAX_CHOICES:
        problem = f"{place} has {len(texts)} texts; it must have 1 to {_MAX_CHOICES}"
        raise bad_request(problem, place)
    if not all(isinstance(text, str) and text for text in texts):
        raise bad_request(f"{place} must be a list of strings that are not empty", place)
    rule = " | ".join(grammar.literal(text, {}) for text in texts)
    return Constraint(Kind.GRAMMAR, f"start: {rule}\n", field=place)


def _schema(given: Any, place: str) -> Constraint:
    """A JSON Schema: an object, or, as vLLM allows, the text of one."""
    if isinstance(given, bool | dict):
        given = json.dumps(given, ensure_ascii=False)
    if not isinstance(given, str):
        raise bad_request(f"{place} is not a JSON Schema, which is an object", place)
    return Constraint(Kind.JSON_SCHEMA, given, field=place)
