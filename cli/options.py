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


def add_source(parser: argparse.ArgumentParser) -> None:
    """A model to run here, or a root that runs one."""
    group = parser.add_mutually_exclusive_group(required=True)
    _add_model(group)
    group.add_argument("--root", metavar="HOST:PORT", help="ask a running root")
    _add_weights(parser)
    add_api_key(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and how its weights are held."""
    _add_model(parser, required=True)
    _add_weights(parser)


def _add_model(parser: argparse._ActionsContainer, required: bool = False) -> None:
    action = parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a Hugging Face or Hearth directory, a .gguf file, demo, or random:SHAPE",
    )
    action.required = required


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("f32", "f16", "q80", "q40"),
        help="weight type in memory (default: as stored)",
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """How a root divides a model over nodes."""
    parser.add_argument(
        "--workers", nargs="+", metavar="HOST:PORT", default=[], help="workers, in rank order"
    )
    parser.add_argument(
        "--shares",
        type=shares,
        metavar="A,B,...",
        help="what each node holds, root first, in proportion (default: equal)",
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
        help="what a sync carries: q80 is a quarter of f32's bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--lane",
        choices=("mesh", "grpc"),
        default="mesh",
        help="how syncs travel: between the nodes themselves, or through the root, which needs one "
        "port only (default: %(default)s)",
    )
    parser.add_argument(
        "--kv-type",
        choices=("f32", "f16", "q80"),
        default="f16",
        help="what the KV cache holds (default: %(default)s)",
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
        help="rows of one step: how long a prompt's chunks are (default: %(default)s)",
    )
    parser.add_argument(
        "--step-seconds",
        type=seconds,
        metavar="S",
        default=120.0,
        help="a step that takes longer is given up (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-limit",
        type=size,
        metavar="SIZE",
        help="bytes for the root's weights and KV cache at most (default: what is free)",
    )
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve Prometheus metrics on this address"
    )
    add_security(parser)


def add_security(parser: argparse.ArgumentParser) -> None:
    """Who is trusted. Of a command that asks a running root, --tls is the client's directory."""
    group = parser.add_mutually_exclusive_group()
    add_tls(group)
    group.add_argument(
        "--insecure",
        action="store_true",
        help="let everybody who reaches an address beyond loopback use it",
    )


def add_tls(parser: argparse._ActionsContainer) -> None:
    """The directory of certificates."""
    parser.add_argument(
        "--tls",
        metavar="DIR",
        help="directory with ca.crt, tls.crt, tls.key and token, of `hearth certs init`: speak "
        "TLS, with those of the same cluster only",
    )


def add_api_key(parser: argparse.ArgumentParser) -> None:
    """The key of a client."""
    parser.add_argument("--api-key", metavar="KEY", help="what a running root knows this client by")


def add_health(parser: argparse.ArgumentParser) -> None:
    """The port for probes."""
    parser.add_argument(
        "--health",
        metavar="HOST:PORT",
        help="answer health checks, and nothing else, on this address, in plaintext",
    )


def security(options: argparse.Namespace, *exposed: str) -> Security | None:
    """What --tls says, or None without it.

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
            log.warning("--insecure: whoever reaches --%s %s may use it", name, address)
    # A name that a resolver gives was chosen by somebody; on a LAN, anybody can announce himself.
    if getattr(options, "workers_mdns", False) and found is None and not options.insecure:
        problem = (
            "--workers-mdns would give the model and its prompts to whoever announces a worker: "
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
        help="start N-1 workers on this machine: N nodes in all",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        default="none",
        help="slice cache of the workers started (default: %(default)s)",
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
    """How tokens are chosen; the defaults are greedy."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="keep the K best; 0 keeps all")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the best of this sum")
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="drop below this share of the best"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is off")
    parser.add_argument("--seed", type=int, help="same seed, same text")
