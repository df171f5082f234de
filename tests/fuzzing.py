"""Shared by the fuzz tests: the number of examples, and the bounds that each of them keeps.

`make fuzz` sets FUZZ_EXAMPLES, the number in all; otherwise there are a few of each.
"""

from __future__ import annotations

import math
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import status_bytes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hearth.converter import ModelError, open_model

# What draws an example's parts: `data.draw` of hypothesis.
Draw = Callable[[st.SearchStrategy[Any]], Any]

WANTED = int(os.environ.get("FUZZ_EXAMPLES", "0"))
# Examples run, by all tests of the session.
examples = 0

# What one example may take: memory that is touched, address space; and a watchdog's CPU time, a
# hundred times what the slowest take.
MEMORY_BYTES = 64 << 20
ADDRESS_BYTES = 1 << 30
CPU_SECONDS = 60.0


def fuzzed(percent: float, otherwise: int) -> Callable[[Any], Any]:
    """Settings of a test that has so much of FUZZ_EXAMPLES, or `otherwise` examples without it."""
    checks = (
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.function_scoped_fixture,
    )
    return settings(
        max_examples=max(otherwise, math.ceil(WANTED * percent / 100)),
        deadline=None,
        suppress_health_check=checks,
        # Found again by the same seed; a folder of examples would be one more thing to keep.
        database=None,
        derandomize=not WANTED,
        print_blob=True,
    )


@contextmanager
def bounded(memory: int = MEMORY_BYTES, address_space: bool = True) -> Iterator[None]:
    """One example: it may take so much memory and time, and leaves no descriptor open.

    address_space: whether a limit on that is set too, which other threads would meet as well.
    """
    global examples
    examples += 1
    descriptors = _descriptors()
    before = _reset_peak()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if address_space:
        most = status_bytes("self", "VmSize") + ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        with _watchdog():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    peak = status_bytes("self", "VmHWM") - before
    assert peak < memory, f"it took {peak >> 20} MiB"
    # Fewer are not a leak: files that earlier examples left to the garbage collector may close now.
    assert _descriptors() <= descriptors, f"descriptors: {descriptors} before, now {_descriptors()}"


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _reset_peak() -> int:
    """Set VmHWM back to the memory that is resident now; that size in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("self", "VmHWM")


@contextmanager
def _watchdog() -> Iterator[None]:
    """Fail an example that computes for CPU_SECONDS, on a machine however busy."""

    def bark(signum: int, frame: object) -> None:
        raise AssertionError(f"example {examples} took more than {CPU_SECONDS:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, bark)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def read_whole(source: Path, text: str = "the ab") -> bool:
    """Open a model, encode a text and read all of it; False when it is refused in words."""
    with bounded():
        try:
            with open_model(str(source)) as model:
                model.tokenizer().encode(text)
                for name in model.spec.tensor_names():
                    model.read(name, model.tensor_type(name))
        except ModelError as error:
            assert str(error).strip()
            assert len(str(error)) < 4000
            return False
    return True


# Numbers where things go wrong: signs, widths of integers, products that overflow.
EDGES = [
    0, 1, -1, 2, 7, 31, 32, 33, 127, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, 1 << 40, 1 << 48, 1 << 53, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**30,
]  # fmt: skip
integers = st.sampled_from(EDGES) | st.integers()
scalars = (
    st.none()
    | st.booleans()
    | integers
    | st.floats()
    | st.sampled_from(["", "llama", "default", "a b", "\x00", "\ud800", "0", "1e400", "é" * 40])
    | st.text(max_size=20)
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def nested(value: Any, depth: int) -> Any:
    """`value` within so many lists."""
    for _ in range(depth):
        value = [value]
    return value


def paths(value: Any, most: int = 4000) -> list[tuple[Any, ...]]:
    """Paths of everything in a JSON value: keys and indices from its top."""
    found: list[tuple[Any, ...]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting and len(found) < most:
        path, item = waiting.pop(0)
        if path:
            found.append(path)
        if isinstance(item, dict):
            waiting += [((*path, key), each) for key, each in item.items()]
        elif isinstance(item, list):
            waiting += [((*path, place), each) for place, each in enumerate(item)]
    return found


def changed(draw: Draw, value: Any, places: list[tuple[Any, ...]]) -> Any:
    """A copy of a JSON value, changed in one to three of its places: other, absent, twice, deep."""
    value = _copy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places))
        holder = value
        try:
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
        if not isinstance(holder, dict | list):
            continue  # or put a text there
        what = draw(st.sampled_from(["other", "other", "absent", "swap", "deep", "double"]))
        if what == "other":
            holder[path[-1]] = draw(json_values)
        elif what == "absent":
            del holder[path[-1]]
        elif what == "deep":
            holder[path[-1]] = nested(holder[path[-1]], draw(st.sampled_from([1, 2, 50, 500])))
        elif what == "swap" and isinstance(holder, dict):
            other = draw(st.sampled_from(sorted(map(str, holder))))
            if other in holder:
                holder[path[-1]], holder[other] = holder[other], holder[path[-1]]
        elif isinstance(holder, list):
            holder.append(holder[path[-1]])
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def damaged(draw: Draw, data: bytes, limit: int | None = None) -> bytes:
    """Bytes changed in a few places of the first `limit`: other bytes, numbers, cut, doubled."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(out), limit or len(out))
        if not end:
            break
        place = draw(st.integers(0, end - 1))
        what = draw(st.sampled_from(["byte", "number", "cut", "out", "twice", "text"]))
        if what == "byte":
            out[place] = draw(st.integers(0, 255))
        elif what == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(integers) & ((1 << 8 * size) - 1)
            out[place : place + size] = number.to_bytes(size, "little")
        elif what == "cut":
            del out[place:]
        elif what == "out":
            del out[place : place + draw(st.integers(1, 64))]
        elif what == "twice":
            part = out[place : place + draw(st.integers(1, 200))]
            out[place:place] = part
        else:
            out[place:place] = draw(st.sampled_from([b"\xff", b"\x00", b'"', b"{", b"[" * 300]))
    return bytes(out)
