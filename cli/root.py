"""`hearth root`: serves a model to clients, alone or with workers, until a signal stops it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Command, Option, Options
from hearth.converter.pooling import POOLINGS

if TYPE_CHECKING:
    from hearth.root.settings import Joining

# One of them chooses what is served.
_SOURCES = (*common.SOURCES[:2], "models")
_MOST_KEPT = 1e9

HTTP_ADDRESS = f"127.0.0.1:{common.HTTP_PORT}"


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "root",
        run,
        [
            *common.model(),
            *_models(),
            *_serving(),
            *common.cluster(),
            common.no_predict(),
            common.use_all_workers(),
            common.rebalance(),
            *common.local_nodes(),
            *_members(),
            *common.security(),
            _api_keys(),
        ],
        help="Serve a model to clients, alone or with workers, until it is stopped.",
        one_of=(_SOURCES, common.EXCLUSIVE_SECURITY, ("http", "no_http")),
        needed=((_SOURCES, common.NEEDS_MODEL[1]),),
    )


def _models() -> common.Params:
    return [
        Option(
            "--models",
            several=True,
            metavar="DIR_OR_NAME ...",
            group=common.MODEL,
            help="serve several models, one in memory at a time: a request names one, which is "
            "then loaded; a directory stands for the models in it",
        ),
        Option(
            "--keep-alive",
            read=_keep_alive,
            default=300.0,
            metavar="S",
            group=common.MODEL,
            help="with --models: how long a model stays in memory without a request; below 0, "
            "until another one is asked for",
        ),
    ]


def _keep_alive(text: str) -> float:
    seconds = common.number(text)
    if seconds != seconds or seconds > _MOST_KEPT:
        raise ValueError(f"it must be at most {_MOST_KEPT:g} s, or below 0")
    return math.inf if seconds < 0 else seconds


def _serving() -> common.Params:
    return [
        Option(
            "--listen",
            metavar="HOST:PORT",
            read=common.address(common.ROOT_PORT),
            default=f"127.0.0.1:{common.ROOT_PORT}",
            group=common.SERVING,
            help="address to serve; 0.0.0.0:7716 for other machines",
        ),
        *_http(),
        common.health(),
        common.log_format(),
        Option(
            "--pooling",
            choices=POOLINGS,
            shown="the model's own; else last",
            group=common.SERVING,
            help="how the hidden states of a text become its embedding",
        ),
        Option(
            "--sequences",
            read=common.count,
            default=4,
            metavar="N",
            group=common.SERVING,
            help="sequences of full context that the KV cache has room for",
        ),
        Option(
            "--prefix-cache",
            choices=("per-key", "shared"),
            default="per-key",
            group=common.SERVING,
            help="who shares the KV pages of a common beginning: requests with the same API key, "
            "or all; with all, a client can find out by time what others sent",
        ),
        Option(
            "--no-prefix-cache",
            is_flag=True,
            group=common.SERVING,
            help="compute every prompt from its first token on",
        ),
        *common.kv_cache(common.SERVING),
        Option(
            "--pause-seconds",
            read=common.seconds,
            default=300.0,
            metavar="S",
            group=common.SERVING,
            help="how long requests wait for a cluster that has lost a worker",
        ),
        Option(
            "--drain-seconds",
            read=common.seconds,
            default=10.0,
            metavar="S",
            group=common.SERVING,
            help="how long running requests may take to finish after SIGTERM",
        ),
    ]


def _http() -> common.Params:
    return [
        Option(
            "--http",
            metavar="HOST:PORT",
            read=common.http_address,
            shown=HTTP_ADDRESS,
            group=common.SERVING,
            help="address for clients of OpenAI, Anthropic and Ollama, by HTTP",
        ),
        Option("--no-http", is_flag=True, group=common.SERVING, help="serve no HTTP"),
        Option(
            "--cors",
            several=True,
            metavar="ORIGIN ...",
            shown="pages of this machine",
            group=common.SERVING,
            help="origins of web pages that may call by HTTP, such as https://chat.example; * is "
            "any page",
        ),
        Option(
            "--any-model",
            is_flag=True,
            group=common.SERVING,
            help="requests by HTTP may name any model, and get the one that runs",
        ),
    ]


def _members() -> common.Params:
    return [
        Option(
            "--workers-dns",
            metavar="NAME:PORT",
            default="",
            group=common.MEMBERS,
            read=common.address(common.WORKER_PORT),
            help="use the workers that this DNS name lists, as it changes",
        ),
        Option(
            "--workers-mdns",
            is_flag=True,
            group=common.MEMBERS,
            help="use the workers that announce themselves on the LAN (hearth worker --announce)",
        ),
        Option(
            "--min-workers",
            read=common.integer,
            metavar="N",
            group=common.MEMBERS,
            shown="all of --workers; else 1",
            help="serve as soon as N workers have joined",
        ),
        Option(
            "--join-seconds",
            read=common.seconds,
            default=60.0,
            metavar="S",
            group=common.MEMBERS,
            help="how long to wait for absent workers at the start",
        ),
        Option(
            "--wait-seconds",
            read=common.seconds,
            default=30.0,
            metavar="S",
            group=common.MEMBERS,
            help="how long to wait for a lost worker before the model is divided over the others",
        ),
        Option(
            "--story",
            metavar="FILE",
            default="",
            group=common.MEMBERS,
            help="append what happens to workers, and each decision, as JSON lines for a bug "
            "report (about 10 MB a day)",
        ),
    ]


def _api_keys() -> Option:
    return Option(
        "--api-keys",
        metavar="FILE",
        group=common.SECURITY,
        help="file of lines NAME KEY: only clients with one of these keys may call",
    )


def run(options: Options) -> int:
    """Serve until SIGTERM or SIGINT; 0. Raises HearthError when it cannot start."""
    from hearth.cli.session import open_session, open_several
    from hearth.cli.stopping import StopSignals
    from hearth.common import logging as hearth_logging
    from hearth.common.api_keys import ApiKeys
    from hearth.common.channels import format_address, split_address
    from hearth.root.app import serving, serving_models
    from hearth.root.settings import Serving

    hearth_logging.setup(json_lines=options.log_format == "json")
    if options.log_format == "json":
        output.notes_as_log()
    settings = Serving(
        listen=options.listen,
        joining=_joining(options),
        security=common.credentials(options, "listen", "metrics", "http"),
        api_keys=ApiKeys(Path(options.api_keys)) if options.api_keys else None,
        insecure=options.insecure,
        health=options.health or None,
        http="" if options.no_http else HTTP_ADDRESS if options.http is None else options.http,
        http_may_fail=options.http is None,
        origins=tuple(options.cors),
        any_model=options.any_model,
        pooling=options.pooling or "",
        keep_alive=options.keep_alive,
        share_prefixes=options.prefix_cache == "shared",
        shutdown_seconds=options.drain_seconds,
    )
    host, _ = split_address(options.listen)
    stop = StopSignals(exits=True)
    if options.models:
        with (
            open_several(options) as several,
            serving_models(
                several.cards,
                several.settings,
                settings,
                pause_seconds=options.pause_seconds,
                metrics=several.metrics,
                on_load=several.progress,
            ) as port,
        ):
            stop.ready = True
            output.note("models: " + ", ".join(card.name for card in several.cards))
            output.line(f"hearth root listening on {format_address(host, port)}")
            stop.wait()
        return 0
    with open_session(
        options,
        sequences=options.sequences,
        form=False,
        bars=False,
        pause_seconds=options.pause_seconds,
        prefix_cache=not options.no_prefix_cache,
    ) as session:
        with serving(session.core, settings) as port:
            stop.ready = True
            output.line(f"hearth root listening on {format_address(host, port)}")
            stop.wait()
    return 0


def _joining(options: Options) -> Joining:
    from hearth.common.errors import HearthError, Reason
    from hearth.root.settings import Joining

    if options.shares is not None and (options.workers_dns or options.workers_mdns):
        problem = "--shares needs a static list: give --workers, and a share for each of them"
        raise HearthError(Reason.BAD_SETTING, problem)
    return Joining(
        dns=options.workers_dns,
        mdns=options.workers_mdns,
        min_workers=options.min_workers,
        join_seconds=options.join_seconds,
        wait_seconds=options.wait_seconds,
        story=options.story,
    )
