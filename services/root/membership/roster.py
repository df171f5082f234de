"""The known workers, as sources list them and as their names and processes tell. Pure state."""

from collections.abc import Iterable, Iterator

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.peers import Peer, PeerState


class Roster:
    """The peers by address; iterating gives them in rank order."""

    def __init__(self) -> None:
        self._known: dict[str, Peer] = {}
        self._orders = 0

    def __iter__(self) -> Iterator[Peer]:
        return iter(sorted(self._known.values(), key=lambda peer: peer.order))

    def get(self, address: str) -> Peer | None:
        """The one at this address."""
        return self._known.get(address)

    def called(self, worker: str) -> Peer:
        """The one of this address or name. Raises HearthError INVALID_ARGUMENT."""
        found = [peer for peer in self if peer.address == worker]
        found = found or [peer for peer in self if peer.name == worker]
        if len(found) != 1:
            known = ", ".join(peer.title for peer in self) or "none"
            which = "several workers are" if found else "no worker is"
            problem = f"{which} called {worker!r}; there are: {known}"
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        return found[0]

    def found(self, source: str, listing: Iterable[str], now: float) -> None:
        """All that `source` lists now; new ones are to be asked what they are."""
        listed = list(dict.fromkeys(listing))
        for address in listed if source == "static" else sorted(listed):
            if address not in self._known:
                self._known[address] = Peer(address, self._orders, ask_at=now)
                self._orders += 1
            self._known[address].sources.add(source)
        for peer in self._known.values():
            if peer.address not in listed:
                peer.sources.discard(source)
        self.forget(now)

    def forget(self, now: float) -> None:
        """Drops those that no source lists any more, once they are neither in nor waited for."""
        for peer in self:
            kept = peer.state is PeerState.IN or peer.awaited(now)
            if not peer.sources and not kept:
                del self._known[peer.address]

    def rank_by_name(self) -> None:
        """Give ranks by name, so that a restarted root finds the slices in the right caches.

        For workers that a DNS name or the LAN lists: after a power cut every address may differ.
        """
        named = sorted(
            self._known.values(), key=lambda peer: (not peer.name, peer.name, peer.address)
        )
        for order, peer in enumerate(named):
            peer.order = order

    def twin(self, peer: Peer) -> Peer | None:
        """Another address of the same process, which is used already."""
        for other in self:
            same = other.instance == peer.instance and other is not peer
            if same and peer.instance and other.state in (PeerState.READY, PeerState.IN):
                return other
        return None

    def inherit(self, peer: Peer) -> str:
        """Give a worker at a new address the place of the lost one of its name.

        Returns the old address; "" where there is none.
        """
        if "static" in peer.sources:
            return ""
        for other in self:
            gone = (
                other.state in (PeerState.LOST, PeerState.UNREACHABLE)
                and "static" not in other.sources
            )
            if gone and other.name == peer.name and other is not peer:
                peer.order = other.order
                peer.place = other.place
                del self._known[other.address]
                return other.address
        return ""
