"""Names that were announced on the LAN, and which of their addresses are listed. Pure state.

Anyone on a LAN can announce any name with any address. So a name keeps its place for good once a
worker answered at its address. Others share a bounded number of places: few for each host, and one
whose address failed gives its place up to the next.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from hearth.common.channels import split_address

# Places of names at whose address no worker has answered yet: in all, and of one host.
STRANGERS = 64
STRANGERS_OF_A_HOST = 8
# Places of names at whose address a worker has answered.
PROVEN = 192
# Addresses of one name.
MAX_ADDRESSES = 8
# A name that gave its place up waits for so long, and so many of them are remembered.
_AGAIN_SECONDS = 60.0
_MAX_REMEMBERED = 4096


@dataclass(slots=True)
class _Entry:
    # The first one is listed.
    addresses: list[str]
    proven: bool = False
    # Failures in a row, and when all addresses had failed.
    failures: int = 0
    failed_at: float | None = None

    @property
    def host(self) -> str:
        return split_address(self.addresses[0])[0]


class Announced:
    """Names by their announcements and by what answered. Times in seconds, never decreasing."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._gave_up: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def listing(self) -> list[str]:
        """The address of each name that has a place, sorted."""
        return sorted({entry.addresses[0] for entry in self._entries.values()})

    @property
    def some_gave_up(self) -> bool:
        """True if a name that is still announced gave its place up, and may come again later."""
        return bool(self._gave_up)

    def may_come(self, name: str, now: float) -> bool:
        """False for a name that has a place, or that gave one up a short time ago."""
        gave_up = self._gave_up.get(name)
        late = gave_up is None or now - gave_up >= _AGAIN_SECONDS
        return late and name not in self._entries

    def offer(self, name: str, addresses: list[str], now: float) -> bool:
        """Give a name a place, or new addresses; False where there is no place now.

        addresses: "host:port", best first; at least one. The proven address of a name stays first:
        a stranger may announce the name too.
        """
        entry = self._entries.get(name)
        if entry is not None:
            first = entry.addresses[:1] if entry.proven else []
            found = list(dict.fromkeys([*first, *addresses]))[:MAX_ADDRESSES]
            if set(found) != set(entry.addresses):
                entry.addresses = found
                entry.failures, entry.failed_at = 0, None
            return True
        if not self.may_come(name, now):
            return False
        new = _Entry(list(dict.fromkeys(addresses))[:MAX_ADDRESSES])
        others = [each for each in self._strangers() if self._entries[each].host == new.host]
        if len(others) >= STRANGERS_OF_A_HOST and not self._make_room(others, now):
            return False
        strangers = self._strangers()
        if len(strangers) >= STRANGERS and not self._make_room(strangers, now):
            return False
        self._entries[name] = new
        self._gave_up.pop(name, None)
        return True

    def tried(self, address: str, good: bool, now: float) -> None:
        """A worker answered at this address, or none that can be used."""
        proven = sum(entry.proven for entry in self._entries.values())
        for entry in self._entries.values():
            if entry.addresses[0] != address:
                continue
            if good:
                entry.failures, entry.failed_at = 0, None
                if not entry.proven and proven < PROVEN:
                    entry.proven = True
                    proven += 1
                continue
            entry.failures += 1
            if entry.failures >= len(entry.addresses) and entry.failed_at is None:
                entry.failed_at = now
            entry.addresses.append(entry.addresses.pop(0))

    def withdraw(self, name: str) -> bool:
        """Forget a name that has left; True if it had a place."""
        self._gave_up.pop(name, None)
        return self._entries.pop(name, None) is not None

    def _strangers(self) -> list[str]:
        return [name for name, entry in self._entries.items() if not entry.proven]

    def _make_room(self, names: list[str], now: float) -> bool:
        """Take the place of the one that failed first; False where none failed."""
        failed = [(at, name) for name in names if (at := self._entries[name].failed_at) is not None]
        if not failed:
            return False
        name = min(failed)[1]
        del self._entries[name]
        self._gave_up.pop(name, None)
        self._gave_up[name] = now
        if len(self._gave_up) > _MAX_REMEMBERED:
            self._gave_up.popitem(last=False)
        return True
