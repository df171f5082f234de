"""Shares by memory, for nodes of which equal shares do not fit. Pure."""

from collections.abc import Callable, Sequence

# From shares to the bytes that each node then needs, root first.
Needs = Callable[[tuple[float, ...]], Sequence[int]]

_TRIES = 16
# A share changes by this factor at most in one try: needs do not follow shares exactly.
_STEP = 4.0
# Of the smallest share; the planner takes no more.
_MAX_SHARE = 1e5


def shares_by_memory(rooms: Sequence[int], needs: Needs) -> tuple[float, ...] | None:
    """Shares with which each node has room, the smallest 1; None where none were found.

    rooms: bytes that each node can give, root first. Shares begin in proportion to the rooms. Each
    try then scales them by room / need, so that all nodes come to use the same part of their room;
    what a node needs whatever its share (the root's embedding) counts too. Rooms are taken
    coarsely: memory that is free changes a little from start to start, and cached slices belong to
    their shares.
    """
    # More room than the whole model needs (and a quarter, which may be cut off) counts for nothing.
    whole = sum(needs((1.0,) * len(rooms)))
    targets = [_coarse(min(room, whole + whole // 4)) for room in rooms]
    if min(targets, default=0) <= 0:
        return None
    wanted = [float(target) for target in targets]
    for _ in range(_TRIES):
        shares = _readable(wanted)
        found = needs(shares)
        if all(need <= room for need, room in zip(found, rooms, strict=True)):
            return shares
        wanted = [
            share * min(_STEP, max(1 / _STEP, target / max(1, need)))
            for share, target, need in zip(wanted, targets, found, strict=True)
        ]
    return None


def _coarse(room: int) -> int:
    """The three highest bits of a number: four steps from one power of two to the next."""
    cut = max(0, room.bit_length() - 3)
    return room >> cut << cut


def _readable(wanted: Sequence[float]) -> tuple[float, ...]:
    """Two significant digits of each share, the smallest 1."""
    least = min(wanted)
    return tuple(min(_MAX_SHARE, float(f"{share / least:.2g}")) for share in wanted)
