"""`hearth worker`: serves one root at a time until a signal stops it."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

from hearth.cli import options as common

_PARENT_SECONDS = 0.25


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the subcommand's options."""
    parser = subparsers.add_parser("worker", help="give this machine's memory and cores to a root")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:7717",
        help="address to serve; 0.0.0.0:7717 for other machines, port 0 for any free one "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=common.threads,
        metavar="N",
        help="threads to compute with (default: all)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        default=str(default_cache_dir()),
        help="directory that keeps weight slices for the next start; none keeps none "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--cache-limit", type=common.size, metavar="SIZE", help="most bytes of slices to keep"
    )
    parser.add_argument(
        "--memory-limit",
        type=common.size,
        metavar="SIZE",
        help="most bytes for weights and KV cache (default: the free memory)",
    )
    parser.add_argument("--name", help="name in messages and metrics (default: the host's name)")
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve Prometheus metrics on this address"
    )
    common.add_security(parser)
    common.add_health(parser)
    parser.add_argument(
        "--pin",
        type=common.cores,
        metavar="CORES",
        help="cores to compute on: 0,1 or 0-3",
    )
    parser.add_argument(
        "--mesh-port",
        type=common.port,
        metavar="PORT",
        default=0,
        help="port for the other ranks' syncs (default: any free one; name it for a firewall)",
    )
    parser.add_argument(
        "--announce",
        action="store_true",
        help="announce this worker on the LAN by mDNS (root: --workers-mdns)",
    )
    parser.add_argument(
        "--lease-grace",
        type=common.seconds,
        metavar="SECONDS",
        default=2.0,
        help="how long a root may be disconnected before its shard is freed (default: %(default)s)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=common.seconds,
        metavar="S",
        default=20.0,
        help="how long, after SIGTERM, the root may take to continue without this worker; where "
        "the others have no room for its part, running requests may finish (default: %(default)s)",
    )
    parser.add_argument(
        "--exit-with-parent",
        type=int,
        nargs="?",
        const=0,
        metavar="PID",
        help="stop when the process that started this one has ended (PID: its id)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; 0. Raises HearthError when it cannot start."""
    # Late: `hearth worker --help` needs neither gRPC nor the core.
    from hearth.cli.stopping import StopSignals
    from hearth.common import logging as hearth_logging
    from hearth.common import system
    from hearth.common.channels import format_address, split_address
    from hearth.common.metrics import WorkerMetrics
    from hearth.worker.server import WorkerServer

    hearth_logging.setup()
    system.keep_message_memory()
    stop = StopSignals()
    if options.exit_with_parent is not None:
        _watch_parent(options.exit_with_parent or os.getppid(), stop.requested)
    security = common.security(options, "listen", "metrics")
    metrics = WorkerMetrics()
    server = WorkerServer(
        options.listen,
        threads=options.threads,
        cache_dir=None if options.cache_dir == "none" else Path(options.cache_dir).expanduser(),
        cache_limit=options.cache_limit,
        memory_limit=options.memory_limit,
        name=options.name,
        pin=options.pin or (),
        metrics=metrics,
        lease_grace=options.lease_grace,
        mesh_port=options.mesh_port,
        security=security,
        insecure=options.insecure,
        health_address=options.health or None,
    )
    port = server.start()
    announcement = None
    try:
        if options.metrics:
            metrics.serve(options.metrics, security, options.insecure)
        if options.announce:
            from hearth.worker.announce import Announcement

            announcement = Announcement(options.listen, port, server.name, server.instance)
        host, _ = split_address(options.listen)
        print(f"hearth worker listening on {format_address(host, port)}", flush=True)
        stop.wait()
    finally:
        if announcement is not None:
            announcement.stop()
        server.leave(options.drain_seconds, stop.hurry)
        server.stop()
        metrics.stop()
    return 0


def default_cache_dir() -> Path:
    """The default folder of this user's slices."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache")) / "hearth" / "slices"


def _watch_parent(parent: int, stop: threading.Event) -> None:
    """Sets `stop` when this process has been handed to another parent."""

    def watch() -> None:
        while not stop.wait(_PARENT_SECONDS):
            if os.getppid() != parent:
                stop.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
