"""Writes docs/reference.md: every option with its variable and default, and every metric.

python .ci/write_reference.py            # write the page
python .ci/write_reference.py --check    # exit with 1 when the page is out of date
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hearth.cli.main import COMMANDS
from hearth.common.settings import apply_environment, variable

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """# Reference

Written by `.ci/write_reference.py` from the code; do not edit.

## Options

Each option can come from the environment variable beside it; the command line wins. Lists are
separated by spaces or commas; flags take 1/0, true/false, yes/no, on/off.
"""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a subcommand."""
    top = argparse.ArgumentParser(prog="hearth")
    subparsers = top.add_subparsers()
    importlib.import_module(f"hearth.cli.{command}").add_parser(subparsers)
    parser: argparse.ArgumentParser = subparsers.choices[command]
    apply_environment(parser, {})
    return parser


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str, str]]:
    """(option with its value, variable, default, help) of each visible option."""
    for action in parser._actions:
        name = variable(action)
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        text = str(action.help or "").partition(f" [{name}]")[0] % {"default": action.default}
        text = text.replace(f" (default: {action.default})", "")
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
        if action.nargs == 0:
            value = ""
        spelled = " ".join((*action.option_strings[-1:], str(value))).strip() or action.dest
        absent = action.default is None or action.default in ("", []) or action.default is False
        default = "" if absent else str(action.default)
        default = default.replace(str(Path.home()), "~")
        yield spelled, name or "", default, text


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def option_tables() -> Iterator[str]:
    """A table for each command."""
    for command, summary in COMMANDS.items():
        yield f"\n### hearth {command}\n\n{summary[0].upper()}{summary[1:]}.\n"
        yield "\n| option | variable | default | meaning |\n|---|---|---|---|\n"
        for spelled, name, default, text in options_of(parser_of(command)):
            cells = (f"`{cell(spelled)}`", f"`{name}`" * bool(name), cell(default), cell(text))
            yield f"| {' | '.join(cells)} |\n"


def metric_tables() -> Iterator[str]:
    """A table for each service."""
    from hearth.common.metrics import RootMetrics, WorkerMetrics

    metrics_of = {"root": RootMetrics, "worker": WorkerMetrics}

    yield "\n## Metrics\n\nA histogram has the series `_bucket`, `_sum` and `_count`.\n"
    for role in ("root", "worker"):
        registry = metrics_of[role]().registry
        yield f"\n### {role}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
        # prometheus_client has no public way to the labels of a metric without samples.
        collectors: list[Any] = list(registry._collector_to_names)
        for family, labels in sorted(
            (
                (family, getattr(collector, "_labelnames", ()))
                for collector in collectors
                for family in collector.collect()
            ),
            key=lambda item: str(item[0].name),
        ):
            if family.name.startswith("hearth_"):
                name = family.name + "_total" * (family.type == "counter")
                row = (f"`{name}`", family.type, ", ".join(labels), cell(family.documentation))
                yield f"| {' | '.join(row)} |\n"


def main() -> int:
    page = HEAD + "".join((*option_tables(), *metric_tables()))
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != page:
            print(f"{PAGE.name} is out of date: python .ci/write_reference.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
