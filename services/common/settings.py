"""Options from the environment: HEARTH_CACHE_DIR sets the default of `--cache-dir`.

The command line overrides the environment, which overrides the option's default.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hearth.common.errors import HearthError, Reason

PREFIX = "HEARTH_"
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


def variable(action: argparse.Action) -> str | None:
    """The environment variable of an option, or None for positional arguments and --help."""
    names = [name for name in action.option_strings if name.startswith("--")]
    if not names or isinstance(action, argparse._HelpAction | argparse._VersionAction):
        return None
    return PREFIX + names[0][2:].replace("-", "_").upper()


def apply_environment(
    parser: argparse.ArgumentParser,
    environ: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> None:
    """Gives each option of `parser` its default from `environ`, and names the variable in its help.

    List options are separated by spaces or commas; flags take 1/0, true/false, yes/no, on/off.
    If one of several exclusive options is in `arguments`, the others stay unset. A hidden option
    is a former name of the first option with its `dest`, whose own variable takes precedence.
    Call it once, after adding all options. Raises HearthError BAD_SETTING naming the variable.
    """
    environ = os.environ if environ is None else environ
    for action in parser._actions:
        name = variable(action)
        if name is None:
            continue
        if action.help is not argparse.SUPPRESS:
            action.help = f"{action.help or ''} [{name}]".strip()
        text = environ.get(name)
        if text is None or _excluded(parser, action, arguments):
            continue
        shown = _shown(parser, action)
        if shown is not action and variable(shown) in environ:
            continue
        try:
            shown.default = _value(action, text)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            problem = f"{name}={text!r} is not a value for {action.option_strings[-1]}: {error}"
            raise HearthError(Reason.BAD_SETTING, problem, {"variable": name}) from None
        shown.required = False
        for group in parser._mutually_exclusive_groups:
            if text and shown in group._group_actions:
                group.required = False


def _shown(parser: argparse.ArgumentParser, action: argparse.Action) -> argparse.Action:
    """The current option for a hidden former name; any other option itself."""
    if action.help is not argparse.SUPPRESS:
        return action
    return next(other for other in parser._actions if other.dest == action.dest)


def _excluded(
    parser: argparse.ArgumentParser, action: argparse.Action, arguments: Sequence[str]
) -> bool:
    """True if an option that excludes `action` was given."""
    given = {argument.partition("=")[0] for argument in arguments}
    return any(
        not given.isdisjoint(other.option_strings)
        for group in parser._mutually_exclusive_groups
        if action in group._group_actions
        for other in group._group_actions
        if other is not action
    )


def _value(action: argparse.Action, text: str) -> Any:
    if action.nargs == 0:
        return _flag(action, text)
    if action.nargs in ("*", "+") or (isinstance(action.nargs, int) and action.nargs > 1):
        values = [_one(action, part) for part in re.split(r"[\s,]+", text) if part]
        if not values and action.nargs != "*":
            raise ValueError("at least one value is needed")
        if isinstance(action.nargs, int) and len(values) != action.nargs:
            raise ValueError(f"{len(values)} values, expected {action.nargs}")
        return values
    value = _one(action, text)
    return [value] if isinstance(action, argparse._AppendAction) else value


def _flag(action: argparse.Action, text: str) -> Any:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("write 1 or 0, true or false")
    if isinstance(action, argparse.BooleanOptionalAction):
        return word in _TRUE
    return action.const if word in _TRUE else action.default


def _one(action: argparse.Action, text: str) -> Any:
    convert = action.type
    value = convert(text) if callable(convert) else text
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"choose from {', '.join(map(str, action.choices))}")
    return value
