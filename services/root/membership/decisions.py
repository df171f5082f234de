"""Decisions of the membership, and the rules and questions that they follow from. Values only."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """A worker as the planner sees it."""

    address: str
    title: str
    room: int


@dataclass(frozen=True, slots=True)
class Misfit:
    """The reason that the model does not fit; `address`: the worker that lacks memory, if any.

    slow: the model fits, and the worker at `address` would slow requests.
    """

    address: str
    problem: str
    slow: bool = False


# Whether the model fits well on the root and these workers, in rank order: None if it does.
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
    """Go on serving; look again at `until` at the latest."""

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
