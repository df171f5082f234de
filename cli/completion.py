"""`hearth completion`: prints the script that completes the words of `hearth` in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hearth.cli import output
from hearth.cli.command import Argument, Command, Options

_SHELLS = ("bash", "zsh", "fish")


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "completion",
        run,
        [Argument("shell", type=click.Choice(_SHELLS), metavar="SHELL", help="bash, zsh or fish")],
        help="Print the script that completes commands and options in a shell. For bash, put "
        '`eval "$(hearth completion bash)"` into ~/.bashrc.',
        computes=False,
    )


def run(options: Options) -> int:
    """Print the script; 0."""
    from hearth.cli.main import Hearth

    found = get_completion_class(options.shell)
    assert found is not None  # the choices are click's own
    output.line(found(Hearth(), {}, "hearth", "_HEARTH_COMPLETE").source())
    return 0
