"""`hearth config`: shows the settings files, and what they and the environment set."""

from __future__ import annotations

import os

import click

from hearth.cli import output
from hearth.cli.command import Argument, Command, Options
from hearth.cli.commands import COMMANDS, known_variables, load
from hearth.cli.variables import complaint, suspects
from hearth.common.settings import SYSTEM_FILE, from_environment, settings_files, user_file
from hearth.common.terminal import one_line

# Settings whose value is not shown.
_SECRET = ("--api-key",)


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "config",
        run,
        [
            Argument(
                "name",
                type=click.Choice(list(COMMANDS)),
                required=False,
                metavar="[COMMAND]",
                help="the command whose settings are shown (default: all)",
            )
        ],
        help="Show the settings files, and what they and the environment set. The command line "
        "overrides the environment, which overrides the files.",
        computes=False,
    )


def run(options: Options) -> int:
    """Print files and settings; 0. Raises HearthError for a file that cannot be read."""
    files = settings_files(options.config)
    for path in (file.path for file in files):
        output.line(f"file {path}")
    if not files:
        output.line(f"no settings file: {user_file(os.environ)} and {SYSTEM_FILE} do not exist")
    known = known_variables()
    for name in suspects(os.environ, known):
        output.line(one_line(complaint(name, known)))
    for name in [options.name] if options.name else COMMANDS:
        for option in load(name).settings():
            found = from_environment(option.setting_names, os.environ)
            for file in files:
                found = found or file.find(name, option.setting_names)
            if found is not None:
                text = found.text if isinstance(found.text, str) else " ".join(found.text)
                shown = "(hidden)" if option.long_name in _SECRET else text
                output.line(f"{name} {option.long_name} {shown}  ({found.origin})")
    return 0
