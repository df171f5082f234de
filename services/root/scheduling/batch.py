"""Values that go in and out of the scheduler: limits, requests, batches, outputs of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class FinishReason(IntEnum):
    """Reasons for which a sequence ends well; the numbers of hearth.v1.FinishReason."""

    EOS = 1
    LENGTH = 2
    STOP = 3
    CONTEXT = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what the scheduler uses. Rows and positions count tokens."""

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

    Its page table is the first `kept_pages` pages of its table in its last step, then `new_pages`.
    The table covers positions 0 .. position + len(tokens), in order.
    """

    seq_id: int
    tokens: tuple[int, ...]
    position: int
    kept_pages: int
    new_pages: tuple[int, ...]
    # How many of the last rows want logits: 0, 1, or 1 and a row for each draft token.
    outputs: int

    @property
    def drafts(self) -> tuple[int, ...]:
        """The draft tokens among `tokens`: those to verify."""
        return self.tokens[len(self.tokens) - self.outputs + 1 :] if self.outputs > 1 else ()

    def accepted(self, tokens: Sequence[int]) -> Sequence[int]:
        """`tokens` themselves, when they can come from this step's outputs; else ValueError."""
        if not 1 <= len(tokens) <= self.outputs:
            raise ValueError(
                f"sequence {self.seq_id} wanted logits of {self.outputs} rows "
                f"and got {len(tokens)} tokens"
            )
        drafts = self.drafts[: len(tokens) - 1]
        if tuple(tokens[:-1]) != drafts:
            raise ValueError(
                f"sequence {self.seq_id} had the drafts {drafts} to verify, "
                f"and {tuple(tokens[:-1])} were accepted"
            )
        return tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: the rows of `sequences`, one after another; decode first, then prefill."""

    sequences: tuple[SequenceStep, ...]
    # All rows' tokens, and the rows (ascending) whose logits are wanted.
    tokens: tuple[int, ...]
    output_rows: tuple[int, ...]
    # How many of the rows are decode, draft tokens included; the rest is prefill.
    decode_rows: int
    # Sequences whose page tables are forgotten before `sequences` are read.
    ended: tuple[int, ...] = ()
    # All page tables are forgotten before anything else is read: the KV cache begins empty.
    reset: bool = False

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def brief(self) -> str:
        """Each sequence @ its position + its rows, for errors."""
        parts = (f"{s.seq_id}@{s.position}+{len(s.tokens)}" for s in self.sequences)
        return f"[{' '.join(parts)}]"


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's logits, and where its time went. Seconds of the root's clock."""

    # f32 [output rows, vocab_size]; of candidates: [output rows, n], and their u32 token ids.
    logits: npt.NDArray[np.float32]
    ids: npt.NDArray[np.uint32] | None = None
    wall_seconds: float = 0.0
    # Compute time of the slowest node; the rest of the wall time is sync, transport and waiting.
    compute_seconds: float = 0.0
    # (compute, sync) of each node, in rank order, by its own clock.
    node_seconds: tuple[tuple[float, float], ...] = ()
    sent_bytes: int = 0
    received_bytes: int = 0
    # Addresses of the workers that announced in this step, for the first time, that they leave.
    leaving: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """One new token of a sequence, and why the sequence ended, if it did."""

    seq_id: int
    token: int
    finish: FinishReason | None
