"""`make many-clients`: 64 HTTP streams at once while a worker is killed every 30 s.

    python tests/survival/many_clients.py [SECONDS [CLIENTS]]

Streams of three faces; a quarter is cancelled somewhere, a fifth is read slowly. Fails for a text
that differs from the undisturbed one, and for a stream without an end or with an error. A leak in
the root or in the worker that stays fails it, too.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from harness import free_port
from scene import Scene
from streaming_clients import FACES, read, run_clients
from survival.soak import PROMPTS, Watch

LENGTHS = (5, 40, 150)
BETWEEN_KILLS = 30.0
SLOW_SECONDS = 0.1


async def undisturbed(url: str) -> dict[tuple[str, int], str]:
    """The text of each request, alone; every face has the same."""
    wanted: dict[tuple[str, int], str] = {}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for prompt in PROMPTS:
            for length in LENGTHS:
                texts = {await read(client, face, prompt, length) or "" for face in FACES}
                (wanted[prompt, length],) = texts
    return wanted


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    port = free_port()
    options = (
        "--sequences",
        "16",
        "--http",
        f"127.0.0.1:{port}",
        "--pause-seconds",
        "120",
        "--any-model",
    )
    with Scene(2, *options, "--context", "512") as scene:
        url = f"http://127.0.0.1:{port}"
        wanted = asyncio.run(undisturbed(url))
        began = time.monotonic()
        watch = Watch({"root": scene.root.pid, "worker 2": scene.worker(2).pid}, began)
        over = threading.Event()
        kills = 0

        def kill() -> None:
            nonlocal kills
            looks = [began + seconds * part for part in (0.2, 0.5)]
            while not over.wait(BETWEEN_KILLS):
                scene.kill(1)
                scene.start_worker(1)
                kills += 1
                if looks and time.monotonic() > looks[0]:
                    del looks[0]
                    watch.look()

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            end = began + seconds
            tally = asyncio.run(
                run_clients(url, clients, wanted, lambda: time.monotonic() < end, SLOW_SECONDS)
            )
        finally:
            over.set()
            thread.join()
        scene.until_serving(2)
        watch.look()
    wrong = tally.wrong + watch.leaks
    print(
        f"{kills} kills; {tally.done} streams ended well, {tally.cancelled} were cancelled, "
        f"{tally.refused} found the queue full; {len(wrong)} wrong"
    )
    for problem in wrong[:20]:
        print(problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
