"""Predicted speeds of layouts on this machine against measured ones.

Runs `hearth bench --json` for shapes, counts of nodes, layouts and links. Each run measures the
nodes and links, predicts, and then measures the speed: nothing is fitted to the speeds below, and
none is kept from another run. The slow links are the loopback of a network namespace, shaped by
`tc ... tbf` (needs root and Debian's iproute2). Its bucket holds one packet, so that a short
message takes its time at the rate, as on a wire. Nodes have one thread each, so that two do not
share a core.

    python bench/predictions.py --results /tmp/runs.jsonl --only tensor
    python bench/predictions.py --results /tmp/runs.jsonl --table
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.common import system

HEARTH = [sys.executable, "-m", "hearth.cli.main"]
RATES = ("decode", "prefill")


@dataclass(frozen=True)
class Case:
    """A layout to predict and to measure."""

    shape: str
    nodes: int
    threads: int
    parallel: str
    # "loopback", or a rate of tbf.
    link: str = "loopback"
    sequences: int = 1

    @property
    def name(self) -> str:
        parts = (f"{self.nodes}x{self.threads}", self.parallel, self.link, f"{self.sequences}seq")
        return " ".join((self.shape, *parts))


TINY, SMALL = "tinyllama-1.1b", "llama-3.2-1b"
CASES = (
    Case(TINY, 1, 1, "alone"),
    Case(TINY, 1, 2, "alone"),
    Case(TINY, 2, 1, "tensor"),
    Case(TINY, 2, 1, "pipeline"),
    Case(TINY, 3, 1, "pipeline"),
    Case(TINY, 2, 1, "tensor", "200mbit"),
    Case(TINY, 2, 1, "pipeline", "200mbit"),
    Case(TINY, 2, 1, "tensor", "50mbit"),
    Case(TINY, 2, 1, "pipeline", "50mbit"),
    Case(TINY, 2, 1, "auto", "50mbit"),
    Case(SMALL, 1, 1, "alone"),
    Case(SMALL, 1, 2, "alone"),
    Case(SMALL, 2, 1, "tensor"),
    Case(SMALL, 2, 1, "pipeline"),
    Case(SMALL, 2, 1, "tensor", "50mbit"),
    Case(SMALL, 3, 1, "pipeline", "50mbit"),
)


def run(case: Case) -> dict[str, Any]:
    """The result of `hearth bench --json` of one case."""
    command = [*HEARTH, "bench", f"random:{case.shape}", "--json", "--repeats", "1"]
    command += ["--nodes", str(case.nodes), "--threads", str(case.threads), "--context", "1024"]
    command += ["--prompt-tokens", "512", "--new-tokens", "33"]
    command += ["--sequences", str(case.sequences)]
    if case.nodes > 1:
        command += ["--parallel", case.parallel]
    if case.nodes * case.threads <= system.cores():
        # As on machines of their own: else two nodes may be on one core for a while.
        command += ["--pin"]
    if case.link == "loopback":
        return _json(command)
    name = f"plan-{os.getpid()}"
    _call("ip", "netns", "add", name)
    try:
        # Packets as on Ethernet.
        _call("ip", "-n", name, "link", "set", "lo", "mtu", "1500", "up")
        shape = f"qdisc add dev lo root tbf rate {case.link} burst 2kb latency 400ms"
        _call("tc", "-n", name, *shape.split())
        return _json(["ip", "netns", "exec", name, *command])
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def _json(command: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            env={**os.environ, "XDG_CACHE_HOME": cache},
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _call(*command: str) -> None:
    subprocess.run(command, check=True)


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: predicted and measured of every case, and the errors of all."""
    lines = [
        "| layout | decode, predicted | measured | | prefill, predicted | measured | |",
        "|---|---|---|---|---|---|---|",
    ]
    errors: dict[str, list[float]] = {rate: [] for rate in RATES}
    for name, result in results.items():
        cells = []
        for rate in RATES:
            predicted = result[f"predicted_{rate}_tokens_per_second"]
            measured = result[f"{rate}_tokens_per_second"]
            error = predicted / measured - 1
            errors[rate].append(abs(error))
            cells += [f"{predicted:.1f}", f"{measured:.1f}", f"{error:+.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for rate, values in errors.items():
        if values:
            within = sum(value <= 0.2 for value in values)
            middle = statistics.median(values)
            lines.append(f"{rate}: median {middle:.0%}, {within} of {len(values)} within 20 %")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one for each run")
    parser.add_argument("--only", nargs="*", default=[], help="words that a case must all have")
    parser.add_argument("--cases", nargs="*", type=int, help="numbers of cases, 0 for the first")
    parser.add_argument("--table", action="store_true", help="print the table of the results")
    options = parser.parse_args()
    if not options.table:
        for number, case in enumerate(CASES):
            if options.cases and number not in options.cases:
                continue
            if all(word in case.name.split() for word in options.only):
                print(case.name, file=sys.stderr)
                result = run(case)
                with options.results.open("a") as file:
                    file.write(json.dumps({"case": case.name, **result}) + "\n")
    results = {}
    for line in options.results.read_text().splitlines():
        result = json.loads(line)
        results[result["case"]] = result  # the last run of each
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
