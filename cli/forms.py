"""The form of an answer that the options of a command ask for: a schema, a grammar, a regex."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from hearth.cli.command import Options
from hearth.common.errors import HearthError, Reason


class Form(TypedDict, total=False):
    """A form by its language, as the client's options are named."""

    json_schema: str
    grammar: str
    regex: str


def form_of(options: Options) -> Form:
    """One of json_schema, grammar and regex with its text; empty for any text.

    Raises HearthError BAD_SETTING for a file that cannot be read, and a schema that is not JSON.
    """
    if options.json_schema is not None:
        text = options.json_schema
        if not text.lstrip().startswith("{"):
            text = _content(text, "--json-schema", "; a schema itself begins with {")
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _wrong(f"--json-schema is not JSON: {error}") from None
        return {"json_schema": text}
    if options.grammar is not None:
        return {"grammar": _content(options.grammar, "--grammar")}
    if options.regex is not None:
        return {"regex": options.regex}
    return {}


def _content(path: str, option: str, hint: str = "") -> str:
    # Late: most commands need nothing of the root.
    from hearth.root.engine.structure.constraint import MAX_BYTES

    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _wrong(f"{option}: cannot read {path[:200]!r}: {reason}{hint}") from None
    if len(content) > MAX_BYTES:
        raise _wrong(f"{option}: {path!r} has more than {MAX_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _wrong(f"{option}: {path!r} is not UTF-8 at byte {error.start}") from None


def _wrong(problem: str) -> HearthError:
    return HearthError(Reason.BAD_SETTING, problem)
