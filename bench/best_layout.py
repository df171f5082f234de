"""The layout that `--parallel auto` chooses over a slow link, against every layout tried.

One node alone and all forms of two are tried. The nodes have one thread each, on a core of their
own. The link between them has a given rate and delay (delayed_link.py, which needs root). Each
layout runs `hearth bench`. It is judged by its decode, and by the request that `--parallel auto`
judges by: 256 tokens in, 128 out (docs/planning.md).
Prints a line for each layout, and how near the chosen one comes to the best.

    python bench/best_layout.py --rate 50e6 --delay 0.005
    python bench/best_layout.py --layouts auto alone pipeline
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from typing import Any

from delayed_link import FAR, DelayedLink

HEARTH = [sys.executable, "-m", "hearth.cli.main"]
AUTO, ALONE = "auto", "alone"
PROMPT, ANSWER = 256, 128


def layouts(layers: int) -> list[str]:
    """One node, all forms of two, and stages of other lengths than the planner's own.

    A number pair is `--stages`.
    """
    uneven = [f"{first},{layers - first}" for first in (layers // 4, layers - layers // 4)]
    return [AUTO, ALONE, "tensor", "pipeline", *uneven]


def seconds(result: dict[str, Any]) -> float:
    """The time of the request, by the measured rates."""
    prefill, decode = (result[f"{name}_tokens_per_second"] for name in ("prefill", "decode"))
    return float(PROMPT / prefill + ANSWER / decode)


def run(link: DelayedLink, layout: str, cache: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of `hearth bench --json`, with a worker at the far end."""
    cores = sorted(os.sched_getaffinity(0))
    command = [*HEARTH, "worker", "--listen", f"{FAR}:0", "--threads", "1", "--insecure"]
    command += ["--cache-dir", cache]
    far = [*link.inside(1), "taskset", "-c", str(cores[-1]), *command]
    worker = subprocess.Popen(far, stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        port = worker.stdout.readline().split(":")[-1].strip()
        command = [*HEARTH, "bench", options.model, "--json", "--repeats", str(options.repeats)]
        command += ["--weights", options.weights, "--threads", "1"]
        if layout != ALONE:
            command += ["--workers", f"{FAR}:{port}", "--insecure"]
        command += ["--context", "512"]
        command += ["--prompt-tokens", str(PROMPT), "--new-tokens", str(options.new_tokens)]
        if layout != ALONE:
            command += ["--stages" if "," in layout else "--parallel", layout]
        near = [*link.inside(0), "taskset", "-c", str(cores[0]), *command]
        done = subprocess.run(near, check=True, stdout=subprocess.PIPE)
        result: dict[str, Any] = json.loads(done.stdout)
        return result
    finally:
        worker.terminate()
        worker.wait(30)


def show(layout: str, result: dict[str, Any]) -> None:
    prefill, decode = (result[f"{name}_tokens_per_second"] for name in ("prefill", "decode"))
    print(
        f"{layout} ({result['parallel']}): prefill {prefill:.1f} tokens/s, "
        f"decode {decode:.2f} tokens/s, request {seconds(result):.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:tinyllama-1.1b")
    parser.add_argument("--layers", type=int, default=22, help="of the model")
    parser.add_argument("--weights", default="q40")
    parser.add_argument("--rate", type=float, default=50e6, help="bits per second")
    parser.add_argument("--delay", type=float, default=0.005, help="seconds, each way")
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--layouts", nargs="*", help="only these; default: all")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    tried = options.layouts or layouts(options.layers)
    with tempfile.TemporaryDirectory() as cache:
        # The worker's slices do not cross the slow link: a fast one fills its cache first.
        quick = argparse.Namespace(**{**vars(options), "new_tokens": 2, "repeats": 1})
        with closing(DelayedLink(1e11, 0.0)) as link:
            for layout in tried:
                if layout not in (AUTO, ALONE):
                    run(link, layout, cache, quick)
        with closing(DelayedLink(options.rate, options.delay)) as link:
            for layout in tried:
                result = found[layout] = run(link, layout, cache, options)
                show(layout, result)
    if AUTO in found and len(found) > 1:
        chosen = found[AUTO]
        best = max(result["decode_tokens_per_second"] for result in found.values())
        least = min(map(seconds, found.values()))
        print(
            f"chosen against best: decode {chosen['decode_tokens_per_second'] / best:.2f}, "
            f"request {least / seconds(chosen):.2f}"
        )


if __name__ == "__main__":
    main()
