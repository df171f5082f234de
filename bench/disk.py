"""A model larger than its node's memory (--weights-on disk), beside what its disk gives.

Runs `hearth bench` in a group (cgroup) whose memory limit is the size of the weights through a
factor. Beside that, in turn, it reads a file as the core does: around the system's cache, by two
threads. Needs root. --disk-mb gives both a slower disk: that of a virtual machine may be another
machine's memory, which is faster the second time.

    python bench/disk.py --shape llama-3.2-1b --weights q8_0 --times 1.5 --folder /var/tmp/hearth
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from groups import group, within

from hearth.converter import open_model
from hearth.root.planning.layout import Layout
from hearth.root.planning.planner import make_plan

HEARTH = [sys.executable, "-m", "hearth.cli.main"]
# As the core reads (native/src/shard/layer_stream.cpp).
READERS, PIECE_BYTES = 2, 4 << 20
FILE_BYTES = 512 << 20


def limited(options: argparse.Namespace) -> tuple[Path, float] | None:
    """The folder whose disk gives less, and how much."""
    return (options.folder, options.disk_mb * 1e6) if options.disk_mb else None


def output(procs: list[Path], command: list[str], cache: Path) -> str:
    """Text that a command in the group prints. cache: of measured speeds."""
    done = subprocess.run(
        within(procs, command),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    return done.stdout


def bench(options: argparse.Namespace, limit: int, cache: Path) -> dict[str, Any]:
    """The result of `hearth bench` within the limit."""
    command = [*HEARTH, "bench", f"random:{options.shape}", "--weights", options.weights]
    command += ["--weights-on", "disk", "--cache-dir", str(options.folder), "--json"]
    command += ["--threads", str(options.threads), "--context", "512", "--max-step-tokens", "64"]
    command += ["--prompt-tokens", "64", "--new-tokens", "24", "--repeats", "1"]
    with group(memory_bytes=limit, disk=limited(options)) as procs:
        found: dict[str, Any] = json.loads(output(procs, command, cache))
    return found


def disk_speed(path: Path) -> float:
    """Bytes per second of the file, read around the cache."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    places = iter(range(0, FILE_BYTES, PIECE_BYTES))
    lock = threading.Lock()

    def read() -> None:
        buffer = mmap.mmap(-1, PIECE_BYTES)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            os.preadv(file, [buffer], place)

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    began = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    os.close(file)
    return FILE_BYTES / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--weights", default="q8_0")
    parser.add_argument("--times", type=float, default=1.5, help="weights through memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to use")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk-mb", type=float, help="MB/s that the disk gives at most")
    parser.add_argument("--read", action="store_true", help="only read the file in --folder")
    options = parser.parse_args()
    path = options.folder / "disk-speed"
    if options.read:
        print(disk_speed(path))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    with open_model(f"random:{options.shape}", options.weights) as model:
        plan = make_plan(model.spec, model.tensor_type, Layout.tensor(1), (1.0,))
    weights = plan.nodes[0].weight_bytes
    limit = int(weights / options.times)
    ratios, errors = [], []
    try:
        with path.open("wb") as file:
            for _ in range(FILE_BYTES // PIECE_BYTES):
                file.write(os.urandom(PIECE_BYTES))
            os.fsync(file.fileno())
        for number in range(options.rounds):
            # The machine is measured again: its speeds are kept in the cache.
            with tempfile.TemporaryDirectory(dir=options.folder) as cache:
                only = [sys.executable, __file__, "--folder", str(options.folder), "--read"]
                with group(disk=limited(options)) as procs:
                    disk = float(output(procs, only, Path(cache)))
                result = bench(options, limit, Path(cache))
            decode = result["decode_tokens_per_second"]
            read = decode * result["disk_mib_per_step"] * (1 << 20)
            predicted = result.get("predicted_decode_tokens_per_second")
            ratios.append(read / disk)
            if predicted:
                errors.append(predicted / decode - 1)
            print(
                f"round {number + 1}: {weights >> 20} MiB of weights in {limit >> 20} MiB: "
                f"{decode:.2f} tokens/s, predicted {predicted}; {read / 1e9:.2f} GB/s read, the "
                f"disk gives {disk / 1e9:.2f}; peak {result['peak_rss_mib'][0]:.0f} MiB"
            )
    finally:
        path.unlink(missing_ok=True)
    print(f"of what the disk gives: {statistics.median(ratios):.2f} (median)")
    if errors:
        print(f"prediction: {statistics.median(errors):+.0%} (median)")


if __name__ == "__main__":
    main()
