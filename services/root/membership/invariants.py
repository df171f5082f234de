"""Invariants of a membership, which hold after every event."""

from collections import Counter
from collections.abc import Sequence

from hearth.root.membership.decisions import Rules
from hearth.root.membership.peers import Peer, PeerState


def broken(
    peers: Sequence[Peer], serving: tuple[str, ...] | None, rules: Rules, now: float
) -> list[str]:
    """The invariants that do not hold, in words; peers: in rank order."""
    problems = []
    problems += _shared("the place", Counter(peer.order for peer in peers))
    used = [peer for peer in peers if peer.state in (PeerState.READY, PeerState.IN)]
    instances = Counter(peer.instance for peer in used if peer.instance)
    problems += _shared("the process", instances)
    members = tuple(peer.address for peer in peers if peer.state is PeerState.IN)
    if members != (serving or ()):
        problems.append(f"the cluster serves with {serving}, and the peers in are {members}")
    if len(members) > rules.most:
        problems.append(f"{len(members)} workers are in, {rules.most} at most may be")
    for peer in peers:
        problems += _of(peer, now)
    return problems


def _shared(what: str, owners: Counter[int] | Counter[str]) -> list[str]:
    return [f"{count} peers have {what} {value}" for value, count in owners.items() if count > 1]


def _of(peer: Peer, now: float) -> list[str]:
    problems = []
    if peer.state is PeerState.IN and (peer.place is None or peer.place.until is not None):
        problems.append(f"{peer.title} is in, and its place is {peer.place}")
    if peer.state is PeerState.READY and peer.drained:
        problems.append(f"{peer.title} is READY, and taken out on purpose")
    if peer.lacks_memory and peer.state is not PeerState.READY:
        problems.append(f"{peer.title} lacks memory, and is {peer.state.name}")
    if peer.since > now:
        problems.append(f"{peer.title} is {peer.state.name} since {peer.since}, and it is {now}")
    if peer.record.strikes < 0 or peer.record.bans < 0:
        problems.append(f"{peer.title} has {peer.record.strikes} strikes, {peer.record.bans} bans")
    if peer.record.banned_until and not peer.record.bans:
        problems.append(f"{peer.title} is banned until {peer.record.banned_until}, never banned")
    if peer.leaving and not peer.drained:
        problems.append(f"{peer.title} is about to stop, and not taken out")
    return problems
