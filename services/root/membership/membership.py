"""Who is in the cluster: pure state. Events in, decisions out; times come with the events.

Events: `found` (what a source lists now), `described`, `refused`, `unreachable` (answers to a
question that `due` asked for), `formed`, `failed` (an attempt to form), `lost`, `leaving`, `drain`.
What to do now is `decide`'s answer: form with these workers, wait (nothing runs), or go on serving.

The rules:

1. Ranks are given by name at the start (of a static list: in its own order), then in the order in
   which workers were first seen, and kept: a worker's slices belong to its rank. A worker that
   comes back at another address is known by its name.
2. Before the first forming, `needed` workers must be there.
3. A lost worker is waited for, `wait_seconds`, for it has its slices in its cache and nothing moves
   when it comes back. One that left on purpose is not. After that the cluster is formed with what
   there is, where the model fits; else the wait goes on, and says what is lacking.
   One that is about to leave is divided around at once; where the others have no room, not before
   it is gone.
4. A worker that comes while the cluster serves is taken in when no request runs; at the latest
   after `patience` seconds if just this set was formed before, for then all have their slices.
5. A worker that is lost again and again as soon as the cluster serves is left out for a while. So
   is one of two that do not reach each other, twice in a row, though the root reaches both: see
   apart.py. Where nothing else has room for the model, they are tried all the same.
"""

from collections.abc import Iterable

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.candidates import (
    Candidate,
    Decision,
    Fit,
    Form,
    Rules,
    Serve,
    State,
    Wait,
    addresses,
)
from hearth.root.membership.choosing import Chooser
from hearth.root.membership.roster import Roster

# Between two questions to a worker that is not in: while nothing serves, and while it does.
ASK_SECONDS = 0.5
ASK_SERVING_SECONDS = 2.0
# At a start: how long those that have not answered yet are waited for once there are enough.
_SETTLE_SECONDS = 3.0
# Between a worker's coming and its being taken in, so that several that come together come in once.
_JOIN_SECONDS = 3.0
# A loss so soon after the cluster was formed is a strike; so many of them in a row, and the worker
# is left out for so long, then twice as long.
_STRIKE_SECONDS = 1.0
_STRIKES = 5
_BANNED_SECONDS = 30.0
_MOST_BANNED_SECONDS = 600.0
# Between attempts to form that failed for no worker's fault.
_RETRY_SECONDS = 0.5
_MOST_RETRY_SECONDS = 10.0
# A worker that a forming refused is asked again after so long.
_REFUSED_SECONDS = 5.0
# Reasons for which a worker is gone, not unwilling.
GONE = {
    Reason.WORKER_LOST,
    Reason.WORKER_UNREACHABLE,
    Reason.UNREACHABLE,
    Reason.PEER_LOST,
    Reason.DEADLINE,
    Reason.CANCELLED,
    Reason.NOT_LOADED,
}


_DRAINED = "taken out on purpose"
LEAVING = "it is about to stop"


class Membership:
    """See the module's docstring. Not thread-safe."""

    def __init__(self, rules: Rules, fit: Fit) -> None:
        self._rules = rules
        self._chooser = Chooser(rules, fit)
        self._roster = Roster()
        # The workers of the cluster that serves; None while none does.
        self._serving: tuple[str, ...] | None = None
        self._formed_at = 0.0
        self._has_formed = False
        self._first_seen: float | None = None
        # No attempt to form before, and why.
        self._hold_until = 0.0
        self._hold_why = ""
        self._failures = 0
        self.found("static", rules.static, 0.0)

    # What the outside wants to know.

    @property
    def candidates(self) -> list[Candidate]:
        """All known, in rank order; not to be changed."""
        return list(self._roster)

    @property
    def serving(self) -> tuple[str, ...] | None:
        """The workers of the cluster that serves; None while none does."""
        return self._serving

    def due(self, now: float) -> list[str]:
        """Workers to be asked now what they are; an answer must come for each."""
        asked = [
            c
            for c in self.candidates
            if c.ask_at is not None and c.ask_at <= now and c.state is not State.IN
        ]
        for candidate in asked:
            candidate.ask_at = None
        return [candidate.address for candidate in asked]

    # Events.

    def found(self, source: str, listing: Iterable[str], now: float) -> None:
        """All that `source` lists now; what it listed before and does not now has vanished."""
        self._roster.found(source, listing, now)

    def described(self, address: str, name: str, instance: str, room: int, now: float) -> None:
        """It answered, speaks our version and is free."""
        candidate = self._answered(address, now)
        if candidate is None:
            return
        if candidate.drained and instance != candidate.instance:
            candidate.drained = False  # restarted since
        candidate.name, candidate.instance, candidate.room = name, instance, room
        former = self._roster.inherit(candidate)
        if former:
            self._chooser.renamed(former, address)
        twin = self._roster.twin(candidate)
        if candidate.drained:
            self._set(candidate, State.DRAINED, _DRAINED)
        elif twin is not None:
            self._set(candidate, State.REFUSED, f"the same worker as {twin.address}")
        elif now >= candidate.refused_until:
            if candidate.state is not State.READY:
                candidate.ready_since = now
            self._set(candidate, State.READY, "it answers, and may be taken in")

    def refused(self, address: str, problem: str, now: float) -> None:
        """It answered, and cannot be used: another version, another root's."""
        candidate = self._answered(address, now)
        if candidate is not None:
            self._await(candidate, now)
            self._set(candidate, State.REFUSED, problem)

    def unreachable(self, address: str, problem: str, now: float) -> None:
        """It did not answer."""
        candidate = self._answered(address, now)
        if candidate is None:
            return
        self._await(candidate, now)
        lost = candidate.waited_until > now
        self._set(candidate, State.LOST if lost else State.UNREACHABLE, problem)

    def formed(self, workers: tuple[str, ...], now: float) -> None:
        """The cluster serves, with these."""
        self._serving = workers
        self._formed_at = now
        self._has_formed = True
        self._chooser.formed(workers)
        self._failures = 0
        for candidate in self._roster:
            candidate.member = candidate.address in workers
            if candidate.member:
                candidate.waited_until = 0.0
                self._set(candidate, State.IN, "")
            elif candidate.state is State.IN:
                out = (State.DRAINED, candidate.reason)
                self._set(candidate, *(out if candidate.drained else (State.SEEN, "not in")))
                candidate.ask_at = now
            elif candidate.state is State.LOST:
                self._set(candidate, State.UNREACHABLE, candidate.reason)

    def failed(
        self, address: str, reason: str, problem: str, now: float, *, peer: str = ""
    ) -> None:
        """The cluster could not be formed because of the worker at `address` ("": of none).

        peer: the worker that it does not reach, where the root reaches both.
        """
        self._stop(now)
        self._failures += 1
        if peer:
            self._chooser.apart.broke(address, peer, now)
        candidate = None if peer else self._roster.get(address)
        if candidate is None or self._failures > 3:
            pause = _RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10)
            self._hold_until = now + min(_MOST_RETRY_SECONDS, pause)
            self._hold_why = problem
        if candidate is None:
            return
        if reason == Reason.SHUTTING_DOWN:
            self._gone(candidate, problem, True, now)
        elif reason in GONE:
            candidate.strikes += 1
            self._gone(candidate, problem, False, now)
        else:
            self._await(candidate, now)
            candidate.refused_until = now + _REFUSED_SECONDS
            self._set(candidate, State.REFUSED, problem)

    def lost(
        self, address: str, cause: str, on_purpose: bool, now: float, *, peer: str = ""
    ) -> None:
        """The cluster serves no more because this worker was lost ("": it is not known which).

        peer: the worker that it does not reach any more, where the root reaches both.
        """
        early = now - self._formed_at < _STRIKE_SECONDS
        self._stop(now)
        candidate = self._roster.get(address)
        if peer:
            self._chooser.apart.broke(address, peer, now)
        elif candidate is not None:
            candidate.strikes = candidate.strikes + 1 if early and not on_purpose else 0
            self._gone(candidate, cause, on_purpose, now)

    def leaving(self, address: str, problem: str, now: float) -> None:
        """It says that it is about to stop: while it serves, or when it was asked what it is."""
        candidate = self._roster.get(address)
        if candidate is None:
            return
        candidate.drained = True
        candidate.waited_until = 0.0
        if candidate.state is State.IN:
            candidate.reason = problem
        else:
            candidate.member = False
            self._answered(address, now)
            self._set(candidate, State.UNREACHABLE, problem)

    def drain(self, worker: str, undo: bool, now: float) -> None:
        """Takes a worker out, by address or name, or lets it in again.

        Raises HearthError INVALID_ARGUMENT where no one worker is called so, OUT_OF_MEMORY where
        the rest have no room for the model.
        """
        candidate = self._roster.called(worker)
        if undo:
            candidate.drained = False
            candidate.ask_at = now
            return
        if candidate.state is State.IN:
            rest = [c for c in self._members() if c is not candidate]
            _, misfit = self._chooser.divide(rest, self._ready(now), now)
            if misfit is not None:
                problem = f"{candidate.title} cannot be taken out: {misfit.problem}"
                raise HearthError(Reason.OUT_OF_MEMORY, problem, {"worker": candidate.address})
            candidate.reason = _DRAINED
        else:
            self._set(candidate, State.DRAINED, _DRAINED)
        candidate.drained = True
        candidate.waited_until = 0.0

    # Decisions.

    def decide(self, now: float, busy: bool) -> Decision:
        """What to do now; busy: whether requests run."""
        self._roster.forget(now)
        for candidate in self._roster:
            candidate.lacking = False
        if self._serving is not None:
            return self._while_serving(self._serving, now, busy)
        if now < self._hold_until:
            return Wait(self._hold_until, self._hold_why)
        if not self._has_formed:
            return self._at_start(now)
        return self._after_loss(now)

    def _at_start(self, now: float) -> Decision:
        rules = self._rules
        if not rules.static:
            self._roster.rank_by_name()
        ready = self._ready(now)
        absent = [c for c in self.candidates if c not in ready and not c.drained]
        if len(ready) < rules.needed:
            first = next((f": {c.title}: {c.reason}" for c in absent), "")
            why = f"{len(ready)} of {rules.needed} workers are there{first}"
            return Wait(now + ASK_SECONDS, why)
        if self._first_seen is None:
            self._first_seen = now
        open_questions = [c for c in absent if c.state is State.SEEN]
        if open_questions and now < self._first_seen + _SETTLE_SECONDS:
            return Wait(now + ASK_SECONDS, f"asking {open_questions[0].title}")
        if rules.static and set(rules.static) <= {c.address for c in ready}:
            # A list is meant as it is: what does not fit is an error of the forming.
            chosen, misfit = ready[: rules.most], None
        else:
            chosen, misfit = self._chooser.choose(ready, now, anyway=True)
        if misfit is not None:
            return Wait(now + ASK_SECONDS, misfit.problem)
        if len(chosen) < min(rules.needed, rules.most):
            out = next(c for c in (*ready, *absent) if c not in chosen)
            return Wait(now + ASK_SECONDS, f"{out.title}: {out.reason}")
        self._chooser.spare(ready, chosen)
        return Form(addresses(chosen), f"{len(chosen)} workers are there")

    def _after_loss(self, now: float) -> Decision:
        ready = self._ready(now)
        members = [c for c in self.candidates if c.member]
        if members and all(c in ready for c in members):
            # With those who were in before nothing moves; others can be taken in later.
            chosen, misfit = self._chooser.divide(members, ready, now, anyway=True)
        else:
            chosen, misfit = self._chooser.choose(ready, now, anyway=True)
        awaited = [c for c in self.candidates if c.waited_until > now and c not in chosen]
        asked = [c for c in self.candidates if c.member and c.state is State.SEEN]
        if awaited:
            candidate, until = awaited[0], max(c.waited_until for c in awaited)
            seconds = self._rules.wait_seconds
            why = f"waiting up to {seconds:g} s for worker {candidate.title}: {candidate.reason}"
            return Wait(min(until, now + ASK_SECONDS), why)
        if asked:
            return Wait(now + ASK_SECONDS, f"asking worker {asked[0].title} whether it is there")
        if misfit is not None:
            return Wait(now + ASK_SECONDS, misfit.problem)
        self._chooser.spare(ready, chosen)
        return Form(addresses(chosen), "the workers that are there have room for the model")

    def _while_serving(self, serving: tuple[str, ...], now: float, busy: bool) -> Decision:
        members = self._members()
        ready = self._ready(now)
        going = [c for c in members if c.drained]
        if going:
            leaver, staying = going[0], [c for c in members if not c.drained]
            chosen, misfit = self._chooser.divide(staying, ready, now)
            if misfit is None:
                return Form(addresses(chosen), f"worker {leaver.title}: {leaver.reason}")
            leaver.reason = f"{LEAVING}, and the others have no room: {misfit.problem}"
            return Serve(now + ASK_SERVING_SECONDS)
        # Those that came last may be about to be followed by others.
        coming = [c for c in ready if now < c.ready_since + _JOIN_SECONDS]
        chosen, misfit = self._chooser.choose([*members, *ready], now)
        self._chooser.spare(ready, chosen)
        until = now + ASK_SERVING_SECONDS
        joining = [c for c in chosen if c not in members]
        if misfit is not None or not joining or not set(members) <= set(chosen):
            return Serve(until)
        waiting = now - max(c.ready_since for c in joining)
        known = self._chooser.known(chosen)
        if coming or (busy and not (known and waiting >= self._rules.patience)):
            when = "when no request runs" + (
                f", or after {self._rules.patience:g} s" if known else ""
            )
            for candidate in joining:
                candidate.reason = f"it will be taken in {when}"
            return Serve(now + ASK_SECONDS)
        return Form(addresses(chosen), f"worker {joining[0].title} can be taken in")

    # Details.

    def _ready(self, now: float) -> list[Candidate]:
        ready = [c for c in self.candidates if c.state is State.READY and not c.drained]
        well = [c for c in ready if now >= c.banned_until]
        if self._serving is None and not self._chooser.fits(well):
            return ready  # better an unsteady one than none
        for candidate in ready:
            if candidate not in well:
                candidate.reason = f"it was lost {candidate.strikes} times just after it came in"
        return well

    def _members(self) -> list[Candidate]:
        return [c for c in self.candidates if c.state is State.IN]

    def _answered(self, address: str, now: float) -> Candidate | None:
        """The candidate that was asked; None where the answer is of no use any more."""
        candidate = self._roster.get(address)
        if candidate is None:
            return None
        pause = ASK_SECONDS if self._serving is None else ASK_SERVING_SECONDS
        candidate.ask_at = now + pause
        return None if candidate.state is State.IN else candidate

    def _await(self, candidate: Candidate, now: float) -> None:
        """One that was in, and cannot be now, is waited for; that once, and from the first time."""
        if self._serving is None and candidate.member and not candidate.waited_until:
            candidate.waited_until = now + self._rules.wait_seconds

    def _gone(self, candidate: Candidate, problem: str, on_purpose: bool, now: float) -> None:
        candidate.waited_until = 0.0 if on_purpose else now + self._rules.wait_seconds
        if candidate.strikes >= _STRIKES:
            seconds = _BANNED_SECONDS * 2.0 ** min(candidate.strikes - _STRIKES, 10)
            candidate.banned_until = now + min(_MOST_BANNED_SECONDS, seconds)
            candidate.waited_until = 0.0
        if candidate.drained or not candidate.member:
            candidate.waited_until = 0.0
        candidate.member = candidate.waited_until > now
        lost = candidate.waited_until > now
        self._set(candidate, State.LOST if lost else State.UNREACHABLE, problem)
        candidate.ask_at = now + ASK_SECONDS

    def _stop(self, now: float) -> None:
        """Nothing serves: everyone is asked anew, for what was true may not be."""
        if self._serving is not None:
            self._chooser.apart.served(self._serving, now - self._formed_at)
        self._serving = None
        for candidate in self._roster:
            if candidate.state in (State.IN, State.READY):
                self._set(candidate, State.SEEN, "waiting for the others")
                candidate.ask_at = now

    @staticmethod
    def _set(candidate: Candidate, state: State, reason: str) -> None:
        if (candidate.state, state) != (State.READY, State.READY):
            candidate.reason = reason
        candidate.state = state
