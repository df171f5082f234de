"""The units of deploy/systemd: commands that Hearth takes, time to drain, and what systemd says."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from hearth.cli import root, worker

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"


def unit(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string((UNITS / f"hearth-{name}.service").read_text())
    return found


@pytest.mark.parametrize("name", ["root", "worker"])
def test_a_unit_starts_what_hearth_takes(name: str) -> None:
    service = unit(name)["Service"]
    program, command, *words = shlex.split(service["ExecStart"])
    assert (program, command) == ("/opt/hearth/bin/hearth", name)
    # The root's model comes from the settings file.
    module = root if name == "root" else worker
    options = module.command().read(words + ["demo"] * (name == "root"))
    assert options.tls == "/etc/hearth/certs"
    assert options.listen.startswith("0.0.0.0:")
    # To wait as long as it does by default, and then to end.
    assert float(service["TimeoutStopSec"]) > options.drain_seconds + 10
    assert service["User"] == "hearth"
    state = f"/var/lib/{service['StateDirectory']}"
    assert service["Environment"] == f"HOME={state}"
    if name == "worker":
        assert options.cache_dir.startswith(state)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is absent")
@pytest.mark.parametrize("name", ["root", "worker"])
def test_systemd_reads_a_unit(name: str, tmp_path: Path) -> None:
    text = (UNITS / f"hearth-{name}.service").read_text()
    copy = tmp_path / f"hearth-{name}.service"
    # It looks for the program.
    copy.write_text(text.replace("/opt/hearth/bin/hearth", "/bin/true"))
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in ran.stderr.splitlines() if f"hearth-{name}" in line]
    assert complaints == []
