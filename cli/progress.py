"""Progress of loading and of conversions: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Never, TextIO

from tqdm import tqdm

from hearth.cli import output
from hearth.common.sizes import format_size
from hearth.common.terminal import one_line

if TYPE_CHECKING:
    from hearth.root.cluster.streaming import LoadEvent


# The address of the root's own shard; and the time between two lines about a node.
_LOCAL = "local"
_LINE_SECONDS = 10.0


class LoadProgress:
    """Shows each node's loading on standard error; called with (address, event) from any thread.

    Bars on a terminal, where `bars` allows them: a service writes log lines there. Else a line for
    each node at the end, and now and then before.
    """

    def __init__(self, quiet: bool = False, bars: bool = True) -> None:
        """quiet: shows nothing."""
        self._out = None if quiet else sys.stderr
        self._show_bars = bars and self._out is not None and self._out.isatty()
        self._bars: dict[str, tqdm[Never]] = {}
        # When the last line of a node was written, or its loading began.
        self._last: dict[str, float] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Leave the bars as they are; later events begin new ones."""
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()
            self._done.clear()
            self._last.clear()

    def __call__(self, address: str, event: LoadEvent) -> None:
        if self._out is None:
            return
        held = event.network_bytes + event.cache_bytes
        with self._lock:
            if self._show_bars:
                if address not in self._bars:
                    self._bars[address] = _bar(self._out, len(self._bars))
                _advance(self._bars[address], _node(address), held, event.total_bytes)
                return
            now = time.monotonic()
            last = self._last.setdefault(address, now)
            if held >= event.total_bytes:
                if address not in self._done:
                    self._done.add(address)
                    output.note(self._line(address, event))
            elif now - last >= _LINE_SECONDS:
                self._last[address] = now
                total = format_size(event.total_bytes)
                part = 100 * held // event.total_bytes
                output.note(f"{_node(address)}: {part} % of {total} of weights loaded")

    @staticmethod
    def _line(address: str, event: LoadEvent) -> str:
        total = format_size(event.total_bytes)
        if address == _LOCAL:
            return f"{_node(address)}: {total} of weights loaded"
        network, cache = format_size(event.network_bytes), format_size(event.cache_bytes)
        return f"{_node(address)}: {total} of weights loaded ({network} sent, {cache} cached)"


def _node(address: str) -> str:
    """A node as a line names it."""
    return "root" if address == _LOCAL else f"worker {address}"


@contextmanager
def conversion_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows (tensor's name, bytes done, bytes in all) on stderr; a line a tenth without a terminal.

    The function it yields is converter.convert.Progress.
    """
    if sys.stderr.isatty():
        with _bar(sys.stderr) as bar:
            yield lambda name, done, total: _advance(bar, name, done, total)
        return
    shown = -1

    def write(name: str, done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // total
        if tenth != shown:
            shown = tenth
            output.note(f"{10 * tenth}% {done} of {total} bytes, {one_line(name)}")

    yield write


def _bar(out: TextIO, position: int = 0) -> tqdm[Never]:
    return tqdm(
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        dynamic_ncols=True,
        position=position,
        file=out,
    )


def _advance(bar: tqdm[Never], name: str, done: int, total: int) -> None:
    bar.total = total
    bar.set_description(name, refresh=False)
    bar.update(done - bar.n)
