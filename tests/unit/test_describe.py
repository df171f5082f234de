"""Descriptions of a cluster for people."""

from __future__ import annotations

import pytest

from hearth.common.link_costs import LinkCosts
from hearth.root.planning.plan import Placement
from hearth.root.status import describe


@pytest.mark.parametrize(
    ("cipher", "costs", "note"),
    [
        (
            "plain",
            LinkCosts(31.4e-6, 1.18e9, 64 << 10),
            "mesh of 3 ranks, plain text: latency 31 us, 1180 MB/s a rank; sums of up to 64.0 KiB "
            "go direct, larger ones scattered",
        ),
        (
            "chacha20-poly1305",
            LinkCosts(2.5e-3, 6e6, None),
            "mesh of 3 ranks, ChaCha20-Poly1305: latency 2500 us, 6 MB/s a rank; all sums go "
            "direct",
        ),
    ],
)
def test_the_note_of_a_mesh_has_its_numbers(cipher: str, costs: LinkCosts, note: str) -> None:
    assert describe.mesh_note([3], cipher, costs) == note


def test_a_placement_is_the_same_as_a_message() -> None:
    message = describe.placement(Placement(stage=1, stages=3, rank=2, ranks=4))
    assert (message.stage, message.stages, message.rank, message.ranks) == (1, 3, 2, 4)


def test_the_note_of_a_mesh_of_stages() -> None:
    """The root alone in its stage measures no sync."""
    note = describe.mesh_note([1, 2], "plain", None)
    assert note == "mesh of 3 ranks in 2 stages, plain text"
