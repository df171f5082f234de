"""`hearth worker`: serves one root at a time until a signal stops it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Command, Option, Options

_PARENT_SECONDS = 0.25
_COMPUTING = "Cores, memory and disk"


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "worker",
        run,
        [*_serving(), *_computing(), *common.security()],
        help="Give this machine's memory and cores to a root, until it is stopped.",
        one_of=(common.EXCLUSIVE_SECURITY,),
    )


def _serving() -> common.Params:
    return [
        Option(
            "--listen",
            metavar="HOST:PORT",
            read=common.address(common.WORKER_PORT),
            default=f"127.0.0.1:{common.WORKER_PORT}",
            group=common.SERVING,
            help="address to serve; 0.0.0.0:7717 for other machines, port 0 for any free one",
        ),
        Option(
            "--name",
            metavar="NAME",
            group=common.SERVING,
            shown="the host's name",
            help="name in messages and metrics",
        ),
        common.metrics(),
        common.health(),
        common.log_format(),
        Option(
            "--mesh-port",
            read=common.port,
            metavar="PORT",
            default=0,
            group=common.SERVING,
            shown="any free one",
            help="port for the other ranks' syncs; name it for a firewall",
        ),
        Option(
            "--announce",
            is_flag=True,
            group=common.SERVING,
            help="announce this worker on the LAN by mDNS (root: --workers-mdns)",
        ),
        Option(
            "--lease-grace",
            read=common.seconds,
            metavar="S",
            default=2.0,
            group=common.SERVING,
            help="how long a root may be disconnected before its shard is freed",
        ),
        Option(
            "--drain-seconds",
            read=common.seconds,
            metavar="S",
            default=20.0,
            group=common.SERVING,
            help="how long, after SIGTERM, the root may take to continue without this worker; "
            "where the others have no room for its part, running requests may finish",
        ),
        Option(
            "--exit-with-parent",
            type=int,
            is_flag=False,
            flag_value=0,
            metavar="[PID]",
            group=common.SERVING,
            help="stop when the process that started this one has ended (PID: its id)",
        ),
    ]


def _computing() -> common.Params:
    return [
        Option(
            "--threads",
            read=common.threads,
            metavar="N",
            shown="all",
            group=_COMPUTING,
            help="threads to compute with",
        ),
        Option(
            "--pin",
            read=common.cores,
            metavar="CORES",
            group=_COMPUTING,
            help="cores to compute on: 0,1 or 0-3",
        ),
        common.device(_COMPUTING),
        Option(
            "--memory-limit",
            read=common.size,
            metavar="SIZE",
            shown="the free memory",
            group=_COMPUTING,
            help="most bytes for weights and KV cache",
        ),
        Option(
            "--cache-dir",
            metavar="DIR",
            default=str(common.default_cache_dir()),
            group=_COMPUTING,
            help="directory that keeps weight slices for the next start; none keeps none",
        ),
        Option(
            "--cache-limit",
            read=common.size,
            metavar="SIZE",
            group=_COMPUTING,
            help="most bytes of slices to keep",
        ),
        *common.kv_cache(_COMPUTING),
    ]


def run(options: Options) -> int:
    """Serves until SIGTERM or SIGINT; 0. Raises HearthError when it cannot start."""
    # Late: `hearth worker --help` needs neither gRPC nor the core.
    from hearth.cli.stopping import StopSignals
    from hearth.common import logging as hearth_logging
    from hearth.common import system
    from hearth.common.channels import format_address, split_address
    from hearth.common.devices import check_devices
    from hearth.common.metrics import WorkerMetrics
    from hearth.worker.greeting import greet
    from hearth.worker.server import WorkerServer

    hearth_logging.setup(json_lines=options.log_format == "json")
    if options.log_format == "json":
        output.notes_as_log()
    system.keep_message_memory()
    stop = StopSignals()
    common.check_threads(options.threads)
    check_devices([options.device])
    if options.exit_with_parent is not None:
        _watch_parent(options.exit_with_parent or os.getppid(), stop.requested)
    security = common.credentials(options, "listen", "metrics", role="worker")
    metrics = WorkerMetrics()
    server = WorkerServer(
        options.listen,
        threads=options.threads,
        cache_dir=None if options.cache_dir == "none" else Path(options.cache_dir).expanduser(),
        cache_limit=options.cache_limit,
        page_dir=common.page_dir(options),
        page_limit=options.kv_cache_size,
        memory_limit=options.memory_limit,
        name=options.name,
        pin=options.pin or (),
        device=options.device,
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
        output.line(f"hearth worker listening on {format_address(host, port)}")
        greet(options.listen, port, server.describe())
        stop.wait()
    finally:
        if announcement is not None:
            announcement.stop()
        server.leave(options.drain_seconds, stop.hurry)
        server.stop()
        metrics.stop()
    return 0


def _watch_parent(parent: int, stop: threading.Event) -> None:
    """Sets `stop` when the process `parent`, which started this one, has ended."""
    from hearth.common import system

    def watch() -> None:
        while not stop.wait(_PARENT_SECONDS):
            if system.parent_left(parent):
                stop.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
