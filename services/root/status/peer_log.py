"""Logs each change of a known worker's state or reason."""

import logging
import time
from collections.abc import Callable, Sequence

from hearth.root.membership.peers import Peer, PeerState

log = logging.getLogger(__name__)

# Lines per window about workers that only mDNS lists and that have never been ready.
MAX_STRANGERS = 30
WINDOW_SECONDS = 60.0


class PeerLog:
    """Remembers what it logged last of each worker.

    Anyone on a LAN can announce any number of workers by mDNS: lines about those that have not
    proven themselves are bounded, and the next window has the count of those left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._logged: dict[str, tuple[PeerState, str]] = {}
        # Addresses of those known now that are listed by others than mDNS, or were ready once.
        self._proven: set[str] = set()
        self._clock = clock
        self._begun = float("-inf")
        self._strangers = 0

    def show(self, peers: Sequence[Peer]) -> None:
        """Log the changes since the last call; peers: all known workers."""
        now = {peer.address: (peer.shown, peer.reason) for peer in peers}
        self._proven |= {peer.address for peer in peers if _is_proven(peer)}
        for peer in peers:
            if self._logged.get(peer.address) != now[peer.address]:
                reason = f": {peer.reason}" if peer.reason else ""
                line = f"worker {peer.title}: {peer.shown.name.lower()}{reason}"
                self._log(peer.address, line)
        for address in self._logged.keys() - now.keys():
            self._log(address, f"worker {address}: no source lists it any more")
        self._proven &= now.keys()
        self._logged = now

    def _log(self, address: str, line: str) -> None:
        if address in self._proven:
            log.info("%s", line)
            return
        now = self._clock()
        if now - self._begun >= WINDOW_SECONDS:
            left_out = self._strangers - MAX_STRANGERS
            if left_out > 0:
                log.info("%d lines about workers that only mDNS lists were left out", left_out)
            self._begun, self._strangers = now, 0
        self._strangers += 1
        log.log(logging.INFO if self._strangers <= MAX_STRANGERS else logging.DEBUG, "%s", line)


def _is_proven(peer: Peer) -> bool:
    return bool(peer.sources - {"mdns"}) or peer.state in (PeerState.READY, PeerState.IN)
