"""`hearth root`: serves a model to clients, alone or with workers, until a signal stops it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.cli import options as common

if TYPE_CHECKING:
    from hearth.root.settings import Joining


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the subcommand's options."""
    parser = subparsers.add_parser("root", help="serve a model to clients")
    common.add_model(parser)
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:7716",
        help="address to serve; 0.0.0.0:7716 for other machines (default: %(default)s)",
    )
    common.add_cluster(parser)
    common.add_local_nodes(parser)
    common.add_health(parser)
    parser.add_argument(
        "--api-keys",
        metavar="FILE",
        help="file of lines NAME KEY: only clients with one of these keys may call",
    )
    parser.add_argument(
        "--sequences",
        type=common.count,
        default=4,
        metavar="N",
        help="sequences of full context that the KV cache has room for (default: %(default)s)",
    )
    parser.add_argument(
        "--workers-dns",
        metavar="NAME:PORT",
        default="",
        help="use the workers that this DNS name lists, as it changes",
    )
    parser.add_argument(
        "--workers-mdns",
        action="store_true",
        help="use the workers that announce themselves on the LAN (hearth worker --announce)",
    )
    parser.add_argument(
        "--min-workers",
        type=int,
        metavar="N",
        help="serve as soon as N workers have joined (default: all of --workers; else 1)",
    )
    parser.add_argument(
        "--join-seconds",
        type=common.seconds,
        default=60.0,
        metavar="S",
        help="how long to wait for absent workers at the start (default: %(default)s)",
    )
    parser.add_argument(
        "--wait-seconds",
        type=common.seconds,
        default=30.0,
        metavar="S",
        help="how long to wait for a lost worker before the model is divided over the others "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--pause-seconds",
        type=common.seconds,
        default=300.0,
        metavar="S",
        help="how long requests wait for a cluster that has lost a worker (default: %(default)s)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=common.seconds,
        default=10.0,
        metavar="S",
        help="how long running requests may take to finish after SIGTERM (default: %(default)s)",
    )
    parser.add_argument(
        "--story",
        metavar="FILE",
        default="",
        help="append what happens to workers, and each decision, as JSON lines for a bug report "
        "(about 10 MB a day)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 0. Raises HearthError when it cannot start."""
    from hearth.cli.session import open_session
    from hearth.cli.stopping import StopSignals
    from hearth.common import logging as hearth_logging
    from hearth.common.channels import format_address, split_address
    from hearth.common.security import ApiKeys
    from hearth.root.app import serving
    from hearth.root.settings import Serving

    hearth_logging.setup()
    settings = Serving(
        listen=options.listen,
        joining=_joining(options),
        security=common.security(options, "listen", "metrics"),
        api_keys=ApiKeys(Path(options.api_keys)) if options.api_keys else None,
        insecure=options.insecure,
        health=options.health or None,
        shutdown_seconds=options.drain_seconds,
    )
    host, _ = split_address(options.listen)
    stop = StopSignals(exits=True)
    with open_session(
        options, sequences=options.sequences, form=False, pause_seconds=options.pause_seconds
    ) as session:
        with serving(session.core, settings) as port:
            stop.ready = True
            print(f"hearth root listening on {format_address(host, port)}", flush=True)
            stop.wait()
    return 0


def _joining(options: argparse.Namespace) -> Joining:
    from hearth.common.errors import HearthError, Reason
    from hearth.root.settings import Joining

    if options.shares is not None and (options.workers_dns or options.workers_mdns):
        problem = "--shares needs a static list: give --workers, and a share for each of them"
        raise HearthError(Reason.BAD_SETTING, problem)
    return Joining(
        dns=options.workers_dns,
        mdns=options.workers_mdns,
        min_workers=options.min_workers,
        join_seconds=options.join_seconds,
        wait_seconds=options.wait_seconds,
        story=options.story,
    )
