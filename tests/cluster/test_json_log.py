"""`--log-format json`: standard error has JSON lines and nothing else, from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import ServiceProcess, WorkerProcess, free_port, hearth


def lines(text: str) -> list[dict[str, Any]]:
    """The objects of a log; ValueError for another line."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in found)
    return found


def test_logs_of_services(tmp_path: Path) -> None:
    json_log = ("--log-format", "json")
    worker = WorkerProcess(*json_log, log=tmp_path / "worker")
    try:
        root = ServiceProcess(
            *("root", "demo", "--listen", "127.0.0.1:0", "--workers", worker.address, *json_log),
            log=tmp_path / "root",
        )
        assert root.end() == 0
    finally:
        worker.end()
    messages = [line["message"] for line in lines((tmp_path / "root").read_text())]
    assert any("of weights loaded" in message for message in messages)
    assert lines((tmp_path / "worker").read_text())


@pytest.mark.parametrize(
    "command", [("root", "nosuch"), ("worker", "--cache-dir", "/dev/null/x")], ids=str
)
def test_the_error_of_a_start(command: tuple[str, ...]) -> None:
    ended = hearth(*command, "--listen", f"127.0.0.1:{free_port()}", "--log-format", "json")
    assert ended.returncode != 0
    last = lines(ended.stderr)[-1]
    assert last["level"] == "ERROR"
    assert last["message"].startswith("hearth: ")
