"""One side of compare.py: Hearth, with a model in memory, on one node or several.

Reads a line per run from standard input and answers with a JSON object: the rates, the time of each
token, and the parts of decode's time. Takes the options of `hearth bench`.
"""

import json
import statistics
import sys

from hearth.cli import bench
from hearth.cli.bench import Recorder
from hearth.cli.session import open_session
from hearth.cli.workload import Runs
from hearth.root.cluster.cluster import Cluster


def main() -> None:
    options = bench.command().read(sys.argv[1:])
    workload = bench.workload_of(options)
    options.context = workload.context
    recorders: list[Recorder] = []

    def observe(cluster: Cluster) -> Recorder:
        recorders.append(Recorder(cluster, workload.sequences))
        return recorders[-1]

    with open_session(options, quiet=True, sequences=workload.room, observe=observe) as session:
        runs = Runs(session, workload)
        print(json.dumps({"engine": "hearth"}), flush=True)
        for number, _ in enumerate(sys.stdin):
            recorders[0].decode.clear()
            rates = runs.run(number)
            steps = recorders[0].decode
            answer = {
                "prefill": rates.prefill,
                "decode": rates.decode,
                "token_seconds": rates.token_seconds,
                "compute_ms": 1e3 * statistics.median(s.compute_seconds for s in steps),
                "sync_ms": 1e3
                * statistics.median(s.wall_seconds - s.compute_seconds for s in steps),
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
