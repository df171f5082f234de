"""Decides what the cluster does next, from the peers as they are. Pure state.

membership.py has the rules in words.
"""

from hearth.root.membership.choosing import Chooser
from hearth.root.membership.decisions import Decision, Form, Rules, Serve, Wait
from hearth.root.membership.peers import Peer, PeerState, addresses, titles
from hearth.root.membership.roster import Roster

# Between two questions to a worker that is not in: while nothing serves, and while it does.
ASK_SECONDS = 0.5
ASK_SERVING_SECONDS = 2.0
# At a start: how long those that have not answered yet are waited for once there are enough.
_SETTLE_SECONDS = 3.0
# Between a worker's coming and its being taken in, so that several that come together come in once.
_JOIN_SECONDS = 3.0

LEAVING = "it is about to stop"


class Decider:
    """The decisions of one Membership. It changes only what explains a peer, not its state."""

    def __init__(self, rules: Rules, roster: Roster, chooser: Chooser) -> None:
        self._rules = rules
        self._roster = roster
        self._chooser = chooser
        # When enough workers for the first forming were there first.
        self._enough_at: float | None = None

    def at_start(self, now: float) -> Decision:
        """Before the first forming."""
        rules = self._rules
        if not rules.static:
            self._roster.rank_by_name()
        # A listed worker that was taken out is not waited for.
        out = sum(peer.drained and peer.address in rules.static for peer in self._roster)
        needed = max(0, rules.needed - out)
        ready = self.ready(now, serving=False, least=needed)
        absent = [peer for peer in self._roster if peer not in ready and not peer.drained]
        if len(ready) < needed:
            awaited = f": waiting for {titles(absent)}" if absent else ""
            why = f"{len(ready)} of {needed} workers are there{awaited}"
            return Wait(now + ASK_SECONDS, why)
        if self._enough_at is None:
            self._enough_at = now
        announced = [peer.since for peer in ready if "mdns" in peer.sources]
        if (
            announced
            and now < min(max(announced), self._enough_at + _SETTLE_SECONDS) + _JOIN_SECONDS
        ):
            return Wait(now + ASK_SECONDS, "more workers may announce themselves")
        unanswered = [peer for peer in absent if peer.state is PeerState.SEEN]
        if unanswered and now < self._enough_at + _SETTLE_SECONDS:
            return Wait(now + ASK_SECONDS, f"asking {unanswered[0].title}")
        listed = bool(rules.static) and rules.needed >= len(rules.static)
        if listed and set(rules.static) <= {peer.address for peer in ready}:
            # A list that is needed is meant as it is: what does not fit is an error of the forming.
            chosen, misfit = ready[: rules.most], None
        else:
            chosen, misfit = self._chooser.choose(ready, now, anyway=True)
        if misfit is not None:
            return Wait(now + ASK_SECONDS, misfit.problem)
        # One that would slow requests is there, and is not needed.
        used = len(chosen) + sum(peer.slow for peer in ready)
        if used < min(needed, rules.most):
            left = next(peer for peer in (*ready, *absent) if peer not in chosen)
            return Wait(now + ASK_SECONDS, f"{left.title}: {left.reason}")
        self._chooser.spare(ready, chosen)
        return Form(addresses(chosen), _are_there(len(chosen)))

    def after_loss(self, now: float) -> Decision:
        """While nothing serves, after the cluster served before."""
        ready = self.ready(now, serving=False)
        members = [peer for peer in self._roster if peer.place is not None]
        if members and all(peer in ready for peer in members):
            # With those who were in before nothing moves; others can be taken in later.
            chosen, misfit = self._chooser.divide(members, ready, now, anyway=True)
        else:
            chosen, misfit = self._chooser.choose(ready, now, anyway=True)
        awaited = [peer for peer in self._roster if peer.awaited(now) and peer not in chosen]
        if awaited:
            until = max(peer.awaited_until for peer in awaited)
            seconds = self._rules.wait_seconds
            why = f"waiting up to {seconds:g} s for {titles(awaited)}"
            return Wait(min(until, now + ASK_SECONDS), why)
        unanswered = [peer for peer in members if peer.state is PeerState.SEEN]
        if unanswered:
            why = f"asking worker {unanswered[0].title} whether it is there"
            return Wait(now + ASK_SECONDS, why)
        if misfit is not None:
            return Wait(now + ASK_SECONDS, misfit.problem)
        self._chooser.spare(ready, chosen)
        return Form(addresses(chosen), "the workers that are there have room for the model")

    def while_serving(self, now: float, busy: bool, uneven: bool = False) -> Decision:
        """While the cluster serves; busy: whether requests run. uneven: other shares are faster."""
        members = self.members()
        ready = self.ready(now, serving=True)
        leaver = next((peer for peer in members if peer.drained), None)
        if leaver is not None:
            return self._without(leaver, members, ready, now)
        chosen, misfit = self._chooser.choose([*members, *ready], now)
        self._chooser.spare(ready, chosen)
        joining = [peer for peer in chosen if peer not in members]
        refused = self._chooser.refused(chosen)
        if misfit is not None or refused or not set(members) <= set(chosen):
            joining = []
        for peer in ready:
            peer.spare = peer not in joining
        if not joining:
            if uneven and not busy:
                return Form(addresses(members), "other shares are expected to be faster")
            return Serve(now + ASK_SERVING_SECONDS)
        # The last that came may soon be followed by others.
        coming = any(now < peer.since + _JOIN_SECONDS for peer in ready)
        waiting = now - max(peer.since for peer in joining)
        known = self._chooser.known(chosen)
        if coming or (busy and not (known and waiting >= self._rules.patience)):
            when = "when no request runs"
            if known:
                when += f", or after {self._rules.patience:g} s"
            for peer in joining:
                peer.reason = f"it will be taken in {when}"
            return Serve(now + ASK_SECONDS)
        return Form(addresses(chosen), f"worker {joining[0].title} can be taken in")

    def _without(
        self, leaver: Peer, members: list[Peer], ready: list[Peer], now: float
    ) -> Decision:
        """Divide the model around a worker that is in and has to go, if the others have room."""
        staying = [peer for peer in members if not peer.drained]
        chosen, misfit = self._chooser.divide(staying, ready, now)
        if misfit is None:
            return Form(addresses(chosen), f"worker {leaver.title}: {leaver.reason}")
        leaver.reason = f"{LEAVING}, and the others have no room: {misfit.problem}"
        return Serve(now + ASK_SERVING_SECONDS)

    def ready(self, now: float, serving: bool, least: int = 0) -> list[Peer]:
        """The peers that may be taken in, in rank order; least: as many are needed."""
        ready = [p for p in self._roster if p.state is PeerState.READY and not p.drained]
        steady = [peer for peer in ready if _steady(peer, now, serving)]
        if not serving and (len(steady) < least or not self._chooser.fits(steady)):
            return ready  # use a flaky worker rather than none
        for peer in ready:
            if peer not in steady:
                record = peer.record
                times = "once" if record.strikes == 1 else f"{record.strikes} times in a row"
                peer.reason = (
                    f"left out for now: it failed {times}, the last time: {record.problem}"
                )
        return steady

    def members(self) -> list[Peer]:
        """The peers in the cluster that serves, in rank order."""
        return [peer for peer in self._roster if peer.state is PeerState.IN]


def _steady(peer: Peer, now: float, serving: bool) -> bool:
    """True unless it failed too often, or failed and the wait for it is over while nothing serves.

    Requests wait then: one more attempt that fails would make them wait longer.
    """
    if now < peer.record.banned_until:
        return False
    return serving or not peer.record.strikes or peer.awaited(now)


def _are_there(count: int) -> str:
    return "1 worker is there" if count == 1 else f"{count} workers are there"
