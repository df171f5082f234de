"""Entry of the `hearth` command: finds the subcommand, reads its options, reports its errors.

Each subcommand is a module here with `add_parser(subparsers)`, whose parser sets `run` (a function
from the parsed arguments to an exit code). Only the module that is asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Before gRPC is imported: it would write a line of its own for every failed TLS handshake. Ours
# name the peer, and a scanner cannot fill the log with them (common/admission.py).
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

COMMANDS = {
    "generate": "print the text that a model makes from a prompt",
    "chat": "talk with a model in the terminal",
    "root": "serve a model to clients, alone or with workers",
    "worker": "give this machine's memory and cores to a root",
    "bench": "measure tokens per second, bytes per token and memory",
    "cluster": "show a running cluster",
    "certs": "make the certificates and the join token of a cluster",
    "healthcheck": "check a service's health port, for container engines",
    "convert": "write a model as a Hearth directory, in another weight type",
    "pull": "fetch a model from Hugging Face and convert it",
}

# The extra `root` of pyproject.toml: a worker is installed without these.
ROOT_LIBRARIES = frozenset(
    (
        "huggingface_hub",
        "jinja2",
        "safetensors",
        "sentencepiece",
        "tiktoken",
        "tokenizers",
        "tqdm",
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code: 0, 1 for an error that was reported, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if debug or library not in ROOT_LIBRARIES:
            raise
        print(
            f"hearth: this command needs {library}, which is not installed: "
            "pip install 'hearth[root]'",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if debug or not _is_expected(error):
            raise
        print(f"hearth: {error}", file=sys.stderr)
        return 2 if getattr(error, "reason", "") == "BAD_SETTING" else 1


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hearth",
        description="Runs large language models split over the machines people already own.",
        epilog="Every option can come from the environment: --cache-dir from HEARTH_CACHE_DIR.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    chosen = next((word for word in arguments if not word.startswith("-")), "")
    for name, text in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"hearth.cli.{name}")
            module.add_parser(subparsers)
            _finish(subparsers.choices[name], arguments)
        else:
            subparsers.add_parser(name, help=text)
    options = parser.parse_args(arguments)
    if options.version:
        from hearth.common.system import version

        print(f"hearth {version()}")
        return 0
    if not options.command:
        parser.print_help()
        return 2
    return int(options.run(options) or 0)


def _finish(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from hearth.common.settings import apply_environment

    apply_environment(parser, arguments=arguments)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )


def _is_expected(error: Exception) -> bool:
    """Errors whose message is written for people; anything else is a bug, shown as one."""
    # By name: the services, the client and the converter each have a base of their own, and none of
    # them needs to be imported just to look.
    return any(base.__name__ in ("HearthError", "ModelError") for base in type(error).__mro__)


if __name__ == "__main__":
    sys.exit(main())
