"""The command line of `hearth cluster`."""

from __future__ import annotations

import click
import pytest

from hearth.cli import cluster
from hearth.cli.command import Options


def parsed(line: str) -> Options:
    return cluster.command().read(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "drain nas --undo --root h:1",
        "drain --undo nas --root h:1",
        "drain --undo --root h:1 nas",
        "--undo drain --root h:1 nas",
        "--root h:1 --undo drain nas",
    ],
)
def test_options_may_be_anywhere(line: str) -> None:
    options = parsed(line)
    assert (options.action, options.worker) == ("drain", "nas")
    assert (options.undo, options.root, options.watch) == (True, "h:1", False)


def test_showing_the_cluster_needs_no_worker() -> None:
    options = parsed("--json")
    assert (options.action, options.worker, options.json) == (None, None, True)


@pytest.mark.parametrize("line", ["drain one two", "pause one", "drain one --nothing"])
def test_what_it_does_not_have_is_refused(line: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(line)
