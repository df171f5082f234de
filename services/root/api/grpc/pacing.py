"""Ends calls whose client does not read: an answer that waits holds a place that others need."""

import asyncio
from typing import Any

from hearth.common.gate import Callers

Context = Any  # grpc.aio.ServicerContext; the stubs' own type is a private one


class Paced:
    """A call's context whose `write` has a time limit; otherwise as gRPC's."""

    def __init__(self, context: Context, seconds: float, callers: Callers) -> None:
        self._context = context
        self._seconds = seconds
        self._callers = callers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        """Writes as gRPC does.

        Raises asyncio.CancelledError when the client has not read in time: no status could be sent
        either, and gRPC resets the stream of a call that ends so.
        """
        try:
            async with asyncio.timeout(self._seconds):
                await self._context.write(message)
        except TimeoutError:
            self._callers.note(self._context, f"it has not read its answer for {self._seconds:g} s")
            raise asyncio.CancelledError from None
