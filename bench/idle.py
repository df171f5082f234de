"""CPU time of an idle cluster: root and workers on this machine.

    python bench/idle.py --nodes 3 --seconds 60

Prints the share of one core, of all processes together and of each (root first).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from hearth.client import Client

HEARTH = [sys.executable, "-m", "hearth.cli.main"]


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A service process and the address it prints."""
    process = subprocess.Popen(
        [*HEARTH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if "listening" not in line:
        raise SystemExit(f"{arguments[0]} did not start: {line!r}")
    return process, line.split()[-1]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5, help="parts that the time is divided into")
    options = parser.parse_args()
    processes = []
    try:
        addresses = []
        for _ in range(options.nodes - 1):
            process, address = start("worker", "--listen", "127.0.0.1:0", "--cache-dir", "none")
            processes.append(process)
            addresses.append(address)
        workers = ["--workers", *addresses] if addresses else []
        root, address = start("root", "--model", options.model, "--listen", "127.0.0.1:0", *workers)
        processes.insert(0, root)
        with Client(address) as client:  # so that everything has been used once
            client.generate_text("Once", max_tokens=20)
        time.sleep(5)
        shares: list[list[float]] = []
        for _ in range(options.rounds):
            begin, before = time.monotonic(), [cpu_seconds(each.pid) for each in processes]
            time.sleep(options.seconds / options.rounds)
            passed = time.monotonic() - begin
            shares.append(
                [
                    (cpu_seconds(each.pid) - spent) / passed
                    for each, spent in zip(processes, before, strict=True)
                ]
            )
        totals = [sum(share) for share in shares]
        print(
            json.dumps(
                {
                    "nodes": options.nodes,
                    "percent_of_a_core": round(100 * statistics.median(totals), 2),
                    "spread": [round(100 * min(totals), 2), round(100 * max(totals), 2)],
                    "each": [
                        round(100 * statistics.median(column), 2)
                        for column in zip(*shares, strict=True)
                    ],
                }
            )
        )
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


if __name__ == "__main__":
    main()
