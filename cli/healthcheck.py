"""`hearth healthcheck`: reads a --health port; for container engines, so it starts fast."""

from __future__ import annotations

import os

from hearth.cli import output
from hearth.cli.command import Argument, Command, Option, Options
from hearth.cli.options import number

_MAX_ANSWER_BYTES = 1024
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
    try:
        connection = http.client.HTTPConnection(target, timeout=options.timeout)
        connection.request("GET", "/livez" if options.liveness else "/readyz")
        response = connection.getresponse()
        state = response.read(_MAX_ANSWER_BYTES).decode("latin-1").strip()
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        problem = f"no answer from the health port {target}: {error or type(error).__name__}"
        raise HearthError(Reason.UNREACHABLE, problem) from None
    if response.status != http.HTTPStatus.OK:
        problem = f"{target} answers {response.status}: {state}"
        raise HearthError(Reason.CLUSTER_NOT_READY, problem)
    output.line(state)
    return 0
