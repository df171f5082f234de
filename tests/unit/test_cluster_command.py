"""The command line of `hearth cluster`."""

from __future__ import annotations

import click
import pytest

from hearth.cli import cluster
from hearth.cli.command import Options
from hearth.v1 import common_pb2, root_pb2


def parsed(line: str) -> Options:
    return cluster.command().read(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "drain nas --undo --root h:1",
        "drain --undo nas --root h:1",
        "drain --undo --root h:1 nas",
        "--undo drain --root h:1 nas",
        "--root h:1 --undo drain nas",
    ],
)
def test_options_may_be_anywhere(line: str) -> None:
    options = parsed(line)
    assert (options.action, options.worker) == ("drain", "nas")
    assert (options.undo, options.root, options.watch) == (True, "h:1", False)


def test_showing_the_cluster_needs_no_worker() -> None:
    options = parsed("--json")
    assert (options.action, options.worker, options.json) == (None, None, True)


@pytest.mark.parametrize("line", ["drain one two", "pause one", "drain one --nothing"])
def test_what_it_does_not_have_is_refused(line: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(line)


def test_stages_of_a_pipeline_are_shown_with_their_layers() -> None:
    status = root_pb2.ClusterStatus(state=root_pb2.CLUSTER_STATE_SERVING)
    for stage, rank, layers in ((0, 0, (0, 5)), (1, 0, (5, 9)), (1, 1, (5, 9))):
        node = status.nodes.add(address=f"10.0.0.{stage}{rank}:7717")
        node.placement.MergeFrom(common_pb2.Placement(stage=stage, stages=2, rank=rank, ranks=2))
        node.shard.layers.MergeFrom(common_pb2.Range(begin=layers[0], end=layers[1]))
    lines = cluster.describe(status)
    head = next(number for number, line in enumerate(lines) if "stage.rank (layers)" in line)
    assert [line.split("  ")[0] for line in lines[head + 1 : head + 4]] == [
        "0.0 (0-4)",
        "1.0 (5-8)",
        "1.1 (5-8)",
    ]


def test_a_gpu_is_shown_with_its_memory() -> None:
    status = root_pb2.ClusterStatus(state=root_pb2.CLUSTER_STATE_SERVING)
    for rank, kernels in enumerate(("avx2", "vulkan:1 (A card\x1b[31m)")):
        node = status.nodes.add(address=f"10.0.0.{rank}:7717", weight_bytes=(rank + 1) << 20)
        node.placement.MergeFrom(common_pb2.Placement(rank=rank, ranks=2))
        node.info.MergeFrom(
            common_pb2.NodeInfo(
                name="n", cores=2, threads=2, instruction_set=kernels, memory_total_bytes=24 << 30
            )
        )
    text = "\n".join(cluster.describe(status))
    assert "vulkan:1 (A card" in text and ", 24.0 GiB" in text and "67 %" in text
    assert text.count("GiB") == 1  # of the GPU alone
    assert "\x1b" not in text
