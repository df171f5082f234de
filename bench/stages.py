"""A pipeline beside one node, on machines of equal speed that this one plays.

Each node is a process in a group of its own (cgroup). All may use the same part of a core, so more
stages than cores can be compared with one. Needs root, and a system with CPU quotas. Rounds are in
turn. For every side: decode and prefill tokens/s as median, lowest and highest, and the part of the
time in which each node computed.

A pipeline divides the sequences over as many batches as it has stages, and each stage computes its
part of the model for one batch. So it cannot be faster than one node by more than a step of all
sequences takes through a step of one batch's. One node with so few sequences shows that bound.

    python bench/stages.py --shape tinyllama-1.1b --stages 3 --sequences 8 --core 0.5
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from groups import group, within

HEARTH = [sys.executable, "-m", "hearth.cli.main"]


@contextmanager
def worker(procs: list[Path], log: Path) -> Iterator[str]:
    """The address of a new worker of one thread."""
    command = [*HEARTH, "worker", "--listen", "127.0.0.1:0", "--threads", "1"]
    with log.open("w") as file:
        process = subprocess.Popen(
            within(procs, command), stdout=file, stderr=subprocess.STDOUT, text=True
        )
    try:
        deadline = time.monotonic() + 60
        while "listening on " not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"a worker did not start: {log.read_text()}")
            time.sleep(0.05)
        yield log.read_text().partition("listening on ")[2].split()[0].rstrip(",;")
    finally:
        process.terminate()
        process.wait(30)


def bench(options: argparse.Namespace, stages: int, sequences: int) -> dict[str, Any]:
    """One run of `hearth bench` with so many stages of a node each."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        groups = [running.enter_context(group(cores=options.core)) for _ in range(stages)]
        logs = [Path(folder) / f"worker{n}.log" for n in range(1, stages)]
        addresses = [
            running.enter_context(worker(procs, log))
            for procs, log in zip(groups[1:], logs, strict=True)
        ]
        command = [*HEARTH, "bench", f"random:{options.shape}", "--threads", "1", "--json"]
        command += ["--no-predict", "--repeats", "1", "--context", "4096"]
        command += ["--sequences", str(sequences)]
        command += ["--prompt-tokens", str(options.prompt_tokens)]
        command += ["--new-tokens", str(options.new_tokens)]
        if addresses:
            command += ["--workers", *addresses, "--parallel", "pipeline"]
            command += ["--lane", options.lane]
        if options.stages_of:
            command += ["--stages", options.stages_of] if addresses else []
        done = subprocess.run(
            within(groups[0], command), check=True, stdout=subprocess.PIPE, text=True, timeout=900
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--stages", type=int, default=3, help="of one node each")
    parser.add_argument("--stages-of", default="", help="layers of each stage, as --stages of root")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--core", type=float, default=0.5, help="part of a core that a node has")
    parser.add_argument("--lane", default="mesh")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # (stages, sequences)
    alone = 1, options.sequences
    batch = 1, -(-options.sequences // options.stages)
    pipeline = options.stages, options.sequences
    sides: dict[tuple[int, int], list[dict[str, Any]]] = {alone: [], batch: [], pipeline: []}
    for number in range(options.rounds):
        print(f"round {number + 1}", file=sys.stderr)
        for side, runs in sides.items():
            runs.append(bench(options, *side))
    for rate in ("decode", "prefill"):
        medians = {}
        for side, runs in sides.items():
            rates = [run[f"{rate}_tokens_per_second"] for run in runs]
            medians[side] = statistics.median(rates)
            spread = f"{medians[side]:.1f} ({min(rates):.1f} to {max(rates):.1f})"
            print(f"{rate}, {side[0]} nodes, {side[1]} sequences: {spread} tokens/s")
        print(f"{rate}: {medians[pipeline] / medians[alone]:.2f}x")
        if rate == "decode":
            steps = {side: side[1] / medians[side] for side in (alone, batch)}
            print(
                f"a step takes {1e3 * steps[alone]:.1f} ms with {alone[1]} sequences and "
                f"{1e3 * steps[batch]:.1f} with {batch[1]}: the bound is "
                f"{steps[alone] / steps[batch]:.2f}x"
            )
    for side, runs in sides.items():
        parts = zip(*(run["node_busy"] for run in runs), strict=True)
        busy = [statistics.median(part) for part in parts]
        print(f"busy, {side[0]} nodes: {', '.join(f'{part:.0%}' for part in busy)}")


if __name__ == "__main__":
    main()
