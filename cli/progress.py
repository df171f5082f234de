"""Progress of loading, a bar for each node: tqdm's on a terminal, elsewhere a line at the end."""

from __future__ import annotations

import threading
from typing import Never, TextIO

from tqdm import tqdm

from hearth.common.sizes import format_size
from hearth.root.cluster.streaming import LoadEvent


class LoadProgress:
    """Called with (address, event) from any thread. `out` None shows nothing."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._bars: dict[str, tqdm[Never]] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Leaves the bars as they are; what comes later begins new ones."""
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
                self._draw(address, event.total_bytes, held)
            elif held >= event.total_bytes and address not in self._done:
                self._done.add(address)
                print(self._line(address, event), file=self._out, flush=True)

    def _draw(self, address: str, total: int, held: int) -> None:
        bar = self._bars.get(address)
        if bar is None:
            bar = self._bars[address] = tqdm(
                desc=address,
                total=total,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                position=len(self._bars),
                file=self._out,
            )
        bar.update(held - bar.n)

    @staticmethod
    def _line(address: str, event: LoadEvent) -> str:
        total = format_size(event.total_bytes)
        if address == "local":
            return f"root: {total} of weights loaded"
        network, cache = format_size(event.network_bytes), format_size(event.cache_bytes)
        return f"worker {address}: {total} of weights loaded ({network} sent, {cache} cached)"
