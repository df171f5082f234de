"""Runs a recorded story again, and compares: a bug report becomes a test.

    hearth root --story story.jsonl ...            writes the record
    python -m hearth.root.membership.replay FILE   says whether today's rules decide the same

A record may hold several runs of a root, one after another; each begins with a header.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from hearth.common.errors import HearthError, Reason
from hearth.root.membership import events, story
from hearth.root.membership.decisions import Member, Misfit, Rules
from hearth.root.membership.membership import Membership, MembershipError

T = TypeVar("T")

_STIMULI: dict[str, type[events.Stimulus]] = {
    kind.__name__: kind
    for kind in (
        events.Found,
        events.Described,
        events.Refused,
        events.Unreachable,
        events.Leaving,
        events.Formed,
        events.Worked,
        events.Uneven,
        events.Cleared,
        events.FormFailed,
        events.Lost,
        events.Drain,
        events.Undrain,
        events.Ask,
        events.Look,
    )
}


class DivergedError(Exception):
    """Today's rules lead to another entry than the record has. Both are in the text."""

    def __init__(self, number: int, recorded: str, replayed: str) -> None:
        super().__init__(
            f"line {number} of the story: recorded was {recorded}, replayed is {replayed}"
        )


class _NotRecordedError(Exception):
    """Today's rules put a question whose answer the record does not have."""


class _Run:
    """One root's membership, fed from its record."""

    def __init__(self, rules: Rules) -> None:
        self._fits: dict[tuple[Member, ...], Misfit | None] = {}
        self._lines: list[str] = []
        self.membership = Membership(rules, self._fit, self._lines.append)

    def _fit(self, workers: tuple[Member, ...]) -> Misfit | None:
        try:
            return self._fits[workers]
        except KeyError:
            names = ", ".join(worker.address for worker in workers) or "no workers"
            problem = f"whether the model fits on {names} is not recorded"
            raise _NotRecordedError(problem) from None

    def feed(self, stimulus: events.Stimulus, fits: dict[tuple[Member, ...], Misfit | None]) -> str:
        """The line that the record would have now."""
        self._fits.update(fits)
        self._lines.clear()
        membership = self.membership
        match stimulus:
            case events.Ask(at):
                membership.due(at)
            case events.Look(at, busy):
                membership.decide(at, busy)
            case _:
                with suppress(HearthError, MembershipError):  # the line has it
                    membership.handle(stimulus)
        return self._lines[-1] if self._lines else "{}"


# Fields that records of earlier versions lack.
_DEFAULTS: dict[type, dict[str, Any]] = {
    events.FormFailed: {"unfit": False},
    events.Lost: {"unfit": False},
    Misfit: {"slow": False},
}


def replay(lines: Iterable[str], rules: Rules | None = None) -> list[Membership]:
    """The membership of each run, at the end of its record.

    rules: used instead of the recorded ones. Raises DivergedError at the first entry that differs,
    HearthError INVALID_ARGUMENT where a line is not one of a record. Where all entries are the
    recorded ones, raises MembershipError for the first that broke an invariant.
    """
    runs: list[_Run] = []
    broken: MembershipError | None = None
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if "story" in data:
                runs.append(_Run(rules or _rules(data)))
                continue
            stimulus, fits = _stimulus(data), dict(_fits(data.get("fits", [])))
            recorded = _DEFAULTS.get(type(stimulus), {}) | data
            recorded.pop("fits", None)
            run = runs[-1]
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
        ) as error:
            problem = f"line {number} is not an entry of a story: {type(error).__name__}: {error}"
            raise HearthError(Reason.INVALID_ARGUMENT, problem) from None
        try:
            replayed = json.loads(run.feed(stimulus, fits))
        except _NotRecordedError as error:
            raise DivergedError(number, json.dumps(recorded), f"a question: {error}") from None
        replayed.pop("fits", None)
        if replayed != recorded:
            raise DivergedError(number, json.dumps(recorded), json.dumps(replayed))
        try:
            run.membership.check()
        except MembershipError as error:
            problem = f"line {number} of the story: {error.problem}"
            broken = broken or MembershipError(problem, run.membership.story.text())
    if broken is not None:
        raise broken
    return [run.membership for run in runs]


def _rules(data: dict[str, Any]) -> Rules:
    if data["story"] != story.VERSION:
        raise ValueError(f"version {data['story']!r}, this Hearth reads {story.VERSION}")
    return _made(Rules, data["rules"])


def _stimulus(data: dict[str, Any]) -> events.Stimulus:
    return _made(_STIMULI[data["event"]], data)


def _made(kind: type[T], data: dict[str, Any]) -> T:
    """A dataclass from its fields as JSON. Raises ValueError for one of another type."""
    given = {**_DEFAULTS.get(kind, {}), **data}
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hint, given[name]) for name, hint in hints.items()})


def _value(name: str, kind: Any, value: Any) -> Any:
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    if kind in (tuple[str, ...], tuple[float, ...]) and isinstance(value, list):
        return tuple(_value(name, get_args(kind)[0], item) for item in value)
    raise ValueError(f"{name} is {value!r}, which is not of type {kind}")


def _fits(data: list[Any]) -> Iterator[tuple[tuple[Member, ...], Misfit | None]]:
    for workers, misfit in data:
        members = tuple(
            _made(Member, dict(zip(("address", "title", "room"), member, strict=True)))
            for member in workers
        )
        names = ("address", "problem", "slow")[: max(2, len(misfit))] if misfit else ()
        fields_of = dict(zip(names, misfit, strict=True)) if misfit else None
        yield members, None if fields_of is None else _made(Misfit, fields_of)


def main(path: str) -> int:
    """Replay a file; 0 where today's decisions are the recorded ones, and no invariant breaks."""
    try:
        runs = replay(Path(path).read_text(encoding="utf-8").splitlines())
    except (DivergedError, HearthError, MembershipError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(runs)} runs: every decision is the recorded one")
    for run in runs:
        print(run.story.text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
