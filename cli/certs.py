"""`hearth certs init`: makes a cluster's certificate authority, certificates, join token, API key.

Files that exist stay: a second run completes a directory, or does nothing. After `--force` the old
files no longer open anything.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hearth.cli.command import Argument, Command, Option, Options
from hearth.cli.options import whole

_DAYS = 3650
_FILES = "Files"


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "certs",
        run,
        [
            Argument(
                "action",
                type=click.Choice(["init"]),
                metavar="ACTION",
                help="init: make the missing files",
            ),
            Argument("directory", metavar="DIR", help="the directory to complete"),
            Option(
                "--host",
                several=True,
                metavar="NAME_OR_IP ...",
                group=_FILES,
                help="more names and addresses for the certificates of root and workers; "
                "Hearth itself needs none",
            ),
            Option(
                "--days",
                read=whole(1, 36_500),
                default=_DAYS,
                metavar="N",
                group=_FILES,
                help="how long the certificates are valid",
            ),
            Option("--force", is_flag=True, group=_FILES, help="replace the files that exist"),
        ],
        help="Make DIR/ca.crt and DIR/ca.key, a directory for --tls in each of DIR/root, "
        "DIR/worker and DIR/client, and DIR/api-keys. Files that exist stay as they are.",
    )


def run(options: Options) -> int:
    """Print the files that were made; 0. Raises HearthError."""
    from hearth.common.errors import HearthError, Reason
    from hearth.common.pki import make

    directory = Path(options.directory)
    try:
        made = make(directory, options.host, options.days, options.force)
    except OSError as error:
        problem = f"cannot write {error.filename or directory}: {error.strerror or error}"
        raise HearthError(Reason.BAD_SETTING, problem) from None
    for path in made:
        print(path)
    if not made:
        print(
            f"nothing to do: {directory} is complete (--force replaces its files)",
            file=sys.stderr,
        )
    return 0
