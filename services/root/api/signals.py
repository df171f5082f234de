"""An event of an event loop that any thread may set."""

import asyncio
from contextlib import suppress


class Signal:
    """Wakes one coroutine; made in the loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self, *_: object) -> None:
        """Wake the waiting coroutine. Takes and ignores arguments, so it can be a callback."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Return at once if it was set since the last wait, else when it is set."""
        await self._event.wait()
        self._event.clear()
