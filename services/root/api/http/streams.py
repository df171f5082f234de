"""Answers as streams: events of one or several requests, with heartbeats, in a face's shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from hearth.common.errors import HearthError
from hearth.root.api.answer import Answer
from hearth.root.api.http import limits
from hearth.root.api.http.call import Call, encode
from hearth.root.api.http.errors import http_error
from hearth.root.api.http.progress import Progress, Shown
from hearth.root.api.spoken import Ended, Listener, Part
from hearth.root.engine.mailbox import Delta, Done, TokenScore, Waiting

if TYPE_CHECKING:
    from hearth.root.api.tools.events import ToolCall

# (number of the answer, its event); None where nothing came for a while.
Numbered = tuple[int, Delta | Done] | None
Spoken = tuple[int, Part | Ended] | None


class Shape(Protocol):
    """The events of a face's stream. Each method returns what is sent, possibly nothing."""

    content_type: str

    def begin(self) -> bytes:
        """Bytes that are sent at once, before a token is computed."""

    def heartbeat(self) -> bytes:
        """An event without contents."""

    def delta(self, index: int, delta: Part) -> bytes:
        """A new part of an answer."""

    def done(self, index: int, done: Ended) -> bytes:
        """The end of an answer."""

    def end(self) -> bytes:
        """The end of the stream, after that of every answer."""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """The end of a stream that failed; error: the face's body of it."""


def event(value: object, name: str = "") -> bytes:
    """A server-sent event; name: its `event:` line."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, encode(value))


def line(value: object) -> bytes:
    """A line of NDJSON."""
    return encode(value) + b"\n"


async def send(
    call: Call, answers: Sequence[Answer], shape: Shape, progress: Shown | None = None
) -> None:
    """Sends the events of all answers until the last has ended, or one has failed.

    progress: makes the events of the prompt's progress. The caller closes the answers.
    """
    await call.begin_stream(shape.content_type)
    await call.write(shape.begin())
    reading = Progress(answers[0], progress) if progress is not None and answers else None
    silence = limits.PROGRESS_SECONDS if reading is not None else None
    try:
        clock = asyncio.get_running_loop().time
        written = clock()
        async with aclosing(spoken(answers, silence)) as events:
            async for each in events:
                if reading is not None and (data := reading(each is not None)):
                    await call.write(data)
                    written = clock()
                if each is not None:
                    reading = None
                match each:
                    case None if silence and clock() - written < limits.HEARTBEAT_SECONDS:
                        continue
                    case None:
                        data = shape.heartbeat()
                    case index, Ended() as done:
                        data = shape.done(index, done)
                    case index, Part() as part:
                        data = shape.delta(index, part)
                if not data and clock() - written > limits.HEARTBEAT_SECONDS:
                    data = shape.heartbeat()  # a long tool call comes whole, at its end
                if data:
                    await call.write(data)
                    written = clock()
        await call.write(shape.end())
    except HearthError as error:
        await call.write(shape.failed(call.failure(http_error(error))))
    await call.end()


async def merged(
    answers: Sequence[Answer], silence: float | None = None
) -> AsyncGenerator[Numbered, None]:
    """Events of several answers as they come; None after `silence` seconds without one.

    Raises the HearthError of an answer that fails.
    """
    silence = limits.HEARTBEAT_SECONDS if silence is None else silence
    if len(answers) == 1:
        async for each in _single(answers[0], silence):
            yield each
        return
    waiting: dict[asyncio.Future[Any], int] = {}

    def expect(index: int) -> None:
        waiting[asyncio.ensure_future(anext(answers[index], None))] = index

    try:
        for index in range(len(answers)):
            expect(index)
        while waiting:
            ready, _ = await asyncio.wait(
                waiting, timeout=silence, return_when=asyncio.FIRST_COMPLETED
            )
            if not ready:
                yield None
            # In the order of the answers: a set has none.
            for task in sorted(ready, key=lambda task: waiting[task]):
                index = waiting.pop(task)
                found = task.result()
                if found is None:
                    continue
                expect(index)
                yield None if isinstance(found, Waiting) else (index, found)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def spoken(
    answers: Sequence[Answer], silence: float | None = None
) -> AsyncGenerator[Spoken, None]:
    """`merged`, with each answer taken apart. Raises as it does."""
    listeners = [Listener(each.expected, one_call=each.one_call) for each in answers]
    async with aclosing(merged(answers, silence)) as events:
        async for each in events:
            if each is None:
                yield None
                continue
            index, event = each
            listener = listeners[index]
            parts = listener.done(event) if isinstance(event, Done) else listener.delta(event)
            for part in parts:
                yield index, part


async def _single(answer: Answer, silence: float) -> AsyncGenerator[Numbered, None]:
    """`merged` of one answer, without a task for each token."""
    while True:
        try:
            async with asyncio.timeout(silence):
                found = await anext(answer)
        except TimeoutError:
            yield None
            continue
        except StopAsyncIteration:
            return
        yield None if isinstance(found, Waiting) else (0, found)


class Collected:
    """A whole answer."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[ToolCall] = []
        self.token_ids: list[int] = []
        self.scores: list[TokenScore] = []
        self.done: Ended | None = None

    @property
    def text(self) -> str:
        """The text."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """The reasoning."""
        return "".join(self.thoughts)


async def collected(answers: Sequence[Answer]) -> list[tuple[Collected, Ended]]:
    """All answers, whole. Raises HearthError when one fails."""
    found = [Collected() for _ in answers]
    async with aclosing(spoken(answers)) as events:
        async for each in events:
            match each:
                case index, Ended() as done:
                    found[index].done = done
                case index, Part() as part:
                    found[index].texts.append(part.text)
                    found[index].thoughts.append(part.reasoning)
                    found[index].calls += [part.call] if part.call is not None else []
                    found[index].token_ids += part.token_ids
                    found[index].scores += part.scores
    return [(each, each.done) for each in found if each.done is not None]
