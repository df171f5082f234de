"""`hearth convert`: writes a Hearth directory from a model, in a chosen weight type."""

from pathlib import Path

from hearth.cli import output
from hearth.cli.command import Argument, Command, Options
from hearth.cli.options import split_rules, tokenizer, weights
from hearth.cli.stopping import terminate_as_interrupt


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "convert",
        run,
        [
            Argument("source", metavar="SOURCE", help="a model: a directory, a .gguf or .m file"),
            Argument("dest", metavar="DEST", help="the directory to make"),
            weights(default="q4_0"),
            split_rules(),
            tokenizer(),
        ],
        help="Write a Hearth directory (config, tokenizer, quantized weights) from a Hugging Face "
        "directory, a GGUF file or a dllama file. On any failure nothing is left behind.",
    )


def run(options: Options) -> int:
    """Convert; 0. Raises ModelError."""
    return run_conversion(
        options.source, Path(options.dest), options.weights, options.pre, options.tokenizer
    )


def run_conversion(
    source: str, dest: Path, weights: str, pre: str | None, tokenizer: str | None = None
) -> int:
    """Convert with progress on stderr; the exit code. Raises ModelError."""
    # Late: a worker that looks at every command's settings has no tqdm.
    from hearth.cli.progress import conversion_progress

    # Late, as in `pull`: it imports NumPy, which not every CPU runs (Command.invoke looks first).
    from hearth.converter.convert import convert

    def note(line: str) -> None:
        output.note(f"note: {line}")

    try:
        with terminate_as_interrupt(), conversion_progress() as progress:
            convert(source, dest, weights, progress, pre, tokenizer, note)
    except KeyboardInterrupt:
        output.note(f"hearth: interrupted; {dest} was not written")
        return 130
    output.line(str(dest))
    return 0
