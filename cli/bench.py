"""`hearth bench`: speed, network bytes and memory of a model here."""

from __future__ import annotations

import dataclasses
import statistics
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Command, Option, Options

if TYPE_CHECKING:
    from hearth.cli.session import Session
    from hearth.cli.workload import Workload
    from hearth.common.candidates import Candidates
    from hearth.root.cluster.cluster import Cluster
    from hearth.root.scheduling.batch import Batch, StepOutput
    from hearth.v1 import root_pb2

# How long a GPU computes before it is timed.
_WARM_SECONDS = 1.0


def command() -> Command:
    """The subcommand and its options."""
    measured = "Measurement"
    params = [
        Option(
            "--prompt-tokens",
            read=common.count,
            default=128,
            metavar="P",
            group=measured,
            help="tokens in the prompt of each run",
        ),
        Option(
            "--new-tokens",
            read=common.whole(2),
            default=32,
            metavar="N",
            group=measured,
            help="tokens to make, at least 2: the first one counts as prefill",
        ),
        Option(
            "--sequences",
            read=common.count,
            default=1,
            metavar="B",
            group=measured,
            help="sequences that decode together; rates are of all of them",
        ),
        Option(
            "--samples",
            read=common.count,
            metavar="N",
            group=measured,
            help="instead of --sequences: N texts of one prompt, which is prefilled once; the rate "
            "of prefill counts its tokens once",
        ),
        Option(
            "--depth",
            read=common.whole(0),
            default=0,
            metavar="D",
            group=measured,
            help="tokens of context before each prompt, prefilled once and not timed",
        ),
        Option(
            "--repeats",
            read=common.count,
            default=3,
            metavar="R",
            group=measured,
            help="runs to take medians of, after one to warm up (on a GPU, for a second)",
        ),
        Option("--json", is_flag=True, group=common.OUTPUT, help="print one object"),
        Option(
            "--plot",
            metavar="FILE",
            group=common.OUTPUT,
            help="write charts as SVG, of a run for 1, 2, 4 ... sequences up to --sequences: time "
            "by tokens, tokens/s, and the compute and sync of a step",
        ),
    ]
    return Command(
        "bench",
        run,
        [
            *common.model(),
            *params,
            *common.cluster(speculate="off"),
            common.no_predict(),
            common.use_all_workers(),
            *common.local_nodes(),
            *common.security(),
        ],
        help="Measure speed, network bytes and memory of a model on this machine, or with workers.",
        one_of=(common.SOURCES[:2], ("sequences", "samples"), common.EXCLUSIVE_SECURITY),
        needed=(common.NEEDS_MODEL,),
    )


class Recorder:
    """Runs the cluster's steps and records the costs of those in which all sequences decode."""

    def __init__(self, cluster: Cluster, sequences: int = 1) -> None:
        self._cluster = cluster
        self._sequences = sequences
        self.decode: list[StepOutput] = []

    def begin(self, sequences: int) -> None:
        """Records steps of so many sequences from now on, and forgets those before."""
        self._sequences = sequences
        self.decode.clear()

    @property
    def depth(self) -> int:
        return self._cluster.depth

    def submit(
        self,
        batch: Batch,
        candidates: Candidates | None = None,
        hidden: bool = False,
    ) -> Future[StepOutput]:
        from hearth.common.candidates import WHOLE_ROWS

        step = self._cluster.submit(batch, candidates or WHOLE_ROWS, hidden)
        # With several stages each batch has its part of the sequences.
        if batch.decode_rows == batch.rows == -(-self._sequences // self.depth):
            step.add_done_callback(self._record)
        return step

    def _record(self, step: Future[StepOutput]) -> None:
        if step.exception() is None:
            output = step.result()
            # Without the logits: rows of a large vocabulary would show in the peak of memory.
            self.decode.append(dataclasses.replace(output, logits=output.logits[:0].copy()))


def run(options: Options) -> int:
    """Prints medians over the repeats."""
    from hearth.cli.bench_plot import check_plot, plot
    from hearth.cli.session import open_session

    if options.plot:
        check_plot(options.plot)
    workload = workload_of(options)
    options.context = max(options.context or 0, workload.context)
    recorders: list[Recorder] = []

    def observe(cluster: Cluster) -> Recorder:
        recorders.append(Recorder(cluster, workload.sequences))
        return recorders[-1]

    with open_session(
        options, quiet=options.json, sequences=workload.room, observe=observe
    ) as session:
        result = measure(session, recorders[0], options, workload)
        if options.plot:
            title = f"{session.model.spec.name}, {result['nodes']} nodes"
            plot(options.plot, title, session, recorders[0], workload)
    if options.json:
        output.line(output.as_json(result))
    else:
        width = max(map(len, result))
        for name, value in result.items():
            output.line(f"{name:{width}}  {value}")
    return 0


def workload_of(options: Options) -> Workload:
    """The sizes that the options ask for."""
    from hearth.cli.workload import Workload

    return Workload(
        sequences=options.samples or options.sequences,
        one_prompt=options.samples is not None,
        depth=options.depth,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        step_tokens=options.max_step_tokens,
    )


def measure(
    session: Session, recorder: Recorder, options: Options, workload: Workload
) -> dict[str, Any]:
    """One warm-up, or a second of them on a GPU, then the repeats; rates are medians."""
    from hearth import _native
    from hearth.cli.workload import Runs
    from hearth.common import system
    from hearth.common.errors import HearthError, Reason
    from hearth.root.planning.streaming import disk_bytes

    most = session.cluster.expected_limits().max_running
    if workload.sequences > most:
        problem = f"{workload.sequences} sequences: this model runs at most {most} at once"
        raise HearthError(Reason.BAD_SETTING, problem)
    nodes = [node.info for node in session.cluster.status().nodes]
    threads = nodes[0].threads
    on_gpu = [each.instruction_set.startswith("vulkan") for each in nodes]
    runs = Runs(session, workload)
    prefill: list[float] = []
    decode: list[float] = []
    # Clocks of a GPU rise while it computes.
    until = time.monotonic() + (_WARM_SECONDS if any(on_gpu) else 0.0)
    number = 0
    while not number or time.monotonic() < until:
        runs.run(number)
        number += 1
    for repeat in range(number, number + options.repeats):
        recorder.decode.clear()
        rates = runs.run(repeat)
        prefill.append(rates.prefill)
        decode.append(rates.decode)
    steps = recorder.decode
    status = session.cluster.status()
    compute = [step.compute_seconds * 1e3 for step in steps]
    own_compute = [step.node_seconds[0][0] for step in steps]
    rest = [(step.wall_seconds - step.compute_seconds) * 1e3 for step in steps]
    peaks: list[float | None] = [_mib(system.peak_rss_bytes())]
    peaks += [_peak(process.pid) for process in session.workers.processes]
    peaks += [None] * (len(status.nodes) - len(peaks))  # unknown on other machines
    # Last: it takes memory of its own.
    bandwidth = 0.0 if on_gpu[0] else _native.read_bandwidth(threads)
    share = _weights_read(session) / _median(own_compute) / bandwidth if bandwidth else None
    speculation = session.engine.speculation
    return {
        "model": options.model,
        "nodes": len(status.nodes),
        "threads": threads,
        "kernels": [each.instruction_set for each in nodes],
        "weights": session.model.weight_type,
        "sync_type": options.sync_type,
        "lane": options.lane,
        "parallel": _parallel(session),
        "sequences": workload.sequences,
        "depth": workload.depth,
        "draft_tokens": speculation.drafted if speculation else 0,
        "accepted_draft_tokens": speculation.accepted if speculation else 0,
        # Per step of a sequence that had drafts; each such step adds one token more.
        "accepted_per_step": _round(
            speculation.accepted / max(1, speculation.steps) if speculation else 0.0
        ),
        "draft_seconds": _round(speculation.seconds if speculation else 0.0),
        "prefill_tokens_per_second": _round(statistics.median(prefill)),
        "prefill_spread": [_round(min(prefill)), _round(max(prefill))],
        "decode_tokens_per_second": _round(statistics.median(decode)),
        "decode_spread": [_round(min(decode)), _round(max(decode))],
        "compute_ms_per_token": _round(_median(compute)),
        "sync_ms_per_token": _round(_median(rest)),
        # Of the last run's decode, by node.
        "node_busy": _busy(steps, -(-workload.sequences // recorder.depth) / decode[-1]),
        "sent_kib_per_token": _round(_median([step.sent_bytes / 1024 for step in steps])),
        "received_kib_per_token": _round(_median([step.received_bytes / 1024 for step in steps])),
        # The root's weights are read once a token: the share of what plain reading reaches. Plain
        # reading is not measured on a GPU.
        "memory_gb_per_second": _round(bandwidth / 1e9) if bandwidth else None,
        "memory_share": None if share is None else _round(share),
        # Of weights, by the root in each step (--weights-on disk).
        "disk_mib_per_step": _mib(disk_bytes(session.cluster.plan.nodes[0])),
        **_predicted(status),
        "load_seconds": _round(session.load_seconds),
        "weights_sent_bytes": sum(node.weight_bytes_from_network for node in status.nodes),
        "peak_rss_mib": peaks,
        # They include what the mesh measured of its links.
        "notes": list(status.notes),
    }


def _busy(steps: list[StepOutput], seconds: float) -> list[float]:
    """The part of the time in which each node computes, where a step ends every so many seconds."""
    compute = zip(*([own for own, _ in step.node_seconds] for step in steps), strict=True)
    return [_round(statistics.fmean(each) / seconds) for each in compute]


def _predicted(status: root_pb2.ClusterStatus) -> dict[str, float]:
    """The speed that was expected of the nodes; nothing where they were not measured."""
    if not status.HasField("prediction"):
        return {}
    found = status.prediction
    return {
        "predicted_prefill_tokens_per_second": _round(found.prefill_tokens_per_second),
        "predicted_decode_tokens_per_second": _round(found.decode_tokens_per_second),
        "predicted_decode_tokens_per_second_many": _round(found.decode_many_tokens_per_second),
        "predicted_compute_ms_per_token": _round(found.compute_seconds * 1e3),
        "predicted_sync_ms_per_token": _round(found.sync_seconds * 1e3),
        "predicted_sent_kib_per_token": _round(found.sent_bytes / 1024),
    }


def _parallel(session: Session) -> str:
    """The plan's form: "tensor" for one stage."""
    return "tensor" if len(session.cluster.plan.stages) == 1 else "pipeline"


def _weights_read(session: Session) -> int:
    """Bytes of the root's shard that one decode step reads: all but the rows of an embedding."""
    parts = session.cluster.plan.nodes[0].slices
    read = sum(part.size_bytes for part in parts if part.name != "embedding")
    if session.cluster.plan.nodes[0].head_from_embedding:
        embedding = next(part for part in parts if part.name == "embedding")
        vocab = session.cluster.plan.nodes[0].vocab
        read += embedding.size_bytes * (vocab[1] - vocab[0]) // embedding.rows[1]
    return read


def _peak(pid: int) -> float | None:
    """MiB of the most resident memory that a process has had; None where it is not known."""
    from hearth.common import system

    peak = system.status_bytes(pid, "VmHWM")
    return None if peak is None else _mib(peak)


def _mib(size: int) -> float:
    return _round(size / (1 << 20))


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def _round(value: float) -> float:
    return round(value, 3)
