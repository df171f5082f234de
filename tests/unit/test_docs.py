"""The documentation names what exists: files, functions, options, metrics."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hearth.cli.commands import load

TOP = Path(__file__).resolve().parents[2]
PAGES = [
    TOP / "README.md",
    *sorted(TOP.glob("*.md")),
    *sorted((TOP / "docs").rglob("*.md")),
    *sorted((TOP / "deploy").rglob("*.md")),
    *sorted((TOP / "models").glob("*.md")),
]
PAGES = list(dict.fromkeys(PAGES))
# Made by `make docs` from the comments in protos/.
GENERATED = ("api/protocol.md",)


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods ("Class.method") and constants that a module defines."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not re.match(r"[a-z]+:", target) and target not in GENERATED:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_functions_that_are_named_exist(page: Path) -> None:
    for name, function in re.findall(r"`([\w/.-]+\.py):([\w.]+)`", page.read_text()):
        assert (TOP / name).is_file(), name
        assert function in names_in(TOP / name), f"{name} has no {function}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_files_that_are_named_exist(page: Path) -> None:
    folders = (
        "services",
        "native",
        "converter",
        "client",
        "cli",
        "bench",
        "tests",
        "deploy",
        "protos",
        ".ci",
    )
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.\w+)`", page.read_text()):
        if name.startswith(tuple(f"{folder}/" for folder in folders)):
            assert (TOP / name).exists(), name


def test_the_overview_names_functions() -> None:
    """The test above would pass on a page that names none."""
    text = (TOP / "docs" / "overview.md").read_text()
    assert len(re.findall(r"`[\w/.-]+\.py:[\w.]+`", text)) >= 15


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / ".ci" / "write_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_troubleshooting_quotes_messages_that_there_are() -> None:
    """Each message of the tables is in the sources, its parts on several lines joined."""
    text = "".join(
        path.read_text()
        for folder in ("services", "cli", "client", "converter", "native/src")
        for path in sorted((TOP / folder).rglob("*"))
        if path.suffix in (".py", ".cpp")
    )
    joined = re.sub(r'"\s*(?:\+ )?[fr]?"', "", text).replace("`", "")
    page = (TOP / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^|]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 20
    of_the_shell = {"hearth: command not found"}
    assert [words for words in quoted if words not in joined and words not in of_the_shell] == []


def test_the_manual_has_no_requests_that_roff_does_not_know() -> None:
    page = (TOP / "packaging" / "man" / "hearth.1").read_text()
    requests = set(re.findall(r"^\.(\S+)", page, re.MULTILINE))
    assert requests == {'\\"', "TH", "SH", "SS", "TP", "B", "BR", "RI", "I", "br", "nf", "fi"}
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z"], input=page, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""


def test_the_first_run_shows_commands_and_words_that_there_are() -> None:
    """The part that needs no run of tests/survival/first_run.py, which writes the page."""
    page = (TOP / "docs" / "first-run.md").read_text()
    commands = re.findall(r"^\S*\$ hearth (\S+) ?(.*)$", page, re.MULTILINE)
    assert {name for name, _ in commands} >= {"chat", "pull", "models", "certs", "worker", "root"}
    for name, rest in commands:
        load(name).read(shlex.split(rest))
    for words in (
        "/help shows the commands; /exit or Ctrl-D leaves.",
        "Type /exit or press Ctrl-D to leave.",
        "next: hearth chat",
        "Copy, to where it is named with --tls:",
        "which Hearth never",
    ):
        assert words in page
        sources = (
            path.read_text()
            for folder in ("cli", "converter")
            for path in (TOP / folder).rglob("*.py")
        )
        assert any(words in re.sub(r'"\s*f?"', "", text) for text in sources), words
