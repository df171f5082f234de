"""Interfaces that the engine depends on: step runner, sampler, metrics."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hearth.common.candidates import WHOLE_ROWS, Candidates, Tails
from hearth.root.engine.params import Sampling
from hearth.root.scheduling.batch import Batch, StepOutput

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]


class StepRunner(Protocol):
    """Computes steps; implemented by `hearth.root.cluster.cluster` over all nodes."""

    @property
    def depth(self) -> int:
        """Batches worth keeping in flight: as many as there are stages."""

    def submit(
        self,
        batch: Batch,
        candidates: Candidates = WHOLE_ROWS,
        hidden: bool = False,
    ) -> Future[StepOutput]:
        """Begins one forward pass; batches end in the order in which they were submitted.

        The logits cover at least the `candidates` of each row. With `hidden` the output has the
        final hidden states of all rows. A HearthError means that the KV cache is lost: the engine
        ends every request with it. With code UNAVAILABLE (a worker is lost) it pauses them until
        `Engine.resume` instead.
        """


class TokenSampler(Protocol):
    """Samples tokens for one request; implemented by `hearth._native.Sampler`."""

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        """Temperature, seed and number of a draw, so many samples after the next."""

    def sample(self, logits: Logits, ids: Ids | None = None, tails: Tails | None = None) -> int:
        """A token of a whole row, or of candidates `ids`; tails: of a nucleus."""

    def accept(self, token: int) -> None: ...

    def accept_prompt(self, tokens: Ids) -> None: ...


SamplerFactory = Callable[[Sampling, int], TokenSampler]


def native_sampler(sampling: Sampling, seed: int) -> TokenSampler:
    """The core's sampler."""
    from hearth._native import Sampler
    from hearth.root.engine.adjusting import AdjustedSampler

    sampler: TokenSampler = Sampler(
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        seed,
    )
    return AdjustedSampler(sampler, sampling) if sampling.adjusts else sampler


class EngineMetrics(Protocol):
    """Measurements of the engine (hearth.common.metrics); the runner reports steps."""

    def first_token(self, seconds: float) -> None: ...

    def next_token(self, seconds: float) -> None: ...

    def request_refused(self, reason: str) -> None: ...

    def paused(self, seconds: float) -> None: ...

    def request_done(
        self,
        outcome: str,
        prompt_tokens: int,
        completion_tokens: int,
        prefill_seconds: float,
        decode_seconds: float,
    ) -> None: ...

    def queue(self, waiting: int, running: int) -> None: ...

    def kv_cache(self, page_tokens: int, used_pages: int, pages: int) -> None: ...

    def prefix_pages(self, kept: int) -> None: ...

    def prefix(self, lookup_tokens: int, hit_tokens: int, evicted_pages: int) -> None: ...

    def preempted(self, count: int) -> None: ...

    def speculated(self, drafted: int, accepted: int, seconds: float) -> None: ...
