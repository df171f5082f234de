"""`hearth pull`: downloads a model from the Hugging Face hub, and converts it where asked."""

import argparse
import sys
from pathlib import Path

from hearth.cli.convert import run_conversion
from hearth.cli.options import add_weights
from hearth.converter import ModelError
from hearth.converter.pull import pull


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "pull",
        help="download a model from the Hugging Face hub",
        description="Downloads a model into the hub's cache and prints where it lies. With "
        "--weights it is then converted to a Hearth directory.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="owner/model, or owner/model/file.gguf for one GGUF file"
    )
    parser.add_argument("--revision", help="a branch, tag or commit (default: the main branch)")
    add_weights(parser)
    parser.add_argument(
        "--dest", type=Path, help="the directory to convert into (default: ./MODEL-WEIGHTS)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.dest is not None and args.weights is None:
        print("hearth pull: --dest is where a conversion goes; add --weights", file=sys.stderr)
        return 2
    try:
        path = pull(args.name, args.revision)
    except ModelError as error:
        print(f"hearth pull: {error}", file=sys.stderr)
        return 1
    if args.weights is None:
        print(path)
        return 0
    name = Path(args.name).stem if path.suffix == ".gguf" else args.name.split("/")[1]
    dest = args.dest or Path(f"{name}-{args.weights}")
    return run_conversion(str(path), dest, args.weights)
