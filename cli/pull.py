"""`hearth pull`: downloads a model from the Hugging Face hub, and converts it where asked."""

from pathlib import Path

from hearth.cli import output
from hearth.cli.command import Argument, Command, Option, Options
from hearth.cli.convert import run_conversion
from hearth.cli.options import split_rules, weights
from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.common.terminal import one_line


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
                help="OWNER/MODEL; for GGUF files OWNER/MODEL:Q4_K_M or OWNER/MODEL/FILE.gguf",
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
        help="Download a model into the Hugging Face cache and print its path; any command takes "
        "it by its name then. A model that Hearth cannot run is refused before its weights are "
        "downloaded. With --weights it is then converted to a Hearth directory.",
    )


def run(options: Options) -> int:
    """Print the path, and the next command to standard error; 0. Raises ModelError."""
    # Late: see `run_conversion`.
    from hearth.converter.hub import cached_model
    from hearth.converter.pull import HubUnreachable, fetch, find

    if options.dest is not None and options.weights is None:
        problem = "--dest is where a conversion goes; add --weights"
        raise HearthError(Reason.BAD_SETTING, problem)
    try:
        download = find(options.name, options.revision)
    except HubUnreachable as error:
        path = None if options.revision else cached_model(options.name)
        if path is None:
            raise
        output.note(f"note: {error}. It is in the cache already:")
        return _finish(options, options.name.split("/")[1].partition(":")[0], path)
    files = f"{len(download.files)} file{'s' * (len(download.files) != 1)}"
    output.note(f"{options.name}: {files}, {format_size(download.size)}")
    path = fetch(download, lambda file, size: output.note(f"{one_line(file)}: {format_size(size)}"))
    return _finish(options, download.repository.split("/")[1], path)


def _finish(options: Options, model: str, path: Path) -> int:
    """Print the model's path, or convert it first; the exit code."""
    if options.weights is None:
        output.line(str(path))
        output.note(f"next: hearth chat {path if options.revision else options.name}")
        return 0
    name = path.stem if path.suffix == ".gguf" else model
    dest = Path(options.dest or f"{name}-{options.weights}")
    code = run_conversion(str(path), dest, options.weights, options.pre)
    if code == 0:
        output.note(f"next: hearth chat {dest}")
    return code
