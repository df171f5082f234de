"""Prints a version's part of CHANGELOG.md, after a check that everything names that version.

release_notes.py v0.2.0     exit status 1, and the reason, where the tag and the files disagree
"""

import re
import sys
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PROJECTS = ("pyproject.toml", "packaging/hearth-client/pyproject.toml")


def notes(tag: str, top: Path = TOP) -> str:
    """The text under `## [VERSION]` of CHANGELOG.md.

    Raises:
        ValueError: the tag is not vX.Y.Z, or a file has another version. An address is still
            reserved, or the change log has no section of the version.
    """
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        raise ValueError(f"{tag!r} is not a version like v0.2.0")
    version = tag.removeprefix("v")
    for name in PROJECTS:
        project = tomllib.loads((top / name).read_text())["project"]
        if project["version"] != version:
            raise ValueError(f"the tag is {tag}, but {name} has version {project['version']}")
        for label, address in project.get("urls", {}).items():
            if ".example/" in address:
                raise ValueError(f"{name} has no public address for {label}: {address} is reserved")
    changes = (top / "CHANGELOG.md").read_text()
    section = re.search(
        rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |^\[|\Z)",
        changes,
        re.MULTILINE | re.DOTALL,
    )
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md has no section [{version}]: move [Unreleased] there")
    return section[1].strip()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(notes(sys.argv[1]))
    except ValueError as error:
        print(f"release_notes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
