"""Chooses the workers that have room for the model together. Pure state."""

from collections.abc import Sequence

from hearth.root.membership.apart import ROOT, Apart
from hearth.root.membership.decisions import Fit, Misfit, Rules
from hearth.root.membership.peers import Peer, PeerState, addresses

# Clusters formed before that are remembered: the latest, so that changing addresses fill no memory.
_REMEMBERED = 256

# The chosen peers in rank order; or none, and why.
Choice = tuple[list[Peer], Misfit | None]


class Chooser:
    """Chooses, and remembers which workers the cluster was formed with before."""

    def __init__(self, rules: Rules, fit: Fit) -> None:
        self._most = rules.most
        self._fit = fit
        self.apart = Apart()
        # Of these some were left out when the cluster was formed, so they need no second attempt.
        self._reduced: frozenset[str] = frozenset()
        # Their workers, the latest last.
        self._formed_before: dict[tuple[str, ...], None] = {}

    def formed(self, workers: tuple[str, ...], asked: tuple[str, ...] = ()) -> None:
        """The cluster was formed with these: they have their slices from now on.

        asked: those that it was to be formed with; the others were left out as slow.
        """
        self._reduced = frozenset(asked) if set(workers) < set(asked) else frozenset()
        self._formed_before.pop(workers, None)
        self._formed_before[workers] = None
        if len(self._formed_before) > _REMEMBERED:
            del self._formed_before[next(iter(self._formed_before))]

    def again(self) -> None:
        """Workers that were left out may be tried again."""
        self._reduced = frozenset()

    def refused(self, chosen: Sequence[Peer]) -> bool:
        """True if an attempt with these has left some of them out, as slow."""
        return self._reduced == set(addresses(chosen)) != set()

    def known(self, chosen: Sequence[Peer]) -> bool:
        """True if the cluster was formed with exactly these before, so that no weights move."""
        return addresses(chosen) in self._formed_before

    def renamed(self, old: str, new: str) -> None:
        """A worker is at another address now."""
        self._formed_before = {
            tuple(new if address == old else address for address in workers): None
            for workers in self._formed_before
        }

    def fits(self, peers: Sequence[Peer]) -> bool:
        """True if the first of them, as many as can be in, have room."""
        misfit = self._fit(tuple(peer.member for peer in peers[: self._most]))
        return misfit is None or misfit.slow

    def choose(self, peers: Sequence[Peer], now: float, anyway: bool = False) -> Choice:
        """As many of the peers as have room for the model together; or why there are none.

        Peers with a place in the cluster come first. A worker that lacks memory, that would slow
        requests, or that does not reach another, is left out, and its reason says so. anyway: where
        no other choice has room, choose workers that may not reach each other.
        """
        first: Misfit | None = None
        for way in self.apart.ways(peers, now):
            chosen, misfit = self._choose(way)
            if misfit is None:
                self._explain_apart(peers, chosen, now)
                return chosen, None
            first = first or misfit
        return self._choose(peers) if anyway else ([], first)

    def _choose(self, peers: Sequence[Peer]) -> Choice:
        left = sorted(peers, key=lambda peer: (peer.place is None, peer.order))
        first: Misfit | None = None
        while True:
            chosen = sorted(left[: self._most], key=lambda peer: peer.order)
            misfit = self._fit(tuple(peer.member for peer in chosen))
            if misfit is None:
                return chosen, None
            found = next((peer for peer in chosen if peer.address == misfit.address), None)
            if misfit.slow:
                if found is None or found.state is PeerState.IN:
                    return (
                        chosen,
                        None,
                    )  # what slows a cluster that serves leaves at its next forming
                left.remove(found)
                found.spare = found.slow = True
                found.reason = misfit.problem
                continue
            first = first or misfit
            if found is None or found.state is PeerState.IN:
                return [], first
            left.remove(found)
            found.lacks_memory = True
            found.reason = misfit.problem

    def _explain_apart(self, peers: Sequence[Peer], chosen: Sequence[Peer], now: float) -> None:
        for peer in peers:
            if peer not in chosen and peer.state is PeerState.READY:
                if self.apart.from_root(peer, now):
                    peer.reason = _apart_from_root(self.apart.problem(peer.address, ROOT))
                    continue
                partner = self.apart.partner(peer, chosen, now)
                if partner is not None:
                    problem = self.apart.problem(peer.address, partner.address)
                    peer.reason = _apart_from(partner, problem)

    def divide(
        self,
        staying: Sequence[Peer],
        ready: Sequence[Peer],
        now: float,
        anyway: bool = False,
    ) -> Choice:
        """The staying peers where that moves no weights; else with the others that are ready."""
        alone = self.choose(staying, now)
        if alone[1] is None and self.known(alone[0]):
            return alone
        together = self.choose(list(dict.fromkeys([*staying, *ready])), now, anyway)
        return together if together[1] is None else alone

    def spare(self, ready: Sequence[Peer], chosen: Sequence[Peer]) -> None:
        """Mark the ready workers beyond the limit as not needed."""
        if len(chosen) == self._most:
            for peer in ready:
                if peer not in chosen and not peer.lacks_memory and not peer.slow:
                    peer.reason = (
                        f"not needed: the model's heads allow {self._most} workers beside the "
                        "root, or --parallel asks for no more"
                    )


def _apart_from_root(problem: str) -> str:
    """Reason of a worker that is apart from the root. problem: of `Apart.problem`."""
    if not problem:
        return (
            "the root reaches it by gRPC, and its mesh port not: open that port, or use --lane grpc"
        )
    return f"left out for now: its mesh with the root broke again and again: {problem}"


def _apart_from(partner: Peer, problem: str) -> str:
    """Reason of a worker that is apart from another one."""
    if not problem:
        return f"it and worker {partner.title} do not reach each other"
    return (
        f"left out for now: its mesh with worker {partner.title} broke again and again: {problem}"
    )
