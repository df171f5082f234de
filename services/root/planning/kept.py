"""The nodes that are worth having: all, or those without the workers that slow requests. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.root.planning.machines import Machine
from hearth.root.planning.search import Search

# Another layout, other shares or fewer nodes must be expected to be faster by this factor: what
# predictions miss by is about as much.
WORTH = 1.15
# A request that takes less is fast enough: small models keep the nodes and the layout that people
# know.
QUICK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Slowing:
    """Workers without which requests are expected to be faster by far.

    workers: their numbers, 1 for the first. Times are of one common request
    (Prediction.request_seconds), and rates of tokens of eight sequences together.
    """

    workers: tuple[int, ...]
    seconds: float
    seconds_without: float
    many: float
    many_without: float


def slowing(search: Search, machines: Sequence[Machine]) -> Slowing | None:
    """The workers to leave out; None where requests gain little, or are fast enough.

    machines: the root and its workers. Of the nodes in the order of their worth, as many stay as
    are still within WORTH of the fastest.
    """
    everyone = _fastest(search, machines)
    if everyone is None or everyone[0] < QUICK_SECONDS:
        return None
    by_worth = sorted(range(1, len(machines)), key=lambda i: _with_root(search, machines, i))
    sets = [sorted(by_worth[:count]) for count in range(len(by_worth))]
    found = [(kept, _fastest(search, [machines[i] for i in (0, *kept)])) for kept in sets]
    times = [(kept, each) for kept, each in found if each is not None]
    least = min((each[0] for _, each in times), default=everyone[0])
    if everyone[0] <= WORTH * least:
        return None
    kept, (seconds, many) = next(
        (kept, each) for kept, each in reversed(times) if each[0] <= WORTH * least
    )
    out = tuple(i for i in range(1, len(machines)) if i not in kept)
    return Slowing(out, everyone[0], seconds, everyone[1], many)


def _with_root(search: Search, machines: Sequence[Machine], worker: int) -> float:
    """The time of a request on the root and one worker, if they had the memory."""
    found = search.of([machines[0], machines[worker]])
    return min((each.request_seconds for each in found), default=float("inf"))


def _fastest(search: Search, machines: Sequence[Machine]) -> tuple[float, float] | None:
    """The time of a request in the best layout, and that layout's rate of eight sequences."""
    fitting = [each for each in search.of(machines) if each.fits]
    best = min(fitting, key=lambda each: each.request_seconds, default=None)
    return None if best is None else (best.request_seconds, best.decode_many)
