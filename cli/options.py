"""Options that several subcommands share, and how their text becomes values."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.common.sizes import parse_size

if TYPE_CHECKING:
    from hearth.common.security import Security

log = logging.getLogger(__name__)


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def several(text: str) -> int:
    """A whole number of at least 2."""
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} is not at least 2")
    return value


def threads(text: str) -> int:
    """Threads of a node, as many as the core can start."""
    value = int(text)
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to 1024")
    return value


def seconds(text: str) -> float:
    """Above 0, at most an hour."""
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 s and at most 3600 s")
    return value


def port(text: str) -> int:
    """A port number; 0 stands for any free one."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 .. 65535")
    return value


def size(text: str) -> int:
    """Bytes of "512MiB"."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def shares(text: str) -> tuple[float, ...]:
    """(3.0, 1.0) of "3,1"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 3,1") from None


def cores(text: str) -> list[int]:
    """[0, 1, 4] of "0-1,4"; only cores that this process may use."""
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        chosen.extend(range(int(first), int(last or first) + 1))
    known = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(chosen)
    absent = sorted(set(chosen) - known)
    if absent or not chosen:
        raise argparse.ArgumentTypeError(
            f"cores {absent} are not usable; there are {sorted(known)}"
        )
    return chosen


def add_generation(parser: argparse.ArgumentParser) -> None:
    """The options that `generate` and `chat` share: the model, its nodes, the sampling."""
    add_source(parser)
    add_cluster(parser)
    add_local_nodes(parser)
    add_sampling(parser)


def add_source(parser: argparse.ArgumentParser) -> None:
    """A model to run here, or a root that runs one."""
    group = parser.add_mutually_exclusive_group(required=True)
    _add_model(group)
    group.add_argument("--root", metavar="HOST:PORT", help="use a running root")
    add_weights(parser)
    add_api_key(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and how its weights are held."""
    _add_model(parser, required=True)
    add_weights(parser)


def _add_model(parser: argparse._ActionsContainer, required: bool = False) -> None:
    action = parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a Hugging Face or Hearth directory, a .gguf file, demo, or random:SHAPE",
    )
    action.required = required


def add_weights(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--weights, whose default is the type in the model's files."""
    shown = default or "as stored"
    parser.add_argument(
        "--weights",
        choices=("f32", "f16", "q80", "q40"),
        default=default,
        help=f"number type of the weights (default: {shown})",
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """The nodes of a model, and the cut of the model over them."""
    parser.add_argument(
        "--workers", nargs="+", metavar="HOST:PORT", default=[], help="workers, in rank order"
    )
    parser.add_argument(
        "--shares",
        type=shares,
        metavar="A,B,...",
        help="share of the model that each node holds, root first (default: equal)",
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="threads of each node")
    parser.add_argument(
        "--context",
        type=count,
        metavar="N",
        help="positions of one sequence (default: the model's, at most 4096)",
    )
    parser.add_argument(
        "--sync-type",
        choices=("f32", "f16", "q80"),
        default="f32",
        help="number type of syncs; q80 takes a quarter of the bytes of f32 (default: %(default)s)",
    )
    parser.add_argument(
        "--lane",
        choices=("mesh", "grpc"),
        default="mesh",
        help="path of syncs: mesh sends them between the nodes, grpc through the root, which needs "
        "one port only (default: %(default)s)",
    )
    parser.add_argument(
        "--kv-type",
        choices=("f32", "f16", "q80"),
        default="f16",
        help="number type of the KV cache (default: %(default)s)",
    )
    parser.add_argument(
        "--parallel",
        choices=("auto", "tensor"),
        default="auto",
        help="how to split the model; auto picks tensor parallelism (default: %(default)s)",
    )
    parser.add_argument(
        "--max-step-tokens",
        type=count,
        metavar="N",
        default=128,
        help="rows of one step; longer prompts are prefilled in chunks (default: %(default)s)",
    )
    parser.add_argument(
        "--step-seconds",
        type=seconds,
        metavar="S",
        default=120.0,
        help="time limit of a step; one that takes longer fails (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-limit",
        type=size,
        metavar="SIZE",
        help="most bytes for the root's weights and KV cache (default: the free memory)",
    )
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve Prometheus metrics on this address"
    )
    add_security(parser)


def add_security(parser: argparse.ArgumentParser) -> None:
    """TLS or none. For a command that calls a running root, --tls is the client's directory."""
    group = parser.add_mutually_exclusive_group()
    add_tls(group)
    group.add_argument(
        "--insecure",
        action="store_true",
        help="serve other machines without TLS or authentication",
    )


def add_tls(parser: argparse._ActionsContainer) -> None:
    """The directory of certificates."""
    parser.add_argument(
        "--tls",
        metavar="DIR",
        help="directory with ca.crt, tls.crt, tls.key and token, made by `hearth certs init`: use "
        "TLS, with nodes and clients of the same cluster only",
    )


def add_api_key(parser: argparse.ArgumentParser) -> None:
    """The key of a client."""
    parser.add_argument("--api-key", metavar="KEY", help="API key to send to the root")


def add_health(parser: argparse.ArgumentParser) -> None:
    """The port for probes."""
    parser.add_argument(
        "--health",
        metavar="HOST:PORT",
        help="answer health checks, and nothing else, in plaintext on this address",
    )


def security(options: argparse.Namespace, *exposed: str) -> Security | None:
    """The credentials of --tls, or None without it.

    exposed: the options among "listen" and "metrics" that are addresses to serve. Raises
    HearthError INSECURE for one beyond loopback without --tls or --insecure, or BAD_SETTING.
    """
    from hearth.common.channels import is_loopback, refuse_exposed
    from hearth.common.errors import HearthError, Reason
    from hearth.common.security import Security

    if options.tls and options.insecure:
        raise HearthError(Reason.BAD_SETTING, "give --tls or --insecure, not both")
    found = Security(Path(options.tls)) if options.tls else None
    for name in exposed:
        address = getattr(options, name)
        if address:
            refuse_exposed(f"--{name}", address, found, options.insecure)
        if address and options.insecure and not is_loopback(address):
            log.warning("--insecure: anyone who can reach --%s %s may use it", name, address)
    # Anyone on a LAN can announce a worker.
    if getattr(options, "workers_mdns", False) and found is None and not options.insecure:
        problem = (
            "--workers-mdns would give the model and its prompts to anyone who announces a worker: "
            "give --tls DIR (`hearth certs init` makes one), or --insecure where you trust the "
            "whole network"
        )
        raise HearthError(Reason.INSECURE, problem)
    return found


def add_local_nodes(parser: argparse.ArgumentParser) -> None:
    """Workers started on this machine, for this command only."""
    parser.add_argument(
        "--nodes",
        type=count,
        metavar="N",
        help="run N nodes on this machine: start N-1 workers for this command",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        default="none",
        help="slice cache of the workers that are started (default: %(default)s)",
    )
    parser.add_argument(
        "--pin", action="store_true", help="pin each node's threads to cores of its own (Linux)"
    )


def add_max_tokens(parser: argparse.ArgumentParser, text: str) -> None:
    """--max-tokens, with `text` as its help; --steps is its hidden former name."""
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help=text)
    parser.add_argument(
        "--steps",
        type=int,
        dest="max_tokens",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Sampling; the defaults are greedy."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument(
        "--top-k", type=int, default=0, help="keep the K most likely tokens; 0 keeps all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="nucleus sampling: keep the most likely tokens whose probabilities add up to P",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        help="drop tokens less likely than this share of the most likely one",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="divide the logits of tokens in the text so far by this; 1 is off",
    )
    parser.add_argument(
        "--seed", type=int, help="seed of the random choices: the same seed gives the same text"
    )
