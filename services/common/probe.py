"""Measures what this machine computes and reads, in about half a second; a program of its own.

python -m hearth.common.probe THREADS DIRECTORY PIN DEVICE

The core itself is timed on layers of zeros in q4_0. One row shows the reading of weights, a few
rows and many show products. Tiny layers show the fixed work. So kernels, threads and barriers count
as they do in a step. A GPU is measured in the same way. It is kept busy first: idle ones have
lowered their clocks.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hearth import _native
from hearth.common import devices, system_files
from hearth.common.speeds import Speeds

_TYPE = "q4_0"
# A layer of a 1B model, and how many: 230 MiB, far more than caches hold.
_HIDDEN, _HEADS, _HEAD_SIZE, _INNER, _LAYERS = 2048, 16, 128, 5632, 8
_FEW, _MANY = 8, 64
_SMALL_LAYERS = 16
# Of a GPU that is drawn by the CPU, which is slow: the same shape and one layer, 6 MiB.
_DRAWN = (1024, 8, 128, 2816, 1)
# A GPU computes so long before it is timed; no more steps are timed after so long.
_WARM_SECONDS, _MOST_SECONDS = 0.25, 2.0
# Of a file, and how long it is read at least.
_DISK_BYTES, _DISK_SECONDS = 32 << 20, 0.5


def measure(
    threads: int,
    directory: Path | None = None,
    pin: Sequence[int] = (),
    device: str = devices.CPU,
) -> Speeds:
    """The speeds with so many threads. directory: on the disk of the slice cache.

    Raises HearthError BAD_SETTING for a device that is not there, and _native.DeviceError.
    """
    gpu = devices.gpu_info(device)
    where = (threads, pin, device)
    drawn = gpu is not None and gpu.kind == "cpu"
    shape = _DRAWN if drawn else (_HIDDEN, _HEADS, _HEAD_SIZE, _INNER, _LAYERS)

    def tiny(count: int) -> float:
        return _Layers(64, 2, 32, 128, count, *where).seconds(1, 5)

    fixed, submission = tiny(_SMALL_LAYERS) / _SMALL_LAYERS, 0.0
    if gpu is not None:
        # What a step costs besides its layers: handing it to the driver, and waiting for its end.
        single = tiny(1)
        fixed = max(0.0, fixed * _SMALL_LAYERS - single) / (_SMALL_LAYERS - 1)
        submission = max(0.0, single - fixed)
    large = _Layers(*shape, *where)
    beside = shape[-1] * fixed + submission
    # Reading twice, with the others between: what disturbs it once is over then.
    reading = large.seconds(1, 5)
    few = _net(large.seconds(_FEW, 3), beside)
    many = _net(large.seconds(_MANY, 3), beside)
    one = _net(min(reading, large.seconds(1, 5)), beside)
    return Speeds(
        read_bandwidth=large.weight_bytes / one,
        prefill_rate=_MANY * large.products / many,
        few_rows_rate=_FEW * large.products / few,
        layer_seconds=fixed,
        disk_bandwidth=_disk_bandwidth(directory),
        submit_seconds=submission,
    )


def _net(seconds: float, fixed: float) -> float:
    """The time without the layers' fixed work; at least half, where noise is larger."""
    return max(seconds - fixed, seconds / 2)


class _Layers:
    """Layers of zeros on this machine's cores, or on its GPU."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        head_size: int,
        inner: int,
        layers: int,
        threads: int,
        pin: Sequence[int],
        device: str,
    ) -> None:
        self._hidden = hidden
        self._warm_seconds = 0.0 if device == devices.CPU else _WARM_SECONDS
        block = _native.BlockConfig(
            mixer=_native.AttentionConfig(
                heads=(0, heads),
                kv_heads=(0, heads),
                key_size=head_size,
                value_size=head_size,
                scale=1.0,
                rope=None,
            ),
            feed_forward=_native.FeedForwardConfig(units=(0, inner)),
        )
        config = _native.ShardConfig(
            hidden_size=hidden,
            layers=(0, layers),
            kinds=[block],
            kind_of_layer=[0] * layers,
            norm_epsilon=1e-5,
            ropes=[],
            kv_type="f16",
            page_size=_MANY,
            max_pages=1,
            max_step_tokens=_MANY,
            embedding=False,
            vocab_size=32,
            vocab=(0, 0),
        )
        self._shard = _native.Shard(config, threads=threads, pin=list(pin), device=device)
        self.weight_bytes = 0
        # Multiply-adds of a row.
        self.products = 0
        zeros = np.zeros(1 << 24, np.uint8)
        for name, (rows, columns) in self._shard.expected().items():
            kind = "f32" if name.endswith("norm") else _TYPE
            size = rows * _native.row_bytes(kind, columns)
            self._shard.load(name, kind, zeros[:size])
            self.weight_bytes += size
            self.products += 0 if kind == "f32" else rows * columns

    def seconds(self, rows: int, repeats: int) -> float:
        """The shortest time of a step of so many rows of one sequence."""
        activations = np.ones((rows, self._hidden), np.float32)

        def step() -> float:
            started = time.perf_counter()
            self._shard.step(activations, [(rows, 0, [0])], [], None)
            return time.perf_counter() - started

        # A first one records what is submitted, and fills caches.
        best, spent = float("inf"), step()
        while spent < self._warm_seconds:
            spent += step()
        spent = 0.0
        for _ in range(repeats):
            seconds = step()
            best, spent = min(best, seconds), spent + seconds
            if spent > _MOST_SECONDS:
                break
        return best


def _disk_bandwidth(directory: Path | None) -> float:
    """Bytes per second of a file written, dropped from memory and read; 0 where that fails.

    Read again and again for a while: disks, and what limits them, are faster in the first moment.
    """
    if directory is None:
        return 0.0
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(os.urandom(1 << 20) * (_DISK_BYTES >> 20))
        file.flush()
        os.fsync(file.fileno())
        buffer = memoryview(mmap.mmap(-1, 1 << 22))
        seconds, passes = 0.0, 0
        while seconds < _DISK_SECONDS:
            if not system_files.drop_from_memory(file.fileno()):
                return 0.0
            started, done = time.perf_counter(), 0
            while done < _DISK_BYTES:
                count = system_files.read_into(file.fileno(), buffer, done)
                if count <= 0:
                    return 0.0
                done += count
            seconds += max(time.perf_counter() - started, 1e-9)
            passes += 1
        return passes * _DISK_BYTES / seconds
    return 0.0


def _main(threads: str, directory: str, pin: str, device: str) -> None:
    cores = [int(core) for core in pin.split(",") if core]
    speeds = measure(int(threads), Path(directory) if directory else None, cores, device)
    print(json.dumps(asdict(speeds)))


if __name__ == "__main__":
    _main(*sys.argv[1:5])
