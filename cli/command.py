"""Commands and their options on top of click: groups in --help, settings from elsewhere, hints.

An option says its name, type, default, help and group once; its variable follows from its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import click
from click.core import ParameterSource

from hearth.cli import output
from hearth.cli.variables import complaint, suspects
from hearth.common.cpu import check_cpu
from hearth.common.errors import HearthError, Reason
from hearth.common.settings import (
    Setting,
    SettingsFile,
    from_environment,
    settings_files,
    truth,
    variable,
    words,
)
from hearth.common.spelling import nearest
from hearth.common.terminal import one_line

_FILES = "hearth.settings_files"
_COMMON = "Other options"
# The precedence of origins; the higher one decides.
_RANK = {
    ParameterSource.COMMANDLINE: 3,
    ParameterSource.ENVIRONMENT: 2,
    ParameterSource.DEFAULT_MAP: 1,
}


class Options(SimpleNamespace):
    """Values of a command's options by name; `given` names those that the command line sets."""

    given: frozenset[str] = frozenset()


class Value(click.ParamType):  # type: ignore[type-arg] # generic in click 8.4 and later
    """Type of an option that is read by a function, which raises ValueError("it must be ...")."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._read(value) if isinstance(value, str) else value


class Choice(click.Choice):  # type: ignore[type-arg] # generic in click 8.2 and later
    """One of several words, of which some have other names."""

    def __init__(self, choices: Sequence[str], aliases: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.aliases = aliases

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(self.aliases.get(value, value), param, ctx)

    @property
    def text(self) -> str:
        """All words: "one of f16, q8_0 (or q80)"."""
        others = {name: f"{name} (or {alias})" for alias, name in self.aliases.items()}
        words = [others.get(name, name) for name in self.choices]
        return f"{'one of ' * (len(words) > 1)}{', '.join(words)}"


class Option(click.Option):
    """An option with a group in --help, whose value may also come from elsewhere.

    aliases: other names of choices.
    read: from its text to its value; raises ValueError. several: takes all words up to the next
    option, each perhaps a list with commas. former: hidden names that it had. shown: the default as
    --help says it. by_root: has no effect where --root names a running root.
    """

    def __init__(
        self,
        *names: str,
        help: str,
        group: str,
        read: Callable[[str], Any] | None = None,
        choices: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        default: Any = None,
        shown: str = "",
        several: bool = False,
        former: Sequence[str] = (),
        by_root: bool = False,
        **more: Any,
    ) -> None:
        if read is not None:
            more["type"] = Value("value", read)
        elif choices:
            more["type"] = Choice(choices, aliases or {})
            more.setdefault("metavar", "|".join(choices))
        if several:
            more["multiple"] = True
        if default is not None and not several:
            more["default"] = default
        self.group = group
        self.several = several
        self.former = tuple(former)
        self.by_root = by_root
        self._shown = shown
        self._own_default = default if default != "" else None
        self._setting: Setting | None = None
        super().__init__([*names, *former], help=help, **more)

    @property
    def long_name(self) -> str:
        """The name that a setting follows: --cache-dir."""
        return next(name for name in self.opts if name.startswith("--"))

    @property
    def setting_names(self) -> tuple[str, ...]:
        """Long names, the current one first."""
        return (self.long_name, *self.former)

    @property
    def default_text(self) -> str:
        """The default as people read it; "" for none."""
        if self._shown or self.is_flag or self.multiple:
            return self._shown
        return "" if self._own_default is None else str(self._own_default)

    @property
    def spelled(self) -> str:
        """The option as it is written: "-m, --model MODEL"."""
        names = [name for name in self.opts if name not in self.former]
        value = "" if self.is_flag else self.metavar or "VALUE"
        return f"{', '.join(sorted(names, key=len))} {value}".strip()

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if self.hidden:
            return None
        default = f" (default: {self.default_text})" if self.default_text else ""
        name = "" if self.group == _COMMON else f" [{variable(self.long_name)}]"
        return self.spelled, f"{self.help}{default}{name}"

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        """The value's text: the command line, the environment, the files, the default."""
        self._setting = None
        found, source = super().consume_value(ctx, opts)
        if source is ParameterSource.COMMANDLINE or self.group == _COMMON:
            return found, source
        self._setting = from_environment(self.setting_names, os.environ) or self._from_files(ctx)
        if self._setting is None:
            return found, source
        in_file = self._setting.in_file
        origin = ParameterSource.DEFAULT_MAP if in_file else ParameterSource.ENVIRONMENT
        return self._setting.text, origin

    def _from_files(self, ctx: click.Context) -> Setting | None:
        files: Sequence[SettingsFile] = ctx.meta.get(_FILES, ())
        found = (file.find(ctx.info_name or "", self.setting_names) for file in files)
        return next((setting for setting in found if setting is not None), None)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """The typed value. Raises UsageError, or HearthError naming the variable or the file."""
        try:
            if self._setting is not None:
                value = self._typed(self._setting.text)
            elif self.several and isinstance(value, list | tuple):
                value = [part for word in value for part in words(word)]
            found = super().process_value(ctx, value)
        except (ValueError, click.BadParameter) as error:
            problem = _problem(self, error, value)
            if self._setting is None:
                raise click.UsageError(f"{self.long_name} is {value!r}; {problem}", ctx) from None
            shown = f"{self._setting.origin}={self._setting.text!r}"
            raise HearthError(
                Reason.BAD_SETTING, f"{shown} is not a value for {self.long_name}: {problem}"
            ) from None
        return list(found) if self.multiple else found

    def _typed(self, text: str | list[str]) -> Any:
        """A setting's text in the form that click converts."""
        if self.several:
            return words(text) if isinstance(text, str) else text
        if self.multiple:
            return [text] if isinstance(text, str) else text
        if isinstance(text, list):
            text = ",".join(text)
        return truth(text) if self.is_flag else text


class Command(click.Command):
    """A subcommand.

    run: from the options to an exit code. one_of: names of options of which the command line takes
    one at most. needed: (names of which one must be there, the error's words).
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Options], int],
        params: Sequence[click.Parameter],
        *,
        help: str,
        one_of: Sequence[Collection[str]] = (),
        needed: Sequence[tuple[Collection[str], str]] = (),
        too_many: str = "",
        computes: bool = True,
    ) -> None:
        """too_many: a hint where there is a word more than the command takes.

        computes: it reads or runs models, unless --root names a machine that does.
        """
        self.run = run
        self._computes = computes
        self._one_of = one_of
        self._needed = needed
        self._too_many = too_many
        settings = {"help_option_names": ["-h", "--help"], "allow_extra_args": True}
        settings["max_content_width"] = 100
        super().__init__(name, params=[*params, *_common()], help=help, context_settings=settings)

    def settings(self) -> Iterator[Option]:
        """The options that may come from the environment and from files."""
        for param in self.params:
            if isinstance(param, Option) and param.group != _COMMON:
                yield param

    def read(self, arguments: Sequence[str]) -> Options:
        """The options of a command line. Raises UsageError, HearthError."""
        with self.make_context(self.name, list(arguments)) as ctx:
            return self.values(ctx)

    def values(self, ctx: click.Context) -> Options:
        """The options that a context has read."""
        options = Options(**{name.removesuffix("_word"): value for name, value in self._kept(ctx)})
        options.given = frozenset(
            name
            for name in ctx.params
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        )
        return options

    def _kept(self, ctx: click.Context) -> Iterator[tuple[str, Any]]:
        """(name, value); the word of a positional argument comes after the option it stands for."""
        for name in sorted(ctx.params, key=lambda name: name.endswith("_word")):
            if ctx.params[name] is not None or not name.endswith("_word"):
                yield name, ctx.params[name]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return described(super().get_help_option(ctx))

    def invoke(self, ctx: click.Context) -> int:
        if self._computes and not ctx.params.get("root"):
            check_cpu()
        return int(self.run(self.values(ctx)) or 0)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; then the rules that join several options."""
        if not ctx.resilient_parsing:
            args = list(self._spread(ctx, args))
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        if ctx.args:
            shown = " ".join(ctx.args)
            raise click.UsageError(f"too many words: {shown}{self._too_many}", ctx)
        for names in self._one_of:
            self._choose(ctx, names)
        for names, problem in self._needed:
            if not any(ctx.params.get(name) for name in names):
                raise click.UsageError(problem, ctx)
        self._check_remote(ctx)
        return rest

    def _spread(self, ctx: click.Context, args: Sequence[str]) -> Iterator[str]:
        """`--workers a b` as `--workers a --workers b`, which click reads.

        Raises UsageError for an option without its value, where the next word is an option.
        """
        known = {
            name: param
            for param in self.params
            if isinstance(param, click.Option)
            for name in param.opts
        }
        left = list(args)
        while left:
            word = left.pop(0)
            yield word
            option = known.get(word.partition("=")[0])
            if word == "--":
                yield from left
                return
            if option is None or option.is_flag or option._flag_needs_value:
                continue
            if "=" not in word:
                if not left or left[0] in known or left[0] == "--":
                    value = option.metavar or "a value"
                    raise click.UsageError(f"{word} needs {value} after it", ctx)
                yield left.pop(0)
            while isinstance(option, Option) and option.several and left:
                if left[0].startswith("-"):
                    break
                yield option.long_name
                yield left.pop(0)

    def _choose(self, ctx: click.Context, names: Collection[str]) -> None:
        """Keep one of several options: the one whose origin has precedence."""
        rank = {
            name: _RANK.get(ctx.get_parameter_source(name) or ParameterSource.DEFAULT, 0)
            for name in names
            if ctx.params.get(name)
        }
        first = max(rank.values(), default=0)
        chosen = [name for name in rank if rank[name] == first]
        if first == 3 and len(chosen) > 1:
            shown = " and ".join(map(self._shown, chosen))
            raise click.UsageError(f"{shown} exclude each other: give one of them", ctx)
        for name in rank:
            if rank[name] < first:
                ctx.params[name] = None

    def _check_remote(self, ctx: click.Context) -> None:
        """Refuse an option that the running root decides."""
        if not ctx.params.get("root"):
            return
        given = [
            param.long_name
            for param in self.params
            if isinstance(param, Option)
            and param.by_root
            and ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(
                f"{', '.join(given)}: decided by the root at {ctx.params['root']} when it starts; "
                f"leave {'it' if len(given) == 1 else 'them'} out, or start the root so",
                ctx,
            )

    def _shown(self, name: str) -> str:
        if name.endswith("_word"):
            return name.removesuffix("_word").upper()
        return f"--{name.replace('_', '-')}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under the headings of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {Argument.group: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = param.group if isinstance(param, Option | Argument) else _COMMON
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            if not records:
                continue
            with formatter.section(group):
                formatter.write_dl(records, col_max=26)


class Argument(click.Argument):
    """A word without a name before it. Its help is under "Arguments"."""

    group = "Arguments"

    def __init__(self, name: str, *, help: str, **more: Any) -> None:
        super().__init__([name], **more)
        # Not `help`, which click would show in a section of its own.
        self.summary = help

    @property
    def spelled(self) -> str:
        """The argument as the usage line has it, without brackets."""
        return (self.metavar or self.name or "").strip("[]")

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.spelled, self.summary

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """The typed value. Raises UsageError."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            raise click.UsageError(f"{self.spelled} is missing: {self.summary}", ctx) from None
        except click.BadParameter as error:
            problem = _problem(self, error, value)
            raise click.UsageError(f"{self.spelled} is {value!r}; {problem}", ctx) from None


def _read_files(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Reads the settings files into the context, before any other option."""
    if not ctx.resilient_parsing:
        files = settings_files(value)
        if any(file.tables for file in files):
            from hearth.cli.commands import known_settings

            known = known_settings()
            for file in files:
                file.check(known)
        ctx.meta[_FILES] = files
        _warn_of_variables(ctx.command)
    return value


def _warn_of_variables(command: click.Command) -> None:
    """Name variables that look like Hearth's and set nothing."""
    own = [param for param in command.params if isinstance(param, Option)]
    if not suspects(os.environ, [variable(name) for param in own for name in param.setting_names]):
        return  # without a look at the other commands
    from hearth.cli.commands import known_variables

    known = known_variables()
    for name in suspects(os.environ, known):
        output.note(f"warning: {one_line(complaint(name, known))}")


def _common() -> list[click.Option]:
    """Options of every command."""
    return [
        Option(
            "--config",
            metavar="FILE",
            group=_COMMON,
            help="read settings from this file only [HEARTH_CONFIG]",
            is_eager=True,
            callback=_read_files,
        ),
        Option("--debug", is_flag=True, group=_COMMON, help="show tracebacks"),
    ]


def _problem(param: click.Parameter, error: Exception, value: Any) -> str:
    """The reason why a value is refused, with the nearest word of those that it may be."""
    if isinstance(param.type, click.Choice):
        words = list(param.type.choices)
        known = [*words, *(param.type.aliases if isinstance(param.type, Choice) else ())]
        hint = nearest(value, known) if isinstance(value, str) else ""
        if isinstance(param.type, Choice):
            return f"it must be {param.type.text}{hint}"
        return f"it must be {'one of ' * (len(words) > 1)}{', '.join(words)}{hint}"
    return error.message if isinstance(error, click.BadParameter) else str(error)


def described(option: click.Option | None) -> click.Option | None:
    """click's own --help, in the style of the other options and of the output."""

    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            output.line(ctx.get_help())
            ctx.exit()

    if option is not None:
        option.help = "show this help and exit"
        option.callback = show
    return option


def usage_lines(error: click.UsageError) -> list[str]:
    """Two lines for a command line that cannot be read: the mistake, and where to look."""
    path = error.ctx.command_path if error.ctx is not None else "hearth"
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        known = [] if error.ctx is None else _names(error.ctx.command)
        message = f"there is no option {error.option_name}{nearest(error.option_name, known)}"
    return [f"hearth: {message}", f"See `{path} --help`."]


def _names(command: click.Command) -> list[str]:
    """Long names of the options that are shown."""
    names = ["--help"]
    for param in command.params:
        if isinstance(param, Option) and not param.hidden:
            names.append(param.long_name)
        elif isinstance(param, click.Option):
            names += param.opts
    return names
