"""Writes docs/reference.md, every option with its variable and every metric, and the man page.

python .ci/write_reference.py            # write the pages
python .ci/write_reference.py --check    # exit with 1 when one is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import manual

from hearth.cli.command import Argument, Command, Option
from hearth.cli.commands import COMMANDS, load
from hearth.common.settings import variable

TOP = Path(__file__).resolve().parent.parent
HEAD = """# Reference

Written by `.ci/write_reference.py` from the code; do not edit.

## Options

Each option can come from the environment variable beside it, or from a settings file:
`~/.config/hearth/hearth.toml` and `/etc/hearth/hearth.toml`, or only the file of `--config`
(`HEARTH_CONFIG`). The command line overrides the environment, which overrides the user's file,
which overrides the system's. Lists are separated by spaces or commas; flags take 1/0, true/false,
yes/no, on/off. `hearth config` shows what is set.

```toml
# For every command that has the option, without its dashes:
tls = "certs/client"

[root]
model = "demo"
workers = ["192.168.1.21:7717", "192.168.1.22:7717"]
tls = "certs/root"
```
"""


def options_of(command: Command) -> Iterator[tuple[str, str, str, str]]:
    """(option with its value, variable, default, help) of each argument and option."""
    settings = set(command.settings())
    for param in command.params:
        if isinstance(param, Argument):
            yield param.spelled, "", "", param.summary
        elif isinstance(param, Option) and param in settings and not param.hidden:
            default = param.default_text.replace(str(Path.home()), "~")
            yield param.spelled, variable(param.long_name), default, param.help or ""


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def option_tables() -> Iterator[str]:
    """A table for each command."""
    for command, summary in COMMANDS.items():
        yield f"\n### hearth {command}\n\n{summary[0].upper()}{summary[1:]}.\n"
        yield "\n| option | variable | default | meaning |\n|---|---|---|---|\n"
        for spelled, name, default, text in options_of(load(command)):
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
    pages = {
        TOP / "docs" / "reference.md": HEAD + "".join((*option_tables(), *metric_tables())),
        TOP / "packaging" / "man" / "hearth.1": manual.page(),
    }
    code = 0
    for path, text in pages.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.name} is out of date: python .ci/write_reference.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
