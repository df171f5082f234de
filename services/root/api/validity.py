"""Ends a running call when the key or certificate of its caller is revoked."""

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager

from hearth.common.access import Access, Caller
from hearth.common.errors import HearthError, Reason
from hearth.common.live_calls import LiveCalls


@contextmanager
def while_valid(live: LiveCalls, access: Access, caller: Caller) -> Iterator[None]:
    """Cancel this task when the caller is revoked. Raises HearthError UNAUTHENTICATED then."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if caller.proof is None or task is None:
        yield
        return
    with live.hold(
        functools.partial(access.revocation, caller.proof),
        functools.partial(loop.call_soon_threadsafe, task.cancel),
    ) as held:
        try:
            yield
        except asyncio.CancelledError:
            if not held.problem:
                raise
            task.uncancel()
            raise HearthError(Reason.UNAUTHENTICATED, held.problem) from None
