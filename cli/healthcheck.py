"""`hearth healthcheck`: reads a --health port; for container engines, so it starts fast."""

from __future__ import annotations

import os
from typing import Any

from hearth.cli.command import Argument, Command, Option, Options
from hearth.cli.options import number

# The messages of grpc.health.v1 are so small that nothing is needed to read them: field 1.
_CHECK = "/grpc.health.v1.Health/Check"
_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
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
    )


def run(options: Options) -> int:
    """0 when the service is ready. Raises HearthError when it is not, or does not answer."""
    import grpc

    from hearth.common.errors import HearthError, Reason

    address = options.address or os.environ.get("HEARTH_HEALTH")
    if not address:
        problem = "give the HOST:PORT of the service's --health, or set HEARTH_HEALTH"
        raise HearthError(Reason.BAD_SETTING, problem)
    # A service that listens on every address is reached over the loopback.
    host, _, port = address.rpartition(":")
    target = f"{_ANYWHERE.get(host, host)}:{port}"
    request = b"\x0a\x08liveness" if options.liveness else b""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            check: Any = channel.unary_unary(_CHECK)  # bytes in, bytes out
            answer: bytes = check(request, timeout=options.timeout)
        except grpc.RpcError as error:
            problem = (
                f"no answer from the health port {target}: {error.details() or error.code().name}"
            )
            raise HearthError(Reason.UNREACHABLE, problem) from None
    state = _STATES.get(answer[1] if answer[:1] == b"\x08" and len(answer) > 1 else 0, "UNKNOWN")
    if state != "SERVING":
        raise HearthError(Reason.CLUSTER_NOT_READY, f"{target} says {state}")
    print(state)
    return 0
