"""`hearth cluster`: shows what a running root and its workers are doing; takes a worker out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Argument, Command, Option, Options

if TYPE_CHECKING:
    from hearth.v1 import root_pb2


def command() -> Command:
    """The subcommand and its options."""
    drain = "Draining"
    return Command(
        "cluster",
        run,
        [
            Argument(
                "action",
                type=click.Choice(["drain"]),
                required=False,
                metavar="[ACTION]",
                help="drain: take a worker out on purpose; no request fails",
            ),
            Argument(
                "worker",
                required=False,
                metavar="[WORKER]",
                help="of drain: its HOST:PORT as shown, or its name",
            ),
            common.root(by_default=True),
            Option(
                "--watch", is_flag=True, group=common.OUTPUT, help="show it again at every change"
            ),
            Option("--json", is_flag=True, group=common.OUTPUT, help="print the message as JSON"),
            Option("--undo", is_flag=True, group=drain, help="let the worker in again"),
            Option(
                "--seconds",
                read=common.seconds,
                default=600.0,
                metavar="S",
                group=drain,
                help="how long dividing the model again may take",
            ),
            *common.client_security(),
        ],
        help="Show what a running root and its workers are doing; take a worker out.",
        one_of=(common.EXCLUSIVE_SECURITY,),
    )


def run(options: Options) -> int:
    """0 when the cluster serves, 3 when it does not."""
    from hearth.cli.connecting import connect
    from hearth.common.errors import HearthError, Reason
    from hearth.v1 import root_pb2

    if (options.action == "drain") != bool(options.worker):
        problem = "write `hearth cluster drain WORKER`, WORKER as `hearth cluster` shows it"
        raise HearthError(Reason.BAD_SETTING, problem)
    with connect(options) as client:
        if options.action == "drain":
            status = client.drain_worker(options.worker, undo=options.undo, timeout=options.seconds)
        else:
            status = client.cluster()
        _show(options, status)
        if options.watch:
            for status in client.watch_cluster():
                _show(options, status)
    return 0 if status.state == root_pb2.CLUSTER_STATE_SERVING else 3


def _show(options: Options, status: root_pb2.ClusterStatus) -> None:
    if options.json:
        from google.protobuf.json_format import MessageToJson

        output.line(MessageToJson(status, preserving_proto_field_name=True))
    else:
        output.line("\n".join(describe(status)))


def describe(status: root_pb2.ClusterStatus) -> list[str]:
    """The status as lines for people."""
    from hearth.common.sizes import format_size
    from hearth.v1 import common_pb2, root_pb2

    state = root_pb2.ClusterState.Name(status.state).removeprefix("CLUSTER_STATE_").lower()
    lane = common_pb2.Lane.Name(status.lane).removeprefix("LANE_").lower()
    sync = common_pb2.SyncType.Name(status.sync_type).removeprefix("SYNC_TYPE_").lower()
    reason = f": {status.reason}" if status.reason else ""
    lines = [f"{state}{reason} (plan {status.epoch}, lane {lane}, sync {sync})"]
    rows = [("rank", "node", "address", "state", "cores", "kernels", "weights", "KV heads")]
    for node in status.nodes:
        shard = node.shard
        heads = ""
        if shard.kinds:
            held = shard.kinds[0].attention.kv_heads
            heads = f"{held.begin}-{held.end - 1}"
        rows.append(
            (
                str(node.placement.rank),
                node.info.name,
                node.address,
                root_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower(),
                f"{node.info.threads}/{node.info.cores}",
                node.info.instruction_set,
                format_size(node.weight_bytes),
                heads,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    lines += [f"{node.address}: {node.reason}" for node in status.nodes if node.reason]
    lines += _peers(status)
    return lines + [f"note: {note}" for note in status.notes]


def _peers(status: root_pb2.ClusterStatus) -> list[str]:
    """Every worker that the root knows of: in or not, and why."""
    from hearth.v1 import root_pb2

    lines = []
    for peer in status.peers:
        state = root_pb2.PeerState.Name(peer.state).removeprefix("PEER_STATE_")
        name = f"{peer.name} ({peer.address})" if peer.name else peer.address
        where = "in" if peer.state == root_pb2.PEER_STATE_IN else f"out, {state.lower()}"
        reason = f": {peer.reason}" if peer.reason else ""
        sources = ", ".join(peer.sources) or "not listed any more"
        lines.append(f"worker {name} [{sources}]: {where}{reason}")
    return lines
