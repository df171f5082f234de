"""Peak memory of every node while it loads and runs an 8B model, against that of a single node.

`random:llama-3-8b` in q40: what a node holds, and the most it ever held, do not depend on the
weights' values. Real processes, and the kernel's own account of each one's peak (VmHWM).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from harness import ServiceProcess, peak_bytes

from hearth.client import Client
from hearth.common.sizes import format_size

MODEL = "random:llama-3-8b"
# The stated bound: no node ever holds more than its weights, one slice as large as the largest, and
# what a process takes at rest. The largest is the embedding, which is the root's, whole: 128,256
# rows of 4,096 columns in q40, where 32 values are 18 bytes. What a worker has on its way in, and
# what a root reads for all its workers at once, are parts of a tensor, and less.
LARGEST_SLICE = 128_256 * 4_096 * 18 // 32
PROCESS = 200 << 20

Start = Callable[..., ServiceProcess]


def peaks(nodes: int, start_worker: Start, start_root: Start) -> tuple[list[int], list[int]]:
    """Peak bytes of each node, root first, after a short generation; and its weights' bytes."""
    workers = [start_worker() for _ in range(nodes - 1)]
    options = ["--workers", *(worker.address for worker in workers)] if workers else []
    root = start_root("--model", MODEL, "--weights", "q40", "--context", "256", *options)
    with Client(root.address) as client:
        with client.generate(
            tokens=range(16), max_tokens=4, ignore_eos=True, timeout=120
        ) as stream:
            for _ in stream:
                pass
        assert len(stream.token_ids) == 4
        weights = [node.weight_bytes for node in client.cluster().nodes]
    found = [peak_bytes(service.pid) for service in (root, *workers)]
    for service in (root, *workers):  # their memory is needed by what comes next
        assert service.end() == 0
    return found, weights


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_divided(
    start_worker: Start, start_root: Start, record_property: Callable[[str, object], None]
) -> None:
    (single,), (whole,) = peaks(1, start_worker, start_root)
    print(f"1 node: peak {format_size(single)}, weights {format_size(whole)}")
    record_property("peak_bytes_1", single)
    for nodes, allowed in ((2, 0.58), (4, 0.36)):
        found, weights = peaks(nodes, start_worker, start_root)
        record_property(f"peak_bytes_{nodes}", found)
        for peak, size in zip(found, weights, strict=True):
            print(
                f"{nodes} nodes: peak {format_size(peak)} ({peak / single:.1%}), "
                f"weights {format_size(size)}, beside them {format_size(peak - size)}"
            )
        assert max(found) <= allowed * single
        for peak, size in zip(found, weights, strict=True):
            assert peak <= size + LARGEST_SLICE + PROCESS
    assert single <= whole + LARGEST_SLICE + PROCESS
