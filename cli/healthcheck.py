"""`hearth healthcheck`: reads a --health port; for container engines, so it starts fast."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from hearth.cli import output
from hearth.cli.command import Argument, Command, Option, Options
from hearth.cli.options import number
from hearth.common.terminal import one_line

_MAX_ANSWER_BYTES = 1024
# Of an error's text, which quotes what came.
_MAX_PROBLEM = 200
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def command() -> Command:
    """The subcommand and its options."""
    group = "Check"
    return Command(
        "healthcheck",
        run,
        [
            Argument(
                "address",
                required=False,
                metavar="[HOST:PORT]",
                help="the service's --health port (default: HEARTH_HEALTH)",
            ),
            Option(
                "--liveness",
                is_flag=True,
                group=group,
                help="check only that the process answers, in any state of its cluster",
            ),
            Option(
                "--timeout",
                read=number,
                default=3.0,
                metavar="S",
                group=group,
                help="how long to wait for the answer",
            ),
        ],
        help="Exit with 0 when a service is ready, else with 1.",
        computes=False,
    )


def run(options: Options) -> int:
    """0 when the service is ready. Raises HearthError when it is not, or does not answer."""
    import http.client

    from hearth.common.errors import HearthError, Reason

    address = options.address or os.environ.get("HEARTH_HEALTH")
    if not address:
        problem = "give the HOST:PORT of the service's --health, or set HEARTH_HEALTH"
        raise HearthError(Reason.BAD_SETTING, problem)
    # A service that listens on every address is reached over the loopback.
    host, _, port = address.rpartition(":")
    target = f"{_ANYWHERE.get(host, host)}:{port}"
    path = "/livez" if options.liveness else "/readyz"
    try:
        status, state = _answer(target, path, options.timeout)
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        why = str(error)[:_MAX_PROBLEM] or type(error).__name__
        problem = f"no answer from the health port {target}: {why}"
        raise HearthError(Reason.UNREACHABLE, problem) from None
    if status != http.HTTPStatus.OK:
        raise HearthError(Reason.CLUSTER_NOT_READY, f"{target} answers {status}: {state}")
    output.line(one_line(state))
    return 0


def _answer(target: str, path: str, seconds: float) -> tuple[int, str]:
    """Status and text of an answer that is whole within `seconds`. Raises OSError, HTTPException.

    A socket's own limit is for each read: bytes that drip would go on for ever.
    """
    import http.client
    import threading

    end = time.monotonic() + seconds
    overdue = TimeoutError(f"not a whole one within {seconds:g} s")
    connection = http.client.HTTPConnection(target, timeout=seconds)
    connection.connect()
    late = threading.Timer(max(0.0, end - time.monotonic()), _shut, (connection.sock,))
    late.daemon = True
    late.start()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        state = response.read(_MAX_ANSWER_BYTES).decode("latin-1").strip()
    except (OSError, http.client.HTTPException):
        if time.monotonic() < end:
            raise
        raise overdue from None
    finally:
        late.cancel()
        connection.close()
    if time.monotonic() >= end:
        raise overdue
    return response.status, state


def _shut(connection: socket.socket) -> None:
    """Ends the reads of a connection."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
