"""`hearth cluster`: shows what a running root and its workers are doing; takes a worker out."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Argument, Command, Option, Options
from hearth.common.terminal import one_line

if TYPE_CHECKING:
    from hearth.v1 import common_pb2, root_pb2


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
        computes=False,
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
    """The status as lines for people.

    Names and reasons are a peer's: escaped also where a file or a pager shows them later.
    """
    from hearth.v1 import common_pb2

    lane = common_pb2.Lane.Name(status.lane).removeprefix("LANE_").lower()
    sync = common_pb2.SyncType.Name(status.sync_type).removeprefix("SYNC_TYPE_").lower()
    reason = f": {status.reason}" if status.reason else ""
    lines = [f"{_state(status)}{reason}"]
    if status.model:
        lines.append(f"model {status.model}, context of {status.context_size} positions")
    lines[-1] += f" (plan {status.epoch}, lane {lane}, sync {sync})"
    lines += _speeds(status)
    lines += _table(_rows(status))
    known = {peer.address for peer in status.peers}
    lines += [
        f"{node.address}: {node.reason}"
        for node in status.nodes
        if node.reason and node.address not in known  # whose own line has the reason
    ]
    lines += _peers(status)
    lines += [f"note: {note}" for note in status.notes]
    return [one_line(line) for line in lines]


def _speeds(status: root_pb2.ClusterStatus) -> list[str]:
    """The expected speed, and the measured one beside it."""
    if not status.HasField("prediction"):
        return []
    from hearth.common.sizes import format_rate

    found = status.prediction
    measured = found.measured_decode_tokens_per_second
    beside = f"measured {format_rate(measured)}" if measured else "not measured yet"
    return [
        f"one sequence: {format_rate(found.decode_tokens_per_second)} tokens/s expected, {beside}; "
        f"{found.sequences} together: {format_rate(found.decode_many_tokens_per_second)}, prompts: "
        f"{format_rate(found.prefill_tokens_per_second)}"
    ]


def _state(status: root_pb2.ClusterStatus) -> str:
    """The cluster's state in a word, with the progress of loading."""
    from hearth.common.sizes import format_size
    from hearth.v1 import root_pb2

    if status.state == root_pb2.CLUSTER_STATE_FORMING:
        total = sum(node.weight_bytes for node in status.nodes)
        loaded = sum(node.weight_bytes_loaded for node in status.nodes)
        if loaded:
            return f"loading, {100 * loaded // total} % of {format_size(total)}"
    if status.state == root_pb2.CLUSTER_STATE_DEGRADED and not status.epoch:
        return "waiting"  # nothing was formed yet, so nothing is worse than before
    return root_pb2.ClusterState.Name(status.state).removeprefix("CLUSTER_STATE_").lower()


def _rows(status: root_pb2.ClusterStatus) -> list[tuple[str, ...]]:
    """The table of the nodes, its head first."""
    from hearth.common.sizes import format_size
    from hearth.v1 import root_pb2

    total = max(1, sum(node.weight_bytes for node in status.nodes))
    staged = any(node.placement.stages > 1 for node in status.nodes)
    rows: list[tuple[str, ...]] = [
        (
            *("stage.rank (layers)" if staged else "rank", "node", "address", "state"),
            *("threads", "kernels", "weights", "share"),
        )
    ]
    for node in status.nodes:
        weights = format_size(node.weight_bytes)
        if node.state == root_pb2.NODE_STATE_LOADING and node.weight_bytes:
            weights += f" ({100 * node.weight_bytes_loaded // node.weight_bytes} %)"
        state = root_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower()
        answered = bool(node.info.name)
        rows.append(
            (
                _place(node) if staged else str(node.placement.rank),
                node.info.name,
                node.address,
                state if answered or state != "lost" else "absent",
                f"{node.info.threads} of {node.info.cores}" if answered else "",
                _kernels(node.info),
                weights,
                f"{100 * node.weight_bytes / total:.0f} %",
            )
        )
    return rows


def _kernels(info: common_pb2.NodeInfo) -> str:
    """The kernels of a node; of a GPU its memory too."""
    from hearth.common.sizes import format_size

    if not info.instruction_set.startswith("vulkan"):
        return info.instruction_set
    return f"{info.instruction_set}, {format_size(info.memory_total_bytes)}"


def _place(node: root_pb2.ClusterNode) -> str:
    """Stage and rank of a node, and the stage's layers once they are known: "1.0 (5-9)"."""
    place, layers = node.placement, node.shard.layers
    shown = f" ({layers.begin}-{layers.end - 1})" if layers.end else ""
    return f"{place.stage}.{place.rank}{shown}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Aligned columns, each cell on one line.

    The middle columns are left out where a terminal is too narrow for all.
    """
    rows = [tuple(map(one_line, row)) for row in rows]
    columns = list(range(len(rows[0])))
    widths = [max(len(row[i]) for row in rows) for i in columns]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for least in (5, 4, 2, 7):  # kernels, threads, address, share
        if most and sum(widths[i] + 2 for i in columns) - 2 > most:
            columns.remove(least)
    return ["  ".join(row[i].ljust(widths[i]) for i in columns).rstrip() for row in rows]


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
