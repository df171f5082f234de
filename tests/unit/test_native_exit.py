"""A process that ends while daemon threads are in the core: by itself, not by a signal."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading, time
import numpy as np
from hearth import _native

class Slow(_native.Lane):
    def all_reduce(self, x):
        time.sleep(0.001)

def steps():
    attention = _native.AttentionConfig(
        heads=(0, 1), kv_heads=(0, 1), key_size=32, value_size=32, scale=0.2, rope=0
    )
    feed_forward = _native.FeedForwardConfig(units=(0, 32))
    config = _native.ShardConfig(
        hidden_size=32, layers=(0, 1), kind_of_layer=[0],
        kinds=[_native.BlockConfig(mixer=attention, feed_forward=feed_forward)],
        vocab=(0, 32), norm_epsilon=1e-5, ropes=[_native.RopeConfig(frequencies=[1.0] * 16)],
        kv_type="f32", page_size=4, max_pages=4, max_step_tokens=4, embedding=False, vocab_size=32,
    )
    shard = _native.Shard(config, threads=1)
    for name, shape in shard.expected().items():
        shard.load(name, "f32", np.zeros(shape, np.float32))
    lane = Slow() if sys.argv[1] == "lane" else None
    x = np.zeros((1, 32), np.float32)
    while True:
        shard.step(x, [(1, 0, [0])], [0], lane)

def bandwidth():
    while True:
        _native.read_bandwidth(1, 1 << 16, 1)

work = bandwidth if sys.argv[1] == "bandwidth" else steps
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("kind", ["lane", "step", "bandwidth"])
def test_daemon_threads_in_the_core_do_not_end_the_process(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for _ in range(3):  # without care, one of two such processes aborts
        done = subprocess.run(
            [sys.executable, str(program), kind], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
