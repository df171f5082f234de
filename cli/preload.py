"""`hearth preload`: fills the slice caches of workers, or a folder, without serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Command, Option, Options

if TYPE_CHECKING:
    from hearth.converter import Model
    from hearth.root.planning.plan import Plan


def command() -> Command:
    """The subcommand and its options."""
    folder = "Slices in a folder"
    return Command(
        "preload",
        run,
        [
            *common.model(),
            *common.cluster(),
            common.no_predict(),
            common.use_all_workers(),
            Option(
                "--to",
                metavar="DIR",
                group=folder,
                help="write the slices of workers there instead, as their --cache-dir has them; "
                "copy its files to the --cache-dir of each",
            ),
            Option(
                "--nodes",
                read=common.count,
                metavar="N",
                group=folder,
                help="with --to: nodes of the cluster, the root included",
            ),
            Option(
                "--rank",
                read=common.count,
                metavar="R",
                shown="all workers",
                group=folder,
                help="with --to: only the slices of worker R, in the order of --workers, from 1 on",
            ),
            *common.security(),
        ],
        help="Fill the slice caches of workers with their parts of a model, without serving. "
        "Give the options of nodes and their division that `hearth root` will have.",
        one_of=(common.SOURCES[:2], ("workers", "to"), common.EXCLUSIVE_SECURITY),
        needed=(
            common.NEEDS_MODEL,
            (("workers", "to"), "give --workers HOST:PORT ..., or --to DIR and --nodes N"),
        ),
    )


def run(options: Options) -> int:
    """Fill the caches; 0. Raises HearthError."""
    return _to_folder(options) if options.to else _to_workers(options)


def _to_workers(options: Options) -> int:
    from hearth.cli.session import open_session
    from hearth.common.errors import HearthError, Reason
    from hearth.common.sizes import format_size

    for name in ("nodes", "rank"):
        if getattr(options, name) is not None:
            raise HearthError(Reason.BAD_SETTING, f"--{name} is for --to DIR")
    # Of the root, which only sends here.
    options.cache_dir, options.pin, options.device = "none", False, "cpu"
    with open_session(options) as session:
        status = session.cluster.status()
    for node in status.nodes[1:]:
        sent, cached = node.weight_bytes_from_network, node.weight_bytes_from_cache
        output.line(
            f"{node.info.name} ({node.address}): {format_size(sent)} sent, {format_size(cached)} "
            "were there"
        )
    return 0


def _to_folder(options: Options) -> int:
    from pathlib import Path

    from hearth.common.sizes import format_size
    from hearth.converter import open_model
    from hearth.root.cluster.slices_out import write_slices

    with open_model(options.model, options.weights, options.pre, options.tokenizer) as model:
        plan = _plan(options, model)
        workers = plan.nodes[1:]
        chosen = workers if options.rank is None else workers[options.rank - 1 : options.rank]
        folder = Path(options.to).expanduser()
        slices, size = write_slices(model, chosen, folder)
        total = sum(node.weight_bytes for node in chosen)
    output.line(
        f"{folder}: {slices} slices, {format_size(size)} written of {format_size(total)} that "
        f"{len(chosen)} workers need"
    )
    return 0


def _plan(options: Options, model: Model) -> Plan:
    """The plan of --nodes. Raises HearthError."""
    from hearth.cli.session import settings_of
    from hearth.common.errors import HearthError, Reason
    from hearth.root.planning.blueprint import draw

    if options.nodes is None or options.nodes < 2:
        problem = "--to needs --nodes N, the nodes of the cluster with the root: at least 2"
        raise HearthError(Reason.BAD_SETTING, problem)
    if options.rank is not None and options.rank >= options.nodes:
        problem = f"--rank {options.rank} of {options.nodes} nodes: workers are 1 to "
        raise HearthError(Reason.BAD_SETTING, f"{problem}{options.nodes - 1}")
    workers = ("planned:1",) * (options.nodes - 1)
    return draw(model, settings_of(options, workers)).plan(workers)
