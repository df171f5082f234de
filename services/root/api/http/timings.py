"""Times of answers as llama.cpp's server gives them: at the end, and with each part."""

from __future__ import annotations

import time

from hearth.root.api.answer import Answer
from hearth.root.engine.mailbox import Usage


def timings_of(usage: Usage) -> dict[str, float]:
    """The times of an answer as llama.cpp's server gives them."""
    prompt, made = usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
    prefill, decode = usage.prefill_seconds * 1000, usage.decode_seconds * 1000
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": prompt,
        "prompt_ms": prefill,
        "prompt_per_token_ms": prefill / max(1, prompt),
        "prompt_per_second": prompt / max(prefill / 1000, 1e-6),
        "predicted_n": made,
        "predicted_ms": decode,
        "predicted_per_token_ms": decode / max(1, made),
        "predicted_per_second": made / max(decode / 1000, 1e-6),
    }


class Timings:
    """The times of an answer while it is made, for `timings_per_token`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._began = time.perf_counter()
        self._first = 0.0
        self._made = 0

    def __call__(self, tokens: int) -> dict[str, float]:
        """The times once `tokens` more were made."""
        now = time.perf_counter()
        self._first = self._first or now
        self._made += tokens
        usage = Usage(
            prompt_tokens=self._answer.prompt_tokens,
            completion_tokens=self._made,
            queue_seconds=0.0,
            prefill_seconds=self._first - self._began,
            decode_seconds=now - self._first,
            cached_tokens=self._answer.cached_tokens,
        )
        return timings_of(usage)
