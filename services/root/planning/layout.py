"""The shape of a cluster: stages, and the ranks of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.root.planning.cut import divide, size

_PARTS = re.compile(r"[0-9]{1,4}x[0-9]{1,4}(\+[0-9]{1,4}x[0-9]{1,4})*")
# More than any home has; keeps the numbers of a layout small.
_MOST_NODES = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks and layers of each stage, first stage first."""

    ranks: tuple[int, ...]
    # None: layers in proportion to the shares of each stage's nodes.
    layers: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        """All nodes; the root is the first of them."""
        return sum(self.ranks)

    @classmethod
    def tensor(cls, nodes: int) -> Layout:
        """One stage: every node has a share of every layer."""
        return cls((nodes,))


def ranks_of(parallel: str) -> tuple[int, ...] | None:
    """The ranks of each stage of a `--parallel` value; None where the nodes decide.

    "2x3" is two stages of three ranks, "2x1+1x2" two stages of one rank and then one of two. Raises
    HearthError INVALID_ARGUMENT.
    """
    if parallel in ("auto", "tensor", "pipeline"):
        return None
    if not _PARTS.fullmatch(parallel):
        raise _invalid(
            f"unknown --parallel {parallel!r}: use auto, tensor, pipeline or STAGESxRANKS such as "
            "2x3 or 2x1+1x2"
        )
    ranks: list[int] = []
    for part in parallel.split("+"):
        stages, each = map(int, part.split("x"))
        if not (stages and each) or len(ranks) + stages > _MOST_NODES:
            raise _invalid(
                f"--parallel {parallel}: {part} is not 1 to {_MOST_NODES} stages of at least one "
                "rank"
            )
        ranks += [each] * stages
    return tuple(ranks)


def layout_of(
    parallel: str, nodes: int, layers: Sequence[int] | None = None, *, exact: bool = True
) -> Layout:
    """The layout of `--parallel` and `--stages` for so many nodes.

    layers: of each stage, of `--stages`. exact: the nodes are those that the options are for. Else
    some are missing: a layout as similar as possible, with a note. Raises HearthError
    INVALID_ARGUMENT for options that contradict each other or the nodes.
    """
    ranks = ranks_of(parallel)
    if layers is not None and ranks is None:
        if parallel == "tensor" and len(layers) > 1:
            raise _invalid(
                f"--stages {_joined(layers)} with --parallel tensor, which is one stage: use "
                "--parallel pipeline"
            )
        ranks = (1,) * len(layers) if parallel != "tensor" else None
    elif ranks is None:
        ranks = (1,) * nodes if parallel == "pipeline" else None
    if ranks is None:
        return Layout((nodes,), None if layers is None else tuple(layers))
    if layers is not None and len(layers) != len(ranks):
        raise _invalid(
            f"--stages {_joined(layers)} has {len(layers)} stages, --parallel {parallel} has "
            f"{len(ranks)}"
        )
    if sum(ranks) == nodes:
        return Layout(ranks, None if layers is None else tuple(layers))
    option = f"--parallel {parallel}" if layers is None else f"--stages {_joined(layers)}"
    problem = f"{option} is for {_nodes(sum(ranks))}, and there {_are(nodes)}"
    if exact:
        raise _invalid(f"{problem} (the root is one of them)")
    return _similar(ranks, nodes, problem)


def nodes_of(parallel: str, layers: Sequence[int] | None = None) -> int | None:
    """The nodes that `--parallel` and `--stages` are for; None where any number will do."""
    ranks = ranks_of(parallel)
    if ranks is not None:
        return sum(ranks)
    return len(layers) if layers is not None and parallel != "tensor" else None


def _similar(ranks: tuple[int, ...], nodes: int, problem: str) -> Layout:
    """As many stages as before where the nodes are enough, with ranks in the same proportion."""
    stages = min(len(ranks), nodes)
    now = tuple(size(span) for span in divide(nodes, [float(each) for each in ranks[:stages]]))
    shown = "+".join(f"1x{each}" for each in now)
    return Layout(now, None, (f"{problem}: the layout is {shown}",))


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def _are(count: int) -> str:
    return f"{'are' if count != 1 else 'is'} {count}"


def _joined(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))


def _invalid(problem: str) -> HearthError:
    return HearthError(Reason.INVALID_ARGUMENT, problem)
