"""`hearth pull`: downloads a model from the Hugging Face hub, and converts it where asked."""

from pathlib import Path

from hearth.cli import output
from hearth.cli.command import Argument, Command, Option, Options
from hearth.cli.convert import run_conversion
from hearth.cli.options import split_rules, weights
from hearth.common.errors import HearthError, Reason
from hearth.converter.pull import pull


def command() -> Command:
    """The subcommand and its options."""
    group = "Download and conversion"
    return Command(
        "pull",
        run,
        [
            Argument(
                "name",
                metavar="NAME",
                help="owner/model, or owner/model/file.gguf for one GGUF file",
            ),
            Option(
                "--revision",
                metavar="NAME",
                group=group,
                shown="the main branch",
                help="a branch, tag or commit",
            ),
            weights(),
            split_rules(),
            Option(
                "--dest",
                metavar="DIR",
                group=group,
                shown="./MODEL-WEIGHTS",
                help="the directory to convert into",
            ),
        ],
        help="Download a model into the hub's cache and print where it lies. With --weights it is "
        "then converted to a Hearth directory.",
    )


def run(options: Options) -> int:
    if options.dest is not None and options.weights is None:
        problem = "--dest is where a conversion goes; add --weights"
        raise HearthError(Reason.BAD_SETTING, problem)
    path = pull(options.name, options.revision)
    if options.weights is None:
        output.line(str(path))
        return 0
    name = Path(options.name).stem if path.suffix == ".gguf" else options.name.split("/")[1]
    dest = Path(options.dest or f"{name}-{options.weights}")
    return run_conversion(str(path), dest, options.weights, options.pre)
