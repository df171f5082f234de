"""Fields of a JSON request: read with their types, null as absent, unknown ones ignored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hearth.root.api.http.errors import HttpError, bad_request
from hearth.root.api.json_text import loads

# Objects and lists in one body: each costs about 64 bytes, and a body of brackets has millions.
MAX_CONTAINERS = 200_000


def parse(body: bytes) -> Fields:
    """The object of a body. Raises HttpError 400."""
    if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS:
        raise bad_request(f"the body has more than {MAX_CONTAINERS} objects and lists")
    try:
        value = loads(body.decode())
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        problem = problem.partition("; use sys.")[0]  # Python's advice about long numbers
        raise bad_request(f"the body cannot be read as JSON: {problem[:200]}") from None
    if not isinstance(value, dict):
        raise bad_request(f"the body is {_kind(value)}; it must be a JSON object")
    return Fields(value)


class Fields:
    """An object of a request. Each reader raises HttpError 400 naming the field."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        """where: the object's own place, "messages[0]"; "" for the body."""
        self.values = values
        self._where = where

    def place(self, name: str) -> str:
        """The full name of a field: "messages[0].content"."""
        return f"{self._where}.{name}" if self._where else name

    def has(self, name: str) -> bool:
        """True if the field is there and not null."""
        return self.values.get(name) is not None

    def raw(self, *names: str) -> Any:
        """The first of the fields that is there; None where none is."""
        return next((self.values[name] for name in names if self.has(name)), None)

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, value, "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, "a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise self.wrong(name, value, "a finite number")
        return found

    def whole(self, *names: str) -> int | None:
        """A whole number, of the first field that is there; 5.0 counts as one."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise self.wrong(name, value, "a whole number")
            return value
        return None

    def count(self, name: str, low: int, high: int, default: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.whole(name)
        if value is None:
            return default
        if not low <= value <= high:
            raise bad_request(
                f"{self.place(name)} is {value}; it must be in {low} to {high}", self.place(name)
            )
        return value

    def child(self, name: str) -> Fields | None:
        """An object."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Fields(value, self.place(name))

    def items(self, name: str) -> Sequence[Any]:
        """A list; empty where it is absent."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list")
        return value

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        for index, value in enumerate(self.items(name)):
            where = f"{self.place(name)}[{index}]"
            if not isinstance(value, dict):
                raise bad_request(f"{where} is {_kind(value)}; it must be an object", where)
            yield Fields(value, where)

    def texts(self, name: str) -> tuple[str, ...]:
        """A string or a list of strings."""
        value = self.values.get(name)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.wrong(name, value, "a string or a list of strings")
        return tuple(found)

    def wrong(self, name: str, value: object, expected: str) -> HttpError:
        """Error for a field of another type."""
        place = self.place(name)
        return bad_request(f"{place} is {_kind(value)}; it must be {expected}", place)


def _kind(value: object) -> str:
    """The value of a wrong type, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {str(value)[:40]}" if abs(value) < 1e300 else "a huge number"
        case str():
            return f"the string {value[:40]!r}"
        case list():
            return "a list"
    return "an object"
