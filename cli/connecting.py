"""A client of a running root, as the options --root, --tls, --api-key and the like ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hearth.cli import output
from hearth.cli.command import Options
from hearth.common.terminal import one_line

if TYPE_CHECKING:
    from hearth.client import Client


def connect(options: Options) -> Client:
    """The client; it dials with its first call. Raises HearthError."""
    from hearth.client import Client

    key = _api_key(options)
    if options.tls:
        _check_certificate(Path(options.tls), key is not None)
    return Client(
        options.root,
        tls=options.tls or None,
        api_key=key,
        insecure=options.insecure,
    )


def show_waiting(reason: str) -> None:
    """Says on standard error why no text comes; for `on_waiting` of `generate`."""
    text = reason if reason.startswith("waiting ") else f"waiting: {reason}"
    text = text if reason else "the cluster is ready again"
    output.note(f"\n[{one_line(text)}]")


def _api_key(options: Options) -> str | None:
    """The key of --api-key-file, or of --api-key or its variable."""
    from hearth.common.errors import HearthError, Reason
    from hearth.common.key_files import check_mode, read_file

    if "api_key" in options.given:
        output.note(
            "warning: every user of this machine can see the key of --api-key in the process "
            "list; use HEARTH_API_KEY or --api-key-file"
        )
    if not options.api_key_file:
        return options.api_key or None
    if options.api_key:
        raise HearthError(Reason.BAD_SETTING, "give --api-key or --api-key-file, not both")
    path = Path(options.api_key_file)
    check_mode(path)
    return _first_key(path, read_file(path))


def _first_key(path: Path, data: bytes) -> str:
    """The key in a file that holds nothing else, or the first one of a file for --api-keys."""
    from hearth.common.api_keys import key_lines
    from hearth.common.key_files import bad_file, check_secret

    for number, words in key_lines(data):
        key = words[min(1, len(words) - 1)]
        check_secret(f"{path}, line {number}: the key", key, path)
        return key
    raise bad_file(f"{path} holds no API key", path)


def _check_certificate(directory: Path, with_key: bool) -> None:
    """Refuses a certificate in words that a root would refuse by a handshake."""
    from hearth.common.certificates import Role, check_directory
    from hearth.common.identity import read_pair
    from hearth.common.key_files import check_mode

    check_mode(directory / "tls.key")
    if with_key and (directory / "ca.crt").exists() and not (directory / "tls.crt").exists():
        return  # with an API key, the authority is enough
    check_directory(directory, (Role.CLIENT, Role.OPERATOR, Role.ROOT))
    read_pair(directory)
