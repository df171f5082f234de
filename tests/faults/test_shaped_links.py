"""The measurement of a mesh's links where the network delays what exceeds a rate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "shaped_link.py"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("tc") or not shutil.which("unshare"),
    reason="shaping a network namespace needs root, tc and unshare",
)


@pytest.mark.parametrize(
    ("megabits", "burst"), [(100, "256k"), (100, "1mb"), (100, "4mb"), (1000, "256k")]
)
def test_a_burst_allowance_is_not_the_speed(megabits: int, burst: str) -> None:
    # Both directions share the loopback, so a rank has half of the rate. Up to twice the rate for
    # a latency that is taken off; no lower bound by time, for this machine may be busy.
    shape = f"tc qdisc add dev lo root tbf rate {megabits}mbit burst {burst} latency 50ms"
    command = f'ip link set lo up && {shape} && exec "$0" "$1"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command, sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "qdisc kind is unknown" in done.stderr:
        pytest.skip("this kernel has no token bucket filter")
    assert done.returncode == 0, done.stderr
    speed = float(done.stdout.split()[1])
    assert 0 < speed < 2 * megabits * 1e6 / 8, done.stdout
