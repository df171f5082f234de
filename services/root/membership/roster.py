"""Which workers there are: found by sources, told apart by name and process. Pure state."""

from collections.abc import Iterable, Iterator

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.candidates import Candidate, State


class Roster:
    """The candidates by address; iterating gives them in rank order."""

    def __init__(self) -> None:
        self._known: dict[str, Candidate] = {}
        self._orders = 0

    def __iter__(self) -> Iterator[Candidate]:
        return iter(sorted(self._known.values(), key=lambda candidate: candidate.order))

    def get(self, address: str) -> Candidate | None:
        """The one at this address."""
        return self._known.get(address)

    def called(self, worker: str) -> Candidate:
        """The one of this address or name. Raises HearthError INVALID_ARGUMENT."""
        found = [c for c in self if c.address == worker]
        found = found or [c for c in self if c.name == worker]
        if len(found) != 1:
            known = ", ".join(c.title for c in self) or "none"
            which = "several workers are" if found else "no worker is"
            problem = f"{which} called {worker!r}; there are: {known}"
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        return found[0]

    def found(self, source: str, listing: Iterable[str], now: float) -> None:
        """All that `source` lists now; new ones are to be asked what they are."""
        listed = list(dict.fromkeys(listing))
        for address in listed if source == "static" else sorted(listed):
            if address not in self._known:
                self._known[address] = Candidate(address, self._orders, ask_at=now)
                self._orders += 1
            self._known[address].sources.add(source)
        for candidate in self._known.values():
            if candidate.address not in listed:
                candidate.sources.discard(source)
        self.forget(now)

    def forget(self, now: float) -> None:
        """Drops those that no source lists any more, once they are neither in nor waited for."""
        for candidate in self:
            kept = candidate.state is State.IN or candidate.waited_until > now
            if not candidate.sources and not kept:
                del self._known[candidate.address]

    def rank_by_name(self) -> None:
        """Where a name or the LAN lists the workers, addresses may all be others after a power cut:
        ranks by name, so that a root that starts anew finds the slices in the right caches."""
        named = sorted(self._known.values(), key=lambda c: (not c.name, c.name, c.address))
        for order, candidate in enumerate(named):
            candidate.order = order

    def twin(self, candidate: Candidate) -> Candidate | None:
        """Another address of the same process, which is used already."""
        for other in self:
            same = other.instance == candidate.instance and other is not candidate
            if same and candidate.instance and other.state in (State.READY, State.IN):
                return other
        return None

    def inherit(self, candidate: Candidate) -> str:
        """A worker of a known name at a new address takes the place of the old one: its address."""
        if "static" in candidate.sources:
            return ""
        for other in self:
            gone = other.state in (State.LOST, State.UNREACHABLE) and "static" not in other.sources
            if gone and other.name == candidate.name and other is not candidate:
                candidate.order = other.order
                candidate.waited_until = other.waited_until
                candidate.member = other.member
                del self._known[other.address]
                return other.address
        return ""
