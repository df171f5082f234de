"""`hearth plan`: predicts the speed and memory of a model on machines, in every layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Command, Option, Options
from hearth.common.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hearth.converter import Model
    from hearth.root.planning.machines import Machine
    from hearth.root.planning.predict import Prediction
    from hearth.root.planning.search import Search

# Lines for people; --json has all.
_SHOWN = 12
# Settings of `hearth root` that change a prediction, with the same names and defaults.
_SETTINGS = (
    *("--workers", "--weights-on", "--context", "--sync-type", "--lane", "--kv-type"),
    "--max-step-tokens",
)


def command() -> Command:
    """The subcommand and its options."""
    shared = [
        option
        for option in common.cluster()
        if isinstance(option, Option) and option.long_name in _SETTINGS
    ]
    return Command(
        "plan",
        run,
        [
            *common.model(),
            Option(
                "--devices",
                metavar="FILE",
                group=common.CLUSTER,
                shown="this machine",
                help="TOML file of machines, the root's first; the catalogue has figures of common "
                "ones",
            ),
            *shared,
            Option(
                "--probe",
                is_flag=True,
                group=common.CLUSTER,
                help="measure this machine and print its [[device]] for a devices file",
            ),
            Option(
                "--threads",
                read=common.threads,
                metavar="N",
                group=common.CLUSTER,
                help="threads with which this machine is measured",
            ),
            common.device(common.CLUSTER),
            Option("--json", is_flag=True, group=common.OUTPUT, help="print one object"),
            *common.security(),
        ],
        help="Predict the speed and memory of a model on 1 to all of some machines, in each "
        "layout, best first, and say what would help. Reads no weights.",
        one_of=((*common.SOURCES[:2], "probe"), ("devices", "workers"), common.EXCLUSIVE_SECURITY),
        needed=(
            (
                (*common.SOURCES[:2], "probe"),
                "give a MODEL such as random:llama-3-8b, or --probe to measure this machine",
            ),
        ),
    )


def run(options: Options) -> int:
    """Print the predictions; 0 where one fits, 3 where none does. Raises HearthError."""
    from hearth.converter import open_model
    from hearth.root.planning.choices import check, check_context
    from hearth.root.planning.predict import Choices
    from hearth.root.planning.search import Search, advice

    if options.probe:
        from hearth.root.planning.devices import device_text

        output.line(device_text(_measured(options)))
        return 0
    machines = _machines(options)
    with open_model(options.model, options.weights, options.pre, options.tokenizer) as model:
        spec = model.spec
        check(options.lane, options.sync_type, options.kv_type, spec)
        context = options.context or min(spec.context_size, 4096)
        check_context(context, spec)
        choices = Choices(
            context=context,
            kv_type=options.kv_type,
            sync_type=options.sync_type,
            lane=options.lane,
            step_tokens=options.max_step_tokens,
            depth=min(256, context),
            weights_on=options.weights_on,
        )
        search = Search(spec, model.tensor_type, choices)
        found = search.best(machines)
        with open_model(options.model, "q4_k_m", options.pre, options.tokenizer) as other:
            smaller = other.tensor_type if _is_smaller(other, model) else None
            help_lines = advice(search, machines, smaller)
        if options.json:
            result = as_object(options.model, model.weight_type, search, found, help_lines)
            output.line(output.as_json(result, indent=2))
        else:
            title = f"{spec.name}, {model.weight_type} weights, context of {context} positions"
            output.line("\n".join([one_line(title), *describe(found, help_lines)]))
    return 0 if found and found[0].fits else 3


def _machines(options: Options) -> Sequence[Machine]:
    """The machines of --devices or --workers; without them, this one, measured."""
    from pathlib import Path

    from hearth.common.errors import HearthError, Reason
    from hearth.root.planning.devices import read_devices

    if options.workers:
        return _worker_machines(options)
    if not options.devices:
        return (_measured(options),)
    try:
        with Path(options.devices).open("rb") as file:
            text = file.read((1 << 20) + 1).decode()
    except (OSError, ValueError) as error:
        raise HearthError(Reason.BAD_SETTING, f"--devices {options.devices}: {error}") from None
    return read_devices(text, options.devices)


def _measured(options: Options) -> Machine:
    """This machine, measured now where --probe asks for it; its link is a guess."""
    import platform

    from hearth.common import devices, system
    from hearth.common.errors import HearthError, Reason
    from hearth.common.logging import printable
    from hearth.common.speeds import speeds_here
    from hearth.root.cluster.measuring import machine
    from hearth.root.planning.catalogue import LINKS

    common.check_threads(options.threads)
    threads = options.threads or system.cores()
    folder = common.default_cache_dir().expanduser()
    devices.check_devices([options.device])
    speeds = speeds_here(threads, folder, device=options.device, again=options.probe)
    if speeds is None:
        problem = "this machine could not be measured: it is too busy, or has too little memory"
        raise HearthError(Reason.DEADLINE, problem)
    name = printable(platform.node())[:100] or "here"
    room = devices.memory_for_model(options.device)
    return machine(name, room, speeds, LINKS["gigabit"], "")


def _worker_machines(options: Options) -> Sequence[Machine]:
    """This machine and the workers, as they measure themselves, and the links to them."""
    from contextlib import ExitStack

    from hearth.common import devices, system
    from hearth.common.errors import HearthError, Reason
    from hearth.root.cluster.links import WorkerLink
    from hearth.root.cluster.measuring import Root, measure

    common.check_threads(options.threads)
    security = common.credentials(options)
    with ExitStack() as stack:
        links = [WorkerLink(address, security) for address in options.workers]
        for link in links:
            stack.callback(link.close)
        threads = options.threads or system.cores()
        folder = common.default_cache_dir().expanduser()
        room = devices.memory_for_model(options.device)
        root = Root(room, threads, (), folder, options.device)
        found = measure(root, links, [link.describe().node for link in links])
    if found is None:
        problem = (
            "a node could not be measured: it is busy, has too little memory, or runs another "
            "version of Hearth"
        )
        raise HearthError(Reason.DEADLINE, problem)
    return found


def _is_smaller(other: Model, model: Model) -> bool:
    def size(each: Model) -> int:
        from hearth.root.planning.layout import Layout
        from hearth.root.planning.planner import make_plan

        plan = make_plan(each.spec, each.tensor_type, Layout.tensor(1))
        return plan.nodes[0].weight_bytes

    return size(other) < 0.9 * size(model)


def as_object(
    name: str,
    weights: str,
    search: Search,
    found: Sequence[Prediction],
    help_lines: Sequence[str],
) -> dict[str, Any]:
    """The predictions for programs."""
    from hearth.root.planning.predict import MANY

    return {
        "model": name,
        "weights": weights,
        "context": search.choices.context,
        "many": MANY,
        "layouts": [_layout_object(each) for each in found],
        "advice": list(help_lines),
    }


def _layout_object(each: Prediction) -> dict[str, Any]:
    from hearth.root.planning.predict import option_text

    return {
        "machines": [machine.name for machine in each.machines],
        "options": option_text(each.layout, each.shares),
        "ranks": list(each.layout.ranks),
        "shares": list(each.shares),
        "fits": each.fits,
        "short": list(each.short),
        "predicted_decode_tokens_per_second": round(each.decode, 3),
        "predicted_decode_tokens_per_second_many": round(each.decode_many, 3),
        "predicted_prefill_tokens_per_second": round(each.prefill, 3),
        "predicted_compute_ms_per_token": round(each.compute_seconds * 1e3, 3),
        "predicted_sync_ms_per_token": round(each.transfer_seconds * 1e3, 3),
        "predicted_sent_kib_per_token": round(each.sent_bytes / 1024, 3),
        "memory_bytes": list(each.memory_bytes),
        "slowest": each.slowest,
        "limit": each.limit,
    }


def describe(found: Sequence[Prediction], help_lines: Sequence[str]) -> list[str]:
    """A table of the best layouts, and what would help."""
    from hearth.common.sizes import format_rate, format_size
    from hearth.root.planning.predict import MANY, option_text

    speeds = ("DECODE", f"{MANY} SEQ", "PREFILL")
    rows: list[tuple[str, ...]] = [
        ("NODES", *speeds, "COMPUTE", "SYNC", "MEMORY", "LIMIT", "LAYOUT")
    ]
    for each in _few(found):
        limit = _LIMITS[each.limit].format(each.slowest)
        if not each.fits:
            limit = f"too little memory: {', '.join(each.short[:3])}" + (
                f" and {len(each.short) - 3} more" if len(each.short) > 3 else ""
            )
        names = [machine.name for machine in each.machines]
        who = ", ".join(names) if len(names) < 5 else f"{names[0]} to {names[-1]}"
        rows.append(
            (
                str(len(names)),
                *map(format_rate, (each.decode, each.decode_many, each.prefill)),
                f"{each.compute_seconds * 1e3:.0f} ms",
                f"{each.transfer_seconds * 1e3:.1f} ms",
                format_size(max(each.memory_bytes)),
                limit,
                f"{option_text(each.layout, each.shares)} ({who})",
            )
        )
    cells = [tuple(map(one_line, row)) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(rows[0]) - 1)] + [0]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines += [
        f"Predicted tokens/s: DECODE of one sequence, {MANY} SEQ of {MANY} together, PREFILL of a "
        "prompt.",
        "COMPUTE and SYNC are the parts of one token. MEMORY is of the node that needs most.",
    ]
    return [*lines, *(f"advice: {one_line(line)}" for line in help_lines)]


_LIMITS = {
    "reading": "memory bandwidth of {}",
    "layers": "fixed work of layers on {}",
    "latency": "latency of the links",
    "bandwidth": "bandwidth of the links",
}


def _few(found: Sequence[Prediction]) -> list[Prediction]:
    """The best of each count of nodes, and then the best of the rest; at most _SHOWN."""
    first: dict[int, Prediction] = {}
    for each in found:
        first.setdefault(len(each.machines), each)
    chosen = list(first.values())[:_SHOWN]
    chosen += [each for each in found if each not in chosen][: max(0, _SHOWN - len(chosen))]
    return sorted(chosen, key=found.index)
