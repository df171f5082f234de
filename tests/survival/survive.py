"""`make survival`: a cluster of three nodes that loses a machine in every way, in mid-sentence.

    python tests/survival/survive.py [STORY ...]      kill gone leave stop root cable split
    SURVIVAL_PARALLEL=pipeline python tests/survival/survive.py ...      or 1x1+1x2

Each story prints what it saw, and fails when a stream does not end with the undisturbed text. Cut
cables need root, for network namespaces, iproute2 and iptables.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scene import Network, Scene

TOKENS = 1500
SEED = 20
# A root that has room for a third of the demo model, and no larger part.
CRAMPED = ("--memory-limit", "8MiB", "--context", "2000")


def check(scene: Scene, name: str, told: list[int], wanted: list[int]) -> None:
    if told != wanted:
        same = next((i for i, (a, b) in enumerate(zip(told, wanted, strict=False)) if a != b), -1)
        raise AssertionError(f"{name}: {len(told)} tokens, another text from token {same} on")


def later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.start()


def kill() -> None:
    """20 times kill -9 at a random moment, restarted each time."""
    draw = random.Random(SEED)
    with Scene(2) as scene:
        wanted = scene.tell(TOKENS).tokens
        pauses = []
        for turn in range(20):
            number = draw.choice((1, 2))

            def hurt(number: int = number) -> None:
                scene.kill(number)
                threading.Thread(target=scene.start_worker, args=(number,)).start()

            told = scene.tell(TOKENS, draw.uniform(0.02, 0.8), hurt)
            check(scene, f"kill {turn}", told.tokens, wanted)
            # One that is lost again before the cluster has worked with it is left out for a while;
            # a text at work makes it trusted.
            scene.until_serving(2, 150.0)
            check(scene, f"between {turn}", scene.tell(TOKENS).tokens, wanted)
            pauses.append(told.longest_pause)
        moved = sum(node.weight_bytes_from_network for node in scene.client.cluster().nodes)
    print(
        f"kill: 20 of 20 texts as undisturbed; longest pause {max(pauses):.2f} s, "
        f"median {sorted(pauses)[10]:.2f} s; {moved} weight bytes sent at the last forming"
    )


def gone() -> None:
    """Killed for good: the rest goes on after --wait-seconds; it comes back later."""
    draw = random.Random(SEED)
    with Scene(2, "--wait-seconds", "3") as scene:
        wanted = scene.tell(TOKENS).tokens
        pauses = []
        for turn in range(4):
            number = draw.choice((1, 2))
            told = scene.tell(TOKENS, draw.uniform(0.02, 0.8), partial(scene.kill, number))
            check(scene, f"gone {turn}", told.tokens, wanted)
            scene.until_serving(1)
            pauses.append(told.longest_pause)
            scene.start_worker(number)
            scene.until_serving(2)
    print(
        f"gone: 4 of 4 texts as undisturbed, on 2 nodes from then on; longest pause "
        f"{max(pauses):.2f} s, of which 3 s were --wait-seconds"
    )


def leave() -> None:
    """SIGTERM and started again, as an upgrade does: where the rest have room, and where not."""
    draw = random.Random(SEED)
    for options, room in (((), "the rest have room"), (CRAMPED, "the rest have no room")):
        with Scene(2, *options) as scene:
            wanted = scene.tell(TOKENS).tokens
            pauses: list[float] = []
            exits: list[float] = []
            for turn in range(6):
                number = draw.choice((1, 2))

                def upgrade(number: int = number, exits: list[float] = exits) -> None:
                    exits.append(scene.leave(number))
                    scene.start_worker(number)

                thread = threading.Thread(target=upgrade)
                told = scene.tell(TOKENS, draw.uniform(0.02, 0.8), thread.start)
                check(scene, f"leave {turn}", told.tokens, wanted)
                thread.join()
                scene.until_serving(2)
                pauses.append(told.longest_pause)
        print(
            f"leave, {room}: 6 of 6 texts as undisturbed; longest pause {max(pauses):.2f} s, "
            f"median {sorted(pauses)[3]:.2f} s; gone {max(exits):.2f} s after SIGTERM at the latest"
        )


def stop() -> None:
    """SIGSTOP: for 12 s, and for good."""
    with Scene(2, "--wait-seconds", "5") as scene:
        wanted = scene.tell(TOKENS).tokens

        def pause() -> None:
            scene.stop(1)
            later(12.0, lambda: scene.go_on(1))

        told = scene.tell(TOKENS, 0.3, pause)
        check(scene, "stopped for 12 s", told.tokens, wanted)
        print(f"stop: 12 s: text as undisturbed, longest pause {told.longest_pause:.2f} s")
        scene.until_serving(2)
        told = scene.tell(TOKENS, 0.3, lambda: scene.stop(2))
        check(scene, "stopped for good", told.tokens, wanted)
        print(
            f"stop: for good: text as undisturbed, longest pause {told.longest_pause:.2f} s, of "
            "which 5 s were --wait-seconds"
        )


def root() -> None:
    """The root killed and restarted 10 times."""
    with Scene(2) as scene:
        wanted = scene.tell(TOKENS // 5).tokens
        times, sent = [], 0
        for turn in range(10):
            scene.root.kill()
            times.append(scene.start_root())
            status = scene.until_serving(2)
            sent += sum(node.weight_bytes_from_network for node in status.nodes)
            check(scene, f"root {turn}", scene.tell(TOKENS // 5).tokens, wanted)
    assert sent == 0, sent
    print(
        f"root: 10 restarts, {sent} weight bytes sent; serves after {max(times):.2f} s at most, "
        "its own start included"
    )


def cable() -> None:
    """A cable cut (iptables DROP, both ways): for 5 s, and for good."""
    if not Network.entered("cable"):
        return
    network = Network(3)
    with Scene(2, "--wait-seconds", "5", network=network) as scene:
        wanted = scene.tell(TOKENS).tokens

        def cut() -> None:
            network.cut(1)
            later(5.0, lambda: network.mend(1))

        told = scene.tell(TOKENS, 0.3, cut)
        check(scene, "cut for 5 s", told.tokens, wanted)
        print(f"cable: 5 s: text as undisturbed, longest pause {told.longest_pause:.2f} s")
        time.sleep(1)
        scene.until_serving(2)
        told = scene.tell(TOKENS, 0.3, lambda: network.cut(2))
        check(scene, "cut for good", told.tokens, wanted)
        print(
            f"cable: for good: text as undisturbed, longest pause {told.longest_pause:.2f} s, of "
            "which 5 s were --wait-seconds"
        )
        network.mend(2)
        scene.until_serving(2)
        print("cable: mended: taken in again")


def split() -> None:
    """The cable between the two workers cut, the root reaches both: for 5 s, and for good."""
    if not Network.entered("split"):
        return
    network = Network(3)
    with Scene(2, "--wait-seconds", "5", network=network) as scene:
        wanted = scene.tell(TOKENS).tokens

        def cut() -> None:
            network.part(1, 2)
            later(5.0, lambda: network.mend(1, 2))

        told = scene.tell(TOKENS, 0.3, cut)
        check(scene, "cut for 5 s", told.tokens, wanted)
        print(f"split: 5 s: text as undisturbed, longest pause {told.longest_pause:.2f} s")
        before = scene.until_serving(2).epoch
        told = scene.tell(TOKENS, 0.3, lambda: network.part(1, 2))
        check(scene, "cut for good", told.tokens, wanted)
        status = scene.until_serving(1)
        # Both were tried together once more, and then one alone.
        assert status.epoch == before + 2, status.epoch
        reason = status.peers[1].reason
        assert "node1" in reason, reason
        assert "do not reach each other" in reason, reason
        print(
            f"split: for good: text as undisturbed, longest pause {told.longest_pause:.2f} s; then "
            f"node2 is out: {reason}"
        )
        network.mend(1, 2)
        scene.until_serving(2, 120)
        print("split: mended: taken in again")


STORIES = {story.__name__: story for story in (kill, gone, leave, stop, root, cable, split)}


def main() -> None:
    for name in sys.argv[1:] or STORIES:
        began = time.monotonic()
        STORIES[name]()
        print(f"{name}: took {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
