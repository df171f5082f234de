"""The subcommands: their names, summaries and sections. A module is imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hearth.common.settings import variable

if TYPE_CHECKING:
    from hearth.cli.command import Command

# Sections of `hearth --help`.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Use a model": ("chat", "generate", "bench", "plan"),
    "Models": ("pull", "models", "convert"),
    "Several machines": ("root", "worker", "cluster", "preload", "certs", "healthcheck"),
    "This command": ("config", "completion"),
}
COMMANDS: Mapping[str, str] = {
    "generate": "print the text that a model makes from a prompt",
    "chat": "talk with a model in the terminal",
    "root": "serve a model to clients, alone or with workers",
    "worker": "give this machine's memory and cores to a root",
    "bench": "measure tokens per second, bytes per token and memory",
    "plan": "predict how fast a model will be on some machines",
    "cluster": "show a running cluster; take a worker out",
    "preload": "fill the slice caches of workers, or a folder, without serving",
    "certs": "make the certificates and the join token of a cluster",
    "healthcheck": "check a service's health port, for container engines",
    "convert": "write a model as a Hearth directory, in another weight type",
    "pull": "download a model from Hugging Face",
    "models": "list the models on this machine",
    "config": "show the settings files and what they set",
    "completion": "print the script that completes words in a shell",
}


def load(name: str) -> Command:
    """The subcommand of this name, one of COMMANDS."""
    command: Command = importlib.import_module(f"hearth.cli.{name}").command()
    return command


def known_settings() -> dict[str, frozenset[str]]:
    """Names of the options of every command, without the dashes: what a settings file may set."""
    return {
        name: frozenset(
            option.removeprefix("--")
            for setting in load(name).settings()
            for option in setting.setting_names
        )
        for name in COMMANDS
    }


def known_variables() -> frozenset[str]:
    """The environment variables of the options of all commands."""
    return frozenset(variable(name) for names in known_settings().values() for name in names)
