"""A cluster whose workers are lost, join, or are drained: real processes.

`make survival` runs the long stories: many kills, stopped processes, cut cables.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import family_models
import pytest
from harness import ServiceProcess, free_port, hearth

from hearth.client import Client, ClusterUnavailable, HearthError
from hearth.v1 import root_pb2

Start = Callable[..., ServiceProcess]
PROMPT = "Once upon a time"
SECONDS = 60.0
# A root that has room for half of the model, and no larger part.
CRAMPED = ("--memory-limit", "8MiB", "--context", "512")


class Roots:
    """Starts roots of the demo model, unless another is set; a client of each."""

    model = "demo"

    def __init__(self, start_root: Start) -> None:
        self._start = start_root
        self._clients: list[Client] = []

    def root(self, *options: str) -> tuple[Client, ServiceProcess]:
        root = self._start("--model", self.model, "--kv-type", "f32", *options)
        self._clients.append(Client(root.address, timeout=SECONDS))
        return self._clients[-1], root

    def __call__(self, *options: str) -> Client:
        return self.root(*options)[0]

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def serve(start_root: Start) -> Iterator[Roots]:
    roots = Roots(start_root)
    yield roots
    roots.close()


def story(client: Client, tokens: int = 200) -> list[int]:
    with client.generate(PROMPT, max_tokens=tokens, ignore_eos=True, timeout=SECONDS) as stream:
        for _ in stream:
            pass
    return stream.token_ids


class Telling:
    """A story that runs meanwhile."""

    def __init__(self, client: Client, tokens: int) -> None:
        self._stream = client.generate(PROMPT, max_tokens=tokens, ignore_eos=True, timeout=SECONDS)
        assert next(self._stream)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for _ in self._stream:
                pass
        except Exception as error:
            self._error = error

    def end(self) -> list[int]:
        """All its tokens; raises what ended it otherwise."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._stream.token_ids


def until(
    client: Client, ready: Callable[[root_pb2.ClusterStatus], bool]
) -> root_pb2.ClusterStatus:
    for status in client.watch_cluster(timeout=SECONDS):
        if ready(status):
            return status
    raise AssertionError("the root stopped telling")


def serves_with(*workers: ServiceProcess) -> Callable[[root_pb2.ClusterStatus], bool]:
    """Serving, with exactly these in rank order."""

    def ready(status: root_pb2.ClusterStatus) -> bool:
        nodes = [node.address for node in status.nodes[1:]]
        serving = status.state == root_pb2.CLUSTER_STATE_SERVING
        return serving and nodes == [worker.address for worker in workers]

    return ready


def peer(status: root_pb2.ClusterStatus, worker: ServiceProcess) -> root_pb2.Peer:
    return next(item for item in status.peers if item.address == worker.address)


def test_a_worker_gone_for_good_is_divided_around_and_taken_in_again(
    start_worker: Start, serve: Roots, tmp_path: Path
) -> None:
    caches = [("--cache-dir", str(tmp_path / f"cache{n}")) for n in (1, 2)]
    one, two = (start_worker("--name", f"node{n}", *caches[n - 1]) for n in (1, 2))
    client = serve("--workers", one.address, two.address, "--wait-seconds", "1")
    wanted = story(client, 600)
    telling = Telling(client, 600)
    one.kill()
    until(client, serves_with(two))
    away = root_pb2.PEER_STATE_UNREACHABLE
    until(client, lambda status: peer(status, one).state == away)
    assert telling.end() == wanted  # on two nodes from there on
    shown = hearth("cluster", "--root", client.address)
    assert shown.returncode == 0
    line = next(line for line in shown.stdout.splitlines() if one.address in line)
    assert line.startswith(f"worker node1 ({one.address}) [static]: out, ")
    assert "cannot be reached" in line or "was lost" in line
    assert f"worker node2 ({two.address}) [static]: in" in shown.stdout

    again = start_worker("--listen", one.address, "--name", "node1", *caches[0])
    status = until(client, serves_with(again, two))
    # At its old rank: its slices were in its cache.
    assert status.nodes[1].weight_bytes_from_network == 0
    assert story(client, 600) == wanted


@pytest.mark.parametrize("family", sorted(family_models.CONFIGS))
def test_other_families_survive_the_loss_of_a_worker(
    start_worker: Start, serve: Roots, tmp_path: Path, family: str
) -> None:
    """Experts, norms, windows, states: the text goes on on fewer nodes, and on all again."""
    serve.model = str(family_models.write_model(tmp_path / "model", family))
    one, two = (start_worker("--name", f"node{n}") for n in (1, 2))
    client = serve("--workers", one.address, two.address, "--wait-seconds", "1")
    wanted = story(client, 300)
    assert len(set(wanted)) > 10  # more than a token over and over
    telling = Telling(client, 300)
    one.kill()
    until(client, serves_with(two))
    assert telling.end() == wanted
    again = start_worker("--listen", one.address, "--name", "node1")
    until(client, serves_with(again, two))
    assert story(client, 300) == wanted


def test_losses_in_the_middle_of_a_step_leave_nothing_behind(
    start_worker: Start, start_root: Start, tmp_path: Path
) -> None:
    caches = [("--cache-dir", str(tmp_path / f"cache{n}")) for n in (1, 2)]
    one, two = (start_worker("--name", f"node{n}", *caches[n - 1]) for n in (1, 2))
    root = start_root("--model", "demo", "--workers", one.address, two.address)

    def held() -> tuple[int, int]:
        """Descriptors, and GiB of addresses in large pieces: a shard's weights reserve one."""
        descriptors = pieces = 0
        for service in (root, two):
            descriptors += len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
            for line in Path(f"/proc/{service.pid}/maps").read_text().splitlines():
                begin, end = (int(number, 16) for number in line.split()[0].split("-"))
                pieces += (end - begin) >> 30
        return descriptors, pieces

    def more(than: tuple[int, int]) -> bool:
        return any(now > before for now, before in zip(held(), than, strict=True))

    with Client(root.address, timeout=SECONDS) as client:
        first = (0, 0)
        for kills in range(3):
            telling = Telling(client, 400)
            one.kill()
            one = start_worker("--listen", one.address, "--name", "node1", *caches[0])
            telling.end()
            until(client, serves_with(one, two))
            if kills == 0:
                first = held()
                continue
            # A connection may take a moment to close. One that an error holds does not.
            deadline = time.monotonic() + 10
            while more(first) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not more(first), f"{first}, and after {kills + 1} kills {held()}"


def test_draining_a_worker(start_worker: Start, serve: Roots) -> None:
    one, two = (start_worker("--name", f"node{n}") for n in (1, 2))
    client = serve("--workers", one.address, two.address)
    wanted = story(client, 600)
    telling = Telling(client, 600)
    drained = hearth("cluster", "drain", "node2", "--root", client.address)
    assert drained.returncode == 0, drained.stderr
    assert f"worker node2 ({two.address}) [static]: out, drained" in drained.stdout
    assert telling.end() == wanted
    assert serves_with(one)(client.cluster())
    assert two.end() == 0  # nobody minds

    refused = hearth("cluster", "drain", "node9", "--root", client.address)
    assert refused.returncode == 1
    assert "no worker is called 'node9'" in refused.stderr
    # Restarted, it comes in again by itself.
    again = start_worker("--listen", two.address, "--name", "node2")
    until(client, serves_with(one, again))
    # What was taken out can be let in without that.
    client.drain_worker(one.address)
    assert serves_with(again)(client.cluster())
    client.drain_worker(one.address, undo=True)
    until(client, serves_with(one, again))
    assert story(client, 600) == wanted


def test_a_worker_that_is_needed_is_not_drained(start_worker: Start, serve: Roots) -> None:
    worker = start_worker()
    client = serve("--workers", worker.address, *CRAMPED)
    with pytest.raises(HearthError, match=r"cannot be taken out: the root has 8.0 MiB") as error:
        client.drain_worker(worker.address)
    assert error.value.reason == "OUT_OF_MEMORY"
    assert len(story(client)) == 200


def test_a_worker_that_is_needed_is_waited_for_with_numbers(
    start_worker: Start, serve: Roots
) -> None:
    """Others without room:

    requests wait beyond --wait-seconds, and the status says what is lacking.
    """
    worker = start_worker()
    client = serve(
        *("--workers", worker.address, *CRAMPED),
        *("--wait-seconds", "1", "--pause-seconds", "30"),
    )
    wanted = story(client, 400)
    telling = Telling(client, 400)
    worker.kill()
    status = until(client, lambda status: "8.0 MiB" in status.reason)
    assert status.state == root_pb2.CLUSTER_STATE_DEGRADED
    start_worker("--listen", worker.address)
    assert telling.end() == wanted


def test_a_worker_stopped_by_its_owner_is_not_waited_for(start_worker: Start, serve: Roots) -> None:
    """SIGTERM, as a container's stop: the rest goes on at once."""
    one, two = start_worker(), start_worker()
    client = serve("--workers", one.address, two.address, "--wait-seconds", "3600")
    wanted = story(client, 600)
    telling = Telling(client, 600)
    one.process.send_signal(signal.SIGTERM)
    until(client, serves_with(two))
    assert telling.end() == wanted
    assert one.end() == 0


@pytest.mark.parametrize("lane", ["mesh", "grpc"])
def test_a_worker_that_is_told_to_stop_is_no_loss(
    start_worker: Start, serve: Roots, lane: str
) -> None:
    """It computes until the root goes on without it: no step is broken, nothing is a fault."""
    one, two = start_worker("--drain-seconds", "3600"), start_worker()
    client, root = serve.root("--workers", one.address, two.address, "--lane", lane)
    wanted = story(client, 600)
    telling = Telling(client, 600)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(SECONDS) == 0
    assert telling.end() == wanted
    assert serves_with(two)(client.cluster())
    log = root.log.read_text()
    assert f"({one.address}): it is about to stop" in log
    assert "lost" not in log


def test_running_requests_may_end_before_a_worker_that_is_needed_stops(
    start_worker: Start, serve: Roots
) -> None:
    """The others have no room; so what runs has `--drain-seconds` to end, and the rest waits."""
    worker = start_worker("--drain-seconds", "3600")
    client = serve("--workers", worker.address, *CRAMPED, "--wait-seconds", "3600")
    wanted = story(client, 400)
    telling = Telling(client, 400)
    worker.process.send_signal(signal.SIGTERM)
    assert telling.end() == wanted  # which it could not without a worker
    assert worker.process.wait(SECONDS) == 0  # when no step came any more
    hasty = start_worker("--listen", worker.address, "--drain-seconds", "0.5")
    until(client, serves_with(hasty))
    telling = Telling(client, 400)
    hasty.process.send_signal(signal.SIGTERM)
    assert hasty.process.wait(SECONDS) == 0
    start_worker("--listen", worker.address)
    assert telling.end() == wanted


def test_a_root_that_is_killed_finds_its_workers_again(
    start_worker: Start, start_root: Start, tmp_path: Path
) -> None:
    workers = [start_worker("--cache-dir", str(tmp_path / f"cache{n}")) for n in (1, 2)]
    options = ("--model", "demo", "--workers", *(worker.address for worker in workers))
    texts = []
    for turn in range(3):
        root = start_root(*options)
        with Client(root.address, timeout=SECONDS) as client:
            sent = [node.weight_bytes_from_network for node in client.cluster().nodes[1:]]
            assert not turn or sent == [0, 0]
            texts.append(story(client))
        root.kill()
    assert texts[0] == texts[1] == texts[2]


def test_workers_of_a_dns_name(start_worker: Start, serve: Roots) -> None:
    """The name lists addresses, and the root asks each of them."""
    port = free_port()
    dns = ("--workers-dns", f"localhost:{port}", "--wait-seconds", "1")
    worker = start_worker("--listen", f"127.0.0.1:{port}", "--name", "node1")
    client = serve(*dns)
    assert serves_with(worker)(client.cluster())
    listed = json.loads(hearth("cluster", "--json", "--root", client.address).stdout)
    found = {item["address"]: item for item in listed["peers"]}
    assert found[worker.address]["sources"] == ["dns"]
    assert found[worker.address]["state"] == "PEER_STATE_IN"
    assert len(story(client)) == 200


def test_too_few_workers_in_time(start_root: Start) -> None:
    ran = hearth(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0"),
        *("--workers-dns", f"localhost:{free_port()}", "--join-seconds", "1"),
    )
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("hearth: ")
    assert "cannot be reached" in last
    assert "--join-seconds" in last
    many = hearth("root", "--model", "demo", "--listen", "127.0.0.1:0", "--min-workers", "9")
    assert many.returncode == 2
    assert "more than the 7 workers" in many.stderr


def test_workers_that_announce_themselves(start_worker: Start, serve: Roots) -> None:
    """mDNS, over the loopback's multicast; a second worker comes in when no request runs."""
    one = start_worker("--announce", "--name", "node1")
    client = serve("--workers-mdns", "--insecure", "--context", "2000")
    assert one.address in [node.address for node in client.cluster().nodes]
    telling = Telling(client, 1000)
    two = start_worker("--announce", "--name", "node2")
    status = until(client, lambda status: "when no request runs" in reason_of(status, two))
    assert serves_with(one)(status)
    assert len(telling.end()) == 1000
    # In the order in which they were seen.
    until(client, serves_with(one, two))
    assert two.end() == 0
    until(client, serves_with(one))


def reason_of(status: root_pb2.ClusterStatus, worker: ServiceProcess) -> str:
    return next((c.reason for c in status.peers if c.address == worker.address), "")


def test_new_requests_are_refused_until_the_first_forming(
    start_worker: Start, start_root: Start
) -> None:
    """Before a start is over nobody knows what there will be room for."""
    port, late = free_port(), free_port()
    answers: list[Exception | list[int]] = []

    def ask() -> None:
        deadline = time.monotonic() + SECONDS
        with Client(f"127.0.0.1:{port}", timeout=SECONDS) as client:
            while time.monotonic() < deadline:
                try:
                    answers.append(story(client, 5))
                    return
                except ClusterUnavailable as error:
                    answers.append(error)
                except HearthError:
                    pass  # nothing listens yet
                time.sleep(0.1)

    asking = threading.Thread(target=ask)
    asking.start()
    starting = threading.Timer(3.0, lambda: start_worker("--listen", f"127.0.0.1:{late}"))
    starting.start()
    start_root("--model", "demo", "--listen", f"127.0.0.1:{port}", "--workers", f"127.0.0.1:{late}")
    starting.join()
    asking.join()
    assert isinstance(answers[0], ClusterUnavailable)
    assert isinstance(answers[-1], list)
