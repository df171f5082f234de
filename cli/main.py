"""Entry of the `hearth` command: finds the subcommand, reads its options, reports its errors.

Each subcommand is a module here with `command()`. Only the module that is asked for is imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click

from hearth.cli import output
from hearth.cli.command import described, usage_lines
from hearth.cli.commands import COMMANDS, SECTIONS, load
from hearth.common.spelling import nearest

# Before gRPC is imported: it would write a line of its own for every failed TLS handshake. Ours
# name the peer, and a scanner cannot fill the log with them (common/admission.py).
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# The extra `root` of pyproject.toml: a worker is installed without these.
ROOT_LIBRARIES = frozenset(
    (
        "gguf",
        "h11",
        "huggingface_hub",
        "jinja2",
        "llguidance",
        "prompt_toolkit",
        "safetensors",
        "sentencepiece",
        "starlette",
        "tiktoken",
        "tokenizers",
        "tqdm",
        "uvicorn",
        "yaml",
    )
)
_COMPLETE = "_HEARTH_COMPLETE"
_FIRST_STEPS = (
    ("hearth chat demo", "talk with a tiny model that comes with Hearth"),
    ("hearth pull OWNER/MODEL", "download a model from Hugging Face"),
    ("hearth chat OWNER/MODEL", "talk with it on this machine"),
)
_END = (
    "Every option can also come from the environment (HEARTH_CACHE_DIR for --cache-dir) and from "
    "~/.config/hearth/hearth.toml or /etc/hearth/hearth.toml (cache-dir = ...)."
)


class Hearth(click.Group):
    """`hearth`: the subcommands in sections, imported when they are needed."""

    def __init__(self) -> None:
        super().__init__(
            "hearth",
            help="Run large language models split over the machines you already own.",
            params=[
                click.Option(
                    ["-V", "--version"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_print_version,
                    help="print the version and exit",
                ),
                click.Option(["--debug"], is_flag=True, expose_value=False, help="show tracebacks"),
            ],
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
            subcommand_metavar="COMMAND ...",
            no_args_is_help=False,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, "help"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "help":
            return _help_command(self)
        return load(name) if name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand of the first word. Raises UsageError with the nearest one."""
        name = args[0]
        found = self.get_command(ctx, name)
        if found is None and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no command {name}{nearest(name, COMMANDS)}", ctx)
        return name, found, args[1:]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return described(super().get_help_option(ctx))

    def invoke(self, ctx: click.Context) -> int:
        return int(super().invoke(ctx) or 0)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """First steps, then the commands by section, then the options."""
        with formatter.section("First steps"):
            formatter.write_dl(_FIRST_STEPS)
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, COMMANDS[name]) for name in names])
        records = [param.get_help_record(ctx) for param in self.get_params(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])
        formatter.write_paragraph()
        formatter.write_text("`hearth help COMMAND` lists the options of a command. " + _END)


def _help_command(group: Hearth) -> click.Command:
    """`hearth help [COMMAND]`."""

    def show(name: str | None) -> int:
        parent = click.get_current_context().parent
        assert parent is not None
        if name is None or name == "help":
            output.line(parent.get_help())
            return 0
        _, command, _ = group.resolve_command(parent, [name])
        assert command is not None
        with command.make_context(name, ["--help"], parent=parent):
            return 0

    return click.Command(
        "help",
        callback=show,
        params=[click.Argument(["name"], required=False, metavar="[COMMAND]")],
        help="Show the help of a command.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from hearth.common.system import version

        output.line(f"hearth {version()}")
        ctx.exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code: 0, 1 for an error that was reported, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    output.prepare()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`): not an error of ours.
        output.abandon()
        return 141
    except output.OutputError as error:
        output.abandon()
        output.note(f"hearth: {error}", level=logging.ERROR)
        return 1
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        output.note("\n".join(usage_lines(error)))
        return 2
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if debug or library not in ROOT_LIBRARIES:
            raise
        output.note(
            f"hearth: this command needs {library}, which is not installed: "
            "pip install 'hearth[root]'"
        )
        return 1
    except Exception as error:
        if debug or not report(error):
            raise
        return 2 if getattr(error, "reason", "") == "BAD_SETTING" else 1


def report(error: Exception) -> bool:
    """Write an error that is meant for people to standard error; False for any other, a bug."""
    if not _is_expected(error):
        return False
    output.note(f"hearth: {_message(error)}", level=logging.ERROR)
    return True


def _run(arguments: list[str]) -> int:
    hearth = Hearth()
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(hearth, {}, "hearth", _COMPLETE, instruction)
    if not arguments:
        context = click.Context(hearth, info_name="hearth", **hearth.context_settings)
        output.line(hearth.get_help(context))
        return 2
    with hearth.make_context("hearth", arguments) as ctx:
        return hearth.invoke(ctx)


def _message(error: Exception) -> str:
    """The error's text, where a parameter of a request has the name of its option."""
    metadata = getattr(error, "metadata", None) or {}
    field = str(metadata.get("field", ""))
    text = str(error)
    if field and text.startswith(f"{field} "):
        return f"--{field.replace('_', '-')}{text.removeprefix(field)}"
    return text


def _is_expected(error: Exception) -> bool:
    """Errors whose message is written for people; anything else is a bug, shown as one."""
    # By name: the services, the client and the converter each have a base of their own, and none of
    # them needs to be imported just to look.
    return any(base.__name__ in ("HearthError", "ModelError") for base in type(error).__mro__)


if __name__ == "__main__":
    sys.exit(main())
