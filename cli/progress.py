"""Progress of loading and of conversions: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Never, TextIO

from tqdm import tqdm

from hearth.common.sizes import format_size

if TYPE_CHECKING:
    from hearth.root.cluster.streaming import LoadEvent


class LoadProgress:
    """Shows each node's loading; called with (address, event) from any thread.

    `out` None shows nothing. Elsewhere than on a terminal, one line a node at the end.
    """

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._bars: dict[str, tqdm[Never]] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Leave the bars as they are; later events begin new ones."""
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()
            self._done.clear()

    def __call__(self, address: str, event: LoadEvent) -> None:
        if self._out is None:
            return
        held = event.network_bytes + event.cache_bytes
        with self._lock:
            if self._out.isatty():
                if address not in self._bars:
                    self._bars[address] = _bar(self._out, len(self._bars))
                _advance(self._bars[address], address, held, event.total_bytes)
            elif held >= event.total_bytes and address not in self._done:
                self._done.add(address)
                print(self._line(address, event), file=self._out, flush=True)

    @staticmethod
    def _line(address: str, event: LoadEvent) -> str:
        total = format_size(event.total_bytes)
        if address == "local":
            return f"root: {total} of weights loaded"
        network, cache = format_size(event.network_bytes), format_size(event.cache_bytes)
        return f"worker {address}: {total} of weights loaded ({network} sent, {cache} cached)"


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
            print(f"{10 * tenth}% {done} of {total} bytes, {name}", file=sys.stderr)

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
