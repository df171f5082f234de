"""The engine's loop: runs one step after another in its own thread while there are sequences.

    commands (submit, cancel, suspend, resume, stop)  ->  inbox
    loop: inbox -> scheduler.schedule() -> in flight (flights.py: runner.submit(batch))
          in flight -> sample (sampling.py) -> scheduler.step_finished() -> text (delivery.py)

Up to `runner.depth` batches are in flight; commands are processed between any two of these lines.
The scheduler decides which sequences run, the runner (`cluster.py`) computes a step, and the sink
sends text to a client. An idle engine blocks on its inbox and uses no CPU; a step that ends in
another thread wakes it.
"""

import itertools
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from hearth.common.errors import Code, HearthError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.engine import errors
from hearth.root.engine.delivery import Delivery
from hearth.root.engine.flights import Flights
from hearth.root.engine.interfaces import (
    EngineMetrics,
    SamplerFactory,
    StepRunner,
    native_sampler,
)
from hearth.root.engine.mailbox import Delta, Done, Event, Failed, Mailbox, Sink
from hearth.root.engine.paging import Archive, Paging
from hearth.root.engine.params import GenerateParams, check_ids
from hearth.root.engine.pooling import Pooler
from hearth.root.engine.request import Active, RequestHandle
from hearth.root.engine.sampling import Following
from hearth.root.engine.stopping import StopMatcher
from hearth.root.engine.structure.constraint import Constraint
from hearth.root.engine.structure.matching import Matcher, Structures
from hearth.root.engine.structure.sampler import ConstrainedSampler
from hearth.root.scheduling.batch import Limits, Request
from hearth.root.scheduling.residency import Residency
from hearth.root.scheduling.scheduler import Scheduler
from hearth.root.scheduling.speculation import Speculation

log = logging.getLogger(__name__)

# Last tokens of the prompt that the detokenizer gets as context for the answer.
_TAIL = 64
# A request ends with an error after this many losses of the cluster in its steps without a token in
# between: the request may be the cause. Three workers that fail one after the other are left out
# sooner (membership.STRIKES).
MAX_SETBACKS = 10
# Memory of KV pages that were not needed for this long is given back. Pages with a prefix that may
# come again count as needed for so many of these periods: 30 minutes.
_RESIDENT_SECONDS = 60.0
_PREFIX_PERIODS = 30


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
        on_unused_pages: Callable[[int], object] = lambda first: None,
        archive: Archive | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """vocab_size: the model's, if it has more rows than the tokenizer has tokens.

        pause_seconds: how long requests wait while the cluster is not ready; 0: they end at once.
        on_unused_pages: gives the memory of KV pages from a number on back; between two steps.
        archive: keeps KV pages on disk. speculation: proposes draft tokens.
        """
        self.tokenizer = tokenizer
        self.limits = limits
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._metrics = metrics
        self._sampler_factory = sampler_factory
        self._structures = Structures(tokenizer, self._vocab_size)
        self._paging = Paging(archive)
        self.speculation = speculation
        self._scheduler = Scheduler(limits, self._paging.disk)
        self._on_unused_pages = on_unused_pages
        self._residency = Residency(_RESIDENT_SECONDS, _PREFIX_PERIODS)
        self._requests = Delivery(metrics, lambda seq_id: self._scheduler.cancel(seq_id))
        # Rows of padding after the tokenizer's last token are not tokens and must not be sampled.
        columns = None if self._vocab_size <= tokenizer.vocab_size else tokenizer.vocab_size
        self._flights = Flights(
            runner, self._requests, self._fail, self._distrust, self._wake, columns
        )
        self._ids = itertools.count(1)
        # Requests without their last event. (Python's lock guards each of its operations.)
        self._open: set[int] = set()
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._pause_seconds = pause_seconds
        # The reason if steps are suspended, and the time (time.monotonic()) until which requests
        # wait; None: they are refused.
        self._suspended: HearthError | None = None
        self._paused_until: float | None = None
        # The reason for which new requests are refused, for `check` in other threads.
        self._refusing: HearthError | None = None
        self._stopping = False
        self._reported: tuple[int, ...] | None = None
        # Counts of the scheduler that the metrics have already.
        self._counted = (0, 0, 0, 0)
        # Guards `_closed`: once it is set nothing may be put in the inbox, which is no longer read.
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="hearth-engine", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        self._thread.start()

    def stop(self, finish: bool = True, timeout: float | None = None) -> bool:
        """Refuses new requests, ends running ones and the thread. True if the thread has ended.

        With `finish` running requests may finish, for at most `timeout` seconds; the rest, or all
        without `finish`, fail with reason SHUTTING_DOWN. Waits for the steps in flight, whose time
        the runner's watchdog limits.
        """
        self._post(self._on_stop)
        if not self._thread.is_alive():
            self._close()
            return True
        if finish:
            self._thread.join(timeout)
        self._post(partial(self._fail_all, errors.shutting_down()))
        self._thread.join(None if finish and timeout is None else 30.0)
        return not self._thread.is_alive()

    def matcher(self, constraint: Constraint) -> Matcher:
        """Compiles a constraint for `submit`. May compute for a second, not for a loop's thread.

        Raises HearthError INVALID_ARGUMENT for what is not valid, too large or not supported.
        """
        return self._structures.matcher(constraint)

    def submit(
        self, params: GenerateParams, sink: Sink, matcher: Matcher | None = None
    ) -> RequestHandle:
        """Queues a request; `sink` gets Delta*, then Done or Failed, from the engine's thread.

        Raises HearthError for token ids out of range or after `stop`. Errors of the scheduler
        (queue full, prompt too long, cluster not ready) reach the sink as Failed; see `check`.
        matcher: of the request's constraint, for this request only; None compiles it here.
        """
        # The scheduler will refuse a prompt that is too long, so it is not read here.
        seen = params.prompt if len(params.prompt) < self.limits.context_size else ()
        check_ids(seen, self._vocab_size)
        check_ids([token for token, _ in params.sampling.logit_bias], self.tokenizer.vocab_size)
        seed = secrets.randbits(64) if params.sampling.seed is None else params.sampling.seed
        seq_id = next(self._ids)
        sampler = self._sampler_factory(params.sampling, seed)
        constraint = params.sampling.constraint
        # Enough context for the next text: a character has at most 4 bytes.
        decoder = self.tokenizer.stream(seen[-_TAIL:], params.visible)
        if constraint is None:
            matcher = None
        else:
            # The text is what the constraint allowed, also after half of a character.
            decoder = self.tokenizer.stream(visible=params.visible, strip_space=False)
            matcher = matcher or self.matcher(constraint)
            greedy = params.sampling.temperature == 0
            sampler = ConstrainedSampler(sampler, matcher, greedy)

        follow = params.prompt[1:] if params.prompt_logprobs else ()
        if follow:
            sampler = Following(follow, sampler)

        def counted(event: Event) -> None:
            over = not isinstance(event, Delta)
            try:
                sink(event)
            except Exception:
                over = True  # it is not called again
                raise
            finally:
                if over:
                    self._open.discard(seq_id)

        active = Active(
            seq_id,
            params,
            counted,
            sampler,
            decoder,
            StopMatcher(params.stop, self.tokenizer.control_ids if params.stop else None),
            matcher,
            time.perf_counter(),
            unscored=len(follow),
            pooler=Pooler(params.pooling) if params.pooling else None,
        )
        self._open.add(seq_id)
        if not self._post(partial(self._on_submit, active)):
            self._open.discard(seq_id)
            raise errors.shutting_down()
        return RequestHandle(
            active.seq_id,
            partial(self._post, partial(self._on_cancel, active.seq_id)),
            lambda: active.prefilled,
            lambda: active.cached,
        )

    def check(self, params: GenerateParams) -> None:
        """Raises HearthError for what `submit` would refuse as things are now.

        For callers that must know before they begin an answer. A moment later it may be otherwise.
        """
        try:
            self._admit(params)
        except HearthError as error:
            if self._metrics is not None:
                self._metrics.request_refused(error.reason)
            raise

    def _admit(self, params: GenerateParams) -> None:
        refusing = self._refusing
        if self._stopping or self._closed:
            raise errors.shutting_down()
        if refusing is not None:
            raise errors.not_serving(refusing)
        self._scheduler.admit(Request(0, params.prompt, params.max_tokens), len(self._open))

    def suspend(self, error: HearthError, *, refuse: bool = False) -> threading.Event:
        """Stops steps until `resume`, because of `error`; the event is set when none is in flight.

        Steps in flight are finished first. Requests, including new ones, wait for at most
        `pause_seconds` and then end with `error`. With `refuse`, or if `pause_seconds` is 0, they
        end at once and new ones are refused. A further call only replaces the error.
        """
        done = threading.Event()

        def command() -> None:
            self._on_suspend(error, refuse)
            done.set()

        if not self._post(command):
            done.set()
        return done

    def resume(self, limits: Limits | None = None, pages_kept: bool = False) -> None:
        """Continues steps, with an empty KV cache and new `limits` if given.

        Paused requests continue: their tokens so far are prefilled again. pages_kept: the nodes
        have the pages that they had, and prefixes are found in them; no effect with other limits
        than before.
        """
        self._refusing = None  # now: what is submitted after this call comes after the command
        self._post(partial(self._on_resume, limits, pages_kept))

    @property
    def busy(self) -> bool:
        """True while there are requests, running or waiting."""
        return len(self._requests) > 0

    @property
    def idle(self) -> bool:
        """True if the scheduler has no sequence and no step is in flight."""
        return self._scheduler.idle

    @property
    def commands(self) -> int:
        """Number of commands not yet processed."""
        return self._inbox.qsize()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delays the commands after the first in this block until its end.

        Requests submitted in the block are queued together, so an idle engine starts them together.
        """
        end = threading.Event()
        self._post(end.wait)
        try:
            yield
        finally:
            end.set()

    def generate(self, params: GenerateParams) -> Iterator[Delta | Done]:
        """Submits a request and yields its deltas, then Done. Raises HearthError if it fails.

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

    def _wake(self) -> None:
        """Wakes the engine from a wait for commands."""
        self._post(lambda: None)

    # Called from the engine's thread only.

    def _loop(self) -> None:
        try:
            while not (self._stopping and self._scheduler.idle):
                try:
                    self._turn()
                except Exception as error:
                    # A bug in Hearth: fail all requests and start from an empty state.
                    log.exception("engine: unexpected error")
                    self._scheduler = Scheduler(self.limits, self._paging.disk)
                    self._counted = (0, 0, 0, 0)
                    self._fail_all(errors.internal(error))
            if self._suspended is None:
                self._paging.store_rest(self._scheduler)
        except HearthError as error:
            log.info("engine: the last KV pages were not stored: %s", error.message)
        finally:
            # However the thread ends: an open inbox would keep clients waiting for ever.
            self._close()

    def _turn(self) -> None:
        """Finishes a step, or begins one, or waits for a command; then processes all commands."""
        if self._flights.done:
            self._finish()
        elif not self._begin():
            self._wait_for_command()
        while not self._inbox.empty():
            self._inbox.get_nowait()()

    def _wait_for_command(self) -> None:
        """Blocks, but not longer than requests may wait for the cluster.

        Nor longer than until unused pages may be given back.
        """
        self._report_load()
        dues = (self._paused_until, None if self._flights else self._release_due)
        until = min((due for due in dues if due is not None), default=None)
        try:
            self._inbox.get(timeout=None if until is None else max(0.0, until - time.monotonic()))()
        except queue.Empty:
            paused_until = self._paused_until
            if paused_until is not None and paused_until <= time.monotonic():
                assert self._suspended is not None
                self._refuse(errors.waited_too_long(self._suspended, self._pause_seconds))
            if not self._flights:
                self._give_back()

    def _close(self) -> None:
        with self._closing:
            self._closed = True
        while not self._inbox.empty():
            try:
                self._inbox.get_nowait()()
            except Exception:
                log.exception("engine: a command failed at the end")
        self._fail_all(errors.shutting_down())

    def _on_submit(self, active: Active) -> None:
        params = active.params
        try:
            if self._stopping:
                raise errors.shutting_down()
            if self._suspended is not None and self._paused_until is None:
                raise errors.not_serving(self._suspended)
            # (A constrained answer ends where its constraint does.)
            endless = params.ignore_eos and active.matcher is None
            eos_ids = frozenset() if endless else self.tokenizer.eos_ids
            known = len(params.prompt) - active.unscored
            self._scheduler.submit(
                Request(
                    active.seq_id,
                    params.prompt[:known],
                    params.max_tokens and params.max_tokens + active.unscored,
                    eos_ids,
                    # A vector is of the hidden states of all tokens, and scores of their logits.
                    params.prefix_cache and not params.pooling and not active.unscored,
                    params.salt,
                    params.prompt[known:],
                )
            )
        except HearthError as error:
            self._requests.refuse(active, Failed(error))
            return
        self._requests.add(active)
        if params.sampling.repetition_penalty != 1:
            # Not in `submit`, which is called from an event loop: a long prompt takes milliseconds.
            active.sampler.accept_prompt(np.array(params.prompt, np.uint32))

    def _on_cancel(self, seq_id: int) -> None:
        active = self._requests.get(seq_id)
        if active is not None:
            self._fail(active, errors.cancelled())

    def _on_suspend(self, error: HearthError, refuse: bool = False) -> None:
        """Suspends, after the steps in flight or because they failed."""
        self._finish_all()
        refusing = self._suspended is not None and self._paused_until is None
        if refuse or refusing or not self._pause_seconds:
            self._refuse(error)
            return
        if self._suspended is None:
            self._paused_until = time.monotonic() + self._pause_seconds
        self._suspended = error
        # Whether the pages' content is lost will be known at the end of the pause.
        for seq_id in self._scheduler.rewind(keep=True):
            active = self._requests.get(seq_id)
            assert active is not None
            active.setbacks += 1
            if active.setbacks >= MAX_SETBACKS:
                self._fail(active, errors.lost_too_often(error, active.setbacks))

    def _refuse(self, error: HearthError) -> None:
        """Ends every request with `error`, and refuses new ones until `resume`."""
        self._suspended = self._refusing = error
        self._paused_until = None
        self._fail_all(error)

    def _on_resume(self, limits: Limits | None, pages_kept: bool = False) -> None:
        # Earlier steps end (or fail, if the cluster was lost in them) before it is used again.
        self._finish_all()
        cause = self._suspended or errors.formed_again()
        if self._paused_until is not None and self._metrics is not None:
            since = self._paused_until - self._pause_seconds
            self._metrics.paused(time.monotonic() - since)
        self._suspended = self._refusing = self._paused_until = None
        if limits is None or limits == self.limits:
            self._scheduler.rewind(keep=pages_kept)
            return
        self.limits = limits
        for seq_id, problem in self._scheduler.refit(limits):
            active = self._requests.get(seq_id)
            assert active is not None
            self._requests.end(active, Failed(errors.fits_no_more(problem, cause)))

    def _on_stop(self) -> None:
        self._stopping = True

    def _fail(self, active: Active, error: HearthError) -> None:
        """Ends one request with `error`."""
        self._scheduler.cancel(active.seq_id)
        self._requests.end(active, Failed(error))

    def _distrust(self, active: Active, error: HearthError) -> None:
        """Ends one request with `error`; no other may use its pages."""
        self._scheduler.cancel(active.seq_id, distrust=True)
        self._requests.end(active, Failed(error))

    def _fail_all(self, error: HearthError) -> None:
        """Waits for the steps in flight, drops their results and ends every request."""
        try:
            self._flights.drop()
            self._scheduler.step_failed()
        finally:
            self._requests.end_all(Failed(error))

    def _begin(self) -> bool:
        """Submits the next batch; False if there is none, or if enough are in flight."""
        if self._suspended is not None or self._flights.full:
            return False
        # Nodes read messages about pages between two steps.
        due = self._release_due if self._flights else None
        if due is not None and due <= time.monotonic() and not self._settle():
            return False
        if self._scheduler.sharing.moves.busy:
            self._finish_all()
            if not self._move_pages():
                return False
        if self.speculation is not None:
            self.speculation.propose(self._scheduler, self._forced)
        batch = self._scheduler.schedule()
        if batch is None:
            return not self._flights and self._move_pages(wait=True)
        self._flights.begin(batch)
        if len(self._flights) == 1 and self._flights.done:
            # The step was computed in this thread. Commands received meanwhile follow it.
            self._finish()
        return True

    def _forced(self, seq_id: int) -> tuple[int, ...]:
        """Tokens that the constraint of a request's answer makes likely; none without one."""
        active = self._requests.get(seq_id)
        if active is None or active.matcher is None:
            return ()
        try:
            return active.matcher.forced()
        except HearthError:
            return ()  # the request fails when its next token is sampled

    def _move_pages(self, wait: bool = False) -> bool:
        """Moves pages from and to the disks.

        False: the cluster was lost in that, or (`wait`) there is nothing to wait for.
        """
        if self._suspended is not None:
            return False
        try:
            fetching = self._paging.fetch(self._scheduler, wait)
            storing = self._paging.store(self._scheduler, wait and not fetching)
        except HearthError as error:
            self._lost(error)
            return False
        return fetching or storing or not wait

    def _lost(self, error: HearthError) -> None:
        """The KV cache was lost in a step, or between two."""
        log.warning("engine: step failed: %s", error.message)
        self._flights.drop()
        if error.code is Code.UNAVAILABLE:
            self._on_suspend(error)
        else:
            self._fail_all(error)

    def _finish(self) -> None:
        """Waits for the oldest step in flight, ends it, and delivers its tokens."""
        try:
            batch, tokens, seconds = self._flights.finish()
        except HearthError as error:
            self._lost(error)
            return
        if self.speculation is not None:
            fate = self.speculation.finished(batch, tokens, seconds)
            if self._metrics is not None and (fate.drafted or fate.seconds):
                self._metrics.speculated(fate.drafted, fate.accepted, fate.seconds)
        now = time.perf_counter()
        for sampled in self._scheduler.step_finished(batch, tokens):
            active = self._requests.get(sampled.seq_id)
            if active is not None:  # else it ended at a stop text earlier in this step
                self._requests.token(active, sampled, now)
        self._report_load()
        if self._scheduler.idle:
            self._scheduler.check()
        if not self._flights:
            self._give_back()

    def _settle(self) -> bool:
        """Ends all steps in flight and gives unused pages back; False if the cluster was lost."""
        self._finish_all()
        return self._suspended is None

    @property
    def _release_due(self) -> float | None:
        """When to look for unused pages again."""
        return self._residency.due(self._scheduler.pool)

    def _give_back(self) -> None:
        """Has the nodes give the memory of unused pages back; no step may be in flight."""
        first = self._residency.look(time.monotonic(), self._scheduler.pool)
        if first is not None:
            self._on_unused_pages(first)

    def _finish_all(self) -> None:
        """Ends all steps in flight, in order."""
        while self._flights:
            self._finish()

    def _report_load(self) -> None:
        if self._metrics is None:
            return
        scheduler = self._scheduler
        pool, sharing = scheduler.pool, scheduler.sharing
        pages = self.limits.max_pages
        load = (scheduler.waiting, scheduler.running, pool.available, pool.kept, pages)
        if load != self._reported:
            self._reported = load
            self._metrics.queue(scheduler.waiting, scheduler.running)
            self._metrics.kv_cache(self.limits.page_size, pages - pool.available, pages)
            self._metrics.prefix_pages(pool.kept)
        counts = (
            scheduler.preemptions,
            sharing.lookup_tokens,
            sharing.hit_tokens,
            sharing.evictions,
        )
        if counts != self._counted:
            preempted, *prefix = (now - b for now, b in zip(counts, self._counted, strict=True))
            self._counted = counts
            self._metrics.preempted(preempted)
            self._metrics.prefix(*prefix)
