"""A model running for the length of one command: workers, cluster and engine, without a server."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hearth import _native
from hearth.cli.local_workers import LocalWorkers, cores_of
from hearth.cli.progress import LoadProgress
from hearth.common import system
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import Metrics
from hearth.converter import Model, open_model
from hearth.root.cluster import Cluster, ClusterSettings
from hearth.root.engine import Engine, StepRunner
from hearth.root.params import Sampling
from hearth.root.scheduler import Limits

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Session:
    """What a command works with. `workers` are those started for it."""

    model: Model
    cluster: Cluster
    engine: Engine
    metrics: Metrics
    workers: LocalWorkers
    load_seconds: float


def settings_of(options: argparse.Namespace, workers: tuple[str, ...]) -> ClusterSettings:
    """The cluster that the options ask for."""
    return ClusterSettings(
        workers=workers,
        shares=options.shares,
        threads=options.threads,
        lane=options.lane,
        sync_type=options.sync_type,
        kv_type=options.kv_type,
        context=options.context,
        max_step_tokens=options.max_step_tokens,
        step_seconds=options.step_seconds,
        memory_limit=options.memory_limit,
    )


def sampling_of(options: argparse.Namespace) -> Sampling:
    """The sampling that the options ask for. Raises HearthError."""
    return Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )


@contextmanager
def open_session(
    options: argparse.Namespace,
    *,
    quiet: bool = False,
    sequences: int = 1,
    join_seconds: float = 0.0,
    observe: Callable[[Cluster], StepRunner] = lambda cluster: cluster,
) -> Iterator[Session]:
    """Everything from the model's files to an engine that runs; all of it is ended after.

    quiet: no progress. sequences: of full context that the KV cache has room for. join_seconds: how
    long absent or busy workers are waited for. observe: puts something between engine and cluster.
    """
    nodes = getattr(options, "nodes", None)
    if nodes is not None and options.workers:
        raise HearthError(
            Reason.BAD_SETTING, "give --nodes (workers started here) or --workers, not both"
        )
    system.keep_message_memory()
    with ExitStack() as stack:
        model = stack.enter_context(open_model(options.model, options.weights))
        # Errors of the plan come before anything is started.
        planned = settings_of(
            options, tuple(options.workers) or ("planned:1",) * ((nodes or 1) - 1)
        )
        if nodes is not None:
            Cluster(model, planned)
        tokenizer = model.tokenizer()
        started = time.perf_counter()
        count = (nodes or 1) - 1
        pin = cores_of(nodes or 1, options.threads or 1) if options.pin else []
        workers = stack.enter_context(
            LocalWorkers(count, options.threads, options.cache_dir, pin[1:])
        )
        settings = dataclasses.replace(
            settings_of(options, tuple(options.workers) + workers.addresses),
            sequences=sequences,
            threads=options.threads or (workers.threads if count else None),
            pin=tuple(pin[0]) if pin else (),
        )
        metrics = Metrics()
        metrics.build_info(
            "root", system.version(), _native.instruction_set(), system.architecture()
        )
        if options.metrics:
            metrics.serve(options.metrics)
            stack.callback(metrics.stop)
        with LoadProgress(None if quiet else sys.stderr) as progress:
            cluster = Cluster(model, settings, metrics=metrics, on_load=progress)
            stack.callback(cluster.close)
            limits = _form(cluster, join_seconds)
        engine = Engine(
            observe(cluster), tokenizer, limits, vocab_size=model.spec.vocab_size, metrics=metrics
        )
        engine.start()
        stack.callback(engine.stop, drain=False)
        yield Session(model, cluster, engine, metrics, workers, time.perf_counter() - started)


def _form(cluster: Cluster, join_seconds: float) -> Limits:
    """Forms the cluster, waiting for workers that are not there yet. Raises HearthError."""
    deadline = time.monotonic() + join_seconds
    said = ""
    while True:
        try:
            return cluster.form()
        except HearthError as error:
            waits = error.reason in (Reason.WORKER_UNREACHABLE, Reason.WORKER_BUSY)
            if not waits or time.monotonic() + _RETRY_SECONDS > deadline:
                raise
            if error.message != said:
                log.warning("waiting up to %g s: %s", join_seconds, error.message)
                said = error.message
            time.sleep(_RETRY_SECONDS)
