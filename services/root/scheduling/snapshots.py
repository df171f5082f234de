"""Snapshots of recurrent state at pages' borders, by the key of the prefix before the border.

The pages of a prefix do not hold the state of recurrent mixers. So such a prefix can be continued
only where a snapshot was taken. Nodes keep a fixed number of snapshots, which the root numbers; the
least recently used one is replaced. Pure bookkeeping of numbers.
"""

from collections import Counter, OrderedDict


class Snapshots:
    """Numbers 0 .. count - 1: each free, taken by a step under way, or the snapshot of a prefix."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = list(range(count))
        # By prefix, the least recently used first.
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        # Numbers that sequences will begin from, which must not be replaced before.
        self._pinned: Counter[int] = Counter()
        # Pinned numbers whose prefix was dropped.
        self._orphans: set[int] = set()

    def __contains__(self, key: bytes) -> bool:
        return key in self._numbers

    def of(self, key: bytes) -> int | None:
        """The snapshot of a prefix; None if there is none."""
        return self._numbers.get(key)

    def pin(self, key: bytes) -> int:
        """The snapshot of a prefix, which stays until `unpin`. KeyError if there is none."""
        self._numbers.move_to_end(key)
        number = self._numbers[key]
        self._pinned[number] += 1
        return number

    def unpin(self, number: int) -> None:
        """Ends one `pin`."""
        self._pinned[number] -= 1
        if number in self._orphans and not self._pinned[number]:
            self._orphans.remove(number)
            self._free.append(number)

    def take(self) -> int | None:
        """A number for a new snapshot; None if all are pinned or being taken."""
        if self._free:
            return self._free.pop()
        for key, number in self._numbers.items():
            if not self._pinned[number]:
                del self._numbers[key]
                return number
        return None

    def keep(self, number: int, key: bytes) -> None:
        """A taken number is the snapshot of this prefix now."""
        if key in self._numbers:
            self.give_back(number)
        else:
            self._numbers[key] = number

    def give_back(self, number: int) -> None:
        """A taken number was not used."""
        self._free.append(number)

    def drop(self, key: bytes) -> None:
        """The prefix has lost its page: nothing begins from its snapshot any more."""
        number = self._numbers.pop(key, None)
        if number is None:
            return
        if self._pinned[number]:
            self._orphans.add(number)
        else:
            self._free.append(number)

    def check(self, taken: int) -> None:
        """Raises RuntimeError unless every number is in one place; taken: numbers under way."""
        known = [*self._free, *self._numbers.values(), *self._orphans]
        if len(set(known)) != len(known) or len(known) + taken != self._count:
            raise RuntimeError(
                f"{len(self._free)} free snapshots, {len(self._numbers)} of prefixes and {taken} "
                f"under way are not {self._count}"
            )
