"""A model's text to events: reasoning, text and tool calls, while it arrives."""

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.converter.tokenizers.base import any_of
from hearth.root.api.tools.events import Event, Reasoning, Text, Tools
from hearth.root.api.tools.formats import harmony
from hearth.root.api.tools.formats.base import CallFormat, Schema
from hearth.root.api.tools.reasoning import Marks
from hearth.root.api.tools.source import Reading, Source, longest_beginning
from hearth.root.engine.structure.grammar import Tag

# After so many texts that began like a call and were none, the rest of an answer is text.
_MAX_FAILURES = 64


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a model's answers. calls: None without tools. channels: gpt-oss's form."""

    calls: CallFormat | None = None
    reasoning: Marks | None = None
    channels: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts that are not part of answers."""
        found: list[str] = [*harmony.MARKERS] if self.channels else []
        for each in (self.calls, self.reasoning):
            found += each.markers if each is not None else ()
        return tuple(text for text in found if text.strip())

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts after which a model waits for a tool's result."""
        if self.channels:
            return (harmony.CALL,)
        return self.calls.stops if self.calls is not None else ()

    def tag(self, name: str, schema: Schema) -> Tag | None:
        """The part of an answer that is a call of this tool; None where it cannot be forced."""
        if self.channels:
            return harmony.tag(name, schema)
        return self.calls.tag(name, schema) if self.calls is not None else None

    @property
    def plain(self) -> bool:
        """True if all of an answer is text."""
        return self.calls is None and self.reasoning is None and not self.channels


class AnswerParser:
    """Reads one answer. The events, with neighbours joined, do not depend on the texts' borders.

    Text that begins like a call but is none is returned as text. White space around calls, and
    between the reasoning and the answer, is dropped.
    """

    def __init__(self, form: Form, tools: Tools, *, opened: bool = False) -> None:
        """opened: the prompt ends inside the reasoning."""
        self._form = form
        self._calls = form.calls if tools else None
        self._tools = tools
        self._opened = opened
        self._source = Source()
        self._events: list[Event] = []
        # White space that is text if text follows.
        self._space = ""
        # Nothing but white space has come since the beginning, the reasoning or a call.
        self._fresh = True
        # White space here is dropped.
        self._after = False
        self._failures = 0
        self._thinking = opened
        dropped = form.reasoning.dropped if form.reasoning is not None else ()
        self._dropped = frozenset(dropped)
        triggers = self._calls.triggers if self._calls is not None else ()
        self._triggers = tuple(text for text in (*triggers, *dropped) if text)
        self._pattern = any_of(self._triggers)
        self._reading = self._answer()
        next(self._reading)

    def feed(self, text: str) -> list[Event]:
        """The events that more text completes."""
        if text:
            self._source.add(text)
            self._go()
        return self._taken()

    @property
    def thinks(self) -> bool:
        """True while the text is reasoning."""
        return self._thinking

    def end(self) -> list[Event]:
        """The events left at the end of the answer."""
        self._source.ended = True
        self._go()
        return self._taken()

    def _go(self) -> None:
        try:
            next(self._reading)
        except StopIteration:
            return

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events)

    def _answer(self) -> Reading[None]:
        yield
        source = self._source
        if self._form.channels:
            yield from harmony.read_channels(source, self._tools, self._emit)
            return
        if self._opened:
            yield from self._thought()
        while True:
            if self._fresh:
                yield from self._beginning()
            if not (yield from self._text()):
                break
        if not self._after:
            self._text_event(self._space)

    def _beginning(self) -> Reading[None]:
        """Reasoning, or a call without an opening text, which stand at a beginning only."""
        source = self._source
        while True:
            self._space += yield from source.space()
            marks = self._form.reasoning
            if marks is not None and (yield from source.skip(marks.open)):
                yield from self._thought()
                continue
            bare = self._calls.bare if self._calls is not None else ""
            if self._after and bare and (yield from source.skip(";")):
                continue  # Llama 3 between two calls
            if not bare or not (yield from source.more(source.at)):
                return
            if source.text[source.at] not in bare or not (yield from self._call()):
                return

    def _thought(self) -> Reading[None]:
        """Reasoning up to its end, passed on as it comes."""
        marks, source = self._form.reasoning, self._source
        assert marks is not None
        yield from source.space()
        if self._opened:
            yield from source.skip_after_space(marks.open)
            yield from source.space()
        self._opened, self._thinking = False, True
        while True:
            place = source.text.find(marks.close, source.at)
            end = len(source.text) if place < 0 else place
            if place < 0 and not source.ended:
                end -= longest_beginning(source.text, source.at, (marks.close,))
            end = source.at + len(source.text[source.at : end].rstrip())
            if end > source.at:
                self._events.append(Reasoning(source.text[source.at : end]))
                source.at = end
            if place >= 0:
                source.at = place + len(marks.close)
                break
            if source.ended:
                source.at = len(source.text)
                break
            source.forget()
            yield
        self._thinking = False
        self._drop_space()

    def _text(self) -> Reading[bool]:
        """Text up to a call; False at the end of the answer."""
        source = self._source
        while True:
            found = None
            if self._pattern is not None and self._failures < _MAX_FAILURES:
                found = self._pattern.search(source.text, source.at)
            end = found.start() if found else len(source.text)
            if found is None and not source.ended and self._failures < _MAX_FAILURES:
                end -= longest_beginning(source.text, source.at, self._triggers)
            self._pass_on(end)
            if found is not None:
                if found[0] in self._dropped:
                    source.at = found.end()
                    self._drop_space()
                    return True
                if (yield from self._call()):
                    return True
                continue
            if source.ended:
                return False
            source.forget()
            yield

    def _call(self) -> Reading[bool]:
        """The calls at this place; else passes its first character on as text."""
        source, calls = self._source, self._calls
        assert calls is not None
        start = source.at
        found = yield from calls.read(source, self._tools)
        if found is None:
            source.at = start
            self._failures += 1
            self._pass_on(start + 1)
            return False
        self._events += found
        self._drop_space()
        return True

    def _drop_space(self) -> None:
        self._space, self._fresh, self._after = "", True, True

    def _pass_on(self, end: int) -> None:
        """Text up to a place; white space at its end waits for what follows."""
        source = self._source
        text, source.at = self._space + source.text[source.at : end], end
        self._space = ""
        if not text:
            return
        if self._after:
            text = text.lstrip()
        if self._triggers or self._fresh:
            kept = text.rstrip()
            text, self._space = kept, text[len(kept) :]
        if text:
            self._fresh = self._after = False
            self._text_event(text)

    def _text_event(self, text: str) -> None:
        if text:
            self._emit(Text(text))

    def _emit(self, event: Event) -> None:
        self._events.append(event)


def joined(events: Sequence[Event]) -> list[Event]:
    """The events with neighbouring texts, and neighbouring pieces of reasoning, made one."""
    made: list[Event] = []
    for event in events:
        last = made[-1] if made else None
        if isinstance(event, Text) and isinstance(last, Text):
            made[-1] = Text(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            made[-1] = Reasoning(last.text + event.text)
        else:
            made.append(event)
    return made
