"""Works out where a row of a step stopped being finite (infinity or NaN). Pure."""

from collections.abc import Mapping, Sequence

# A rank's place for logits that the root found not to be finite: after every sync.
LOGITS = 1 << 32


def sources(seen: Sequence[Mapping[int, int]]) -> dict[int, int | None]:
    """The rank that each row which is not finite comes from; None: of no one rank.

    seen: for each rank of a stage, the rows that it saw, and the sync at which it saw them first
    (see NotFinite in worker.proto). All ranks get a row's values by a sync, so the source sees it
    one sync before the others. Where several see it at once, it was in what they all have: the
    step's input, or weights of the model.
    """
    found: dict[int, int | None] = {}
    for row in sorted({row for rank in seen for row in rank}):
        first = min(rank[row] for rank in seen if row in rank)
        ranks = [number for number, rank in enumerate(seen) if rank.get(row) == first]
        found[row] = ranks[0] if len(ranks) == 1 and len(seen) > 1 else None
    return found


def of_stages(
    stages: Sequence[Sequence[Mapping[int, int]]],
) -> dict[int, tuple[int, int] | None]:
    """The stage and rank that each row which is not finite comes from; None: of no one rank.

    stages: for each stage, as `sources` has it. The first stage that saw a row is the source: the
    stage before gave it finite values. Of the first stage's input nothing is known, so a rank that
    is alone there is not the source.
    """
    found: dict[int, tuple[int, int] | None] = {}
    for stage, seen in enumerate(stages):
        alone = stage > 0 and len(seen) == 1
        for row, rank in sources(seen).items():
            source = 0 if alone else rank
            found.setdefault(row, None if source is None else (stage, source))
    return found
