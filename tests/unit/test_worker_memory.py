"""A shard's memory goes when its plan ends, whatever still holds the objects around it."""

from pathlib import Path

import pytest
from harness import Plan

from hearth.common.metrics import WorkerMetrics
from hearth.worker.loading import LoadSession


def reserved() -> int:
    """GiB of this process's addresses in pieces of at least one: a shard's weights reserve one."""
    pieces = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        pieces += (end - begin) >> 30
    return pieces


def test_the_end_of_a_plan_gives_its_weights_back() -> None:
    plan = Plan()
    before = reserved()
    session = LoadSession(plan.begin, None, WorkerMetrics(), lambda: 64 << 20)
    shard = session.shard  # as the frames of an error would
    for entry, data in zip(plan.begin.manifest, plan.slices, strict=True):
        shard.load(entry, data)
    assert reserved() == before + 1
    session.close()
    assert reserved() == before
    with pytest.raises(AttributeError):
        shard.missing()
