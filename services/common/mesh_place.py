"""A node's place in a mesh over one or more stages, and the nodes to which it is connected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason


@dataclass(frozen=True, slots=True)
class MeshPlace:
    """Ranks of a mesh count through all stages, stage by stage. Rank 0 is the root.

    The ranks of a stage are connected to each other. Rank i of a stage sends activations to ranks
    i, i + n, ... of the next one, n being the number of ranks in its own.
    """

    # The number of ranks of each stage; the own stage, and the rank within it.
    stage_ranks: tuple[int, ...]
    stage: int
    rank: int

    @property
    def first(self) -> int:
        """The stage's rank 0, as a rank of the mesh."""
        return sum(self.stage_ranks[: self.stage])

    @property
    def own(self) -> int:
        """This node, as a rank of the mesh."""
        return self.first + self.rank

    @property
    def mates(self) -> range:
        """All ranks of the own stage, as ranks of the mesh."""
        return range(self.first, self.first + self.stage_ranks[self.stage])

    @property
    def before(self) -> int | None:
        """The rank from which activations come; None in the first stage."""
        if self.stage == 0:
            return None
        ranks = self.stage_ranks[self.stage - 1]
        return self.first - ranks + self.rank % ranks

    @property
    def behind(self) -> range:
        """The ranks to which activations go; none in the last stage."""
        end = self.mates.stop
        if self.stage + 1 == len(self.stage_ranks):
            return range(end, end)
        ranks = self.stage_ranks[self.stage]
        return range(end + self.rank, end + self.stage_ranks[self.stage + 1], ranks)

    @property
    def peers(self) -> frozenset[int]:
        """All ranks to which this node is connected."""
        before = [] if self.before is None else [self.before]
        return frozenset([*self.mates, *before, *self.behind]) - {self.own}


def place_of(
    stage_ranks: Sequence[int], stage: int, stages: int, rank: int, ranks: int
) -> MeshPlace:
    """The place of a rank of `ranks` in stage `stage` of `stages`.

    stage_ranks: empty for one stage. Raises HearthError INVALID_ARGUMENT where they contradict each
    other.
    """
    given = tuple(stage_ranks) or (ranks,)
    if len(given) != stages or given[stage] != ranks or min(given) < 1:
        problem = (
            f"a mesh of stages of {','.join(map(str, given))} ranks, for rank {rank} of {ranks} in "
            f"stage {stage} of {stages}"
        )
        raise HearthError(Reason.INVALID_ARGUMENT, problem)
    return MeshPlace(given, stage, rank)
