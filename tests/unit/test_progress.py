"""Progress of loading: lines for a service and for files, bars that notes do not overwrite."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from harness import clean_environ

from hearth.cli.progress import LoadProgress
from hearth.root.cluster.streaming import LoadEvent


def test_a_line_for_each_node_and_now_and_then_one_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("hearth.cli.progress.time.monotonic", lambda: now)
    shown = LoadProgress()
    for now in range(25):
        shown("pi1:7717", LoadEvent(100 << 20, now << 20, 0))
    shown("pi1:7717", LoadEvent(100 << 20, 60 << 20, 40 << 20))
    shown("pi1:7717", LoadEvent(100 << 20, 60 << 20, 40 << 20))
    shown("local", LoadEvent(1 << 20, 0, 1 << 20))
    assert capsys.readouterr().err.splitlines() == [
        "worker pi1:7717: 10 % of 100.0 MiB of weights loaded",
        "worker pi1:7717: 20 % of 100.0 MiB of weights loaded",
        "worker pi1:7717: 100.0 MiB of weights loaded (60.0 MiB sent, 40.0 MiB cached)",
        "root: 1.0 MiB of weights loaded",
    ]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    LoadProgress(quiet=True)("local", LoadEvent(1, 1, 0))
    assert capsys.readouterr().err == ""


SCRIPT = """
import logging
from hearth.cli import output
from hearth.cli.progress import LoadProgress
from hearth.root.cluster.streaming import LoadEvent
output.prepare()
shown = LoadProgress(bars=BARS)
shown("pi1:7717", LoadEvent(100, 50, 0))
output.note("a note")
logging.getLogger("hearth").warning("a warning")
shown("pi1:7717", LoadEvent(100, 100, 0))
shown.close()
"""


@pytest.mark.parametrize("bars", [True, False])
def test_notes_at_a_terminal_have_lines_of_their_own(bars: bool) -> None:
    """A terminal of 80 columns, in which every bar is written again from the line's start."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    script = SCRIPT.replace("BARS", str(bars))
    subprocess.run(
        [sys.executable, "-c", script], stderr=slave, env=clean_environ(), check=True, timeout=60
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # Linux's end of a terminal
            break
        if not part:
            break
        shown += part
    os.close(master)
    lines = [
        line.rsplit("\r", 1)[-1].replace("\x1b[A", "") for line in shown.decode().split("\r\n")
    ]
    assert "a note" in lines
    assert "warning: a warning" in lines
    assert ("%|" in shown.decode()) is bars
