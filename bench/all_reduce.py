"""An all-reduce of two pinned ranks over loopback TCP: Hearth's mesh lane and Open MPI, in turn.

The mesh lane with each of its ciphers. Open MPI needs Debian's openmpi-bin and libopenmpi-dev, and
is left out without. Prints microseconds (median of all calls of a round, then over the rounds) and
the ratio to the lane in plain text.

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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hearth import _native

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "compare"


def rank_main(
    rank: int, connection: socket.socket, cipher: str, count: int, repeats: int, out: str
) -> None:
    """Run one pinned rank; rank 0 writes the microseconds of each call to `out`."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    sockets = [-1, -1]
    sockets[1 - rank] = connection.detach()
    keys = [bytes([end]) * 32 for end in range(2)]
    lane = _native.MeshLane(
        rank=rank,
        sockets=sockets,
        wire="f32",
        deadline_seconds=30.0,
        cipher=cipher,
        keys=[(keys[rank], keys[1 - rank])] * 2,
    )
    lane.measure(30.0)
    x = np.zeros((1, count), np.float32)
    times = []
    for _ in range(repeats + repeats // 10):
        start = time.perf_counter()
        lane.all_reduce(x)
        times.append((time.perf_counter() - start) * 1e6)
    if rank == 0:
        Path(out).write_text(json.dumps(times[repeats // 10 :]))


def hearth(cipher: str, count: int, repeats: int) -> list[float]:
    """Microseconds of each call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    out = BUILD / "all_reduce.json"
    what = (cipher, count, repeats)
    processes = [
        multiprocessing.Process(target=rank_main, args=(rank, end, *what, str(out)))
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
    sides: dict[str, Callable[[int, int], list[float]]] = {
        cipher: partial(hearth, cipher) for cipher in ("plain", *_native.mesh_ciphers())
    }
    if shutil.which("mpicc") is not None:
        source, program = HERE / "mpi_all_reduce.c", BUILD / "mpi_all_reduce"
        subprocess.run(["mpicc", "-O2", "-o", program, source], check=True)
        sides["Open MPI"] = open_mpi
    multiprocessing.set_start_method("fork")
    for label, count, repeats in (("8 KiB", 2048, 2000), ("1 MiB", 262144, 200)):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, measure in sides.items():
                times[name].append(statistics.median(measure(count, repeats)))
        plain = statistics.median(times["plain"])
        for name, each in times.items():
            middle = statistics.median(each)
            print(
                f"{label}, {name}: {middle:.1f} us ({min(each):.1f} to {max(each):.1f}), "
                f"{middle / plain:.2f} of plain"
            )


if __name__ == "__main__":
    main()
