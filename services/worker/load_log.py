"""Log lines of a worker about the root that uses it: taken, loading, loaded."""

from __future__ import annotations

import logging
import time

from hearth.common.sizes import format_size

log = logging.getLogger(__name__)

# Between two lines about the progress of one load.
_SECONDS = 10.0


class LoadLog:
    """The lines of one weight stream. For one thread."""

    def __init__(self, root_name: str, epoch: int, weight_bytes: int) -> None:
        """weight_bytes: of all slices of this worker's shard."""
        self._total = weight_bytes
        self._began = self._logged = time.monotonic()
        size = format_size(weight_bytes)
        log.info("root %s took this worker (plan %d): %s of weights", root_name, epoch, size)

    def progress(self, held_bytes: int) -> None:
        """held_bytes: of the slices that are here, from the network and the cache."""
        now = time.monotonic()
        if now - self._logged >= _SECONDS and held_bytes < self._total:
            self._logged = now
            share = 100 * held_bytes // max(1, self._total)
            log.info("loading weights: %d %% of %s", share, format_size(self._total))

    def done(self, network_bytes: int) -> None:
        """All slices are loaded. network_bytes: of those that were sent."""
        network, cache = network_bytes, max(0, self._total - network_bytes)
        log.info(
            "weights loaded in %.1f s: %s sent, %s cached; ready for steps",
            time.monotonic() - self._began,
            format_size(network),
            format_size(cache),
        )
