"""Decides when the memory of unused KV pages is given back. Pure: no clock, no memory."""

from hearth.root.scheduling.pages import PagePool


class Residency:
    """Which pages may have memory on the nodes.

    A node keeps a page's memory after its sequence has ended, because the next one will need it.
    Pages that nobody needed for a whole period are given back, and so are all of an idle cluster.
    Pages kept for their prefix count as needed, until they were unused for `keep_periods`.
    """

    def __init__(self, period: float, keep_periods: int = 0) -> None:
        """period: seconds."""
        self._period = period
        self._keep_periods = keep_periods
        self._due: float | None = None
        # Pages from this number on have no memory.
        self._resident = 0

    def look(self, now: float, pool: PagePool) -> int | None:
        """The first page to give back, with those after it; None: nothing to give back now."""
        if self._due is None:
            self._due = now + self._period
        if now < self._due:
            return None
        self._due = now + self._period
        pool.next_period(self._keep_periods)
        used = pool.restart_mark()
        before, self._resident = max(self._resident, used), used
        return used if used < before else None

    def due(self, pool: PagePool) -> float | None:
        """When to look again though nothing happens; None if no page has memory."""
        return self._due if pool.used or self._resident else None
