"""Workers that a root knows of, and what can be decided about them. Values only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """The values are hearth.v1.CandidateState's."""

    SEEN = 1
    READY = 2
    IN = 3
    LOST = 4
    UNREACHABLE = 5
    REFUSED = 6
    DRAINED = 7


@dataclass(slots=True, eq=False)
class Candidate:
    """A worker that the root knows of. Times are those of events, in seconds."""

    address: str
    # Its place among all: ranks follow it.
    order: int
    sources: set[str] = field(default_factory=set)
    state: State = State.SEEN
    # Why it is not in, in words.
    reason: str = "not asked yet"
    name: str = ""
    # Of the process: another one at the same address is a worker that was restarted.
    instance: str = ""
    # Bytes that it can give to weights and KV cache, when it held nothing.
    room: int = 0
    # When it may be asked (again); None while a question is on its way.
    ask_at: float | None = 0.0
    # When it became READY.
    ready_since: float = 0.0
    # It was in, was lost, and is waited for until then.
    waited_until: float = 0.0
    strikes: int = 0
    banned_until: float = 0.0
    # A forming refused it: its answers do not count before.
    refused_until: float = 0.0
    # Taken out on purpose, or about to stop by itself; until it is restarted.
    drained: bool = False
    # It was in when the cluster served last, and did not leave on purpose.
    member: bool = False
    # It is READY, and has too little memory; `reason` has the numbers.
    lacking: bool = False

    @property
    def shown(self) -> State:
        """The state as people see it."""
        return State.REFUSED if self.lacking and self.state is State.READY else self.state

    @property
    def title(self) -> str:
        return f"{self.name} ({self.address})" if self.name else self.address


@dataclass(frozen=True, slots=True)
class Member:
    """A worker as the planner sees it."""

    address: str
    title: str
    room: int


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a model cannot be divided so; `address` is the worker that lacks memory, if one does."""

    address: str
    problem: str


# Whether the model fits on the root and these workers, in rank order: None if it does.
Fit = Callable[[tuple[Member, ...]], Misfit | None]


@dataclass(frozen=True, slots=True)
class Form:
    """Form the cluster with these workers, in rank order."""

    workers: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can run; look again at `until` at the latest."""

    until: float
    why: str


@dataclass(frozen=True, slots=True)
class Serve:
    """Go on as it is; look again at `until` at the latest."""

    until: float


Decision = Form | Wait | Serve


@dataclass(frozen=True, slots=True)
class Rules:
    """most: workers that the model can be divided over. needed: before the first forming."""

    most: int
    needed: int
    # The static list; at the start all of it is needed where `needed` is its length.
    static: tuple[str, ...] = ()
    wait_seconds: float = 30.0
    patience: float = 60.0


def member(candidate: Candidate) -> Member:
    """As the planner sees it."""
    return Member(candidate.address, candidate.title, candidate.room)


def addresses(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Of each."""
    return tuple(candidate.address for candidate in candidates)
