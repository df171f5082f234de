"""Comparison of Hearth and llama.cpp on the same GGUF file, in turn, with a table and plots.

Every round runs each side once (A, B, A, B ...), so that both see the same noise. Figures are
medians over the rounds, with the lowest and highest. llama.cpp is the package llama-cpp-python,
built in an environment of its own (build/compare), which this program creates. It is built for all
that this CPU has and, with --avx2, again without AVX-512.

    python bench/compare.py --shapes tinyllama-1.1b llama-3.2-1b --rounds 5

With --device vulkan:N all sides compute on one GPU: llama.cpp's Vulkan backend, with --cuda its
CUDA backend too, and Hearth. llama.cpp is built from source for each and needs glslc and Vulkan's
headers, or CUDA's compiler. Every timed run of a side follows one that is not: a GPU lowers its
clocks while it idles. The share of memory is of --gpu-gb-per-second, the data sheet's figure.

    python bench/compare.py --device vulkan:0 --cuda --gpu-gb-per-second 3350 \\
      --shapes tinyllama-1.1b llama-3-8b qwen3-30b-a3b --weights q40 q4_k_m --out build/gpu

With --rpc the sides are two nodes of one pinned thread each: llama.cpp with half of the layers
behind its RPC server, and Hearth with two stages.

A measurement replaces an earlier one of the same shape, weights, threads, sequences, depth and
prompt on this machine. The page shows all measurements, the plots those of one sequence without a
depth; `--shapes` without a shape only draws them again.
"""

import argparse
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report

from hearth import _native
from hearth.common import devices
from hearth.converter import open_model

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "compare"
PACKAGES = ("llama-cpp-python", "gguf", "numpy", "matplotlib")
# (The native build of llama-cpp-python 0.3.36 ends with a segmentation fault on a CPU with AMX.)
NATIVE = ("RPC=ON",)
AVX2 = ("NATIVE=OFF", "AVX=ON", "AVX2=ON", "FMA=ON", "F16C=ON", "BMI2=ON")
VULKAN, CUDA = ("VULKAN=ON",), ("CUDA=ON",)
# How long each side of a GPU runs before the first round: clocks rise within that.
WARM_SECONDS = 2.0


# Until llama.cpp's RPC server listens: it tells nobody.
SERVER_SECONDS = 3.0


@dataclass
class Side:
    """One engine with a model in memory, waiting for runs."""

    label: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    engine: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    # A process that it needs beside it, started before.
    server: list[str] = field(default_factory=list)
    # Beside this process's own.
    environ: dict[str, str] = field(default_factory=dict)
    helper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.server:
            # Its own output would be in the way.
            self.helper = subprocess.Popen(self.server, stdout=subprocess.DEVNULL)
            time.sleep(SERVER_SECONDS)
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "hearth" in self.command[1] else subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.environ},
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
        if self.helper is not None:
            self.helper.terminate()
            self.helper.wait(60)

    def _read(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def environment(name: str, build: Sequence[str]) -> Path:
    """Python of an environment with llama.cpp, created when absent (ten minutes)."""
    folder = BUILD / name
    python = folder / "bin" / "python"
    made = folder / "made"
    if not made.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making {folder}, with llama.cpp built from source", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        options = " ".join(f"-DGGML_{option}" for option in build)
        # (pip would reuse another build of the package from its cache.)
        command = [python, "-m", "pip", "install", "-q", "--no-cache-dir", *PACKAGES]
        subprocess.run(command, check=True, env={**os.environ, "CMAKE_ARGS": options})
        made.touch()
    return python


def gguf_file(python: Path, shape: str, weights: str) -> Path:
    """The shape's file with random weights, created when absent."""
    path = BUILD / f"{shape}-{weights}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        command = [python, HERE / "random_gguf.py", part, "--shape", shape, "--weights", weights]
        subprocess.run(command, check=True)
        part.rename(path)
    return path


def sides(python: Path, path: Path, options: argparse.Namespace, threads: int) -> list[Side]:
    """llama.cpp and Hearth with `threads`, and Hearth on as many nodes of one thread."""
    hearth, theirs = commands(python, path, options)
    found = [
        Side(f"llama.cpp, {threads} threads", [*theirs, "--threads", str(threads)]),
        Side(f"Hearth, {threads} threads", [*hearth, "--threads", str(threads)]),
    ]
    if options.avx2:
        older = [str(environment("venv-avx2", AVX2)), *theirs[1:], "--threads", str(threads)]
        found.insert(1, Side(f"llama.cpp, AVX2, {threads} threads", older))
    if threads > 1:
        # A node has its cores, as it has on machines of its own.
        nodes = ["--nodes", str(threads), "--threads", "1", "--pin"]
        found.append(Side(f"Hearth, {threads} nodes, mesh", [*hearth, *nodes]))
        found.append(
            Side(f"Hearth, {threads} nodes, mesh q80", [*hearth, *nodes, "--sync-type", "q80"])
        )
        found.append(Side(f"Hearth, {threads} nodes, grpc", [*hearth, *nodes, "--lane", "grpc"]))
        nodes = ["--nodes", str(2 * threads), "--threads", "1"]
        found.append(Side(f"Hearth, {2 * threads} nodes, mesh", [*hearth, *nodes]))
    return found


def commands(python: Path, path: Path, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Programs of Hearth's and of llama.cpp's sides, without what they compute on."""
    common = ["--model", str(path)]
    for name in ("prompt_tokens", "new_tokens", "sequences", "depth"):
        common += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    hearth = [sys.executable, str(HERE / "sides" / "hearth_engine.py"), *common]
    return hearth, [str(python), str(HERE / "sides" / "llama_cpp_engine.py"), *common]


def gpu_sides(path: Path, options: argparse.Namespace) -> list[Side]:
    """llama.cpp by each of its backends, and Hearth, on one GPU."""
    number = _native.parse_vulkan_device(options.device)
    found = []
    # (llama.cpp leaves out drivers that compute on the CPU, unless their number is given.)
    backends = [("Vulkan", "venv-vulkan", VULKAN, "GGML_VK_VISIBLE_DEVICES", number)]
    if options.cuda is not None:
        backends.append(("CUDA", "venv-cuda", CUDA, "CUDA_VISIBLE_DEVICES", options.cuda))
    for name, folder, build, variable, device in backends:
        label = f"llama.cpp, {name}"
        if not re.search(options.only, label):
            continue  # which need not be built then
        _, theirs = commands(environment(folder, build), path, options)
        gpu = ["--threads", "1", "--gpu-layers", "1000"]
        found.append(Side(label, [*theirs, *gpu], environ={variable: str(device)}))
    hearth, _ = commands(Path(sys.executable), path, options)
    device = ["--device", options.device, "--threads", "1"]
    return [*found, Side(f"Hearth, {options.device}", [*hearth, *device])]


def rpc_sides(python: Path, path: Path, options: argparse.Namespace) -> list[Side]:
    """llama.cpp over its RPC and Hearth with two stages: two nodes of one pinned thread each."""
    alone = {side.label: side.command for side in sides(python, path, options, 1)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    model = open_model(str(path))
    half = model.spec.layers // 2
    model.close()
    rpc = ["--rpc", endpoint, "--rpc-layers", str(half)]
    server = [str(python), str(HERE / "sides" / "llama_cpp_rpc_server.py"), endpoint, "1"]
    theirs = Side(
        "llama.cpp, 2 nodes, RPC",
        ["taskset", "-c", "0", *alone["llama.cpp, 1 threads"], *rpc],
        server=["taskset", "-c", "1", *server],
    )
    nodes = ["--nodes", "2", "--pin", "--parallel", "pipeline"]
    return [theirs, Side("Hearth, 2 nodes, pipeline", [*alone["Hearth, 1 threads"], *nodes])]


def measure(
    shape: str, weights: str, threads: int, options: argparse.Namespace, python: Path
) -> dict[str, Any]:
    """All sides in turn: one warm-up, then the rounds."""
    path = gguf_file(python, shape, weights)
    # Each side holds the model: all at once may need more memory than there is.
    if options.device:
        every = gpu_sides(path, options)
    elif options.rpc:
        every = rpc_sides(python, path, options)
    else:
        every = sides(python, path, options, threads)
    running = [side for side in every if re.search(options.only, side.label)]
    bandwidth = []
    try:
        for side in running:
            side.start()
            until = time.monotonic() + (WARM_SECONDS if options.device else 0.0)
            side.run()
            while time.monotonic() < until:
                side.run()
        for number in range(options.rounds):
            print(f"{shape} {weights}, {threads} threads: round {number + 1}", file=sys.stderr)
            given = options.gpu_gb_per_second if options.device else None
            bandwidth.append(given or _native.read_bandwidth(threads) / 1e9)
            for side in running:
                if options.device:
                    side.run()
                side.runs.append(side.run())
    finally:
        for side in running:
            side.stop()
    return {
        "shape": shape,
        "weights": weights,
        "threads": threads,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "sequences": options.sequences,
        "depth": options.depth,
        "rounds": options.rounds,
        "rpc": options.rpc,
        "device": options.device and devices.kernels(options.device),
        "bytes_per_token": bytes_per_token(path),
        # Of a GPU by its data sheet; None where nobody gave it.
        "memory_gb_per_second": None
        if options.device and not options.gpu_gb_per_second
        else statistics.median(bandwidth),
        "sides": [
            {"label": side.label, "engine": side.engine, **figures(side.runs)} for side in running
        ],
    }


def bytes_per_token(path: Path) -> int:
    """Bytes of weights that one decode step reads: of experts those that are chosen."""
    model = open_model(str(path))
    try:
        spec, total = model.spec, 0
        for tensor in spec.tensors:
            if (tensor.name == "embedding" and not spec.tied) or tensor.stored_as:
                continue
            rows, columns = tensor.shape
            size = rows * _native.row_bytes(model.tensor_type(tensor.name), columns)
            if tensor.parts > 1:
                experts = spec.kinds[spec.kind_of_layer[tensor.layer]].experts
                size = size * experts.used // experts.count if experts else size
            total += size
        return total
    finally:
        model.close()


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates of the runs as [median, lowest, highest], and the run in the middle as a curve."""
    middle = sorted(runs, key=lambda run: run["token_seconds"][-1])[len(runs) // 2]
    result: dict[str, Any] = {"curve": middle["token_seconds"]}
    for name in ("prefill", "decode"):
        rates = [run[name] for run in runs]
        result[name] = [statistics.median(rates), min(rates), max(rates)]
    for name in ("compute_ms", "sync_ms"):
        if name in runs[0]:
            result[name] = statistics.median(run[name] for run in runs)
    return result


def machine() -> dict[str, Any]:
    """Machine and builds that the figures come from."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": _native.instruction_set(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["tinyllama-1.1b"])
    parser.add_argument("--weights", nargs="+", default=["q40"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=1, help="that decode together")
    parser.add_argument("--depth", type=int, default=0, help="tokens of context before a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="pattern of the sides to run")
    parser.add_argument(
        "--avx2", action="store_true", help="also a llama.cpp that is built without AVX-512"
    )
    parser.add_argument("--rpc", action="store_true", help="two nodes, beside llama.cpp's RPC")
    parser.add_argument("--device", default="", help="vulkan or vulkan:N: compare on this GPU")
    parser.add_argument(
        "--cuda",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="with --device, also llama.cpp's CUDA backend, on CUDA's GPU of this number",
    )
    parser.add_argument(
        "--gpu-gb-per-second", type=float, metavar="X", help="the GPU's memory, by its data sheet"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device:
        devices.check_devices([options.device])
    python = environment("venv-native", NATIVE)
    data = BUILD / "results.json"
    results: dict[str, Any] = {"machine": machine(), "runs": []}
    if data.exists():
        before = json.loads(data.read_text())
        if before["machine"] == results["machine"]:
            results = before
    for shape in options.shapes:
        for weights in options.weights:
            for threads in [1] if options.device else [2] if options.rpc else options.threads:
                keep(results["runs"], measure(shape, weights, threads, options, python))
                data.write_text(json.dumps(results))
    report.write_markdown(results, options.out / "benchmarks.md")
    command = [str(python), str(HERE / "plots.py"), str(data), str(options.out / "benchmarks")]
    subprocess.run(command, check=True)


def kind_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """Names a measurement: another one of the same kind replaces it."""
    kind = (run["shape"], run["weights"], run["threads"])
    sizes = (run.get("sequences", 1), run.get("depth", 0), run["prompt_tokens"])
    return (*kind, *sizes, run.get("rpc", False), run.get("device", ""))


def keep(runs: list[dict[str, Any]], run: dict[str, Any]) -> None:
    """Replace an earlier run of the same kind by `run`, or append it."""
    for number, other in enumerate(runs):
        if kind_of(other) == kind_of(run):
            runs[number] = run
            return
    runs.append(run)


if __name__ == "__main__":
    main()
