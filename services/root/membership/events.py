"""Events of a cluster's workers, as values. `at` is the time of each, in seconds."""

from dataclasses import dataclass

# `at` of an event on its way to the membership: its time is set when it is handled.
PENDING = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """All that `source` lists now. An address that it listed before, and does not now, vanished."""

    at: float
    source: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """A worker answered: it speaks our version and is free. room: bytes that it can give."""

    at: float
    address: str
    name: str
    instance: str
    room: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker answered, and cannot be used: another version, or held by another root."""

    at: float
    address: str
    problem: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A worker did not answer."""

    at: float
    address: str
    problem: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker is about to stop: it sent so while it serves, or when it was asked what it is."""

    at: float
    address: str
    problem: str


@dataclass(frozen=True, slots=True)
class Formed:
    """The cluster serves with these workers, in rank order."""

    at: float
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FormFailed:
    """The cluster could not be formed because of the worker at `address` ("": of none).

    reason: a hearth.common.errors.Reason. apart_from: the worker that it does not reach, where the
    root reaches both; apart.ROOT where the mesh does not connect it to the root. unfit: it exceeded
    a limit of time, or sent what it must not, so that another attempt at once is of no use.
    """

    at: float
    address: str
    reason: str
    problem: str
    apart_from: str = ""
    unfit: bool = False


@dataclass(frozen=True, slots=True)
class Worked:
    """The cluster of these workers has computed enough to show that they are sound."""

    at: float
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uneven:
    """Other shares of the root and these workers are expected to make the cluster faster."""

    at: float
    workers: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Cleared:
    """A worker was called unfit for what was not its fault: its last failure does not count."""

    at: float
    address: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The cluster stopped serving because this worker was lost ("": which one is not known).

    apart_from, unfit: as of FormFailed.
    """

    at: float
    address: str
    cause: str
    on_purpose: bool = False
    apart_from: str = ""
    unfit: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Take a worker out, by address or name."""

    at: float
    worker: str


@dataclass(frozen=True, slots=True)
class Undrain:
    """Let a worker that was taken out in again, by address or name."""

    at: float
    worker: str


@dataclass(frozen=True, slots=True)
class Ask:
    """The root asks every worker whose turn it is what it is."""

    at: float


@dataclass(frozen=True, slots=True)
class Look:
    """The root decides what to do now. busy: whether requests run."""

    at: float
    busy: bool


Event = (
    Found
    | Described
    | Refused
    | Unreachable
    | Leaving
    | Formed
    | Worked
    | Uneven
    | Cleared
    | FormFailed
    | Lost
    | Drain
    | Undrain
)
# Everything that changes a membership.
Stimulus = Event | Ask | Look
