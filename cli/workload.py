"""The requests that `hearth bench` times: several sequences together, each behind a context."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hearth.root.engine.mailbox import Delta, Done, Event, Failed
from hearth.root.engine.params import GenerateParams

if TYPE_CHECKING:
    from hearth.cli.session import Session


@dataclass(frozen=True)
class Workload:
    """The sizes of each run, in tokens.

    sequences: that decode together. depth: context of each sequence, which is prefilled once,
    before the first run; the prefix cache keeps it. prompt_tokens: of each sequence and run.
    one_prompt: the sequences are samples of the same prompt, which is prefilled once.
    """

    sequences: int
    depth: int
    prompt_tokens: int
    new_tokens: int
    step_tokens: int
    one_prompt: bool = False

    @property
    def spare_tokens(self) -> int:
        """Tokens that a sequence may make while the prompts of others are prefilled."""
        if self.sequences == 1:
            return 0
        # A step has a row of each sequence that decodes, and at least one row of a prompt. The
        # cache keeps whole pages, so that the end of a context is prefilled again.
        rows = max(1, self.step_tokens - self.sequences)
        behind = self.prompt_tokens + (_PAGE if self.depth else 0)
        return -(-self.sequences * behind // rows) + self.sequences

    @property
    def context(self) -> int:
        """Positions that a sequence needs."""
        return self.depth + self.prompt_tokens + self.new_tokens + self.spare_tokens

    @property
    def room(self) -> int:
        """Sequences that the KV cache needs room for: with kept contexts, those of two runs."""
        return self.sequences * (2 if self.depth else 1)


# More positions than a page has by default.
_PAGE = 64


@dataclass
class Times:
    """A sink of one request: the time of each token, and the tokens of its prompt it computed."""

    finish: Callable[[], object]
    tokens: list[float] = field(default_factory=list)
    computed: int = 0
    error: Exception | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.tokens += [time.perf_counter()] * len(event.token_ids)
            return
        if isinstance(event, Done):
            self.computed = event.usage.prompt_tokens - event.usage.cached_tokens
        elif isinstance(event, Failed):
            self.error = event.error
        self.finish()


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one run, of all sequences together.

    token_seconds: of the last sequence that began, from the run's start to each token.
    """

    prefill: float
    decode: float
    token_seconds: tuple[float, ...]


class Runs:
    """Runs of a workload, with random prompts."""

    def __init__(self, session: Session, workload: Workload) -> None:
        self._session = session
        self._workload = workload
        self._limit = min(session.model.spec.vocab_size, session.engine.tokenizer.vocab_size)
        self._contexts = [
            self._tokens(workload.depth, self._text(i)) for i in range(workload.sequences)
        ]
        if workload.depth:
            for context in self._contexts:  # one by one: fewer rows are in flight
                self._generate([context], 1)

    def run(self, number: int) -> Rates:
        """One run; another number has other prompts. Raises HearthError if a request fails."""
        work = self._workload
        prompts = [
            context + self._tokens(work.prompt_tokens, 1 + number, self._text(i))
            for i, context in enumerate(self._contexts)
        ]
        start = time.perf_counter()
        requests = self._generate(prompts, work.new_tokens + work.spare_tokens)
        # From the moment on when all sequences decode, until the first one ends.
        begin = max(request.tokens[0] for request in requests)
        end = min(request.tokens[-1] for request in requests)
        together = [[t for t in request.tokens if begin <= t <= end] for request in requests]
        last = max(requests, key=lambda request: request.tokens[0])
        curve = last.tokens[: work.new_tokens]
        return Rates(
            prefill=sum(request.computed for request in requests) / (begin - start),
            decode=sum(map(_rate, together)),
            token_seconds=tuple(t - start for t in curve),
        )

    def _text(self, sequence: int) -> int:
        """Number of a sequence's prompt."""
        return 0 if self._workload.one_prompt else sequence

    def _tokens(self, count: int, *seed: int) -> tuple[int, ...]:
        tokens: list[int] = np.random.default_rng(seed).integers(0, self._limit, count).tolist()
        return tuple(tokens)

    def _generate(self, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[Times]:
        """The requests, together, to their end."""
        ended = threading.Semaphore(0)
        requests = [Times(ended.release) for _ in prompts]
        for prompt, request in zip(prompts, requests, strict=True):
            params = GenerateParams(
                prompt,
                max_tokens=new_tokens,
                ignore_eos=True,
                prefix_cache=self._workload.depth > 0 or self._workload.one_prompt,
            )
            self._session.engine.submit(params, request)
        for _ in requests:
            ended.acquire()
        for request in requests:
            if request.error is not None:
                raise request.error
        return requests


def _rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
