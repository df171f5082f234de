"""Peak memory of every node above its shard's bytes and its KV pages.

Real processes on loopback: a cold start (weights go over the network), a prompt, decoding, as many
sequences at once as the scheduler runs; then the same again from the workers' caches. Linux only.

    python bench/memory.py --models random:tinyllama-1.1b random:llama-3.2-1b --nodes 1 2 3

The column "above" decides: VmHWM, the kernel's account of peak resident memory, less the shard's
bytes and, after requests, the bytes of KV pages in use. VmHWM counts program files for each
process, although they are shared and can be dropped. The columns anon and file separate these
(RssAnon; RssFile + RssShmem; the largest samples); pss is the largest proportional share sampled.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hearth.client import Client
from hearth.v1 import common_pb2, root_pb2
from hearth.worker.shape import kv_page_bytes

HEARTH = [sys.executable, "-m", "hearth.cli.main"]
MIB = 1 << 20
# Between two looks at /proc; reading smaps_rollup walks all of a process's pages.
LOOK_SECONDS, PSS_SECONDS = 0.02, 0.5
SEQUENCES = 16


@dataclass
class Node:
    """A process and its largest samples since `forget`."""

    name: str
    process: subprocess.Popen[str]
    address: str
    metrics: str
    anon: int = 0
    file: int = 0
    pss: int = 0
    pages: float = 0.0

    def status(self) -> dict[str, int]:
        """Bytes of /proc/PID/status by name."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = (line.split() for line in lines if line.endswith(" kB"))
        return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}

    def forget(self) -> None:
        """Reset the peak (proc(5): clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        self.anon = self.file = self.pss = 0

    def look(self, whole: bool) -> None:
        """Take samples and keep the largest; whole: also the slow ones."""
        now = self.status()
        self.anon = max(self.anon, now["RssAnon"])
        self.file = max(self.file, now["RssFile"] + now["RssShmem"])
        if whole:
            rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
            line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
            self.pss = max(self.pss, int(line.split()[1]) * 1024)

    def look_at_pages(self) -> None:
        """KV cache pages with content, from its metrics."""
        pages = 0.0
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                # The root's pages, and those that it keeps for their prefix.
                if line.startswith(('hearth_kv_pages{state="used"}', "hearth_prefix_pages ")):
                    pages += float(line.split()[1])
        self.pages = max(self.pages, pages)


@dataclass
class Watch:
    """Samples all nodes until it is closed."""

    nodes: list[Node]
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        last = 0.0
        while not self.stop.wait(LOOK_SECONDS):
            whole = time.monotonic() - last > PSS_SECONDS
            last = time.monotonic() if whole else last
            for node in self.nodes:
                node.look(whole)
            self.nodes[0].look_at_pages()  # page tables are the same on all nodes

    def close(self) -> None:
        self.stop.set()
        self.thread.join()


@contextmanager
def service(name: str, *arguments: str) -> Iterator[Node]:
    """Run a service for the length of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        metrics = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [*HEARTH, *arguments, "--listen", "127.0.0.1:0", "--metrics", metrics]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening" not in line:
            raise SystemExit(f"{arguments[0]} did not start: {line!r}")
        yield Node(name, process, line.split()[-1], metrics)
    finally:
        process.terminate()
        process.wait(30)


def page_bytes(shard: common_pb2.ShardConfig) -> int:
    """Bytes of one page of KV cache on a node."""
    return kv_page_bytes(shard)


def generate(client: Client, prompt: int, new: int, seed: int) -> None:
    """Send a request that needs whole rows of logits."""
    with client.generate(
        tokens=[(7 * i + seed) % 30000 for i in range(prompt)],
        max_tokens=new,
        temperature=0.8,
        seed=seed,
        ignore_eos=True,
    ) as stream:
        for _ in stream:
            pass
        assert len(stream.token_ids) == new


def together(client: Client, options: argparse.Namespace) -> None:
    """Send as many requests as run at once."""
    threads = [
        threading.Thread(
            target=generate, args=(client, options.batch_prompt, options.batch_tokens, seed)
        )
        for seed in range(SEQUENCES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(model: str, nodes: int, caches: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one start and its requests; a row for each node and phase."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                service(
                    f"worker {rank}",
                    *("worker", "--threads", "1", "--cache-dir", str(caches / str(rank))),
                )
            )
            for rank in range(1, nodes)
        ]
        for node in started:
            node.forget()
        words = ["root", "--model", model, "--threads", "1", "--context", "1024"]
        words += ["--sequences", str(SEQUENCES)]
        words += ["--weights", options.weights] if options.weights else []
        words += ["--workers", *(node.address for node in started)] if started else []
        root = stack.enter_context(service("root", *words))
        everyone = [root, *started]
        watch = Watch(everyone)
        stack.callback(watch.close)
        client = stack.enter_context(Client(root.address))
        status = client.cluster()

        def phase(name: str, positions: int = 0) -> None:
            """positions: of one sequence, whose pages were in use even if no sample shows them."""
            size = status.nodes[0].shard.page_size
            root.pages = max(root.pages, -(-positions // size))
            for node, plan in zip(everyone, status.nodes, strict=True):
                rows.append(figures(name, node, plan, root.pages))
                node.forget()

        phase("load")
        generate(client, options.prompt_tokens, 1, 1)
        phase("prompt", options.prompt_tokens)
        generate(client, 8, options.new_tokens, 2)
        phase("decode")
        together(client, options)
        phase("batch")
    return rows


def figures(name: str, node: Node, plan: root_pb2.ClusterNode, pages: float) -> dict[str, Any]:
    """Memory of a node in a phase, MiB."""
    node.look(whole=True)
    peak = node.status()["VmHWM"]
    kv = int(pages) * page_bytes(plan.shard)
    sizes = {
        "peak": peak,
        "anon": node.anon,
        "file": node.file,
        "pss": node.pss,
        "shard": plan.weight_bytes,
        "kv": kv,
        "above": peak - plan.weight_bytes - kv,
    }
    return {"node": node.name, "phase": name} | {
        key: round(size / MIB, 1) for key, size in sizes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["random:tinyllama-1.1b", "random:llama-3.2-1b"]
    )
    parser.add_argument("--weights")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-prompt", type=int, default=64, help="of each of 16 at once")
    parser.add_argument("--batch-tokens", type=int, default=8, help="that each of them makes")
    parser.add_argument("--json", action="store_true", help="an object for each node and phase")
    options = parser.parse_args()
    worst = 0.0
    for model in options.models:
        for nodes in options.nodes:
            with tempfile.TemporaryDirectory() as folder:
                for start in ("cold", "warm") if nodes > 1 else ("cold",):
                    print(f"{model}, {nodes} nodes, {start} start (MiB)", flush=True)
                    rows = run(model, nodes, Path(folder), options)
                    worst = max(worst, *(row["above"] for row in rows))
                    for number, row in enumerate(rows):
                        if options.json:
                            print(json.dumps(row))
                            continue
                        if not number:
                            print("  " + "".join(f"{key:>10}" for key in row))
                        print("  " + "".join(f"{value:>10}" for value in row.values()), flush=True)
    print(f"most above shard and KV pages: {worst} MiB")


if __name__ == "__main__":
    main()
