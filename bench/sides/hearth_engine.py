"""One side of compare.py: Hearth, with a model in memory, on one node or several.

Reads a line per run from standard input and answers with a JSON object: the time of each token, and
the parts of decode's time. Takes the options of `hearth bench`.
"""

import json
import statistics
import sys
import time

import numpy as np

from hearth.cli import bench
from hearth.cli.bench import Recorder
from hearth.cli.session import open_session
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams


def main() -> None:
    options = bench.command().read(sys.argv[1:])
    options.context = options.prompt_tokens + options.new_tokens + 32
    recorders: list[Recorder] = []

    def observe(cluster: Cluster) -> Recorder:
        recorders.append(Recorder(cluster))
        return recorders[-1]

    with open_session(options, quiet=True, observe=observe) as session:
        print(json.dumps({"engine": "hearth"}), flush=True)
        for run, _ in enumerate(sys.stdin):
            recorders[0].decode.clear()
            prompt = np.random.default_rng(run).integers(300, 32000, options.prompt_tokens)
            params = GenerateParams(
                prompt=tuple(prompt.tolist()),
                max_tokens=options.new_tokens,
                ignore_eos=True,
                prefix_cache=False,
            )
            times: list[float] = []
            start = time.perf_counter()
            for event in session.engine.generate(params):
                if isinstance(event, Delta):
                    times += [time.perf_counter() - start] * len(event.token_ids)
            steps = recorders[0].decode
            answer = {
                "token_seconds": times,
                "compute_ms": 1e3 * statistics.median(s.compute_seconds for s in steps),
                "sync_ms": 1e3
                * statistics.median(s.wall_seconds - s.compute_seconds for s in steps),
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
