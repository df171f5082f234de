"""The man page hearth(1), made of the commands and their options, in the macros of man(7)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hearth.cli.command import Argument, Command, Option
from hearth.cli.commands import COMMANDS, SECTIONS, load
from hearth.common.settings import variable

_HEAD = r""".\" Written by .ci/write_reference.py from the code; do not edit.
.TH HEARTH 1 "" "Hearth" "User Commands"
.SH NAME
hearth \- run large language models split over the machines you already own
.SH SYNOPSIS
.B hearth
.I COMMAND
.RI [ OPTIONS ]
.br
.B hearth help
.RI [ COMMAND ]
.SH DESCRIPTION
A root service and any number of workers split one model between them. On one machine,
.B hearth chat demo
needs nothing else.
"""
_TAIL = r""".SH ENVIRONMENT
Every option can come from the environment variable that stands in brackets after it.
Lists are separated by spaces or commas.
Flags take 1/0, true/false, yes/no, on/off.
.TP
.B HEARTH_LOG_LEVEL
Level of the log of services (default INFO).
.TP
.B HEARTH_INSTRUCTION_SET
Kernels to use, such as avx2 or scalar.
.TP
.B HF_TOKEN, HF_ENDPOINT, HF_HOME
Token, address and cache of the Hugging Face hub, for
.BR "hearth pull" .
.SH FILES
.TP
.I /etc/hearth/hearth.toml, ~/.config/hearth/hearth.toml
Settings. The command line overrides the environment, which overrides the user's file,
which overrides the system's.
.TP
.I ~/.cache/hearth/slices
A worker's slices of weights. Safe to delete.
.TP
.I ~/.cache/hearth/digests
Digests of a root's model files. Safe to delete.
.SH EXIT STATUS
0 for success, 1 for an error that was reported, 2 for wrong usage or a wrong setting, 130 after
Ctrl-C.
.SH EXAMPLES
.nf
hearth chat demo
hearth pull OWNER/MODEL
hearth certs init certs
hearth worker --listen 0.0.0.0:7717 --tls certs/worker
hearth root --model OWNER/MODEL --workers 192.168.1.21:7717 --tls certs/root
.fi
"""


def escaped(text: str) -> str:
    """Text as roff prints it unchanged: no character of it is an instruction."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_commands()) + "".join(_options()) + _TAIL


def _commands() -> Iterator[str]:
    yield ".SH COMMANDS\n"
    for title, names in SECTIONS.items():
        yield f".SS {escaped(title)}\n"
        for name in names:
            yield f".TP\n.B {escaped(name)}\n{escaped(COMMANDS[name])}\n"


def _options() -> Iterator[str]:
    for name in COMMANDS:
        command = load(name)
        yield f'.SH "OPTIONS OF HEARTH {name.upper()}"\n'
        for spelled, text in _entries(command):
            yield f".TP\n.B {escaped(spelled)}\n{escaped(text)}\n"


def _entries(command: Command) -> Iterator[tuple[str, str]]:
    """(option with its value, help) of each argument and option."""
    settings = set(command.settings())
    for param in command.params:
        if isinstance(param, Argument):
            yield param.spelled, param.summary
        elif isinstance(param, Option) and param in settings and not param.hidden:
            default = param.default_text.replace(str(Path.home()), "~")
            shown = f" (default: {default})" if default else ""
            yield param.spelled, f"{param.help}{shown} [{variable(param.long_name)}]"
