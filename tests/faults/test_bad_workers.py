"""One of three workers fails while it loads or at its first step: the other two answer.

Each kind of failure has a limit of time that applies; the answer comes in under ten seconds after.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from harness import ServiceProcess, WorkerProcess, free_port

from hearth.common.errors import HearthError
from hearth.converter import Model, open_model
from hearth.root.app import Core, core, serving
from hearth.root.cluster import lanes
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.settings import ClusterSettings, Joining, Serving
from hearth.v1 import root_pb2
from hearth.worker.shard import NodeShard

Start = Callable[..., WorkerProcess]
STEP_SECONDS = STALL_SECONDS = MESH_SECONDS = WAIT_SECONDS = 1.0
TOKENS = 20
# Whose embedding is damaged; no answer here has it.
TOKEN = 78
Range = tuple[int, int]
_EVIL = str(Path(__file__).parents[1] / "evil_worker.py")


class Evil:
    """A worker with habits; it is started again whenever it dies."""

    def __init__(self, folder: Path) -> None:
        self._habits = folder / "habits"
        self.habits()
        self._folder = folder
        self._starts = 0
        self._ending = False
        self._process = self._start(f"127.0.0.1:{free_port()}")
        self.address = self._process.address
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def habits(self, *habits: str) -> None:
        fresh = self._habits.with_suffix(".new")
        fresh.write_text("\n".join(habits))
        fresh.replace(self._habits)

    @property
    def starts(self) -> int:
        return self._starts

    def end(self) -> None:
        self._ending = True
        self.habits()
        self._process.end()
        self._keeper.join()

    def _start(self, listen: str) -> ServiceProcess:
        self._starts += 1
        return WorkerProcess(
            *("--listen", listen, "--name", "evil"),
            log=self._folder / f"evil-{self._starts}.log",
            command=(sys.executable, _EVIL, str(self._habits)),
        )

    def _keep(self) -> None:
        while not self._ending:
            try:
                self._process.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            if not self._ending:
                self._process = self._start(self.address)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evil]:
    evil = Evil(tmp_path_factory.mktemp("evil"))
    yield evil
    evil.end()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of two workers."""
    folder = tmp_path_factory.mktemp("good")
    workers = [WorkerProcess("--name", f"good{n}", log=folder / f"good{n}.log") for n in (1, 2)]
    yield [worker.address for worker in workers]
    for worker in workers:
        worker.end()


@contextmanager
def opened(damage: tuple[str, int] | None) -> Iterator[Model]:
    with open_model("demo") as model:
        if damage is not None:
            damaged(model, *damage)
        yield model


@contextmanager
def root(
    workers: list[str],
    lane: str = "mesh",
    needed: int = 2,
    damage: tuple[str, int] | None = None,
) -> Iterator[Core]:
    """A root that serves in this process; damage: a tensor of its model, and a row that is NaN."""
    settings = ClusterSettings(
        workers=tuple(workers),
        threads=1,
        kv_type="f32",
        context=256,
        lane=lane,
        step_seconds=STEP_SECONDS,
        stall_seconds=STALL_SECONDS,
    )
    joining = Joining(min_workers=needed, wait_seconds=WAIT_SECONDS)
    with (
        opened(damage) as model,
        core(model, settings, form=False, pause_seconds=60.0) as running,
        serving(running, Serving(listen="127.0.0.1:0", joining=joining)),
    ):
        yield running


def answer(running: Core, prompt: str = "Once upon a time", **sampling: float) -> list[int]:
    params = GenerateParams(
        tuple(running.engine.tokenizer.encode(prompt)),
        TOKENS,
        Sampling(**sampling),  # type: ignore[arg-type]
        ignore_eos=True,
    )
    events = running.engine.generate(params)
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


@pytest.fixture(scope="module")
def wanted() -> list[int]:
    """The answer of a root alone."""
    with root([], needed=0) as running:
        return answer(running)


def nodes(running: Core) -> list[str]:
    return [node.address for node in running.cluster.status().nodes[1:]]


# Habit, the limit that applies in seconds, and the lane.
KINDS = [
    ("load: OUT_OF_MEMORY", 0.0, "mesh"),
    ("load: BAD_CHUNK", 0.0, "mesh"),
    ("load: WORKER_BUSY", 0.0, "mesh"),
    ("load: INTERNAL", 0.0, "mesh"),
    ("load: dies", WAIT_SECONDS, "mesh"),
    ("load: hangs", STALL_SECONDS, "mesh"),
    ("load: progress without progress", STALL_SECONDS, "mesh"),
    ("mesh: refused", MESH_SECONDS, "mesh"),
    ("mesh: dropped", MESH_SECONDS, "mesh"),
    ("step: dies", WAIT_SECONDS, "mesh"),
    ("step: hangs", STEP_SECONDS + WAIT_SECONDS, "mesh"),
    ("step: hangs", STEP_SECONDS + WAIT_SECONDS, "grpc"),
    ("step: ignored", STEP_SECONDS, "mesh"),
    ("step: ignored", STEP_SECONDS, "grpc"),
    ("step: refused", 0.0, "mesh"),
    ("step: NaN", 0.0, "grpc"),
    ("step: one -inf", 0.0, "mesh"),
    ("step: NaN in the sums", 0.0, "mesh"),
    ("step: short", 0.0, "mesh"),
    ("step: foreign ids", 0.0, "grpc"),
    ("step: another step", 0.0, "mesh"),
]


@pytest.mark.parametrize(("habit", "limit", "lane"), KINDS)
def test_the_others_answer(
    evil: Evil,
    good: list[str],
    wanted: list[int],
    monkeypatch: pytest.MonkeyPatch,
    habit: str,
    limit: float,
    lane: str,
) -> None:
    monkeypatch.setattr(lanes, "MESH_SECONDS", MESH_SECONDS)
    evil.habits(habit)
    # Between the others: blame by position would find one of them.
    workers = [good[0], evil.address, good[1]]
    began = time.monotonic()
    with root(workers, lane) as running:
        assert answer(running) == wanted
        seconds = time.monotonic() - began
        assert nodes(running) == good
        print(f"{habit} ({lane}): {seconds:.1f} s, limit {limit:g} s")
        assert answer(running, temperature=0.7, seed=1)
        assert nodes(running) == good
    evil.habits()


def damaged(model: Model, name: str, row: int) -> None:
    """Make a row of a tensor NaN when it is read: a file with such values might be refused."""
    read = model.read

    def damage(
        tensor: str, kind: str, rows: Range | None = None, columns: Range | None = None
    ) -> npt.NDArray[np.uint8]:
        data = read(tensor, kind, rows, columns).copy()
        if tensor == name and rows is not None and rows[0] <= row < rows[1]:
            data.reshape(rows[1] - rows[0], -1)[row - rows[0]] = 0xFF  # NaN in every type
        return data

    setattr(model, "read", damage)  # noqa: B010 (mypy does not let a method be replaced)


def outcome(running: Core, prompt: tuple[int, ...]) -> int | str:
    """Tokens of the answer, or the reason of the error."""
    events = running.engine.generate(GenerateParams(prompt, TOKENS, ignore_eos=True))
    try:
        return sum(len(event.token_ids) for event in events if isinstance(event, Delta))
    except HearthError as error:
        assert "not finite at position" in error.message
        return error.reason


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_token_ends_its_own_requests(
    good: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """An embedding that is not a number: nobody is at fault but the model."""
    embed = NodeShard.embed

    def damaged_embed(
        self: NodeShard, tokens: npt.NDArray[np.uint32], *more: Any
    ) -> npt.NDArray[np.float32]:
        x = embed(self, tokens, *more)
        x[tokens == TOKEN] = np.nan
        return x

    monkeypatch.setattr(NodeShard, "embed", damaged_embed)
    with root(good[:workers], needed=workers) as running:
        prompts = [(5, 6, 7), (5, TOKEN, 7), (8, 9), (TOKEN,)]
        with ThreadPoolExecutor(len(prompts)) as pool:
            found = list(pool.map(lambda prompt: outcome(running, prompt), prompts))
        assert found == [TOKENS, "MODEL_ERROR", TOKENS, "MODEL_ERROR"]
        assert running.cluster.status().epoch == 1
        # Their pages are others' now.
        assert [outcome(running, (n, n + 1)) for n in range(10, 14)] == [TOKENS] * 4


def test_weights_that_spoil_every_plan_throw_nobody_out_for_long(good: list[str]) -> None:
    """Each plan gives the damaged weight to some worker: one is suspected, and then the model."""
    with root(good, needed=2, damage=("layers.1.w2", 3)) as running:
        assert [outcome(running, (5, n)) for n in range(6)] == ["MODEL_ERROR"] * 6
        assert running.cluster.status().epoch <= 4
        for status in until(running):
            if [node.address for node in status.nodes[1:]] == good:
                break
        assert outcome(running, (5, 6)) == "MODEL_ERROR"


def until(running: Core) -> Iterator[root_pb2.ClusterStatus]:
    """Each status while the cluster serves, from the one now on, for a minute at most."""
    changes: queue.SimpleQueue[root_pb2.ClusterStatus] = queue.SimpleQueue()
    end = running.cluster.subscribe(changes.put)
    try:
        status = running.cluster.status()
        while True:
            if status.state == root_pb2.CLUSTER_STATE_SERVING:
                yield status
            status = changes.get(timeout=60)
    finally:
        end()
