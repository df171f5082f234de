"""Cluster membership: pure state. Events in, decisions out; times come with the events.

`handle` takes an event (events.py), `due` says which workers to ask what they are, and `decide`
says what to do now: form with these workers, wait (nothing runs), or go on serving.

The rules:

1. Ranks are given by name at the start (of a static list: in its own order), then in the order in
   which workers were first seen, and kept: a worker's slices belong to its rank. A worker that
   comes back at another address is known by its name.
2. Before the first forming, `needed` workers must be there.
3. A lost worker is waited for, `wait_seconds`: its slices are in its cache, and nothing moves when
   it comes back. One that left on purpose is not waited for. After that the cluster is formed with
   what there is, where the model fits; else the wait goes on, and its reason says what is lacking.
   A worker that is shutting down is left out immediately: the model is divided over the others.
   Where these have no room, it stays until it is gone.
4. A worker that comes while the cluster serves is taken in when no request runs. It is taken in
   after `patience` seconds at the latest if exactly this set was formed before, for then all have
   their slices.
5. A worker that fails again and again before the cluster has worked with it is left out for a
   while: while it loads or at its first steps, however long the cluster was idle in between. An
   unfit one (it exceeded a limit of time, or its results were wrong) is left out at its first
   failure. So is one of two that do not reach each other, though the root reaches both: see
   apart.py. Where nothing else has room for the model, such workers are used all the same.
6. Where other shares would make the cluster faster, it is formed again with the same workers when
   no request runs.
7. A worker that would slow requests is a spare: it is there, and not in, while the model fits
   without it. It is looked at again when another is lost or comes, when it was restarted, or when
   `undrain` asks for it.
8. A worker has one wait in an outage: attempts to form that fail do not prolong it.

Every event and decision is an entry of the story (story.py). `record` gets them as JSON lines,
which replay.py can run again.
"""

from collections.abc import Callable

from hearth.common.errors import HearthError, Reason
from hearth.root.membership import events, story
from hearth.root.membership.choosing import Chooser
from hearth.root.membership.deciding import ASK_SECONDS, ASK_SERVING_SECONDS, Decider
from hearth.root.membership.decisions import Decision, Fit, Form, Rules, Wait
from hearth.root.membership.invariants import broken
from hearth.root.membership.peers import Move, Peer, PeerState, Place, Record
from hearth.root.membership.roster import Roster

# A failure before the cluster has worked is a strike; so many of them in a row, and the worker is
# left out for so long, then twice as long. engine.py: requests survive more losses than this.
STRIKES = 3
_BANNED_SECONDS = 30.0
_MAX_BANNED_SECONDS = 600.0
# The next ban is as long as the first again once a worker was not banned for so long.
_SOUND_SECONDS = 600.0
# Between attempts to form that failed for no worker's fault.
_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 10.0
# A worker that made an attempt to form fail is asked again after so long, then twice as long.
_REFUSED_SECONDS = 5.0
# Reasons for which a worker is gone, not unwilling.
GONE = {
    Reason.WORKER_LOST,
    Reason.WORKER_UNFIT,
    Reason.WORKER_UNREACHABLE,
    Reason.UNREACHABLE,
    Reason.PEER_LOST,
    Reason.DEADLINE,
    Reason.CANCELLED,
    Reason.NOT_LOADED,
}

_DRAINED = "taken out on purpose"


class MembershipError(RuntimeError):
    """A mistake in the membership itself; its text carries the story up to it."""

    def __init__(self, problem: str, told: str) -> None:
        super().__init__(f"membership: {problem}; the story so far:\n{told}")
        self.problem = problem


class Membership:
    """See the module's docstring. Not thread-safe."""

    def __init__(self, rules: Rules, fit: Fit, record: Callable[[str], None] | None = None) -> None:
        """record: called with each line of the record, without a line end."""
        self._rules = rules
        self._fit = story.RecordedFit(fit)
        self._chooser = Chooser(rules, self._fit)
        self._roster = Roster()
        self._decider = Decider(rules, self._roster, self._chooser)
        # The workers of the cluster that serves; None while none does.
        self._serving: tuple[str, ...] | None = None
        self._formed_at = 0.0
        self._has_formed = False
        # True once the cluster that serves, or that served last, has worked.
        self._worked = False
        # True where the cluster that serves would be faster with other shares.
        self._uneven = False
        # The workers of the last decision to form: an attempt may leave out those that are slow.
        self._asked: tuple[str, ...] = ()
        # No attempt to form before, and why.
        self._hold_until = 0.0
        self._hold_why = ""
        self._failures = 0
        # Of the event or decision under way; and the latest.
        self._now = self._latest = 0.0
        self._moves: list[Move] = []
        self._record = record
        self.story = story.Story()
        if record is not None:
            record(story.header(rules))
        self._roster.found("static", rules.static, 0.0)

    # For those who look.

    @property
    def peers(self) -> list[Peer]:
        """All known workers in rank order; not to be changed."""
        return list(self._roster)

    @property
    def serving(self) -> tuple[str, ...] | None:
        """The workers of the cluster that serves; None while none does."""
        return self._serving

    def called(self, worker: str) -> Peer:
        """The worker of this address or name. Raises HearthError INVALID_ARGUMENT."""
        return self._roster.called(worker)

    def started_again(self, event: events.Described) -> bool:
        """True for a worker that is not used because it was slow, and is another process now."""
        peer = self._roster.get(event.address)
        return peer is not None and peer.slow and peer.instance not in ("", event.instance)

    def check(self) -> None:
        """Raises MembershipError where an invariant is broken."""
        problems = broken(self.peers, self._serving, self._rules, self._latest)
        if problems:
            raise self._mistake("; ".join(problems))

    # In.

    def handle(self, event: events.Event) -> None:
        """Take in what happened.

        Raises HearthError for a Drain or Undrain that cannot be: INVALID_ARGUMENT where no one
        worker is called so, OUT_OF_MEMORY where the rest have no room for the model.
        """
        self._now = event.at
        try:
            self._dispatch(event)
        except HearthError as error:
            self._tell(event, error.message)
            raise
        except ValueError as error:
            self._tell(event, str(error))
            raise self._mistake(str(error)) from None
        self._tell(event, None)

    def due(self, now: float) -> list[str]:
        """Workers to be asked now what they are; an answer must come for each."""
        self._now = now
        asked = []
        for peer in self._roster:
            if peer.ask_at is not None and peer.ask_at <= now and peer.state is not PeerState.IN:
                peer.ask_at = None
                asked.append(peer.address)
        if asked:
            self._tell(events.Ask(now), tuple(asked))
        return asked

    # Out.

    def decide(self, now: float, busy: bool) -> Decision:
        """The next action; busy: whether requests run."""
        self._now = now
        self._roster.forget(now)
        for peer in self._roster:
            peer.lacks_memory = peer.spare = peer.slow = False
        decision = self._decide(now, busy)
        self._asked = decision.workers if isinstance(decision, Form) else self._asked
        self._tell(events.Look(now, busy), decision)
        return decision

    def _decide(self, now: float, busy: bool) -> Decision:
        if self._serving is not None:
            return self._decider.while_serving(now, busy, self._uneven)
        if now < self._hold_until:
            return Wait(self._hold_until, self._hold_why)
        if not self._has_formed:
            return self._decider.at_start(now)
        return self._decider.after_loss(now)

    # Events.

    def _dispatch(self, event: events.Event) -> None:
        match event:
            case events.Found():
                self._roster.found(event.source, event.addresses, event.at)
            case events.Described():
                self._described(event)
            case events.Refused():
                peer = self._answered(event.address)
                if peer is not None:
                    self._await(peer)
                    self._enter(peer, PeerState.REFUSED, event.problem)
            case events.Unreachable():
                peer = self._answered(event.address)
                if peer is not None:
                    self._await(peer)
                    lost = peer.awaited(event.at)
                    state = PeerState.LOST if lost else PeerState.UNREACHABLE
                    self._enter(peer, state, event.problem)
            case events.Leaving():
                self._leaving(event)
            case events.Formed():
                self._formed(event)
            case events.Worked():
                self._have_worked(event)
            case events.Uneven():
                self._uneven = event.workers == self._serving
            case events.Cleared():
                peer = self._roster.get(event.address)
                if peer is not None:
                    peer.record = Record()
            case events.FormFailed():
                self._form_failed(event)
            case events.Lost():
                self._lost(event)
            case events.Drain():
                self._drain(self._roster.called(event.worker))
            case events.Undrain():
                peer = self._roster.called(event.worker)
                peer.drained = peer.leaving = False
                peer.ask_at = event.at
                self._chooser.again()

    def _described(self, event: events.Described) -> None:
        peer = self._answered(event.address)
        if peer is None:
            return
        restarted = peer.instance not in ("", event.instance)
        if restarted:
            self._chooser.again()
        if peer.drained and (peer.leaving or restarted):
            peer.drained = peer.leaving = False
        peer.name, peer.instance, peer.room = event.name, event.instance, event.room
        former = self._roster.inherit(peer)
        if former:
            self._chooser.renamed(former, peer.address)
        twin = self._roster.twin(peer)
        if peer.drained:
            self._enter(peer, PeerState.DRAINED, _DRAINED)
        elif twin is not None:
            self._enter(peer, PeerState.REFUSED, f"the same worker as {twin.address}")
        elif event.at >= peer.record.refused_until:
            self._enter(peer, PeerState.READY, "it answers, and may be taken in")

    def _formed(self, event: events.Formed) -> None:
        self._serving = event.workers
        self._formed_at = event.at
        self._has_formed = True
        self._worked = self._uneven = False
        self._chooser.formed(event.workers, self._asked)
        self._failures = 0
        for peer in self._roster:
            if peer.address in event.workers:
                peer.place = Place()
                self._enter(peer, PeerState.IN, "")
                continue
            peer.place = None
            if peer.state is PeerState.IN:
                if peer.drained:
                    self._enter(peer, PeerState.DRAINED, peer.reason)
                else:
                    self._enter(peer, PeerState.SEEN, "not in")
                peer.ask_at = event.at
            elif peer.state is PeerState.LOST:
                self._enter(peer, PeerState.UNREACHABLE, peer.reason)

    def _have_worked(self, event: events.Worked) -> None:
        if event.workers == self._serving:
            self._worked = True
            for peer in self._decider.members():
                peer.record.strikes = 0

    def _form_failed(self, event: events.FormFailed) -> None:
        self._stop()
        self._failures += 1
        if event.apart_from:
            self._chooser.apart.broke(event.address, event.apart_from, event.at, sure=True)
        peer = None if event.apart_from else self._roster.get(event.address)
        if peer is None or self._failures > 3:
            pause = _RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10)
            self._hold_until = event.at + min(_MAX_RETRY_SECONDS, pause)
            self._hold_why = event.problem
        if peer is None:
            return
        if event.reason == Reason.SHUTTING_DOWN:
            self._gone(peer, event.problem, on_purpose=True)
            return
        self._strike(peer, event.problem, event.unfit)
        if event.unfit or event.reason in GONE:
            self._gone(peer, event.problem, on_purpose=False)
        else:
            self._await(peer)
            pause = _REFUSED_SECONDS * 2.0 ** min(peer.record.strikes - 1, 10)
            peer.record.refused_until = event.at + min(_MAX_BANNED_SECONDS, pause)
            self._enter(peer, PeerState.REFUSED, event.problem)

    def _lost(self, event: events.Lost) -> None:
        self._stop()
        if event.apart_from:
            self._chooser.apart.broke(event.address, event.apart_from, event.at, event.cause)
            return
        peer = self._roster.get(event.address)
        if peer is not None:
            if not event.on_purpose and (event.unfit or not self._worked):
                self._strike(peer, event.cause, event.unfit)
            self._gone(peer, event.cause, event.on_purpose)

    def _leaving(self, event: events.Leaving) -> None:
        peer = self._roster.get(event.address)
        if peer is None:
            return
        peer.leaving = peer.leaving or not peer.drained
        peer.drained = True
        if peer.state is PeerState.IN:
            peer.reason = event.problem
        else:
            peer.place = None
            self._answered(event.address)
            self._enter(peer, PeerState.UNREACHABLE, event.problem)

    def _drain(self, peer: Peer) -> None:
        if peer.state is PeerState.IN:
            members = self._decider.members()
            rest = [member for member in members if member is not peer and not member.drained]
            ready = self._decider.ready(self._now, serving=True)
            _, misfit = self._chooser.divide(rest, ready, self._now)
            if misfit is not None:
                problem = f"{peer.title} cannot be taken out: {misfit.problem}"
                raise HearthError(Reason.OUT_OF_MEMORY, problem, {"worker": peer.address})
            peer.reason = _DRAINED
        else:
            self._enter(peer, PeerState.DRAINED, _DRAINED)
            peer.place = None  # it is not waited for
        peer.drained = True
        peer.leaving = False

    # Details.

    def _answered(self, address: str) -> Peer | None:
        """The peer that was asked; None where the answer is of no use any more."""
        peer = self._roster.get(address)
        if peer is None:
            return None
        pause = ASK_SECONDS if self._serving is None else ASK_SERVING_SECONDS
        peer.ask_at = self._now + pause
        return None if peer.state is PeerState.IN else peer

    def _await(self, peer: Peer) -> None:
        """A peer that was in, and cannot be now, is waited for; once, from the first time on."""
        if self._serving is None and not peer.drained and peer.place == Place():
            peer.place = Place(self._now + self._rules.wait_seconds)

    def _strike(self, peer: Peer, problem: str, unfit: bool) -> None:
        """Count a failure of a peer; with `unfit`, or one too many, leave it out for a while."""
        record = peer.record
        record.strikes += 1
        record.problem = problem
        if not unfit and record.strikes < STRIKES:
            return
        if self._now - record.banned_until > _SOUND_SECONDS:
            record.bans = 0
        seconds = _BANNED_SECONDS * 2.0 ** min(record.bans, 10)
        record.bans += 1
        record.banned_until = self._now + min(_MAX_BANNED_SECONDS, seconds)

    def _gone(self, peer: Peer, problem: str, on_purpose: bool) -> None:
        banned = self._now < peer.record.banned_until
        if peer.place is None or peer.drained or on_purpose or banned:
            peer.place = None
        elif peer.place.until is None:
            peer.place = Place(self._now + self._rules.wait_seconds)
        lost = peer.awaited(self._now)
        if not lost:
            peer.place = None
        self._enter(peer, PeerState.LOST if lost else PeerState.UNREACHABLE, problem)
        peer.ask_at = self._now + ASK_SECONDS

    def _stop(self) -> None:
        """Nothing serves: every worker is asked again, for what was true may not be."""
        if self._serving is not None:
            self._chooser.apart.served(self._serving, self._now - self._formed_at)
        self._serving = None
        for peer in self._roster:
            if peer.state in (PeerState.IN, PeerState.READY):
                self._enter(peer, PeerState.SEEN, "waiting for the others")
                peer.ask_at = self._now
            if peer.drained:
                peer.place = None  # it is not waited for

    def _enter(self, peer: Peer, state: PeerState, reason: str) -> None:
        move = peer.enter(state, reason, self._now)
        if move is not None:
            self._moves.append(move)

    def _tell(self, event: events.Stimulus, result: story.Result) -> None:
        entry = story.Entry(event, tuple(self._moves), result)
        self._moves.clear()
        self._latest = max(self._latest, self._now)
        fits = self._fit.taken()
        self.story.add(entry)
        if self._record is not None:
            self._record(story.line(entry, fits))

    def _mistake(self, problem: str) -> MembershipError:
        return MembershipError(problem, self.story.text())
