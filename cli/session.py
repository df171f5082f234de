"""A model running for the length of one command: workers, cluster and engine, without a server."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Options
from hearth.cli.local_workers import LocalWorkers, cores_of
from hearth.cli.progress import LoadProgress
from hearth.common import system
from hearth.common.devices import check_devices
from hearth.common.errors import HearthError, Reason
from hearth.common.logging import printable
from hearth.common.metrics import RootMetrics
from hearth.common.terminal import one_line
from hearth.converter import Model, open_model
from hearth.converter.tokenizers.confined import confined
from hearth.root.app import Core, core, metrics_port
from hearth.root.cluster.cluster import Cluster
from hearth.root.drafts import with_draft
from hearth.root.engine.engine import Engine
from hearth.root.engine.interfaces import StepRunner
from hearth.root.models.card import Card, read_cards
from hearth.root.planning.blueprint import draw
from hearth.root.settings import ClusterSettings


@dataclass(frozen=True)
class Session:
    """A running core, and the workers that were started for it."""

    core: Core
    workers: LocalWorkers
    load_seconds: float

    @property
    def model(self) -> Model:
        """The model."""
        return self.core.model

    @property
    def cluster(self) -> Cluster:
        """The nodes."""
        return self.core.cluster

    @property
    def engine(self) -> Engine:
        """Runs requests."""
        return self.core.engine


def _local_workers(
    options: Options,
    planned: ClusterSettings,
    pin: list[list[int]],
    devices: list[str],
    count: int,
) -> LocalWorkers:
    """The workers that --nodes starts here. pin: cores of each, or empty. devices: of each."""
    return LocalWorkers(
        count,
        options.threads,
        options.cache_dir,
        pin,
        devices,
        keeps_pages=planned.page_dir is not None,
        page_limit=planned.page_limit,
    )


def settings_of(options: Options, workers: tuple[str, ...]) -> ClusterSettings:
    """The cluster that the options ask for."""
    return ClusterSettings(
        workers=workers,
        shares=options.shares,
        parallel=options.parallel,
        stages=options.stages,
        threads=options.threads,
        lane=options.lane,
        mesh_plain=options.mesh_plain,
        sync_type=options.sync_type,
        kv_type=options.kv_type,
        context=options.context,
        max_step_tokens=options.max_step_tokens,
        step_seconds=options.step_seconds,
        speculate=options.speculate,
        stall_seconds=options.stall_seconds,
        memory_limit=options.memory_limit,
        name=printable(platform.node()) or "root",
        page_dir=common.page_dir(options),
        predict=not getattr(options, "no_predict", True),
        # Those of --nodes were asked for by their number.
        use_all_workers=getattr(options, "use_all_workers", True)
        or bool(getattr(options, "nodes", None)),
        rebalance=getattr(options, "rebalance", "off"),
        weights_on=getattr(options, "weights_on", "memory"),
        disk_dir=common.disk_dir(options),
        speeds_dir=common.default_cache_dir().expanduser(),
        page_limit=getattr(options, "kv_cache_size", None),
    )


@dataclass(frozen=True)
class Several:
    """Several models, and the cluster that one of them at a time runs on."""

    cards: Sequence[Card]
    settings: ClusterSettings
    metrics: RootMetrics
    progress: LoadProgress


@contextmanager
def open_several(options: Options) -> Iterator[Several]:
    """The models of --models, with the workers of --nodes until the block ends.

    Raises HearthError, or ModelError for a model that is named itself and cannot run.
    """
    if options.draft:
        problem = "--draft is for one model; give MODEL instead of --models"
        raise HearthError(Reason.BAD_SETTING, problem)
    if options.pre or options.tokenizer:
        problem = "--pre and --tokenizer are for one model; give MODEL instead of --models"
        raise HearthError(Reason.BAD_SETTING, problem)
    if options.nodes is not None and options.workers:
        raise HearthError(
            Reason.BAD_SETTING, "give --nodes (workers started here) or --workers, not both"
        )
    system.keep_message_memory()
    common.check_threads(options.threads)
    security = common.credentials(options, "metrics")
    count = (options.nodes or 1) - 1
    planned = settings_of(options, tuple(options.workers) or ("planned:1",) * count)
    planned = dataclasses.replace(
        planned, sequences=options.sequences, prefix_cache=not options.no_prefix_cache
    )
    cards = read_cards(options.models, options.weights, planned)
    for note in (note for card in cards for note in card.notes):
        output.note(f"note: {note}")
    system.trim_memory()
    with ExitStack() as stack:
        pin = cores_of(count + 1, options.threads or 1) if options.pin else []
        devices = common.devices_of(options.device, count + 1)
        check_devices(devices)
        workers = stack.enter_context(_local_workers(options, planned, pin[1:], devices[1:], count))
        settings = dataclasses.replace(
            planned,
            workers=tuple(options.workers) + workers.addresses,
            security=None if options.nodes else security,
            threads=options.threads or (workers.threads if count else None),
            pin=tuple(pin[0]) if pin else (),
            device=devices[0],
        )
        metrics = RootMetrics()
        stack.enter_context(metrics_port(metrics, options.metrics, security, options.insecure))
        progress = LoadProgress(False, False)
        stack.callback(progress.close)
        yield Several(cards, settings, metrics, progress)


@contextmanager
def open_session(
    options: Options,
    *,
    quiet: bool = False,
    bars: bool = True,
    sequences: int = 1,
    form: bool = True,
    pause_seconds: float = 0.0,
    prefix_cache: bool = True,
    observe: Callable[[Cluster], StepRunner] = lambda cluster: cluster,
) -> Iterator[Session]:
    """Run a model until the block ends, with its workers of --nodes.

    The tokenizer encodes in a process with limits: a model's files are strangers' work.

    quiet: no progress. bars: progress as bars, on a terminal. sequences: of full context that the
    KV cache has room for. prefix_cache: keep pages for prompts that begin alike. form,
    pause_seconds, observe: see hearth.root.app.core.
    """
    nodes = getattr(options, "nodes", None)
    if nodes is not None and options.workers:
        raise HearthError(
            Reason.BAD_SETTING, "give --nodes (workers started here) or --workers, not both"
        )
    system.keep_message_memory()
    common.check_threads(options.threads)
    # An environment made for services may name a directory that nothing here needs.
    joining = ("workers", "workers_dns", "workers_mdns", "metrics")
    needed = any(getattr(options, name, None) for name in joining)
    security = common.credentials(options, "metrics") if needed else None
    count = (nodes or 1) - 1
    with ExitStack() as stack:
        model = stack.enter_context(
            open_model(options.model, options.weights, options.pre, options.tokenizer)
        )
        draft = None
        if options.draft:
            draft = stack.enter_context(open_model(options.draft, options.weights))
        # Errors of the plan come before any worker is started.
        planned = settings_of(options, tuple(options.workers) or ("planned:1",) * count)
        notes = draw(model, with_draft(planned, model, draft)).plan(planned.workers).notes
        tokenizer = stack.enter_context(
            confined(model, options.model, options.pre, options.tokenizer)
        )
        system.trim_memory()  # what it was made of: up to 100 MiB, before there are weights
        started = time.perf_counter()
        pin = cores_of(count + 1, options.threads or 1) if options.pin else []
        devices = common.devices_of(options.device, count + 1)
        check_devices(devices)
        workers = stack.enter_context(_local_workers(options, planned, pin[1:], devices[1:], count))
        settings = dataclasses.replace(
            settings_of(options, tuple(options.workers) + workers.addresses),
            sequences=sequences,
            prefix_cache=prefix_cache,
            # Workers started here are on loopback, for this command only.
            security=None if nodes else security,
            threads=options.threads or (workers.threads if count else None),
            pin=tuple(pin[0]) if pin else (),
            device=devices[0],
        )
        metrics = RootMetrics()
        stack.enter_context(metrics_port(metrics, options.metrics, security, options.insecure))
        progress = LoadProgress(quiet, bars)
        stack.callback(progress.close)
        if not quiet:
            for note in notes:
                output.note(f"note: {one_line(note)}")
        running = stack.enter_context(
            core(
                model,
                settings,
                tokenizer=tokenizer,
                draft=draft,
                form=form,
                pause_seconds=pause_seconds,
                metrics=metrics,
                on_load=progress,
                observe=observe,
            )
        )
        progress.close()
        yield Session(running, workers, time.perf_counter() - started)
