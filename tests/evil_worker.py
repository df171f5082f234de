"""A `hearth worker` with a bad habit, which a file names and may change at any time.

    python tests/evil_worker.py HABIT_FILE [options of hearth worker]

Several habits may be given, one a line. Not a test by itself: faults/test_bad_workers.py runs it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hearth import _native
from hearth.cli.main import main
from hearth.common.candidates import Candidates
from hearth.common.errors import HearthError, Reason
from hearth.common.mesh_listener import MeshListener
from hearth.v1 import worker_pb2
from hearth.worker.forward import ForwardLoop
from hearth.worker.lanes import StreamEnded
from hearth.worker.loading import LoadSession

_FILE = Path(sys.argv.pop(1))
_LOAD_ERRORS = ("OUT_OF_MEMORY", "BAD_CHUNK", "WORKER_BUSY", "INTERNAL")


def has(habit: str) -> bool:
    return habit in _FILE.read_text().splitlines()


def wait_while(habit: str) -> None:
    """As a thread that is stuck in a system call: no error and no end of a stream wakes it."""
    while has(habit):
        time.sleep(0.02)


_needs, _read_cache = LoadSession.needs, LoadSession.read_cache
_step, _response = ForwardLoop._step, ForwardLoop._response
_activations = ForwardLoop._activations


def needs(self: LoadSession) -> worker_pb2.LoadWeightsResponse:
    for reason in _LOAD_ERRORS:
        if has(f"load: {reason}"):
            lies = {"worker": "127.0.0.1:1", "peer": "127.0.0.1:2", "rank": 3}
            raise HearthError(Reason(reason), "this worker does not load", lies)
    if has("load: dies"):
        os._exit(1)
    wait_while("load: hangs")
    return _needs(self)


def read_cache(self: LoadSession) -> Iterator[worker_pb2.LoadWeightsResponse]:
    nothing = worker_pb2.LoadWeightsResponse(progress=worker_pb2.LoadProgress())
    while has("load: progress without progress"):
        yield nothing
        time.sleep(0.02)
    yield from _read_cache(self)


def step(self: ForwardLoop, request: worker_pb2.Step) -> None:
    if has("step: dies"):
        os._exit(1)
    if has("step: refused"):
        raise HearthError(Reason.INVALID_ARGUMENT, "this worker does not like the step")
    wait_while("step: hangs")
    if has("step: ignored"):
        while True:  # until the stream ends: it is free then, and hangs again
            self._receive()
    try:
        _step(self, request)
    except _native.LaneError as error:
        raise StreamEnded from error


def activations(self: ForwardLoop, request: worker_pb2.Step) -> np.ndarray:
    x = _activations(self, request)
    return x * np.float32(np.nan) if has("step: NaN in the sums") else x


def response(
    self: ForwardLoop,
    request: worker_pb2.Step,
    output: _native.StepOutput,
    wanted: Candidates,
) -> tuple[worker_pb2.ForwardResponse, int]:
    made, size = _response(self, request, output, wanted)
    result = made.result
    if result.logits:
        logits = np.frombuffer(result.logits, "<f4").copy()
        if has("step: NaN"):
            logits[:] = np.nan
        if has("step: one -inf"):
            logits[0] = -np.inf
        if has("step: short"):
            logits = logits[:-1]
        result.logits = logits.tobytes()
        if has("step: foreign ids"):
            result.candidate_ids = np.full(len(logits), 1 << 30, "<u4").tobytes()
        if has("step: another step"):
            result.step_id += 1
    return made, size


def blackhole() -> int:
    """A port that takes no connection and refuses none: its queue is full."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = int(listener.getsockname()[1])
    for _ in range(4):
        full = socket.socket()
        full.setblocking(False)
        full.connect_ex(("127.0.0.1", port))
        _kept.append(full)
    _kept.append(listener)
    return port


_kept: list[socket.socket] = []
_hole = blackhole()


def port(self: MeshListener) -> int:
    if has("mesh: refused"):
        return 1
    return _hole if has("mesh: dropped") else int(self._socket.getsockname()[1])


for owner, name, habit in (
    (LoadSession, "needs", needs),
    (LoadSession, "read_cache", read_cache),
    (ForwardLoop, "_step", step),
    (ForwardLoop, "_response", response),
    (ForwardLoop, "_activations", activations),
    (MeshListener, "port", property(port, lambda self, value: None)),
):
    setattr(owner, name, habit)

if __name__ == "__main__":
    sys.exit(main(["worker", *sys.argv[1:]]))
