"""Options for the form of an answer: what they read, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hearth.cli.forms import form_of
from hearth.common.errors import HearthError


def options(**given: str) -> Any:
    return SimpleNamespace(**{"json_schema": None, "grammar": None, "regex": None, **given})


def test_texts_and_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text('{"type": "object"}')
    assert form_of(options()) == {}
    for given in (str(file), '{"type": "object"}'):
        assert form_of(options(json_schema=given)) == {"json_schema": '{"type": "object"}'}
    assert form_of(options(grammar=str(file))) == {"grammar": '{"type": "object"}'}
    assert form_of(options(regex="a+")) == {"regex": "a+"}


def test_what_is_refused(tmp_path: Path) -> None:
    large, binary = tmp_path / "large", tmp_path / "binary"
    large.write_bytes(b"a" * ((256 << 10) + 1))
    binary.write_bytes(b"ab\xff")
    for given, problem in (
        ({"json_schema": '{"a": '}, "--json-schema is not JSON"),
        ({"json_schema": str(tmp_path / "none")}, "--json-schema: cannot read .* begins with {"),
        ({"json_schema": "a\0b"}, "--json-schema: cannot read"),
        ({"grammar": str(tmp_path)}, "--grammar: cannot read"),
        ({"grammar": str(large)}, "has more than 262144 bytes"),
        ({"grammar": str(binary)}, "not UTF-8 at byte 2"),
    ):
        with pytest.raises(HearthError, match=problem):
            form_of(options(**given))
