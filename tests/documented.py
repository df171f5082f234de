"""The commands and programs that the documentation shows: the fenced blocks of every .md file."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
CLIENTS = TOP / "docs" / "clients"
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(^|\s+)#.*$")
# Blocks without a language are commands, but for pictures.
_PICTURE = re.compile("[│┌└─▼►]")
_SHELL = ("", "sh", "bash", "console")
# A service's command in a unit of systemd.
_EXEC = re.compile(r"^ExecStart=\S*?(hearth .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A command (in one line, without comments) or a Python program, and the file it is in."""

    file: str
    text: str


def documents() -> list[Path]:
    """Every .md file of the repository, committed or about to be."""
    ran = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    return [TOP / line for line in ran.stdout.splitlines() if (TOP / line).is_file()]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    for found in _FENCE.finditer(text):
        yield found[1], found[2]


def commands(text: str) -> list[str]:
    """Commands of the text's blocks, in order; lines that end with a backslash or | are joined."""
    found = []
    for language, content in blocks(text):
        if language == "ini":
            found += _EXEC.findall(content)
        if language not in _SHELL or _PICTURE.search(content):
            continue
        waiting = ""
        for line in content.splitlines():
            line = _COMMENT.sub("", line).strip().removeprefix("$ ")
            waiting = f"{waiting} {line.removesuffix(chr(92)).strip()}".strip()
            if waiting and not line.endswith(("\\", "|")):
                found.append(re.sub(r"\s+", " ", waiting))
                waiting = ""
    return found


def shown_commands() -> list[Shown]:
    """Of all documents, each command of a document once."""
    return [
        Shown(str(path.relative_to(TOP)), command)
        for path in documents()
        for command in dict.fromkeys(commands(path.read_text()))
    ]


def shown_programs() -> list[Shown]:
    """Python programs of all documents, the same text once.

    Those of docs/clients need the clients, and are run by `make clients`.
    """
    programs: dict[str, Shown] = {}
    for path in documents():
        if path.parent == CLIENTS:
            continue
        for language, content in blocks(path.read_text()):
            if language == "python":
                programs.setdefault(content, Shown(str(path.relative_to(TOP)), content))
    return list(programs.values())


def mentioned() -> list[Shown]:
    """`hearth ...` and `make ...` between single backticks, in all documents."""
    return [
        Shown(str(path.relative_to(TOP)), re.sub(r"\s+", " ", code))
        for path in documents()
        for code in dict.fromkeys(re.findall(r"`((?:hearth|make) [^`]+)`", path.read_text()))
    ]
