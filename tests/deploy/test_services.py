"""The services of deploy/launchd (macOS) and deploy/windows: commands that Hearth takes."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hearth.cli import root, worker

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NAMES = ("root", "worker")


def options_of(name: str, words: list[str]) -> Any:
    """The command's options; the root's model comes from the settings file."""
    module = root if name == "root" else worker
    return module.command().read(words + ["demo"] * (name == "root"))


@pytest.mark.parametrize("name", NAMES)
def test_launchd_starts_what_hearth_takes(name: str) -> None:
    label = f"org.hearth.{name}"
    service = plistlib.loads((DEPLOY / "launchd" / f"{label}.plist").read_bytes())
    assert service["Label"] == label
    program, command, *words = service["ProgramArguments"]
    assert (program, command) == ("/usr/local/hearth/bin/hearth", name)
    options = options_of(name, words)
    assert options.listen.startswith("0.0.0.0:")
    assert options.tls == "/usr/local/etc/hearth/certs"
    assert service["UserName"] == "_hearth"
    assert service["RunAtLoad"] is True
    assert service["KeepAlive"] is True
    # To wait as long as it does by default, and then to end.
    assert service["ExitTimeOut"] > options.drain_seconds + 10
    assert service["Umask"] == 0o077
    state = service["EnvironmentVariables"]["HOME"]
    if name == "worker":
        assert options.cache_dir.startswith(state)


@pytest.mark.parametrize("name", NAMES)
def test_windows_starts_what_hearth_takes(name: str) -> None:
    service = ElementTree.parse(DEPLOY / "windows" / f"hearth-{name}.xml").getroot()
    found = {child.tag: (child.text or "").strip() for child in service}
    assert found["id"] == f"hearth-{name}"
    assert found["executable"].endswith(r"\hearth.exe")
    command, *words = found["arguments"].split()
    assert command == name
    options = options_of(name, words)
    assert options.listen.startswith("0.0.0.0:")
    assert options.tls == r"C:\ProgramData\Hearth\certs"
    assert found["startmode"] == "Automatic"
    assert float(found["stoptimeout"].removesuffix(" sec")) > options.drain_seconds + 10


def test_both_systems_run_the_same_ports() -> None:
    for name in NAMES:
        mac = plistlib.loads((DEPLOY / "launchd" / f"org.hearth.{name}.plist").read_bytes())
        windows = ElementTree.parse(DEPLOY / "windows" / f"hearth-{name}.xml").getroot()
        arguments = (windows.findtext("arguments") or "").split()
        ports = [
            options_of(name, words).listen for words in (mac["ProgramArguments"][2:], arguments[1:])
        ]
        assert ports[0] == ports[1]
