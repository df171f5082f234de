"""Runs Hearth and llama.cpp in turn on the same GGUF file, and writes a table and plots.

Every round runs each side once (A, B, A, B ...), so that both meet the same noise; figures are
medians over the rounds, with the lowest and highest. llama.cpp is the package llama-cpp-python,
built for this CPU in an environment of its own (build/compare), which this program makes.

    python bench/compare.py --shapes tinyllama-1.1b llama-3.2-1b --rounds 5
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report

from hearth import _native

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "compare"
PACKAGES = ("llama-cpp-python", "gguf", "numpy", "matplotlib")


@dataclass
class Side:
    """One engine with a model in memory, waiting for runs."""

    label: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    engine: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "hearth" in self.command[1] else subprocess.DEVNULL,
            text=True,
        )
        self.engine = self._read()["engine"]

    def run(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(60)

    def _read(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def environment() -> Path:
    """The Python of llama.cpp's environment, made when it is not there (about ten minutes)."""
    python = BUILD / "venv" / "bin" / "python"
    if not python.exists():
        print("making an environment with llama.cpp, built for this CPU", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", BUILD / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def gguf_file(python: Path, shape: str, weights: str) -> Path:
    """The shape's file with random weights, made when it is not there."""
    path = BUILD / f"{shape}-{weights}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        command = [python, HERE / "random_gguf.py", part, "--shape", shape, "--weights", weights]
        subprocess.run(command, check=True)
        part.rename(path)
    return path


def sides(python: Path, path: Path, options: argparse.Namespace, threads: int) -> list[Side]:
    """llama.cpp and Hearth with `threads`, and Hearth on as many nodes of one thread."""
    common = ["--model", str(path), "--prompt-tokens", str(options.prompt_tokens)]
    common += ["--new-tokens", str(options.new_tokens)]
    hearth = [sys.executable, str(HERE / "sides" / "hearth_engine.py"), *common]
    theirs = [str(python), str(HERE / "sides" / "llama_cpp_engine.py"), *common]
    found = [
        Side(f"llama.cpp, {threads} threads", [*theirs, "--threads", str(threads)]),
        Side(f"Hearth, {threads} threads", [*hearth, "--threads", str(threads)]),
    ]
    if threads > 1:
        nodes = ["--nodes", str(threads), "--threads", "1"]
        found.append(Side(f"Hearth, {threads} nodes, mesh", [*hearth, *nodes]))
        found.append(
            Side(f"Hearth, {threads} nodes, mesh q80", [*hearth, *nodes, "--sync-type", "q80"])
        )
        found.append(Side(f"Hearth, {threads} nodes, grpc", [*hearth, *nodes, "--lane", "grpc"]))
    return found


def measure(
    shape: str, weights: str, threads: int, options: argparse.Namespace, python: Path
) -> dict[str, Any]:
    """All sides in turn: one warm-up, then the rounds."""
    path = gguf_file(python, shape, weights)
    running = sides(python, path, options, threads)
    bandwidth = []
    try:
        for side in running:
            side.start()
            side.run()
        for number in range(options.rounds):
            print(f"{shape} {weights}, {threads} threads: round {number + 1}", file=sys.stderr)
            bandwidth.append(_native.read_bandwidth(threads) / 1e9)
            for side in running:
                side.runs.append(side.run())
    finally:
        for side in running:
            side.stop()
    return {
        "shape": shape,
        "weights": weights,
        "threads": threads,
        "weight_bytes": path.stat().st_size,
        "memory_gb_per_second": statistics.median(bandwidth),
        "sides": [
            {"label": side.label, "engine": side.engine, **figures(side.runs, options)}
            for side in running
        ],
    }


def figures(runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Rates of each run as [median, lowest, highest], and the run in the middle as a curve."""
    prefill = [options.prompt_tokens / run["token_seconds"][0] for run in runs]
    decode = [
        (len(run["token_seconds"]) - 1) / (run["token_seconds"][-1] - run["token_seconds"][0])
        for run in runs
    ]
    middle = sorted(runs, key=lambda run: run["token_seconds"][-1])[len(runs) // 2]
    result: dict[str, Any] = {
        "prefill": [statistics.median(prefill), min(prefill), max(prefill)],
        "decode": [statistics.median(decode), min(decode), max(decode)],
        "curve": middle["token_seconds"],
    }
    for name in ("compute_ms", "sync_ms"):
        if name in runs[0]:
            result[name] = statistics.median(run[name] for run in runs)
    return result


def machine() -> dict[str, Any]:
    """What the figures come from."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "kernels": _native.instruction_set(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["tinyllama-1.1b"])
    parser.add_argument("--weights", nargs="+", default=["q40"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    python = environment()
    results = {
        "machine": machine(),
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "runs": [
            measure(shape, weights, threads, options, python)
            for shape in options.shapes
            for weights in options.weights
            for threads in options.threads
        ],
    }
    data = BUILD / "results.json"
    data.write_text(json.dumps(results))
    report.write_markdown(results, options.out / "benchmarks.md")
    command = [str(python), str(HERE / "plots.py"), str(data), str(options.out / "benchmarks")]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
