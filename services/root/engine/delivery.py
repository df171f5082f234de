"""Open requests, and the events sent to their readers: text, tokens, the end."""

import logging
from collections.abc import Callable

from hearth.root.engine import errors
from hearth.root.engine.interfaces import EngineMetrics
from hearth.root.engine.mailbox import Delta, Done, Event, Failed
from hearth.root.engine.request import Active
from hearth.root.scheduling.batch import FinishReason, Sampled

log = logging.getLogger(__name__)


class Delivery:
    """All accepted requests that have not ended. For the engine's thread only."""

    def __init__(self, metrics: EngineMetrics | None, cancel: Callable[[int], object]) -> None:
        """cancel: ends the sequence of an id in the scheduler, if it is known there."""
        self._metrics = metrics
        self._cancel = cancel
        self._active: dict[int, Active] = {}

    def __len__(self) -> int:
        return len(self._active)

    def get(self, seq_id: int) -> Active | None:
        """The request of a sequence; None if it has ended."""
        return self._active.get(seq_id)

    def add(self, active: Active) -> None:
        """Adds an accepted request."""
        self._active[active.seq_id] = active

    def refuse(self, active: Active, event: Failed) -> None:
        """Ends a request that was not accepted."""
        if self._metrics is not None:
            self._metrics.request_refused(event.error.reason)
        self._emit(active, event)

    def token(self, active: Active, sampled: Sampled, now: float) -> None:
        """Sends a new token and its text to the reader; ends the request after its last token."""
        if active.pooler is not None:
            active.first = active.last = now
            done = Done(FinishReason.LENGTH, active.usage(), vector=active.pooler.vector())
            self.end(active, done)
            return
        if active.unscored:
            active.unscored -= 1
            active.setbacks = 0
            self._send(active, Delta("", (), (active.scores.popleft(),)))
            return
        if not active.made:
            active.first = now
            if self._metrics is not None:
                self._metrics.first_token(now - active.submitted)
        elif self._metrics is not None:
            self._metrics.next_token(now - active.last)
        active.last = now
        active.made += 1
        active.setbacks = 0
        finish = sampled.finish
        # An end-of-sequence token is counted and listed, but has no text.
        text = "" if finish is FinishReason.EOS else active.decoder.push(sampled.token)
        matcher = active.matcher
        complete = (
            finish is None
            and matcher is not None
            and matcher.length is not None
            and active.made >= matcher.length
        )
        if finish is not None or complete:
            text += active.decoder.flush()
        text, stopped = active.stops.feed(text)
        if (
            not stopped
            and finish is not FinishReason.EOS
            and sampled.token in active.stops.controls
        ):
            before, stopped = active.stops.feed_control(sampled.token)
            text += before
        if stopped:
            self._cancel(active.seq_id)
            finish = FinishReason.STOP
        elif complete:
            self._cancel(active.seq_id)
            text += active.stops.flush()
            finish = FinishReason.EOS
        elif finish is not None:
            text += active.stops.flush()
        scores = (active.scores.popleft(),) if active.scores else ()
        if finish is FinishReason.EOS and not complete:
            scores = ()
        if self._send(active, Delta(text, (sampled.token,), scores)) and finish is not None:
            self.end(active, Done(finish, active.usage(), active.stops.found))

    def _send(self, active: Active, delta: Delta) -> bool:
        """Sends a part of an answer; False if its reader is gone.

        The request then ends as if its caller had cancelled it.
        """
        if self._emit(active, delta):
            return True
        self._cancel(active.seq_id)
        self._active.pop(active.seq_id, None)
        self._count(active, Failed(errors.cancelled()))
        return False

    def end(self, active: Active, event: Done | Failed) -> None:
        """Ends a request with its last event."""
        self._active.pop(active.seq_id, None)
        self._emit(active, event)
        self._count(active, event)

    def end_all(self, event: Failed) -> None:
        """Ends every request with the same event, oldest first."""
        for active in list(self._active.values()):
            try:
                self.end(active, event)
            except Exception:
                # The others must get their last event too.
                log.exception("engine: request %d could not be counted", active.seq_id)

    def _count(self, active: Active, event: Done | Failed) -> None:
        """Reports an ended request to the metrics."""
        if self._metrics is not None:
            usage = active.usage()
            self._metrics.request_done(
                event.error.reason if isinstance(event, Failed) else event.finish_reason.name,
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.prefill_seconds,
                usage.decode_seconds,
            )

    def _emit(self, active: Active, event: Event) -> bool:
        """Sends an event to the reader; False if its sink failed."""
        try:
            active.sink(event)
        except Exception:
            # One failing reader must not affect other requests.
            log.exception("engine: the sink of request %d failed", active.seq_id)
            return False
        return True
