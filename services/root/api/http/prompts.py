"""Prompts of completions and embeddings: texts, token ids, both in one, or a list of them."""

from __future__ import annotations

from typing import Any

from hearth.root.api.http.conversations import text_of
from hearth.root.api.http.errors import HttpError, bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.prompt import Input, Pieces, Prompt, TokenIds

_EXPECTED = "a string, token ids, both in a list, or a list of them"


def prompts_of(body: Fields, name: str, most: int) -> list[Input]:
    """The prompts of a field, `most` at most. Raises HttpError.

    A list with a token id is one prompt, as in llama.cpp's server; any other list is of prompts.
    """
    given = body.values.get(name)
    if not isinstance(given, list):
        return [_prompt(given, name, body)]
    if any(map(_is_id, given)):
        return [_sequence(given, name)]
    if not given:
        raise bad_request(f"{name} is an empty list; it must be {_EXPECTED}", name)
    if len(given) > most:
        raise bad_request(f"{len(given)} prompts were given; at most {most} are", name)
    return [_prompt(each, f"{name}[{index}]", body) for index, each in enumerate(given)]


def _prompt(given: Any, place: str, body: Fields) -> Input:
    match given:
        case str():
            return Prompt(given)
        case list() if given:
            return _sequence(given, place)
        case dict():
            return Prompt(_text(Fields(given, place)))
    raise _wrong(given, place, body)


def _text(fields: Fields) -> str:
    """The text of an object. Raises HttpError."""
    if fields.raw("multimodal_data"):
        place = fields.place("multimodal_data")
        raise bad_request(f"{place} is given, and this model reads text only", place)
    if fields.has("prompt_string"):
        return fields.text("prompt_string")
    parts = list(fields.objects("content"))
    if not parts:
        place = fields.place("prompt_string")
        raise bad_request(f"{place} is missing; it is the text of the prompt", place)
    return "".join(text_of(Fields({"content": [part.values]}, "")) for part in parts)


def _sequence(given: list[Any], place: str) -> Input:
    """Token ids and texts, one after the other. Raises HttpError."""
    if all(map(_is_id, given)):
        return TokenIds(tuple(given))
    if all(isinstance(each, str) or _is_id(each) for each in given):
        return Pieces(tuple(given))
    raise bad_request(f"{place} must have token ids and strings only", place)


def _wrong(given: object, place: str, body: Fields) -> HttpError:
    name = place.partition("[")[0]
    if place == name:
        return body.wrong(name, given, _EXPECTED)
    return bad_request(f"{place} must be {_EXPECTED.removesuffix(', or a list of them')}", place)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
