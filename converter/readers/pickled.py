"""Plain data in a pickle, read without running any of it.

A pickle is a program for a small machine that may import and call anything. This machine builds
dictionaries, lists, tuples, texts and numbers, knows a handful of names, and refuses the rest: by
what an allow list holds, not by what is known to be harmful. The size of the file, its steps, and
what its calls make are bounded. So is the value, with all that it holds more than once.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from hearth.converter.errors import ModelError

# (module, name) -> the function that the machine calls in its place.
Known = Mapping[tuple[str, str], Callable[..., Any]]

MAX_BYTES = 16 << 20
_MAX_STEPS = 4 << 20
# Of calls: one each, and the elements of what they return.
_MAX_MADE = 1 << 20
# Of a value: its parts, each counted as often as it occurs, and how deep they lie.
_MAX_PARTS = 4 << 20
_MAX_DEPTH = 100
_MAX_INTEGER = 1 << 63
_MARK = object()
_CONTAINERS = (dict, list, tuple)
# Opcodes whose argument is the value.
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}
_DAMAGE = (
    ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


class _Name:
    """A name that the pickle imports; it stands for a function of the allow list."""

    def __init__(self, module: str, name: str, call: Callable[..., Any]) -> None:
        self.shown, self.call = f"{module}.{name}", call


def read_pickle(
    data: bytes, what: str, known: Known, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """The value of a pickle. what: its source, for errors.

    known: names that it may import. persistent: the value of a persistent id, as torch's tensors
    have; without it they are refused.

    Raises:
        ModelError: it is damaged, too large, or does more than build data.
    """
    if len(data) > MAX_BYTES:
        raise ModelError(f"{what} has {len(data)} bytes; the limit is {MAX_BYTES}")
    machine = _Machine(what, known, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_STEPS:
                raise ModelError(f"{what} has more than {_MAX_STEPS} steps")
            if opcode.name == "STOP":
                return machine.result()
            machine.step(opcode.name, argument)
    except ModelError:
        raise
    except _DAMAGE as error:
        raise ModelError(f"{what} is damaged: {str(error)[:200]}") from error
    raise ModelError(f"{what} is damaged: it does not end")


class _Machine:
    """The machine's stack and memo."""

    def __init__(self, what: str, known: Known, persistent: Callable[[Any], Any] | None) -> None:
        self._what, self._known, self._persistent = what, known, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._made = 0

    def result(self) -> Any:
        """The one value that is left. Raises ModelError where it is another's part."""
        if len(self._stack) != 1 or self._stack[0] is _MARK or isinstance(self._stack[0], _Name):
            raise ValueError("it does not end with one value")
        _check_extent(self._stack[0])
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Run one opcode. Raises ModelError for those that are not allowed."""
        stack = self._stack
        if name in _VALUES:
            if name == "LONG1" and not -_MAX_INTEGER <= argument < _MAX_INTEGER:
                raise ValueError("it has an integer of more than 64 bits")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(self._plain(stack[-count:], count))]
        elif name not in _IGNORED:
            self._rarer(name, argument)

    def _rarer(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else self._pop(2)
            self._set(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else self._pop(1)
            if type(stack[-1]) is not list:
                raise ValueError("it appends to what is not a list")
            stack[-1].extend(items)
        elif name == "GLOBAL":
            stack.append(self._import(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(self._import(*self._pop(2)))
        elif name == "REDUCE":
            self._call()
        elif name == "BUILD":
            # An ordered dictionary's attributes: the versions of a network's parts, which only
            # torch needs.
            (state,) = self._pop(1)
            if type(stack[-1]) is not dict or type(state) is not dict:
                raise self._refused("sets attributes of an object")
        elif name == "BINPERSID" and self._persistent is not None:
            (id,) = self._pop(1)
            stack.append(self._persistent(id))
        else:
            raise self._refused(f"uses {name}")

    def _call(self) -> None:
        (arguments,) = self._pop(1)
        function = self._stack.pop()
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise self._refused("calls what is not a known function")
        try:
            value = function.call(*arguments)
        except TypeError as error:
            raise ValueError(f"{function.shown} is called with wrong arguments") from error
        self._made += 1 + (len(value) if type(value) in _CONTAINERS else 0)
        if self._made > _MAX_MADE:
            raise ValueError(f"its calls make more than {_MAX_MADE} values")
        self._stack.append(value)

    def _import(self, module: Any, name: Any) -> _Name:
        call = self._known.get((module, name)) if type(module) is type(name) is str else None
        if call is None:
            raise self._refused(f"imports {f'{module}.{name}'[:80]}")
        return _Name(module, name, call)

    def _set(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict or len(items) % 2:
            raise ValueError("it sets items of what is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, bool):
                raise ValueError(f"a key of a dictionary is a {type(key).__name__}")
            target[key] = value

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return self._plain(items, len(items))

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return self._plain(items, count)

    def _plain(self, items: list[Any], count: int) -> list[Any]:
        """The items, which must be as many, and none a mark."""
        if len(items) != count:
            raise ValueError("its stack is empty")
        if any(item is _MARK for item in items):
            raise ValueError("a mark is in the way")
        return items

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"{self._what} {what}, which data does not need; Hearth reads numbers, texts, lists, "
            "dictionaries and tensors, and runs no code of a file"
        )


def _check_extent(value: Any) -> None:
    """Raise ValueError where comparing or showing a value would not end soon.

    One that holds a part twice, over and over, is small here and endless there.
    """
    parts = 0
    within = [iter((value,))]
    while within:
        for item in within[-1]:
            parts += 1
            if type(item) in _CONTAINERS:
                within.append(iter(item.values() if type(item) is dict else item))
                break
        else:
            within.pop()
        if parts > _MAX_PARTS:
            raise ValueError(f"it has more than {_MAX_PARTS} parts")
        if len(within) > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep, or holds itself")
