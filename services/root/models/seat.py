"""The requests for one of several models, whether it is in memory or not.

A seat stands before the model's engine. While the model is in memory, requests go to the engine;
else they wait here, in order, until the host (host.py) has loaded it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.converter import ModelError, Tokenizer, open_model
from hearth.converter.tokenizers.confined import ConfinedTokenizer, confined
from hearth.root.engine import errors
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Event, Failed, Sink
from hearth.root.engine.params import GenerateParams, check_ids
from hearth.root.engine.request import RequestHandle
from hearth.root.engine.structure.constraint import Constraint
from hearth.root.engine.structure.matching import Matcher, Structures
from hearth.root.models.card import Card
from hearth.root.models.relay import Relay
from hearth.root.scheduling import admission
from hearth.root.scheduling.batch import Limits, Request
from hearth.v1 import root_pb2


class _Unread(Tokenizer):
    """The tokenizer of a model that was not asked for yet."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        # Most models have one; whether this one does is known when it is opened.
        self.chat_template = ""

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        raise ModelError("the model's tokenizer is not loaded")

    def token_bytes(self, token: int) -> bytes:
        return b""

    def _name(self, token: int) -> str:
        return ""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request without an engine. since: time.monotonic()."""

    params: GenerateParams
    sink: Sink
    matcher: Matcher | None
    since: float
    # Of the engine, once it has the request.
    handle: RequestHandle | None = None
    cancelled: bool = False


class Seat:
    """One model's requests. Thread-safe; `attach`, `leave` and `detach` are the host's."""

    def __init__(self, card: Card, wake: Callable[[], object]) -> None:
        """wake: called in any thread when requests came or ended."""
        self.card = card
        self.relay = Relay(root_pb2.ClusterStatus())
        # Seconds that the model stays in memory without a request; None: the root's default.
        self.keep_alive: float | None = None
        self._wake = wake
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._leaving = False
        self._closed = False
        self._waiting: list[_Waiting] = []
        # Requests that the engine has.
        self._open = 0
        # When the last of them ended, time.monotonic().
        self.idle_since = 0.0
        self._ids = itertools.count(1)
        self._opening = threading.Lock()
        self._stack = ExitStack()
        self._tokenizer: Tokenizer = _Unread(card.spec.vocab_size)
        self._structures = Structures(self._tokenizer)
        self.rest("the model is not in memory")

    # As an engine, for the frontend.

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's; without its texts before `open`."""
        return self._tokenizer

    @property
    def limits(self) -> Limits:
        """Those of the engine; without one those that are expected."""
        engine = self._engine
        return self.card.limits if engine is None else engine.limits

    def check(self, params: GenerateParams) -> None:
        """Raises HearthError for what `submit` would refuse as things are now."""
        with self._lock:
            engine = self._usable()
            waiting = len(self._waiting)
        if engine is not None:
            engine.check(params)
            return
        if self._closed:
            raise errors.shutting_down()
        most = self.card.limits.max_waiting
        if waiting >= most:
            raise HearthError(
                Reason.QUEUE_FULL,
                f"{waiting} requests wait for {self.card.name} to be loaded, the limit is {most}; "
                "try again later",
                {"waiting": waiting},
            )
        admission.limit(Request(0, params.prompt, params.max_tokens), self.limits)

    def matcher(self, constraint: Constraint) -> Matcher:
        """Compiles a constraint for `submit`. Raises HearthError INVALID_ARGUMENT."""
        return self._structures.matcher(constraint)

    def submit(
        self, params: GenerateParams, sink: Sink, matcher: Matcher | None = None
    ) -> RequestHandle:
        """Queues a request, as Engine.submit does. Raises HearthError."""
        check_ids(params.prompt, self.card.spec.vocab_size)
        with self._lock:
            if self._closed:
                raise errors.shutting_down()
            engine = self._usable()
            if engine is None:
                waiting = _Waiting(params, sink, matcher, time.monotonic())
                self._waiting.append(waiting)
            else:
                self._open += 1
        if engine is not None:
            return self._pass_on(engine, params, sink, matcher)
        self._wake()
        return RequestHandle(next(self._ids), lambda: self._cancel(waiting))

    # For the faces.

    def open(self) -> None:
        """Loads the tokenizer, which takes a while the first time. Raises ModelError."""
        with self._opening:
            if not isinstance(self._tokenizer, _Unread):
                return
            source = self.card.source
            with open_model(source, self.card.weights) as model:
                made = confined(model, source, started=self._wake)
                self._tokenizer = self._stack.enter_context(made)
            self._structures = Structures(self._tokenizer)
        self._wake()  # the host did not see the tokenizer when its process started

    # For the host.

    def rest_tokenizer(self, seconds: float) -> float | None:
        """Ends the tokenizer's process where the model is not in memory and no text came for long.

        When it may be so, time.monotonic(); None: not before the next wake.
        """
        tokenizer = self._tokenizer
        with self._lock:
            if self._engine is not None or self._waiting:
                return None  # `detach` ends it
        return tokenizer.rest(seconds) if isinstance(tokenizer, ConfinedTokenizer) else None

    @property
    def wanted_since(self) -> float | None:
        """When the oldest of the waiting requests came, time.monotonic(); None for none."""
        with self._lock:
            return min((each.since for each in self._waiting), default=None)

    @property
    def busy(self) -> bool:
        """True while the engine has requests."""
        return self._open > 0

    @property
    def leaving(self) -> bool:
        """True from `leave` on."""
        return self._leaving

    def attach(self, engine: Engine) -> None:
        """The model is in memory: the engine gets what waits, and what comes."""
        with self._lock:
            self._engine, self._leaving = engine, False
            self.idle_since = time.monotonic()
            waiting, self._waiting = self._waiting, []
            self._open += len(waiting)
        for each in waiting:
            try:
                handle = self._pass_on(engine, each.params, each.sink, each.matcher)
            except HearthError as error:
                each.sink(Failed(error))
                continue
            with self._lock:
                each.handle = handle
                cancelled = each.cancelled
            if cancelled:
                handle.cancel()

    def leave(self) -> bool:
        """Another model's turn: new requests wait here; the engine ends those that it has.

        True if it has any.
        """
        with self._lock:
            self._leaving = True
            return self._open > 0

    def stay(self) -> None:
        """Takes `leave` back."""
        engine = self._engine
        if engine is not None and self._leaving:
            self.attach(engine)

    def detach(self, why: str) -> None:
        """The model leaves memory; the engine has no requests."""
        with self._lock:
            self._engine, self._leaving = None, False
            self._structures = Structures(self._tokenizer)  # without the tables of this one
        self.rest(why)
        tokenizer = self._tokenizer
        if isinstance(tokenizer, ConfinedTokenizer):
            tokenizer.close()  # its process, which the next text starts again

    def rest(self, why: str) -> None:
        """Shows why requests for this model wait."""
        self.relay.rest(
            root_pb2.ClusterStatus(
                state=root_pb2.CLUSTER_STATE_DEGRADED,
                reason=why,
                model=self.card.name,
                context_size=self.card.limits.context_size,
            )
        )

    def fail(self, error: HearthError) -> None:
        """Ends the requests that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.sink(Failed(error.copy()))

    def expire(self, seconds: float) -> float | None:
        """Ends requests that waited longer; when the next is due, time.monotonic()."""
        limit = time.monotonic() - seconds
        with self._lock:
            late = [each for each in self._waiting if each.since <= limit]
            self._waiting = [each for each in self._waiting if each.since > limit]
            due = min((each.since + seconds for each in self._waiting), default=None)
        for each in late:
            problem = (
                f"{self.card.name} was not in memory within {seconds:g} s (--pause-seconds): "
                f"{self.relay.status().reason}"
            )
            each.sink(Failed(HearthError(Reason.CLUSTER_NOT_READY, problem)))
        return due

    def close(self) -> None:
        """Ends what waits, and the tokenizer."""
        with self._lock:
            self._closed = True
        self.fail(errors.shutting_down())
        self._stack.close()

    def _usable(self) -> Engine | None:
        return None if self._leaving else self._engine

    def _pass_on(
        self, engine: Engine, params: GenerateParams, sink: Sink, matcher: Matcher | None
    ) -> RequestHandle:
        """Submits a request that is counted as open already."""

        def counted(event: Event) -> None:
            over = not isinstance(event, Delta)
            try:
                sink(event)
            except Exception:
                over = True  # the engine does not call it again
                raise
            finally:
                if over:
                    self._ended()

        try:
            return engine.submit(params, counted, matcher)
        except BaseException:
            self._ended()
            raise

    def _ended(self) -> None:
        with self._lock:
            self._open -= 1
            self.idle_since = time.monotonic()
            idle = not self._open
        if idle:
            self._wake()

    def _cancel(self, waiting: _Waiting) -> None:
        with self._lock:
            waiting.cancelled = True
            handle = waiting.handle
            mine = waiting in self._waiting
            if mine:
                self._waiting.remove(waiting)
        if mine:
            waiting.sink(Failed(errors.cancelled()))
            self._wake()
        elif handle is not None:
            handle.cancel()
