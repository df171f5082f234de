"""A root put together: model -> cluster -> engine (a Core), then supervisor and faces around it.

A command that runs one request needs the core only. A service adds the rest:

    with open_model("demo") as model, core(model, ClusterSettings(), form=False) as running:
        with serving(running, Serving(listen="127.0.0.1:0")) as port:
            ...
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.common.node_info import observe_build
from hearth.common.security import Security
from hearth.converter import Model, open_model
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root import drafts
from hearth.root.api.frontend import Frontend
from hearth.root.api.grpc.server import Beside, RootServer
from hearth.root.api.models import Models
from hearth.root.cluster.cluster import Cluster
from hearth.root.cluster.forming import LoadListener
from hearth.root.engine.engine import Engine
from hearth.root.engine.interfaces import StepRunner
from hearth.root.models.card import Card
from hearth.root.models.host import Host, HostShelf, Loaded
from hearth.root.models.seat import Seat
from hearth.root.scheduling.drafter import Drafter
from hearth.root.scheduling.speculation import Speculation
from hearth.root.settings import ClusterSettings, Serving
from hearth.root.status.observing import Observer
from hearth.root.supervisor import Supervisor

log = logging.getLogger(__name__)

# How long a request waits for its model's turn, where requests wait for nothing else.
_WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Core:
    """A model over its nodes, and the engine that runs requests on them."""

    model: Model
    cluster: Cluster
    engine: Engine
    metrics: RootMetrics


@contextmanager
def core(
    model: Model,
    settings: ClusterSettings,
    *,
    tokenizer: Tokenizer | None = None,
    draft: Model | None = None,
    form: bool = True,
    pause_seconds: float = 0.0,
    metrics: RootMetrics | None = None,
    on_load: LoadListener = lambda address, event: None,
    observe: Callable[[Cluster], StepRunner] = lambda cluster: cluster,
) -> Iterator[Core]:
    """Run an engine until the block ends.

    tokenizer: the model's; made here where it is not given. draft: the model that drafts for it.
    form: form the cluster now. Otherwise the engine refuses requests until a supervisor has.
    pause_seconds: how long requests wait for a lost worker; 0 ends them at once.
    observe: may put another step runner between engine and cluster.
    Raises HearthError or ModelError.
    """
    with ExitStack() as stack:
        metrics = metrics or RootMetrics()
        observe_build(metrics, "root", settings.device)
        tokenizer = tokenizer or model.tokenizer()
        if draft is not None:
            drafts.check(draft, model, tokenizer, settings)
        settings = drafts.with_draft(settings, model, draft)
        cluster = Cluster(model, settings, metrics=metrics, on_load=on_load)
        stack.callback(cluster.close)
        drafter = None
        if draft is not None:
            own = drafts.settings_of(draft, model, settings)
            vocab_size = min(tokenizer.vocab_size, model.spec.vocab_size)
            drafter = stack.enter_context(drafts.running(draft, own, vocab_size))
        cluster.subscribe(Observer(metrics, cluster.status))
        limits = cluster.form() if form else cluster.expected_limits()
        engine = Engine(
            observe(cluster),
            tokenizer,
            limits,
            vocab_size=model.spec.vocab_size,
            metrics=metrics,
            pause_seconds=pause_seconds,
            on_unused_pages=cluster.release_pages,
            archive=cluster.archive,
            speculation=_speculation(settings.speculate, drafter),
        )
        engine.start()
        stack.callback(engine.stop, finish=False)
        if cluster.lost is not None:
            engine.suspend(cluster.lost, refuse=True)
        yield Core(model, cluster, engine, metrics)


def _speculation(kind: str, drafter: Drafter | None) -> Speculation | None:
    """The speculation of --speculate. Raises HearthError BAD_SETTING."""
    if kind == "draft" and drafter is None:
        problem = "--speculate draft needs a draft model: give --draft MODEL"
        raise HearthError(Reason.BAD_SETTING, problem)
    return None if kind == "off" else Speculation(kind in ("lookup", "draft"), drafter)


@contextmanager
def metrics_port(
    metrics: RootMetrics, address: str | None, security: Security | None, insecure: bool
) -> Iterator[None]:
    """Serve Prometheus metrics until the block ends; nothing without an address."""
    if address:
        metrics.serve(address, security, insecure)
    try:
        yield
    finally:
        metrics.stop()


@contextmanager
def serving(running: Core, settings: Serving) -> Iterator[int]:
    """Serve clients until the block ends; the port. Running requests then have time to finish.

    The port opens before the cluster is formed, so that clients can watch it form. The block begins
    when the cluster is ready. A core can be served once: the end interrupts its cluster for good.
    Raises HearthError, for instance when too few workers came.
    """
    supervisor = Supervisor(running.cluster, running.engine, settings.joining)
    frontend = Frontend(
        running.engine,
        running.model,
        running.cluster,
        drain=supervisor.drain,
        pooling=settings.pooling,
        share_prefixes=settings.share_prefixes,
    )
    server = RootServer(
        settings.listen,
        frontend,
        beside=_http(frontend, settings, running.metrics) if settings.http else (),
        security=settings.security,
        api_keys=settings.api_keys,
        insecure=settings.insecure,
        health_address=settings.health,
    )
    port = server.start()
    grace = 0.0
    try:
        supervisor.form_first()
        supervisor.start()
        grace = settings.shutdown_seconds
        yield port
        log.info("shutting down: running requests have %g s to finish", grace)
    finally:
        supervisor.stop()
        server.stop(grace)


@contextmanager
def serving_models(
    cards: Sequence[Card],
    cluster: ClusterSettings,
    settings: Serving,
    *,
    pause_seconds: float = 0.0,
    metrics: RootMetrics | None = None,
    on_load: LoadListener = lambda address, event: None,
) -> Iterator[int]:
    """Serve several models until the block ends, one in memory at a time; the port.

    The block begins at once: the first request for a model loads it. Raises HearthError.
    """
    metrics = metrics or RootMetrics()
    # Workers of the last model's nodes: the next one does not wait for any that are lost since.
    served: list[int] = []

    @contextmanager
    def load(seat: Seat) -> Iterator[Loaded]:
        with (
            open_model(seat.card.source, seat.card.weights) as model,
            core(
                model,
                cluster,
                tokenizer=seat.tokenizer,
                form=False,
                pause_seconds=pause_seconds,
                metrics=metrics,
                on_load=on_load,
            ) as running,
        ):
            joining = settings.joining
            most = running.cluster.blueprint.most_workers
            if served:
                joining = replace(joining, min_workers=min(served[0], most))
            supervisor = Supervisor(running.cluster, running.engine, joining)
            try:
                yield Loaded(running.engine, running.cluster, supervisor)
            finally:
                if nodes := running.cluster.status().nodes:
                    served[:] = [len(nodes) - 1]
                supervisor.stop()

    host = Host(settings.keep_alive, pause_seconds or _WAIT_SECONDS, load)
    seats = {card.name: Seat(card, host.wake) for card in cards}
    first = next(iter(seats.values()))
    frontend = Frontend(
        first,
        first.card,
        host.relay,
        drain=host.drain,
        pooling=settings.pooling,
        share_prefixes=settings.share_prefixes,
    )
    frontends = {
        name: Frontend(
            seat,
            seat.card,
            seat.relay,
            drain=host.drain,
            pooling=settings.pooling,
            share_prefixes=settings.share_prefixes,
            beside=frontend,
        )
        for name, seat in seats.items()
    }
    models = Models(frontends, HostShelf(host, seats))
    server = RootServer(
        settings.listen,
        frontend,
        beside=_http(frontend, settings, metrics, models) if settings.http else (),
        security=settings.security,
        api_keys=settings.api_keys,
        insecure=settings.insecure,
        health_address=settings.health,
        models=models,
    )
    port = server.start()
    host.start(list(seats.values()))
    try:
        yield port
        log.info("shutting down: running requests have %g s to finish", settings.shutdown_seconds)
    finally:
        server.stop(settings.shutdown_seconds)
        host.stop()


def _http(
    frontend: Frontend, settings: Serving, metrics: RootMetrics, models: Models | None = None
) -> Sequence[Beside]:
    """The HTTP port; its libraries take memory that a root without it does not need."""
    from hearth.root.api.http.requests import Services
    from hearth.root.api.http.server import HttpServer
    from hearth.root.status import activity
    from hearth.root.status.history import History

    history = History()
    frontend.subscribe(history.note)
    services = Services(
        frontend,
        settings.any_model,
        history=history,
        activity=partial(activity.read, metrics),
        models=models,
        metrics=metrics.text,
    )
    return [
        HttpServer(
            settings.http,
            services,
            security=settings.security,
            api_keys=settings.api_keys,
            insecure=settings.insecure,
            origins=settings.origins,
            may_fail=settings.http_may_fail,
            count=metrics.http_request,
        )
    ]
