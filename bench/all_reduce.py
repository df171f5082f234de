"""An all-reduce of two pinned ranks over loopback TCP: Hearth's mesh lane and Open MPI, in turn.

Needs Debian's openmpi-bin and libopenmpi-dev. Prints microseconds (median of all calls of a round,
then over the rounds) and the ratio.

    python bench/all_reduce.py --rounds 5
"""

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hearth import _native

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "compare"


def rank_main(rank: int, connection: socket.socket, count: int, repeats: int, out: str) -> None:
    """Run one pinned rank; rank 0 writes the microseconds of each call to `out`."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    sockets = [-1, -1]
    sockets[1 - rank] = connection.detach()
    lane = _native.MeshLane(rank=rank, sockets=sockets, wire="f32", deadline_seconds=30.0)
    lane.measure(30.0)
    x = np.zeros((1, count), np.float32)
    times = []
    for _ in range(repeats + repeats // 10):
        start = time.perf_counter()
        lane.all_reduce(x)
        times.append((time.perf_counter() - start) * 1e6)
    if rank == 0:
        Path(out).write_text(json.dumps(times[repeats // 10 :]))


def hearth(count: int, repeats: int) -> list[float]:
    """Microseconds of each call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    out = BUILD / "all_reduce.json"
    processes = [
        multiprocessing.Process(target=rank_main, args=(rank, end, count, repeats, str(out)))
        for rank, end in enumerate((left, right))
    ]
    for process in processes:
        process.start()
    left.close()
    right.close()
    for process in processes:
        process.join(120)
        if process.exitcode != 0:
            sys.exit(f"a rank ended with {process.exitcode}")
    times: list[float] = json.loads(out.read_text())
    return times


def open_mpi(count: int, repeats: int) -> list[float]:
    """Microseconds of each call."""
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
    command += ["--bind-to", "core", "--mca", "btl", "self,tcp", "--mca", "pml", "ob1"]
    command += ["--mca", "btl_tcp_if_include", "lo"]
    done = subprocess.run(
        [*command, BUILD / "mpi_all_reduce", str(count), str(repeats)],
        capture_output=True,
        text=True,
        check=True,
    )
    times: list[float] = json.loads(done.stdout)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    if shutil.which("mpicc") is None:
        sys.exit("mpicc is missing: apt-get install openmpi-bin libopenmpi-dev")
    source, program = HERE / "mpi_all_reduce.c", BUILD / "mpi_all_reduce"
    subprocess.run(["mpicc", "-O2", "-o", program, source], check=True)
    multiprocessing.set_start_method("fork")
    for label, count, repeats in (("8 KiB", 2048, 2000), ("1 MiB", 262144, 200)):
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(statistics.median(hearth(count, repeats)))
            theirs.append(statistics.median(open_mpi(count, repeats)))
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(
            f"{label}: hearth {mine:.1f} us ({min(ours):.1f} to {max(ours):.1f}), Open MPI "
            f"{other:.1f} us ({min(theirs):.1f} to {max(theirs):.1f}), ratio {mine / other:.2f}"
        )


if __name__ == "__main__":
    main()
