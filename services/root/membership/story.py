"""The story of a membership: what happened, what was decided, and which peers changed their state.

The last entries are kept in memory, for errors and for people. All entries, as JSON lines, make a
record that replay.py can run again. An entry as JSON has these keys:
    event, at, ...   the event's class and its fields
    moves            [[address, state before, state after, reason], ...]
    result           of a Look: the decision; of an Ask: the addresses; of an error: its message
    fits             [[[[address, title, room], ...], null or [address, problem, slow]], ...]: the
                     answers of Rules' `fit`, where they differ from those of the entry before
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace

from hearth.root.membership.decisions import Decision, Fit, Form, Member, Misfit, Rules, Serve, Wait
from hearth.root.membership.events import Ask, Described, Refused, Stimulus, Unreachable
from hearth.root.membership.peers import Move

VERSION = 1
# Entries kept in memory, and shown by an error.
_KEPT = 500
_SHOWN = 40

# Of a Look, of an Ask, of an event that was refused; of any other event.
Result = Decision | tuple[str, ...] | str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One event and what followed from it."""

    event: Stimulus
    moves: tuple[Move, ...]
    result: Result

    def concerns(self, address: str) -> bool:
        """True if the worker at this address is in it."""
        named = {getattr(self.event, "address", ""), getattr(self.event, "worker", "")}
        named.update(getattr(self.event, "workers", ()), getattr(self.event, "addresses", ()))
        named.update(move.address for move in self.moves)
        if isinstance(self.result, Form):
            named.update(self.result.workers)
        return address in named

    def __str__(self) -> str:
        fields = asdict(self.event)
        told = " ".join(f"{name}={value!r}" for name, value in fields.items() if name != "at")
        lines = [f"{self.event.at:10.3f} {type(self.event).__name__} {told}".rstrip()]
        if self.result is not None:
            lines.append(f"{'':10} = {self.result}")
        lines += [
            f"{'':10} {move.address}: {move.before.name} to {move.after.name} ({move.reason})"
            for move in self.moves
        ]
        return "\n".join(lines)


class Story:
    """The last entries in which something happened: no questions, no answers that changed nothing,
    and no decision that repeats the one before."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._decided: Decision | None = None

    def add(self, entry: Entry) -> None:
        """Append an entry, where it is news."""
        news = bool(entry.moves) or not isinstance(
            entry.event, Ask | Described | Refused | Unreachable
        )
        if isinstance(entry.result, Form | Wait | Serve):
            repeated = _undated(entry.result) == self._decided
            self._decided = _undated(entry.result)
            news = bool(entry.moves) or not repeated
        if news:
            self._entries.append(entry)

    def __call__(self, address: str | None = None) -> list[Entry]:
        """The entries, oldest first; of one worker where an address is given."""
        return [e for e in self._entries if address is None or e.concerns(address)]

    def text(self) -> str:
        """The last entries as lines for people."""
        return "\n".join(str(entry) for entry in list(self._entries)[-_SHOWN:])


def _undated(decision: Decision) -> Decision:
    return decision if isinstance(decision, Form) else replace(decision, until=0.0)


class RecordedFit:
    """Passes questions on to `fit`, and keeps the answers for the record."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._answers: dict[tuple[Member, ...], Misfit | None] = {}
        self._before: dict[tuple[Member, ...], Misfit | None] = {}

    def __call__(self, workers: tuple[Member, ...]) -> Misfit | None:
        """The answer of `fit`, which is asked once an entry."""
        if workers not in self._answers:
            self._answers[workers] = self._fit(workers)
        return self._answers[workers]

    def taken(self) -> list[tuple[tuple[Member, ...], Misfit | None]]:
        """The answers since the last call that the record does not have yet."""
        if not self._answers:
            return []
        before, now = self._before, self._answers
        self._before, self._answers = now, {}
        return [(k, v) for k, v in now.items() if k not in before or before[k] != v]


def header(rules: Rules) -> str:
    """The first line of a record."""
    return json.dumps({"story": VERSION, "rules": asdict(rules)})


def line(entry: Entry, fits: Sequence[tuple[tuple[Member, ...], Misfit | None]] = ()) -> str:
    """One line of a record."""
    return json.dumps(as_json(entry) | ({"fits": _fits(fits)} if fits else {}))


def as_json(entry: Entry) -> dict[str, object]:
    """An entry as in a record, without `fits`."""
    made: dict[str, object] = {"event": type(entry.event).__name__}
    made |= {name: _plain(value) for name, value in asdict(entry.event).items()}
    if entry.moves:
        made["moves"] = [[m.address, m.before.name, m.after.name, m.reason] for m in entry.moves]
    result = entry.result
    if isinstance(result, Form | Wait | Serve):
        fields = {name: _plain(value) for name, value in asdict(result).items()}
        made["result"] = {"decision": type(result).__name__, **fields}
    elif result is not None:
        made["result"] = _plain(result)
    return made


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _fits(fits: Sequence[tuple[tuple[Member, ...], Misfit | None]]) -> list[object]:
    return [
        [
            [[member.address, member.title, member.room] for member in workers],
            None if misfit is None else list(astuple(misfit)),
        ]
        for workers, misfit in fits
    ]
