"""What the engine is given: what computes steps, what samples, what counts."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hearth.root.engine.params import Sampling
from hearth.root.scheduling.batch import Batch

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]


class StepOutput(Protocol):
    """What a step gives back."""

    @property
    def logits(self) -> Logits:
        """[len(batch.output_rows), vocab_size], or of the candidates only."""

    @property
    def ids(self) -> Ids | None:
        """Token ids of candidates, in the shape of `logits`; None for whole rows."""


class StepRunner(Protocol):
    """Computes steps; `hearth.root.cluster.cluster` does it with all nodes."""

    def run(self, batch: Batch, candidates: int = 0) -> StepOutput:
        """One forward pass. After a HearthError the KV cache is gone: every request ends with it.
        One of code UNAVAILABLE (a worker is lost) pauses them until `Engine.resume` instead.

        With `candidates` the logits may be of each row's best tokens only, at least so many.
        """


class TokenSampler(Protocol):
    """Chooses tokens for one request; `hearth._native.Sampler` is one."""

    def sample(self, logits: Logits, ids: Ids | None = None) -> int: ...

    def accept(self, token: int) -> None: ...


SamplerFactory = Callable[[Sampling, int], TokenSampler]


def native_sampler(sampling: Sampling, seed: int) -> TokenSampler:
    """The core's sampler."""
    from hearth._native import Sampler

    return Sampler(
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        seed,
    )


class EngineMetrics(Protocol):
    """What the engine tells of itself (hearth.common.metrics); steps are the runner's to tell."""

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

    def kv_pages(self, used: int, free: int) -> None: ...
