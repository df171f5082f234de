"""Shares of clients: no client takes all places or all turns, however much it asks for.

A client is the holder of an API key or a certificate, or a host where there are neither. Everything
here lives on one event loop.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

from hearth.common.errors import HearthError, Reason

# The client of the running call, set by the transport's gate.
CLIENT: ContextVar[str] = ContextVar("CLIENT", default="")


class Places:
    """A number of places; the last quarter is for clients that have less than an eighth of all."""

    def __init__(self, total: int, what: str) -> None:
        """what: the places' name in errors, such as "streams"."""
        self._total = total
        self._what = what
        self._open = 0
        self._mine: Counter[str] = Counter()

    @contextmanager
    def hold(self, client: str) -> Iterator[None]:
        """Takes a place while it runs. Raises HearthError QUEUE_FULL."""
        self.take(client)
        try:
            yield
        finally:
            self.give_back(client)

    def take(self, client: str) -> None:
        """Takes a place until `give_back`. Raises HearthError QUEUE_FULL."""
        mine = self._mine[client]
        if self._open >= self._total:
            problem = f"{self._total} {self._what} are open, and the root takes no more"
        elif self._open >= self._total - self._total // 4 and mine >= max(1, self._total // 8):
            problem = (
                f"{mine} {self._what} of this client are open, and the last places are for others"
            )
        else:
            self._open += 1
            self._mine[client] += 1
            return
        numbers = {f"max{self._what.capitalize()}": self._total, "ofThisClient": mine}
        raise HearthError(Reason.QUEUE_FULL, f"{problem}; try again later", numbers)

    def give_back(self, client: str) -> None:
        """Gives a place back."""
        self._open -= 1
        self._mine[client] -= 1
        if not self._mine[client]:
            del self._mine[client]


class Turns:
    """A number of turns at once, of each client only some; clients that wait take turns."""

    def __init__(self, at_once: int, of_each: int) -> None:
        self._free = at_once
        self._of_each = of_each
        self._mine: Counter[str] = Counter()
        # Clients in the order of their next turn.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """The number of those that wait for a turn."""
        return sum(len(queue) for queue in self._waiting.values())

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Waits for a turn, and has it while it runs."""
        if self._free and self._mine[client] < self._of_each and client not in self._waiting:
            self._begin(client)
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._end(client)

    async def _wait(self, client: str) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(client, deque())
        queue.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._end(client)  # its turn came together with the cancellation
            elif mine in queue:
                queue.remove(mine)
                if not queue:
                    del self._waiting[client]
            raise

    def _begin(self, client: str) -> None:
        self._free -= 1
        self._mine[client] += 1

    def _end(self, client: str) -> None:
        self._free += 1
        self._mine[client] -= 1
        if not self._mine[client]:
            del self._mine[client]
        for next_client in list(self._waiting):
            if not self._free:
                return
            if self._mine[next_client] >= self._of_each:
                continue
            queue = self._waiting.pop(next_client)
            while queue and queue[0].cancelled():
                queue.popleft()
            if queue:
                self._begin(next_client)
                queue.popleft().set_result(None)
            if queue:
                self._waiting[next_client] = queue  # behind the others
