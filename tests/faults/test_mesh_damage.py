"""Bits that flip on the way between two ranks: a lost step each, and never another text.

The 200 flips of a long run: python tests/mesh_damage.py 200.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mesh_damage import damaged, some_flips


@pytest.mark.parametrize("tls", [True, False], ids=["encrypted", "plain"])
def test_a_flipped_bit_is_a_lost_step(tls: bool, tmp_path: Path) -> None:
    with damaged(tmp_path, tls=tls) as cluster:
        for flip in some_flips(6, seed=7):
            assert cluster.flip(flip) == "right text", flip
        # No node was lost, so none has loaded its shard again.
        assert cluster.kept == 6
