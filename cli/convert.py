"""`hearth convert`: writes a Hearth directory from a model, in a chosen weight type."""

import argparse
import sys
from pathlib import Path

from hearth.cli.options import add_weights
from hearth.cli.progress import conversion_progress
from hearth.cli.stopping import terminate_as_interrupt
from hearth.converter import ModelError
from hearth.converter.convert import convert


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


def run(args: argparse.Namespace) -> int:
    return run_conversion(args.source, args.dest, args.weights)


def run_conversion(source: str, dest: Path, weights: str) -> int:
    """Converts with progress on stderr; returns the exit code."""
    try:
        with terminate_as_interrupt(), conversion_progress() as progress:
            convert(source, dest, weights, progress)
    except ModelError as error:
        print(f"hearth convert: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hearth convert: interrupted; {dest} was not written", file=sys.stderr)
        return 130
    print(dest)
    return 0
