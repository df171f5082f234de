"""One HTTP request: its body, and its answer as one JSON value or as a stream."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from hearth.common.access import ANYONE
from hearth.root.api.fairness import CLIENT, Turns
from hearth.root.api.http import fields, limits
from hearth.root.api.http.errors import ErrorShape, HttpError, too_large, too_slow

if TYPE_CHECKING:
    from hearth.root.api.http.connection import Connection

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
TEXT = "text/plain; charset=utf-8"

Header = tuple[str, str]


class GoneError(Exception):
    """The client has left, or does not read its answer."""


def encode(value: object) -> bytes:
    """A JSON value as it is sent: compact, in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A name from outside of a request, such as a file's, may hold what UTF-8 lacks.
    return text.encode("utf-8", "replace")


class Call:
    """A request in the event loop, in a task of its own; `id` names it in logs and answers."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, shape: ErrorShape, readers: Turns
    ) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.connection: Connection = scope["state"]["connection"]
        self.id = secrets.token_hex(12)
        self.status = 0
        # Headers of every answer to this request.
        self.extra: list[Header] = [(shape.request_id, self.id)]
        self.receive = receive
        self.send = send
        self._shape = shape
        self._readers = readers
        self._body_read = self._ended = False
        self._watcher: asyncio.Task[None] | None = None
        self.caller = ANYONE

    # -- the request

    async def json(self) -> fields.Fields:
        """The body's object. From then on this task is cancelled when the client leaves.

        Raises HttpError.
        """
        if self._length() <= limits.SMALL_BODY_BYTES:
            found = fields.parse(await self._body())
        else:
            async with self._readers.turn(CLIENT.get()):
                body = await self._body()
                # 1 MiB of JSON takes some 10 ms.
                found = await asyncio.to_thread(fields.parse, body)
        self.end_when_gone()
        return found

    def end_when_gone(self) -> None:
        """Cancel this task when the client leaves. The request's body must have been read."""
        task = asyncio.current_task()
        if task is not None:
            self._watcher = asyncio.create_task(self._watch(task))

    def _length(self) -> int:
        """Bytes of the body, or the most that it may have. Raises HttpError 413."""
        if "transfer-encoding" in self.headers:
            return limits.MAX_BODY_BYTES
        length = self.headers.get("content-length", "0")
        if not length.isdigit():
            return limits.MAX_BODY_BYTES
        if len(length) > 12 or int(length) > limits.MAX_BODY_BYTES:
            raise too_large(limits.MAX_BODY_BYTES)
        return int(length)

    async def _body(self) -> bytes:
        body = bytearray()
        more = True
        seconds = limits.BODY_SECONDS
        try:
            async with asyncio.timeout(seconds):
                while more:
                    seconds = limits.BODY_SILENCE_SECONDS
                    async with asyncio.timeout(seconds):
                        message = await self._next()
                    seconds = limits.BODY_SECONDS
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limits.MAX_BODY_BYTES:
                        raise too_large(limits.MAX_BODY_BYTES)
        except TimeoutError:
            raise too_slow(seconds) from None
        self._body_read = True
        return bytes(body)

    async def _next(self) -> Message:
        """The next message of the client. Raises GoneError."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        return message

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        """Cancels the request's task when the client leaves before its answer has ended."""
        with suppress(GoneError):
            while True:
                await self._next()
        if not self._ended:
            task.cancel()

    async def close(self) -> None:
        """The request is over."""
        self._ended = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    # -- the answer

    async def reply(self, value: object, status: int = 200, headers: Iterable[Header] = ()) -> None:
        """The whole answer, as JSON."""
        await self.reply_bytes(encode(value), JSON, status, headers)

    async def reply_bytes(
        self, data: bytes, content_type: str, status: int = 200, headers: Iterable[Header] = ()
    ) -> None:
        """The whole answer."""
        lingers = not self._body_read and self.method not in ("GET", "HEAD", "OPTIONS")
        more: list[Header] = [("content-length", str(len(data)))]
        if lingers:
            # What is left of the body must not be taken for the next request.
            more.append(("connection", "close"))
        await self.begin(content_type, status, [*headers, *more])
        await self._write(data, more=lingers)
        if lingers:
            await self._linger()
            await self._write(b"", more=False)
        self._ended = True

    async def fail(self, error: HttpError) -> None:
        """The answer is an error; once an answer has begun, the connection ends instead."""
        if self.status:
            self.connection.abort()
            return
        body = self._shape.body(error, self.id)
        await self.reply(body, self._shape.status(error), error.headers)

    def failure(self, error: HttpError) -> Mapping[str, Any]:
        """The body of an error, for a stream that has begun."""
        return self._shape.body(error, self.id)

    async def begin(
        self, content_type: str, status: int = 200, headers: Iterable[Header] = ()
    ) -> None:
        """Sends status and headers; `write` and `end` follow."""
        self.status = status
        given = [("content-type", content_type), *self.extra, *headers]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})

    async def begin_stream(self, content_type: str) -> None:
        """Sends the headers of a stream, which no proxy may hold back."""
        headers = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]
        await self.begin(content_type, 200, headers)

    async def write(self, data: bytes) -> None:
        """Sends a part of a stream. Waits while the client is slow. Raises GoneError."""
        if data:
            await self._write(data, more=True)

    async def end(self) -> None:
        """Ends a stream."""
        self._ended = True
        await self._write(b"", more=False)

    async def _write(self, data: bytes, more: bool) -> None:
        message = {"type": "http.response.body", "body": data, "more_body": more}
        if not self.connection.flow.write_paused:
            await self.send(message)
            return
        try:
            async with asyncio.timeout(limits.WRITE_SECONDS):
                await self.send(message)
        except TimeoutError:
            self.connection.refuse(f"it has not read its answer for {limits.WRITE_SECONDS:g} s")
            self.connection.abort()
            raise GoneError from None

    async def _linger(self) -> None:
        """Reads on: closing at once would destroy the answer while the client still sends."""
        with suppress(TimeoutError, GoneError):
            async with asyncio.timeout(limits.LINGER_SECONDS):
                while (await self._next()).get("more_body", False):
                    pass
