"""`hearth worker` as people start and stop it: one clear line when it cannot, 0 when it is done."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import WorkerProcess, hearth

from hearth.common.channels import dial

Start = Callable[..., WorkerProcess]


def test_a_port_in_use_is_one_line_that_says_what_to_do(start_worker: Start) -> None:
    worker = start_worker()
    done = hearth("worker", "--listen", worker.address, "--cache-dir", "none")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert worker.address in line
    assert "choose another port" in line


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--listen", "nowhere:lots"), "HOST:PORT"),
        (("--cache-dir", "/proc/none"), "--cache-dir"),
        (("--memory-limit", "lots"), "lots"),
        (("--threads", "0"), "1 to 1024"),
        (("--pin", "4095"), "4095"),
    ],
)
def test_settings_that_cannot_be(options: tuple[str, str], word: str) -> None:
    done = hearth("worker", *options)
    assert done.returncode in (1, 2)
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_value_in_the_environment_names_the_variable() -> None:
    done = hearth("worker", environ={"HEARTH_MEMORY_LIMIT": "lots"})
    assert done.returncode == 2
    assert "HEARTH_MEMORY_LIMIT='lots'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_well(start_worker: Start, number: signal.Signals) -> None:
    worker = start_worker()
    worker.process.send_signal(number)
    assert worker.process.wait(20) == 0
    assert "Traceback" not in worker.log.read_text()


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = (
        "import json, os, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'hearth.cli.main', 'worker', '--listen',"
        " '127.0.0.1:0', '--cache-dir', 'none', '--exit-with-parent', str(os.getpid())],"
        " stdout=subprocess.PIPE, text=True)\n"
        "worker.stdout.readline()\n"
        "print(json.dumps(worker.pid), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = json.loads(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _alive(pid):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        # A zombie of a container without an init has ended too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_health_and_reflection(start_worker: Start) -> None:
    worker = start_worker()
    with dial(worker.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "hearth.v1.WorkerService"):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        (listed,) = reflect(iter([request]), timeout=10)
        names = {service.name for service in listed.list_services_response.service}
        assert "hearth.v1.WorkerService" in names


def test_metrics_are_served(start_worker: Start) -> None:
    address = _free_address()
    start_worker("--metrics", address)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'hearth_build_info{architecture="' in text
    for name in (
        "hearth_sync_seconds_bucket",
        "hearth_step_seconds_bucket",
        "hearth_sent_bytes_total",
        "hearth_received_bytes_total",
        "hearth_memory_available_bytes",
        'hearth_shard_weight_bytes_total{source="network"}',
    ):
        assert name in text, name
    # The root's metrics would be zeros here.
    assert "hearth_requests_total" not in text


def _free_address() -> str:
    """An address of the loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_help_needs_neither_the_core_nor_grpc() -> None:
    code = (
        "import sys\n"
        "from hearth.cli.main import main\n"
        "assert main(['worker', '--help']) == 0\n"
        "sys.exit('hearth._native' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"[HEARTH_CACHE_DIR]" in done.stdout
