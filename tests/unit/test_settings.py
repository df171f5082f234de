"""Options from the environment, and sizes as people write them."""

from __future__ import annotations

import argparse
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.cli.options import add_max_tokens
from hearth.common.errors import HearthError, Reason
from hearth.common.settings import apply_environment
from hearth.common.sizes import format_size, parse_size


def parsed(environ: dict[str, str], *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache-dir", default="here")
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", nargs="*", default=[])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", choices=["q40", "f16"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=False)
    apply_environment(parser, environ)
    return parser.parse_args(arguments)


def test_the_command_line_wins_over_the_environment_over_the_default() -> None:
    assert parsed({}, "--model", "m").cache_dir == "here"
    assert parsed({"HEARTH_CACHE_DIR": "there"}, "--model", "m").cache_dir == "there"
    both = parsed({"HEARTH_CACHE_DIR": "there"}, "--model", "m", "--cache-dir", "elsewhere")
    assert both.cache_dir == "elsewhere"


def test_required_options_can_come_from_the_environment() -> None:
    assert parsed({"HEARTH_MODEL": "demo"}).model == "demo"


def one_of_two(environ: dict[str, str], *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--model")
    group.add_argument("--root")
    apply_environment(parser, environ, arguments)
    return parser.parse_args(arguments)


def test_one_of_several_can_come_from_the_environment() -> None:
    assert one_of_two({"HEARTH_ROOT": "here:1"}).root == "here:1"
    other = one_of_two({"HEARTH_ROOT": "here:1"}, "--model", "demo")
    assert (other.model, other.root) == ("demo", None)
    for environ in ({}, {"HEARTH_ROOT": ""}):
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            one_of_two(environ)


@pytest.mark.parametrize("text", ["a:1 b:2", "a:1,b:2", " a:1 , b:2 "])
def test_lists(text: str) -> None:
    assert parsed({"HEARTH_MODEL": "m", "HEARTH_WORKERS": text}).workers == ["a:1", "b:2"]


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_flags(text: str, value: bool) -> None:
    options = parsed({"HEARTH_MODEL": "m", "HEARTH_JSON": text, "HEARTH_PIN": text})
    assert options.json is value
    assert options.pin is value


@pytest.mark.parametrize(
    ("name", "text"),
    [("HEARTH_THREADS", "many"), ("HEARTH_WEIGHTS", "q13"), ("HEARTH_JSON", "perhaps")],
)
def test_a_bad_value_names_its_variable(name: str, text: str) -> None:
    with pytest.raises(HearthError, match=f"{name}={text!r}") as error:
        parsed({"HEARTH_MODEL": "m", name: text})
    assert error.value.reason == Reason.BAD_SETTING


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("4GiB", 4 << 30),
        ("1.5 GB", 1_500_000_000),
        ("300m", 300_000_000),
        ("2ki", 2048),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0


@given(st.integers(0, 1 << 50))
def test_what_is_shown_can_be_read_back_to_within_its_digits(size: int) -> None:
    shown = format_size(size)
    back = parse_size(shown)
    assert abs(back - size) <= max(1, size) * 0.06


def renamed(environ: dict[str, str], *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_max_tokens(parser, "tokens to make")
    assert "--steps" not in parser.format_help()
    apply_environment(parser, environ, arguments)
    assert "STEPS" not in parser.format_help()
    return int(parser.parse_args(arguments).max_tokens)


def test_a_former_name_still_works_and_the_new_one_wins() -> None:
    assert renamed({}) == 0
    assert renamed({}, "--max-tokens", "3") == renamed({}, "--steps", "3") == 3
    assert renamed({"HEARTH_STEPS": "4"}) == renamed({"HEARTH_MAX_TOKENS": "4"}) == 4
    assert renamed({"HEARTH_STEPS": "4", "HEARTH_MAX_TOKENS": "5"}) == 5
    assert renamed({"HEARTH_STEPS": "4", "HEARTH_MAX_TOKENS": "5"}, "--steps", "6") == 6
    with pytest.raises(HearthError, match="HEARTH_STEPS='many'"):
        renamed({"HEARTH_STEPS": "many"})
