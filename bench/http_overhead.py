"""The cost of HTTP beside gRPC: time to the first token, throughput of many streams, memory.

    python bench/http_overhead.py --model smollm2 --repeats 30 --streams 16

One root is asked the same by gRPC and by HTTP, in turn; the clients keep their connections. For
memory, two more roots stand idle, one with HTTP and one without. Prints medians with the least and
the most, as JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hearth.client import Client

HEARTH = [sys.executable, "-m", "hearth.cli.main"]
PROMPT = "Once upon a time"
HTTP_READY = "HTTP for other clients at http://"
MIB = 1 << 20
# Adds the time of every part of one stream of so many tokens.
Stream = Callable[[int, list[float]], None]


class Server:
    """`hearth root` on free ports of the loopback."""

    def __init__(self, model: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [*HEARTH, "root", "--model", model, "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.http = ""
        line = self.process.stdout.readline()
        if "listening" not in line:
            raise SystemExit(f"the root did not start: {self.process.stderr.read()[-2000:]}")
        self.address = line.split()[-1]
        for line in self.process.stderr:
            if HTTP_READY in line:
                self.http = line.rpartition(HTTP_READY)[2].partition("/")[0].strip()
            if "the cluster serves" in line:
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def memory(self) -> int:
        """Resident bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) << 10

    def end(self) -> None:
        """Ends the root."""
        self.process.terminate()
        self.process.wait()


def by_grpc(client: Client) -> Stream:
    """Streams by gRPC."""

    def stream(tokens: int, times: list[float]) -> None:
        with client.generate(PROMPT, max_tokens=tokens) as parts:
            times.extend(time.perf_counter() for _ in parts)

    return stream


def by_http(address: str) -> Stream:
    """Streams by HTTP, on a connection of its own, which the first of them opens."""
    # (A connection without a request is closed after 10 s.)
    connection = http.client.HTTPConnection(address)

    def stream(tokens: int, times: list[float]) -> None:
        body = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "stream": True}
        connection.request("POST", "/completion", json.dumps(body))
        lines = connection.getresponse()
        times.extend(
            time.perf_counter()
            for line in lines
            if line.startswith(b"data: ") and b'"content":""' not in line
        )

    return stream


def first_token(stream: Stream) -> float:
    """Milliseconds to the first token of a stream."""
    begin = time.perf_counter()
    times: list[float] = []
    stream(2, times)
    return (times[0] - begin) * 1000


def throughput(streams: Sequence[Stream], tokens: int) -> float:
    """Parts per second of streams that run together, from the first part to the last."""
    times: list[list[float]] = [[] for _ in streams]
    threads = [
        threading.Thread(target=stream, args=(tokens, found))
        for stream, found in zip(streams, times, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = sorted(each for found in times for each in found)
    return (len(every) - 1) / (every[-1] - every[0])


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the least and the most."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def idle_memory(model: str, *options: str) -> float:
    """MiB of a root that has served nothing, once it has come to rest."""
    root = Server(model, "--threads", "1", *options)
    try:
        time.sleep(3)
        return root.memory() / MIB
    finally:
        root.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3, help="of throughput and of memory")
    options = parser.parse_args()
    more = ["--sequences", str(options.streams), "--context", "512", "--threads", "1"]
    root = Server(options.model, *more, "--http", "127.0.0.1:0")
    found: dict[str, object] = {"model": options.model, "streams": options.streams}
    try:
        with Client(root.address) as client:
            count = options.streams
            faces = {
                "grpc": [by_grpc(client)] * count,
                "http": [by_http(root.http) for _ in range(count)],
            }
            for streams in faces.values():
                first_token(streams[0])  # warms up
            firsts: dict[str, list[float]] = {name: [] for name in faces}
            for _ in range(options.repeats):
                for name, streams in faces.items():
                    firsts[name].append(first_token(streams[0]))
            rates: dict[str, list[float]] = {name: [] for name in faces}
            for _ in range(options.rounds):
                for name, streams in faces.items():
                    rates[name].append(throughput(streams, options.tokens))
    finally:
        root.end()
    for name in faces:
        found[f"first_token_ms_{name}"] = spread(firsts[name])
        found[f"tokens_per_second_{name}"] = spread(rates[name])
    pairs = zip(firsts["http"], firsts["grpc"], strict=True)
    found["first_token_ms_added"] = spread([one - other for one, other in pairs])
    shares = zip(rates["http"], rates["grpc"], strict=True)
    found["throughput_lost_percent"] = spread([100 * (1 - one / other) for one, other in shares])
    kinds = {"with_http": ["--http", "127.0.0.1:0"], "without": ["--no-http"]}
    idle = {
        name: [idle_memory("demo", *words) for _ in range(options.rounds)]
        for name, words in kinds.items()
    }
    found |= {f"idle_mib_{name}": spread(values) for name, values in idle.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
