"""The merges of a byte-level BPE vocabulary of which only the tokens and their order are known.

A token's rank is its place in the order; pairs that make a token of lower rank merge first.
"""

from collections.abc import Sequence

Merge = tuple[bytes, bytes]


def merges_of(tokens: Sequence[bytes]) -> list[Merge]:
    """The one merge that makes each token, in order; tokens that none makes are left out.

    It joins the two parts that the token consists of after all merges of lower rank.
    """
    ranks = _ranks(tokens)
    merges = []
    for token, rank in ranks.items():
        splits = _splits(token, rank, ranks)
        if len(splits) > 1:
            parts = _merged(token, rank, ranks)
            splits = [(parts[0], parts[1])] if len(parts) == 2 else []
        merges += splits
    return merges


def all_merges(tokens: Sequence[bytes]) -> list[Merge]:
    """Every pair that makes a token, in the order of tokens: merging by rank alone, as tiktoken."""
    ranks = _ranks(tokens)
    merges = []
    for token in ranks:
        pairs = _splits(token, len(ranks), ranks)
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _ranks(tokens: Sequence[bytes]) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for rank, token in enumerate(tokens):
        ranks.setdefault(token, rank)
    return ranks


def _splits(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[Merge]:
    """The pairs that make a token, of tokens below a rank; single bytes count as such."""
    pairs = ((token[:place], token[place:]) for place in range(1, len(token)))
    return [
        (left, right)
        for left, right in pairs
        if _known(left, rank, ranks) and _known(right, rank, ranks)
    ]


def _known(part: bytes, rank: int, ranks: dict[bytes, int]) -> bool:
    found = ranks.get(part)
    return found is not None and (found < rank or len(part) == 1)


def _merged(token: bytes, limit: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The parts of a token after all merges of a rank below `limit`, lowest first."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        made = [
            ranks.get(parts[place] + parts[place + 1], limit) for place in range(len(parts) - 1)
        ]
        lowest = min(made)
        if lowest >= limit:
            break
        place = made.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
