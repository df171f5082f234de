"""An answer's text taken apart: what its reader sees, as text, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hearth.root.engine.mailbox import Delta, Done, Waiting
from hearth.root.scheduling.batch import FinishReason

if TYPE_CHECKING:
    from hearth.root.api.tools.events import ToolCall
    from hearth.root.api.tools.expected import Expected


@dataclass(frozen=True, slots=True)
class Part(Delta):
    """New text, or new reasoning, or a whole tool call."""

    reasoning: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Ended(Done):
    """The end of an answer. called: it has tool calls."""

    called: bool = False
    reasoning_tokens: int = 0

    @property
    def long(self) -> bool:
        """True if the answer was cut off."""
        return self.finish_reason in (FinishReason.LENGTH, FinishReason.CONTEXT)


class Listener:
    """Takes one answer apart. Whole calls only: a reader never sees half of the arguments."""

    def __init__(self, expected: Expected | None, *, one_call: bool = False) -> None:
        """expected: None where all of it is text. one_call: further calls are left out."""
        self._parser = expected.parser() if expected is not None else None
        self._stops = expected.form.stops if expected is not None else ()
        self._one_call = one_call
        self._called = False
        self._reasoning_tokens = 0

    def heard(self, event: Delta | Waiting | Done) -> Iterator[Part | Waiting | Ended]:
        """The parts of any event."""
        match event:
            case Waiting():
                yield event
            case Done():
                yield from self.done(event)
            case _:
                yield from self.delta(event)

    def delta(self, delta: Delta) -> Iterator[Part]:
        """The parts of new text. The first has the tokens and scores; there is one at least."""
        if self._parser is None:
            yield Part(delta.text, delta.token_ids, delta.scores)
            return
        parts = [*self._parts(delta.text)]
        # Of a delta that merges several kinds, by the characters of each.
        thought = sum(len(part.reasoning) for part in parts)
        share = 1.0 if self._parser.thinks else min(1.0, thought / max(1, len(delta.text)))
        self._reasoning_tokens += round(share * len(delta.token_ids))
        first = parts[0] if parts else Part("", ())
        yield replace(first, token_ids=delta.token_ids, scores=delta.scores)
        yield from parts[1:]

    def done(self, done: Done) -> Iterator[Part | Ended]:
        """The parts that were held back, and the end."""
        if self._parser is not None:
            yield from self._parts("", ended=True)
        reason, stop = done.finish_reason, done.stop
        if stop is not None and stop in self._stops:
            reason, stop = FinishReason.EOS, None
        yield Ended(
            reason,
            done.usage,
            stop,
            called=self._called,
            reasoning_tokens=self._reasoning_tokens,
        )

    def _parts(self, text: str, ended: bool = False) -> Iterator[Part]:
        from hearth.root.api.tools.events import Reasoning, Text

        assert self._parser is not None
        for event in self._parser.end() if ended else self._parser.feed(text):
            match event:
                case Text(said):
                    yield Part(said, ())
                case Reasoning(thought):
                    yield Part("", (), reasoning=thought)
                case call:
                    if not (self._called and self._one_call):
                        self._called = True
                        yield Part("", (), call=call)
