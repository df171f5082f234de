"""Two nodes of one thread over a link of 1 Gbit/s and over loopback, in turn.

The link is a veth pair between two network namespaces that this program creates, shaped at both
ends by the token bucket filter (`tc ... tbf`). Needs root and Debian's iproute2. Prints medians,
spreads and ratios.

    python bench/shaped_link.py --model random:tinyllama-1.1b --weights q40 --rounds 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NEAR, FAR = "10.213.9.1", "10.213.9.2"
RATES = ("prefill_tokens_per_second", "decode_tokens_per_second")
HEARTH = [sys.executable, "-m", "hearth.cli.main"]


class Link:
    """Two namespaces and the shaped pair between them; `close` removes them."""

    def __init__(self, rate: str) -> None:
        self.names = [f"hearth-{end}-{os.getpid()}" for end in ("near", "far")]
        near, far = self.names
        try:
            for name in self.names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", near, *f"link add wire type veth peer name wire netns {far}".split())
            for name, address in zip(self.names, (NEAR, FAR), strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
                _ip("-n", name, "link", "set", "wire", "up")
                # A burst as large as two milliseconds at this rate.
                shape = f"qdisc add dev wire root tbf rate {rate} burst 256kb latency 50ms"
                subprocess.run(["tc", "-n", name, *shape.split()], check=True)
        except BaseException:
            self.close()
            raise

    def inside(self, end: int) -> list[str]:
        """Prefix that runs a command at one end: 0 near, 1 far."""
        return ["ip", "netns", "exec", self.names[end]]

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Worker:
    """Start a worker and wait until it listens."""

    def __init__(self, prefix: list[str], listen: str, core: int, folder: Path) -> None:
        command = [*prefix, *HEARTH, "worker", "--listen", listen, "--threads", "1", "--insecure"]
        command += ["--pin", str(core), "--cache-dir", str(folder)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "listening" not in line:
            raise SystemExit(f"the worker did not start: {line!r}")
        self.port = line.split(":")[-1].strip()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def bench(prefix: list[str], worker: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run `hearth bench` against one worker."""
    command = [*prefix, *HEARTH, "bench", "--model", options.model, "--workers", worker]
    command += ["--threads", "1", "--sync-type", options.sync_type, "--repeats", "1", "--json"]
    command += ["--weights", options.weights] if options.weights else []
    command += ["--prompt-tokens", str(options.prompt_tokens)]
    command += ["--new-tokens", str(options.new_tokens)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:tinyllama-1.1b")
    parser.add_argument("--weights")
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--sync-type", default="q80", choices=("f32", "f16", "q80"))
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    workers: list[Worker] = []
    link = Link(options.rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            near = Worker([], "127.0.0.1:0", cores[-1], Path(folder))
            workers.append(near)
            far = Worker(link.inside(1), f"{FAR}:0", cores[-1], Path(folder))
            workers.append(far)
            sides = {
                "loopback": ([], f"127.0.0.1:{near.port}"),
                options.rate: (link.inside(0), f"{FAR}:{far.port}"),
            }
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
            for number in range(1 + options.rounds):
                print(f"round {number or 'warm-up'}", file=sys.stderr)
                for name, (prefix, worker) in sides.items():
                    run = bench(prefix, worker, options)
                    if number:
                        runs[name].append(run)
    finally:
        for worker in workers:
            worker.stop()
        link.close()
    for rate in RATES:
        middle = {}
        for name, figures in runs.items():
            values = [figure[rate] for figure in figures]
            middle[name] = statistics.median(values)
            print(f"{rate} {name}: {middle[name]:.2f} ({min(values):.2f} to {max(values):.2f})")
        print(f"{rate} ratio: {middle[options.rate] / middle['loopback']:.3f}")


if __name__ == "__main__":
    main()
