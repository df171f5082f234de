"""`hearth convert`: writes a Hearth directory from a model, in a chosen weight type."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from hearth.cli.stopping import terminate_as_interrupt
from hearth.converter import ModelError
from hearth.converter.convert import Progress, convert
from hearth.converter.weights import TYPES


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "convert",
        help="write a Hearth directory from a model",
        description="Writes a Hearth directory (config, tokenizer, quantized weights) from a "
        "Hugging Face directory or a GGUF file. On any failure nothing is left behind.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a model: a directory or a .gguf file")
    parser.add_argument("dest", metavar="DEST", type=Path, help="the directory to make")
    add_weights(parser, default="q40")
    parser.set_defaults(run=run)


def add_weights(parser: argparse.ArgumentParser, default: str | None) -> None:
    """The option --weights, as convert and pull have it."""
    parser.add_argument(
        "--weights",
        choices=TYPES,
        default=default,
        help="the type of the weights" + (f" (default {default})" if default else ""),
    )


def run(args: argparse.Namespace) -> int:
    return run_conversion(args.source, args.dest, args.weights)


def run_conversion(source: str, dest: Path, weights: str) -> int:
    """Converts with progress on stderr; returns the exit code."""
    try:
        with terminate_as_interrupt(), progress_bar() as progress:
            convert(source, dest, weights, progress)
    except ModelError as error:
        print(f"hearth convert: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hearth convert: interrupted; {dest} was not written", file=sys.stderr)
        return 130
    print(dest)
    return 0


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar where stderr is a terminal, a line for every tenth of the work elsewhere."""
    if sys.stderr.isatty():
        with tqdm(unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True) as bar:

            def show(name: str, done: int, total: int) -> None:
                bar.total = total
                bar.set_description(name, refresh=False)
                bar.update(done - bar.n)

            yield show
    else:
        shown = -1

        def write(name: str, done: int, total: int) -> None:
            nonlocal shown
            tenth = 10 * done // total
            if tenth != shown:
                shown = tenth
                print(f"{10 * tenth}% {done} of {total} bytes, {name}", file=sys.stderr)

        yield write
