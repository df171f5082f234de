"""What goes in and out of the scheduler: limits, requests, batches. Values only."""

from dataclasses import dataclass
from enum import IntEnum


class FinishReason(IntEnum):
    """Why a sequence ended well; the numbers of hearth.v1.FinishReason."""

    EOS = 1
    LENGTH = 2
    STOP = 3
    CONTEXT = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler may use. Rows and positions count tokens."""

    # Positions of one sequence, prompt and answer together.
    context_size: int
    # Pages of KV cache in all, and positions in each.
    max_pages: int
    page_size: int = 32
    # Rows of one step.
    max_step_tokens: int = 128
    # Sequences that hold pages, and those that may wait behind them.
    max_running: int = 16
    max_waiting: int = 64

    def __post_init__(self) -> None:
        for name in ("context_size", "max_pages", "page_size", "max_step_tokens", "max_running"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting is {self.max_waiting}; it must be at least 0")
        if self.max_running > self.max_step_tokens:
            # Else a step full of decode tokens would leave no row for prefill, for ever.
            raise ValueError(
                f"max_running is {self.max_running}, max_step_tokens {self.max_step_tokens}: "
                "a step must have a row for every running sequence"
            )

    @property
    def capacity(self) -> int:
        """Positions that one sequence alone can have."""
        return min(self.context_size, self.max_pages * self.page_size)


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to make. `max_tokens` 0 means as many as there is room for."""

    seq_id: int
    prompt: tuple[int, ...]
    max_tokens: int = 0
    # Tokens that end the sequence; empty to go on past them.
    eos_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One sequence's rows of a step: `tokens` at positions `position`, `position + 1`, ...

    `pages` cover positions 0 .. position + len(tokens), in order. With `wants_logits` the logits of
    the last row are wanted.
    """

    seq_id: int
    tokens: tuple[int, ...]
    position: int
    pages: tuple[int, ...]
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: the rows of `sequences`, one after another; decode first, then prefill."""

    sequences: tuple[SequenceStep, ...]
    # All rows' tokens, and the rows (ascending) whose logits are wanted.
    tokens: tuple[int, ...]
    output_rows: tuple[int, ...]
    # How many of the rows are decode; the rest is prefill.
    decode_rows: int

    @property
    def rows(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sequence's new token, and why it ended, if it did."""

    seq_id: int
    token: int
    finish: FinishReason | None
