"""`hearth certs init`: makes a cluster's certificate authority, certificates, join token, API key.

Files that exist stay: a second run completes a directory, or does nothing. After `--force` the old
files no longer open anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_DAYS = 3650


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand's options."""
    parser = subparsers.add_parser(
        "certs",
        help="make the certificates and the join token of a cluster",
        description="Makes DIR/ca.crt and DIR/ca.key, a directory for --tls in each of DIR/root, "
        "DIR/worker and DIR/client, and DIR/api-keys. Files that exist stay as they are.",
    )
    parser.add_argument("action", choices=("init",), help="init: make the missing files")
    parser.add_argument("directory", metavar="DIR", type=Path, help="the directory to complete")
    parser.add_argument(
        "--host",
        nargs="+",
        metavar="NAME_OR_IP",
        default=[],
        help="more names and addresses for the certificates of root and workers; Hearth itself "
        "needs none",
    )
    parser.add_argument(
        "--days",
        type=int,
        default=_DAYS,
        metavar="N",
        help="how long the certificates are valid (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace the files that exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the files that were made; 0. Raises HearthError."""
    from hearth.common.errors import HearthError, Reason
    from hearth.common.pki import make

    if not 1 <= options.days <= 36_500:
        raise HearthError(Reason.BAD_SETTING, f"--days {options.days} is not in 1 .. 36500")
    try:
        made = make(options.directory, options.host, options.days, options.force)
    except OSError as error:
        problem = f"cannot write {error.filename or options.directory}: {error.strerror or error}"
        raise HearthError(Reason.BAD_SETTING, problem) from None
    for path in made:
        print(path)
    if not made:
        print(
            f"nothing to do: {options.directory} is complete (--force replaces its files)",
            file=sys.stderr,
        )
    return 0
