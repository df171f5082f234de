"""The shape of a cluster: stages, and the ranks of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks and layers of each stage, first stage first."""

    ranks: tuple[int, ...]
    # None: layers in proportion to the shares of each stage's nodes.
    layers: tuple[int, ...] | None = None

    @property
    def nodes(self) -> int:
        """All nodes; the root is the first of them."""
        return sum(self.ranks)

    @classmethod
    def tensor(cls, nodes: int) -> Layout:
        """One stage: every node has a share of every layer."""
        return cls((nodes,))


def layout_of(parallel: str, nodes: int) -> Layout:
    """The layout of a `--parallel` value. Raises HearthError INVALID_ARGUMENT."""
    if parallel in ("auto", "tensor"):
        return Layout.tensor(nodes)
    if parallel == "pipeline" or re.fullmatch(r"[0-9]{1,4}x[0-9]{1,4}", parallel):
        problem = f"--parallel {parallel}: this version runs one stage; use auto or tensor"
    else:
        problem = f"unknown --parallel {parallel!r}: use auto or tensor"
    raise HearthError(Reason.INVALID_ARGUMENT, problem)
