"""Logs each change of a known worker's state or reason."""

import logging
from collections.abc import Sequence

from hearth.root.membership.peers import Peer, PeerState

log = logging.getLogger(__name__)


class PeerLog:
    """Remembers what it logged last of each worker."""

    def __init__(self) -> None:
        self._logged: dict[str, tuple[PeerState, str]] = {}

    def show(self, peers: Sequence[Peer]) -> None:
        """Log the changes since the last call; peers: all known workers."""
        now = {peer.address: (peer.shown, peer.reason) for peer in peers}
        for peer in peers:
            if self._logged.get(peer.address) != now[peer.address]:
                reason = f": {peer.reason}" if peer.reason else ""
                log.info("worker %s: %s%s", peer.title, peer.shown.name.lower(), reason)
        for address in self._logged.keys() - now.keys():
            log.info("worker %s: no source lists it any more", address)
        self._logged = now
