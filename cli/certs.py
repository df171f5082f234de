"""`hearth certs`: a cluster's certificate authority, certificates, join token and API keys.

Files that exist stay: a second `init` completes a directory, or does nothing. After `init --force`
the old files no longer open anything.
"""

from __future__ import annotations

from pathlib import Path

import click

from hearth.cli import output
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
                type=click.Choice(["init", "add", "revoke"]),
                metavar="ACTION",
                help="init: make the missing files; add: one more certificate; revoke: take one "
                "back",
            ),
            Argument("directory", metavar="DIR", help="the directory to complete"),
            Argument(
                "name",
                metavar="[NAME]",
                required=False,
                help="of add and revoke: the folder in DIR; of revoke also a serial number",
            ),
            Option(
                "--role",
                choices=("client", "operator", "monitor", "worker", "root"),
                default="client",
                group=_FILES,
                help="of add: what the holder may do",
            ),
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
        "DIR/worker, DIR/client, DIR/operator and DIR/monitor, and DIR/api-keys. Files that exist "
        "stay as they are. add makes one more certificate in DIR/NAME; revoke takes that of "
        "DIR/NAME back.",
        computes=False,
    )


def run(options: Options) -> int:
    """Print the files that were made; 0. Raises HearthError."""
    from hearth.common.errors import HearthError, Reason

    if (options.action == "init") == bool(options.name):
        problem = "write `hearth certs init DIR`, `certs add DIR NAME` or `certs revoke DIR NAME`"
        raise HearthError(Reason.BAD_SETTING, problem)
    directory = Path(options.directory)
    try:
        {"init": _init, "add": _add, "revoke": _revoke}[options.action](directory, options)
    except OSError as error:
        problem = f"cannot write {error.filename or directory}: {error.strerror or error}"
        raise HearthError(Reason.BAD_SETTING, problem) from None
    return 0


def _init(directory: Path, options: Options) -> None:
    from hearth.common.pki import describe, make

    made = make(directory, options.host, options.days, options.force)
    for path in made:
        output.line(str(path))
    if not made:
        output.note(f"{directory} is complete (--force replaces its files):")
        for line in describe(directory):
            output.note(f"  {line}")
        return
    output.note(_NEXT.format(directory=directory))


_NEXT = """
Copy, to where it is named with --tls:
  {directory}/root      to the machine of the root
  {directory}/worker    to each worker
  {directory}/client    to each machine that sends requests
  {directory}/operator  to those who may also drain workers
  {directory}/monitor   to Prometheus
Keep {directory}/ca.key here, and nowhere else."""


def _add(directory: Path, options: Options) -> None:
    from hearth.common.certificates import Role
    from hearth.common.pki import add

    for path in add(directory, options.name, Role(options.role), options.host, options.days):
        output.line(str(path))


def _revoke(directory: Path, options: Options) -> None:
    from hearth.common.pki import revoke

    serial, written = revoke(directory, options.name)
    for path in written:
        output.line(str(path))
    output.note(
        f"certificate {serial:x} is revoked. Copy crl.pem beside ca.crt of the root and of each "
        "worker; no restart is needed"
    )
