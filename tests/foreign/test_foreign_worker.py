"""A cluster of two kinds of CPU: the root as it is here, a worker for 64-bit Arm, emulated.

`make test-foreign-worker` prepares the worker's side (prepare.sh), and names it by
HEARTH_FOREIGN_PYTHON. The text must be that of one node, token by token.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import pytest
from harness import WorkerProcess, hearth

FOREIGN = os.environ.get("HEARTH_FOREIGN_PYTHON", "")
pytestmark = pytest.mark.skipif(not FOREIGN, reason="no foreign Python (make test-foreign-worker)")

# The worker's CPU, as qemu calls it: all that Arm has, and a Raspberry Pi 4.
CPUS = ("max", "cortex-a72")
PROMPT = ("--model", "demo", "--prompt", "Once upon a time", "--max-tokens", "40")
ALIKE = (*PROMPT, "--temperature", "0", "--threads", "1")


@pytest.fixture(scope="module", params=CPUS)
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of an emulated worker."""
    log = tmp_path_factory.mktemp("foreign") / "worker.log"
    command = (FOREIGN, "-m", "hearth.cli.main", "worker")
    worker = WorkerProcess(log=log, command=command, environ={"QEMU_CPU": request.param})
    try:
        yield worker.address
    finally:
        worker.end()


def text_of(*options: str) -> str:
    """The output of `hearth generate`, with kernels of AVX2 on a PC, and of NEON elsewhere."""
    sets = {"x86_64": "avx2"}.get(platform.machine(), "neon")
    done = hearth("generate", *ALIKE, *options, environ={"HEARTH_INSTRUCTION_SET": sets})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lane", ["mesh", "grpc"])
@pytest.mark.parametrize("weights", ["f32", "f16", "q8_0", "q4_0"])
def test_a_worker_of_another_kind_computes_the_same_text(
    foreign: str, weights: str, lane: str
) -> None:
    kind = ("--weights", weights)
    alone = text_of("--nodes", "1", *kind)
    assert alone.startswith("Once upon a time, ")
    assert text_of("--workers", foreign, "--lane", lane, *kind) == alone
