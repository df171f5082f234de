"""Pairs of workers that do not reach each other, though the root reaches both. Pure state.

Any connection may break once, so a pair counts as apart after two times in a row, or where it could
not connect at all. Of a pair that is apart, one is left out for a while; each further time, for
longer. A worker may also be apart from the root: gRPC reaches it, the mesh does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from hearth.root.membership.peers import Peer

# The root, in a pair; no worker has this address.
ROOT = "root"

_TIMES = 2
_SECONDS = 60.0
_MAX_SECONDS = 600.0
# Two times are in a row unless the cluster served for so long in between.
_SOUND_SECONDS = 60.0
# Pairs that are remembered: the latest, so that changing addresses fill no memory.
_MAX_PAIRS = 1024
# Ways to leave workers out that are tried.
_MAX_WAYS = 64


@dataclass(slots=True)
class _Trouble:
    times: int = 0
    until: float = 0.0
    # What broke last; "" where the two could not connect at all.
    problem: str = ""


class Apart:
    """Pairs are of addresses; one of a pair may be ROOT."""

    def __init__(self) -> None:
        # The pair that broke last is the last.
        self._pairs: dict[frozenset[str], _Trouble] = {}

    def broke(
        self, one: str, other: str, now: float, problem: str = "", sure: bool = False
    ) -> None:
        """Two did not reach each other. sure: they could not connect, with many tries.

        problem: why their connection broke.
        """
        pair = frozenset((one, other))
        trouble = self._pairs[pair] = self._pairs.pop(pair, _Trouble())
        if len(self._pairs) > _MAX_PAIRS:
            del self._pairs[next(iter(self._pairs))]
        trouble.times += 1
        trouble.problem = "" if sure else problem
        # A worker that does not reach a third one either needs no second proof.
        known = any({one, other} & pair - {ROOT} for pair in self._apart(now))
        if known or sure:
            trouble.times = max(trouble.times, _TIMES)
        if trouble.times >= _TIMES:
            seconds = _SECONDS * 2.0 ** min(trouble.times - _TIMES, 10)
            trouble.until = now + min(_MAX_SECONDS, seconds)

    def served(self, workers: Sequence[str], seconds: float) -> None:
        """A cluster of these workers has served for so long."""
        if seconds >= _SOUND_SECONDS:
            for pair in [pair for pair in self._pairs if pair <= {*workers, ROOT}]:
                del self._pairs[pair]

    def ways(self, peers: Sequence[Peer], now: float) -> Iterator[list[Peer]]:
        """Lists of the peers without pairs that are apart, best first.

        A peer that is apart from the root is in none. Peers with a place in the cluster stay before
        those without. Then the peer that does not reach the most others is left out first, then the
        one that came last.
        """
        pairs = self._apart(now)
        reached = [peer for peer in peers if not self.from_root(peer, now)]
        return islice(self._ways(reached, pairs), _MAX_WAYS)

    def from_root(self, peer: Peer, now: float) -> bool:
        """True if the mesh does not connect the peer and the root."""
        return frozenset((peer.address, ROOT)) in self._apart(now)

    def problem(self, one: str, other: str) -> str:
        """Cause of the last break between two; "" where they could not connect."""
        trouble = self._pairs.get(frozenset((one, other)))
        return trouble.problem if trouble is not None else ""

    def partner(self, peer: Peer, others: Sequence[Peer], now: float) -> Peer | None:
        """One of the others that the peer does not reach."""
        pairs = self._apart(now)
        return next((p for p in others if frozenset((peer.address, p.address)) in pairs), None)

    def _apart(self, now: float) -> set[frozenset[str]]:
        return {pair for pair, trouble in self._pairs.items() if now < trouble.until}

    def _ways(self, peers: list[Peer], pairs: set[frozenset[str]]) -> Iterator[list[Peer]]:
        met = [
            both
            for both in combinations(peers, 2)
            if frozenset((both[0].address, both[1].address)) in pairs
        ]
        if not met:
            yield peers
            return

        def rank(peer: Peer) -> tuple[bool, int, int]:
            return (
                peer.place is not None,
                -sum(peer in both for both in met),
                -peer.order,
            )

        worst = min((peer for both in met for peer in both), key=rank)
        first = next(both for both in met if worst in both)
        for out in sorted(first, key=rank):
            yield from self._ways([peer for peer in peers if peer is not out], pairs)
