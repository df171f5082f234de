"""The loop: one step after another, in its own thread, for as long as there are sequences.

    commands (submit, cancel, suspend, resume, stop)  ->  inbox
    loop: inbox -> scheduler.schedule() -> runner.run(batch) -> sample -> detokenize -> sinks

Thin on purpose: which sequences run is the scheduler's business, how a step is computed is the
runner's (`cluster.py`), and how text reaches a client is the sink's. An idle engine blocks on its
inbox and uses no CPU.
"""

import itertools
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from hearth.common.errors import Code, HearthError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.engine import errors
from hearth.root.engine.interfaces import (
    EngineMetrics,
    SamplerFactory,
    StepRunner,
    native_sampler,
)
from hearth.root.engine.mailbox import Delta, Done, Event, Failed, Mailbox, Sink
from hearth.root.engine.params import GenerateParams, check_ids
from hearth.root.engine.request import Active, RequestHandle
from hearth.root.engine.stopping import StopMatcher
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, Request, Sampled
from hearth.root.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)

# Tokens of the prompt that the detokenizer is shown before the answer's.
_TAIL = 64
# A request in whose steps the cluster is lost so often, with no token in between, is given up: it
# may be what takes the workers down.
_MOST_SETBACKS = 5


class Engine:
    """Runs requests together. All methods may be called from any thread."""

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        vocab_size: int | None = None,
        metrics: EngineMetrics | None = None,
        sampler_factory: SamplerFactory = native_sampler,
        pause_seconds: float = 0.0,
    ) -> None:
        """`vocab_size` is the model's, where it has more rows than the tokenizer has tokens.

        pause_seconds: how long requests wait for a lost cluster to come back; 0: they end at once.
        """
        self.tokenizer = tokenizer
        self.limits = limits
        self._runner = runner
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        # Rows of padding behind the tokenizer's last token stand for nothing, so none is sampled.
        self._sampled_columns = min(self._vocab_size, tokenizer.vocab_size)
        self._metrics = metrics
        self._sampler_factory = sampler_factory
        self._scheduler = Scheduler(limits)
        self._active: dict[int, Active] = {}
        self._ids = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._pause_seconds = pause_seconds
        # Why no steps are made, if so, and until when (time.monotonic()) requests wait for that to
        # pass; None: they are refused.
        self._suspended: HearthError | None = None
        self._paused_until: float | None = None
        self._draining = False
        self._reported: tuple[int, int, int] | None = None
        # Guards `_closed`: after it is set nobody reads the inbox, so nothing may be put there.
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="hearth-engine", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        self._thread.start()

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Takes no new requests, ends the running ones, and the thread. True when it has ended.

        With `drain` running requests may finish, for `timeout` seconds at most; what is left then,
        or all without `drain`, fails with reason SHUTTING_DOWN. A step in flight is waited for
        (the runner's own watchdog bounds it).
        """
        self._post(self._on_drain)
        if not self._thread.is_alive():
            self._close()
            return True
        if drain:
            self._thread.join(timeout)
        self._post(partial(self._fail_all, errors.shutting_down()))
        self._thread.join(None if drain and timeout is None else 30.0)
        return not self._thread.is_alive()

    def submit(self, params: GenerateParams, sink: Sink) -> RequestHandle:
        """Queues a request; `sink` gets Delta*, then Done or Failed, from the engine's thread.

        HearthError at once for token ids out of range or after `stop`; what only the scheduler
        knows (queue full, prompt too long, cluster not serving) comes to the sink as Failed.
        """
        # A prompt that is too long is not worth reading: the scheduler will refuse it.
        seen = params.prompt if len(params.prompt) < self.limits.context_size else ()
        check_ids(seen, self._vocab_size)
        sampling = params.sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        sampler = self._sampler_factory(sampling, seed)
        if sampling.repetition_penalty != 1:
            for token in seen:
                sampler.accept(token)
        active = Active(
            next(self._ids),
            params,
            sink,
            sampler,
            # Enough to know how text goes on: a character has at most 4 bytes.
            self.tokenizer.stream(seen[-_TAIL:]),
            StopMatcher(params.stop),
            time.perf_counter(),
        )
        if not self._post(partial(self._on_submit, active)):
            raise errors.shutting_down()
        return RequestHandle(
            active.seq_id, partial(self._post, partial(self._on_cancel, active.seq_id))
        )

    def suspend(self, error: HearthError, *, refuse: bool = False) -> threading.Event:
        """No steps until `resume`, because of `error`; the event is set when none runs any more.

        Requests, new ones too, wait for `pause_seconds` at most, and end with `error` then. With
        `refuse`, or where `pause_seconds` is 0, they end at once, and new ones are refused. Again
        while it is suspended: only the error is another one.
        """
        done = threading.Event()

        def command() -> None:
            self._on_suspend(error, refuse)
            done.set()

        if not self._post(command):
            done.set()
        return done

    def resume(self, limits: Limits | None = None) -> None:
        """The runner can run steps again, with an empty KV cache; of other `limits` when given.

        Requests that were paused go on: their tokens so far are prefilled again.
        """
        self._post(partial(self._on_resume, limits))

    @property
    def busy(self) -> bool:
        """Whether there are requests, running or waiting."""
        return bool(self._active)

    def generate(self, params: GenerateParams) -> Iterator[Delta | Done]:
        """Submits and iterates over what comes: deltas, then Done; HearthError when it fails.

        A slow reader gets merged deltas (see Mailbox); closing the iterator cancels the request.
        """
        ready = threading.Semaphore(0)
        mailbox = Mailbox(ready.release)
        handle = self.submit(params, mailbox)
        try:
            while True:
                ready.acquire()
                delta, end = mailbox.take()
                if delta is not None:
                    yield delta
                if isinstance(end, Failed):
                    raise end.error
                if end is not None:
                    yield end
                    return
        finally:
            handle.cancel()

    def _post(self, command: Callable[[], object]) -> bool:
        with self._closing:
            if not self._closed:
                self._inbox.put(command)
            return not self._closed

    # Called from the engine's thread only.

    def _loop(self) -> None:
        while not (self._draining and self._scheduler.idle):
            try:
                self._take_commands()
                if self._suspended is not None:
                    continue
                batch = self._scheduler.schedule()
                if batch is not None:
                    self._step(batch)
                    if self._scheduler.idle:
                        self._scheduler.check()
            except Exception as error:
                # A mistake in Hearth itself: say so to those it hits, and go on with a clean slate.
                log.exception("engine: unexpected error")
                self._fail_all(errors.internal(error))
                self._scheduler = Scheduler(self.limits)
        self._close()

    def _take_commands(self) -> None:
        if self._scheduler.idle or self._suspended is not None:
            self._report_load()
            self._wait_for_command()
        while not self._inbox.empty():
            self._inbox.get_nowait()()

    def _wait_for_command(self) -> None:
        """Blocks; no longer than requests may wait for the cluster."""
        until = self._paused_until
        try:
            self._inbox.get(timeout=None if until is None else max(0.0, until - time.monotonic()))()
        except queue.Empty:
            assert self._suspended is not None
            self._refuse(errors.waited_too_long(self._suspended, self._pause_seconds))

    def _close(self) -> None:
        with self._closing:
            self._closed = True
        while not self._inbox.empty():
            self._inbox.get_nowait()()
        self._fail_all(errors.shutting_down())

    def _on_submit(self, active: Active) -> None:
        params = active.params
        try:
            if self._draining:
                raise errors.shutting_down()
            if self._suspended is not None and self._paused_until is None:
                raise errors.not_serving(self._suspended)
            eos_ids = frozenset() if params.ignore_eos else self.tokenizer.eos_ids
            self._scheduler.submit(
                Request(active.seq_id, params.prompt, params.max_tokens, eos_ids)
            )
        except HearthError as error:
            if self._metrics is not None:
                self._metrics.request_refused(error.reason)
            self._emit(active, Failed(error))
        else:
            self._active[active.seq_id] = active

    def _on_cancel(self, seq_id: int) -> None:
        active = self._active.get(seq_id)
        if active is not None:
            self._scheduler.cancel(seq_id)
            self._end(active, Failed(errors.cancelled()))

    def _on_suspend(self, error: HearthError, refuse: bool = False) -> None:
        refusing = self._suspended is not None and self._paused_until is None
        if refuse or refusing or not self._pause_seconds:
            self._refuse(error)
            return
        if self._suspended is None:
            self._paused_until = time.monotonic() + self._pause_seconds
        self._suspended = error
        for seq_id in self._scheduler.rewind():
            active = self._active[seq_id]
            active.setbacks += 1
            if active.setbacks >= _MOST_SETBACKS:
                self._scheduler.cancel(seq_id)
                self._end(active, Failed(errors.lost_too_often(error, active.setbacks)))

    def _refuse(self, error: HearthError) -> None:
        """Ends every request with `error`, and refuses new ones until `resume`."""
        self._suspended = error
        self._paused_until = None
        self._fail_all(error)

    def _on_resume(self, limits: Limits | None) -> None:
        cause = self._suspended or errors.formed_anew()
        if self._paused_until is not None and self._metrics is not None:
            since = self._paused_until - self._pause_seconds
            self._metrics.paused(time.monotonic() - since)
        self._suspended = self._paused_until = None
        if limits is None or limits == self.limits:
            self._scheduler.rewind()
            return
        self.limits = limits
        for seq_id, problem in self._scheduler.refit(limits):
            self._end(self._active[seq_id], Failed(errors.fits_no_more(problem, cause)))

    def _on_drain(self) -> None:
        self._draining = True

    def _fail_all(self, error: HearthError) -> None:
        self._scheduler.step_failed()
        for active in list(self._active.values()):
            self._end(active, Failed(error))

    def _step(self, batch: Batch) -> None:
        begin = time.perf_counter()
        active = self._active
        for step in batch.sequences:
            if not active[step.seq_id].started:
                active[step.seq_id].started = begin
        try:
            output = self._runner.run(batch, self._candidates(batch))
        except HearthError as error:
            log.warning("engine: step failed: %s", error.message)
            if error.code is Code.UNAVAILABLE:
                self._on_suspend(error)
            else:
                self._fail_all(error)
            return
        logits, ids = output.logits, output.ids
        if len(logits) != len(batch.output_rows):
            raise RuntimeError(
                f"the step gave {len(logits)} rows of logits, {len(batch.output_rows)} were wanted"
            )
        tokens: dict[int, int] = {}
        for step in batch.sequences:
            if step.wants_logits:
                sampler = active[step.seq_id].sampler
                row = len(tokens)
                if ids is None:
                    token = sampler.sample(logits[row, : self._sampled_columns])
                else:
                    token = sampler.sample(logits[row], ids[row])
                sampler.accept(token)
                tokens[step.seq_id] = token
        now = time.perf_counter()
        for sampled in self._scheduler.step_finished(tokens):
            self._deliver(active[sampled.seq_id], sampled, now)
        self._report_load()

    def _candidates(self, batch: Batch) -> int:
        """How many of the best tokens every sampler of the batch is content with; 0: all."""
        if self._sampled_columns < self._vocab_size:
            return 0  # padding could be among the best
        wanted = [
            self._active[step.seq_id].params.sampling.candidates
            for step in batch.sequences
            if step.wants_logits
        ]
        return max(wanted) if wanted and all(wanted) else 0

    def _deliver(self, active: Active, sampled: Sampled, now: float) -> None:
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
        # An end-of-sequence token is counted and listed, and has no text.
        text = "" if finish is FinishReason.EOS else active.decoder.push(sampled.token)
        if finish is not None:
            text += active.decoder.flush()
        text, stopped = active.stops.feed(text)
        if stopped:
            if finish is None:
                self._scheduler.cancel(active.seq_id)
            finish = FinishReason.STOP
        elif finish is not None:
            text += active.stops.flush()
        self._emit(active, Delta(text, (sampled.token,)))
        if finish is not None:
            self._end(active, Done(finish, active.usage()))

    def _end(self, active: Active, event: Done | Failed) -> None:
        self._active.pop(active.seq_id, None)
        self._emit(active, event)
        if self._metrics is not None:
            usage = active.usage()
            self._metrics.request_done(
                event.error.reason if isinstance(event, Failed) else event.finish_reason.name,
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.prefill_seconds,
                usage.decode_seconds,
            )

    def _emit(self, active: Active, event: Event) -> None:
        try:
            active.sink(event)
        except Exception:
            # The reader is gone; its request must not take the others with it.
            log.exception("engine: the sink of request %d failed", active.seq_id)
            if self._active.pop(active.seq_id, None) is not None:
                self._scheduler.cancel(active.seq_id)

    def _report_load(self) -> None:
        scheduler = self._scheduler
        load = (scheduler.waiting, scheduler.running, scheduler.pool.free)
        if self._metrics is not None and load != self._reported:
            self._reported = load
            self._metrics.queue(scheduler.waiting, scheduler.running)
            self._metrics.kv_pages(self.limits.max_pages - scheduler.pool.free, scheduler.pool.free)
