"""Workers that the root knows of: who each is, and what it is to the cluster. Pure state."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from hearth.root.membership.decisions import Member

# Workers that a line names.
_NAMED = 4


class PeerState(Enum):
    """The values are hearth.v1.PeerState's."""

    SEEN = 1
    READY = 2
    IN = 3
    LOST = 4
    UNREACHABLE = 5
    REFUSED = 6
    DRAINED = 7


# The states that lead to a state, where not all do. A peer leaves IN when the cluster stops serving
# (then it is SEEN), or serves without it; what it answers does not count while it is IN.
_FROM = {
    PeerState.IN: {PeerState.READY, PeerState.IN},
    PeerState.SEEN: {PeerState.READY, PeerState.IN, PeerState.SEEN},
    PeerState.DRAINED: set(PeerState),
}
_NOT_IN = set(PeerState) - {PeerState.IN}


@dataclass(frozen=True, slots=True)
class Place:
    """A peer's place in the cluster that served last, which is kept for it.

    until: when the root stops waiting for it, since it was lost; None while it is not lost.
    """

    until: float | None = None


@dataclass(slots=True)
class Record:
    """Failures of a peer that count after its state has changed. Times in seconds."""

    # Failures in a row, each before the cluster had worked with it (events.Worked).
    strikes: int = 0
    # Why it failed last.
    problem: str = ""
    # Too many strikes, or unfit: not to be used before then. bans: how often in a row.
    banned_until: float = 0.0
    bans: int = 0
    # An attempt to form failed because of it: its answers do not count before then.
    refused_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """A peer's transition from one state to another."""

    address: str
    before: PeerState
    after: PeerState
    reason: str


@dataclass(slots=True, eq=False)
class Peer:
    """A worker that the root knows of. Times are those of events, in seconds."""

    address: str
    # Its place among all: ranks follow it.
    order: int
    sources: set[str] = field(default_factory=set)
    name: str = ""
    # Of the process: another one at the same address is a worker that was restarted.
    instance: str = ""
    # Bytes that it can give to weights and KV cache, measured when it held nothing.
    room: int = 0
    # Changed by `enter` only.
    state: PeerState = PeerState.SEEN
    since: float = 0.0
    # Why it is not in, in words.
    reason: str = "no answer yet"
    # READY, but with too little memory by the last decision; `reason` has the numbers.
    lacks_memory: bool = False
    # READY, but the last decision does not want it; `reason` says why.
    spare: bool = False
    # `spare` because it would slow requests.
    slow: bool = False
    place: Place | None = None
    # Taken out on purpose, or about to stop by itself: not to be used until it is restarted.
    drained: bool = False
    # `drained` because it is about to stop: whatever answers at its address later was restarted.
    leaving: bool = False
    record: Record = field(default_factory=Record)
    # When it may be asked (again) what it is; None while a question is on its way.
    ask_at: float | None = 0.0

    def enter(self, state: PeerState, reason: str, now: float) -> Move | None:
        """Change the state; the move, where it is another one.

        A peer that stays READY keeps its reason. Raises ValueError for an impossible transition.
        """
        before = self.state
        if before not in _FROM.get(state, _NOT_IN):
            raise ValueError(f"{self.title} cannot become {state.name}: it is {before.name}")
        if before is state:
            if state is not PeerState.READY:
                self.reason = reason
            return None
        self.reason = reason
        self.state, self.since = state, now
        self.lacks_memory = self.spare = self.slow = False
        return Move(self.address, before, state, reason)

    @property
    def awaited_until(self) -> float:
        """When the root stops waiting for it; 0 where it does not wait."""
        return 0.0 if self.place is None else self.place.until or 0.0

    def awaited(self, now: float) -> bool:
        """True while it is lost and the root waits for it."""
        return self.awaited_until > now

    @property
    def shown(self) -> PeerState:
        """The state as people see it."""
        lacking = self.lacks_memory and self.state is PeerState.READY
        return PeerState.REFUSED if lacking else self.state

    @property
    def title(self) -> str:
        return f"{self.name} ({self.address})" if self.name else self.address

    @property
    def member(self) -> Member:
        """The peer as the planner sees it."""
        return Member(self.address, self.title, self.room)


def titles(peers: Sequence[Peer]) -> str:
    """Names of the first few, and the count of the others, for a line."""
    named = ", ".join(peer.title for peer in peers[:_NAMED])
    return f"{named} and {len(peers) - _NAMED} more" if len(peers) > _NAMED else named


def addresses(peers: Sequence[Peer]) -> tuple[str, ...]:
    """The address of each."""
    return tuple(peer.address for peer in peers)
