"""Peak memory of every node while it loads and runs a model: above its shard, and against one node.

What a node holds, and the most it ever held, do not depend on the weights' values: they are random
or zeros. Real processes, and the kernel's own account of each one's peak (VmHWM).
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from converter_builders import hf_config, hf_name, is_norm, tiny_spec
from harness import ServiceProcess, status_bytes

from hearth.client import Client
from hearth.common.sizes import format_size
from hearth.converter.tokenizers.plain import PlainTokenizer

# 1.4 GiB in f16, of which 62 MiB (the embedding) are whole on the root: 4 %, as in one of 8B. The
# process itself, 100 MiB, is 6 %. So the ratios are those of such a model, at a third of its size.
DIVIDED = {
    "hidden_size": 2048,
    "layers": 16,
    "heads": 32,
    "kv_heads": 4,
    "head_size": 64,
    "ffn_size": 5632,
    "vocab_size": 16_000,
}
# Two tensors of 125 MiB, more than the bound, and little else.
LARGE_TENSORS = {
    "hidden_size": 512,
    "heads": 8,
    "head_size": 64,
    "ffn_size": 1024,
    "vocab_size": 128_000,
}
# The stated bound: what any node ever holds above its weights and its KV pages (which are one page
# here, and counted in). bench/memory.py shows it for larger steps, and says what it is made of.
# The root's HTTP server and its streams to every worker come on top.
ABOVE = 120 << 20
ABOVE_ROOT = 144 << 20

Start = Callable[..., ServiceProcess]


def zeros(directory: Path, shape: dict[str, int]) -> Path:
    """A model of this shape in f16, all zeros: a sparse file."""
    spec = tiny_spec(**shape)
    header: dict[str, object] = {}
    end = 0
    for name in spec.tensor_names():
        rows, columns = spec.tensor_shape(name)
        begin, end = end, end + rows * columns * 2
        sizes = [columns] if is_norm(name) else [rows, columns]
        header[hf_name(name)] = {"dtype": "F16", "shape": sizes, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    directory.mkdir()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    config = hf_config(spec) | {"hearth": {"version": 1, "tokenizer": PlainTokenizer.NAME}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_no_node_holds_much_beside_its_shard(
    start_worker: Start, start_root: Start, tmp_path: Path
) -> None:
    model = zeros(tmp_path / "model", LARGE_TENSORS)
    for start in ("cold", "warm"):
        worker = start_worker("--cache-dir", str(tmp_path / "cache"))
        options = ("--context", "256", "--workers", worker.address)
        root = start_root("--model", str(model), *options)
        with Client(root.address) as client:
            # Whole rows of logits: the sampler may choose any token.
            client.generate_text(
                tokens=range(128), max_tokens=4, temperature=1.0, ignore_eos=True, timeout=60
            )
            nodes = client.cluster().nodes
        assert (nodes[1].weight_bytes_from_network > 0) == (start == "cold")
        for service, node, most in zip((root, worker), nodes, (ABOVE_ROOT, ABOVE), strict=True):
            above = status_bytes(service.pid, "VmHWM") - node.weight_bytes
            assert 0 < above <= most, f"{start}: {format_size(above)} above the shard"
            assert service.end() == 0


def peaks(
    nodes: int, model: Path, start_worker: Start, start_root: Start
) -> tuple[list[int], list[int]]:
    """Peak bytes of each node, root first, after a short generation; and its weights' bytes."""
    workers = [start_worker() for _ in range(nodes - 1)]
    options = ["--workers", *(worker.address for worker in workers)] if workers else []
    root = start_root("--model", str(model), "--context", "256", *options)
    with Client(root.address) as client:
        with client.generate(
            tokens=range(16), max_tokens=4, ignore_eos=True, timeout=120
        ) as stream:
            for _ in stream:
                pass
        assert len(stream.token_ids) == 4
        weights = [node.weight_bytes for node in client.cluster().nodes]
    found = [status_bytes(service.pid, "VmHWM") for service in (root, *workers)]
    for service in (root, *workers):  # their memory is needed by what comes next
        assert service.end() == 0
    return found, weights


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_divided(
    start_worker: Start,
    start_root: Start,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    model = zeros(tmp_path / "model", DIVIDED)
    (single,), (whole,) = peaks(1, model, start_worker, start_root)
    print(f"1 node: peak {format_size(single)}, weights {format_size(whole)}")
    record_property("peak_bytes_1", single)
    for nodes, allowed in ((2, 0.58), (4, 0.36)):
        found, weights = peaks(nodes, model, start_worker, start_root)
        record_property(f"peak_bytes_{nodes}", found)
        for peak, size in zip(found, weights, strict=True):
            print(
                f"{nodes} nodes: peak {format_size(peak)} ({peak / single:.1%}), "
                f"weights {format_size(size)}, beside them {format_size(peak - size)}"
            )
        assert max(found) <= allowed * single
        for rank, (peak, size) in enumerate(zip(found, weights, strict=True)):
            assert peak <= size + (ABOVE if rank else ABOVE_ROOT)
    assert single <= whole + ABOVE_ROOT
