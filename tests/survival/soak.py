"""`make soak SECONDS=3600`: mixed load while a worker is lost every two minutes.

    python tests/survival/soak.py SECONDS [SECONDS BETWEEN LOSSES]

All services have certificates, so the mesh is encrypted. The worker is killed, stopped for longer
than its root waits, or leaves, in turn; then it comes back.

Requests are short and long, several at once, some cancelled, some read slowly. Fails for a text
that differs from the undisturbed one, for a request without an end, and for a leak. Memory,
descriptors and threads of the root and of one surviving worker are printed after a minute, every
ten minutes and at the end. The last are compared with the first.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import status_bytes
from scene import Scene

from hearth.client import Cancelled, Client, QueueFull

READERS = 3
PROMPTS = (
    "Once upon a time",
    "The dog and the cat",
    "Lily went to the park with her mom. They saw a big",
    "Tom had a red ball. " * 12,
)
LENGTHS = (5, 40, 200, 600)
# No request takes so long, pauses included; one that does has no end.
MOST_SECONDS = 180.0
# More memory at the end than this is a leak: the texts of an hour alone would be larger.
GROWTH = 32 << 20
# Longer than a root takes to notice a silent worker, and then waits for it.
STOPPED_SECONDS = 16.0


class Reader:
    """One client, one request after another, until told to stop."""

    def __init__(
        self, dial: Callable[[], Client], seed: int, wanted: dict[tuple[str, int], list[int]]
    ) -> None:
        self._dial = dial
        self._draw = random.Random(seed)
        self._wanted = wanted
        self._stopping = threading.Event()
        self.done = self.cancelled = self.refused = 0
        self.longest = 0.0
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(MOST_SECONDS + 10)
        if self._thread.is_alive():
            self.wrong.append("a request has no end")

    def _run(self) -> None:
        with self._dial() as client:
            while not self._stopping.is_set():
                prompt, length = self._draw.choice(PROMPTS), self._draw.choice(LENGTHS)
                try:
                    self._one(client, prompt, length)
                except Cancelled:
                    self.cancelled += 1
                except QueueFull:
                    self.refused += 1
                except Exception as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")

    def _one(self, client: Client, prompt: str, length: int) -> None:
        cancel_at = self._draw.randrange(length) if self._draw.random() < 0.15 else None
        slow = self._draw.random() < 0.2
        last = time.monotonic()
        with client.generate(
            prompt, max_tokens=length, ignore_eos=True, timeout=MOST_SECONDS
        ) as stream:
            for _ in stream:
                now = time.monotonic()
                self.longest = max(self.longest, now - last)
                if slow:
                    time.sleep(0.05)
                if cancel_at is not None and len(stream.token_ids) > cancel_at:
                    stream.cancel()
                last = time.monotonic()
        self.done += 1
        if stream.token_ids != self._wanted[prompt, length]:
            self.wrong.append(f"another text after {prompt[:20]!r}, {length} tokens")


@dataclass(frozen=True)
class Footprint:
    """Resources of a process: resident bytes, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return cls(
            status_bytes(pid, "VmRSS"),
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            int(fields["Threads"]),
        )

    def __str__(self) -> str:
        return (
            f"{self.memory / 2**20:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads"
        )

    def leaks_since(self, first: Footprint) -> list[str]:
        """Growth that load and the allocator do not explain.

        A kill or a reader between requests moves the counts by a few connections and pool threads;
        one of either lost at each of an hour's 30 kills is more than these bounds.
        """
        grown = []
        if self.memory > first.memory + GROWTH:
            grown.append(f"memory grew from {first} to {self}")
        if self.descriptors > first.descriptors + 10:
            grown.append(f"descriptors grew from {first} to {self}")
        if self.threads > first.threads + 10:
            grown.append(f"threads grew from {first} to {self}")
        return grown


class Watch:
    """Footprints of services over the time since `began`."""

    def __init__(self, services: dict[str, int], began: float) -> None:
        self._services = services
        self._began = began
        self._first: dict[str, Footprint] = {}
        self.leaks: list[str] = []

    def look(self) -> None:
        """Prints all footprints; the first time, keeps them to compare with."""
        self.leaks = []
        for name, pid in self._services.items():
            now = Footprint.of(pid)
            first = self._first.setdefault(name, now)
            self.leaks += [f"{name}: {grown}" for grown in now.leaks_since(first)]
            print(f"after {time.monotonic() - self._began:.0f} s, {name}: {now}", flush=True)


def lose(scene: Scene, number: int) -> None:
    """Worker 1 is killed, stopped for a while, or leaves, by turns; it is back at the end."""
    if number % 3 == 1:
        scene.stop(1)
        time.sleep(STOPPED_SECONDS)
        scene.go_on(1)
        return
    if number % 3 == 2:
        scene.leave(1)
    else:
        scene.kill(1)
    scene.start_worker(1)


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0
    between = float(sys.argv[2]) if len(sys.argv) > 2 else 120.0
    with Scene(2, "--sequences", "4", "--wait-seconds", "2", tls=True) as scene:
        wanted = {}
        for prompt in PROMPTS:
            for length in LENGTHS:
                with scene.client.generate(prompt, max_tokens=length, ignore_eos=True) as stream:
                    for _ in stream:
                        pass
                wanted[prompt, length] = stream.token_ids
        readers = [Reader(scene.dial, seed, wanted) for seed in range(READERS)]
        began = time.monotonic()
        watch = Watch({"root": scene.root.pid, "worker 2": scene.worker(2).pid}, began)
        time.sleep(min(60.0, seconds / 2))
        watch.look()
        losses = 0
        looked = began
        while time.monotonic() - began < seconds:
            if time.monotonic() - looked >= 600:
                looked = time.monotonic()
                watch.look()
            lose(scene, losses)
            losses += 1
            left = seconds - (time.monotonic() - began)
            time.sleep(max(0.0, min(between, left)))
        for reader in readers:
            reader.stop()
        time.sleep(3)
        watch.look()
    wrong = [problem for reader in readers for problem in reader.wrong] + watch.leaks
    print(
        f"{losses} losses; {sum(r.done for r in readers)} requests ended well, "
        f"{sum(r.cancelled for r in readers)} were cancelled, {sum(r.refused for r in readers)} "
        f"found the queue full; longest pause {max(r.longest for r in readers):.2f} s; "
        f"{len(wrong)} wrong"
    )
    for problem in wrong[:20]:
        print(problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
