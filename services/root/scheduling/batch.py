"""Inputs and outputs of the scheduler: limits, requests, batches, outputs of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

# Draft tokens of a sequence in one step: each returns all of its logits.
MOST_DRAFTS = 32


class FinishReason(IntEnum):
    """Reasons why a sequence ends without an error; the numbers of hearth.v1.FinishReason."""

    EOS = 1
    LENGTH = 2
    STOP = 3
    CONTEXT = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the scheduler. Rows and positions count tokens."""

    # Positions of one sequence: prompt and answer together.
    context_size: int
    # Pages of KV cache in all, and positions in each.
    max_pages: int
    page_size: int = 32
    # Rows of one step.
    max_step_tokens: int = 128
    # Maximum numbers of sequences that hold pages, and of sequences that wait.
    max_running: int = 16
    max_waiting: int = 64
    # A sequence has a state that its pages do not hold.
    stateful: bool = False
    # Draft tokens of a sequence that one step verifies; a state can go back so far.
    most_drafts: int = MOST_DRAFTS
    # Share the pages of prefixes that several sequences have, and keep them for later ones.
    prefix_cache: bool = True
    # Snapshots that nodes keep of such a state; without, prefixes are not shared then.
    snapshots: int = 0
    # Batches that are to be in flight at once.
    batches: int = 1

    def __post_init__(self) -> None:
        for name in (
            "context_size",
            "max_pages",
            "page_size",
            "max_step_tokens",
            "max_running",
            "batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_waiting", "most_drafts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.max_running > self.max_step_tokens:
            # Otherwise steps full of decode tokens could keep prefill out for ever.
            raise ValueError(
                f"max_running is {self.max_running}, max_step_tokens {self.max_step_tokens}: "
                "a step must have a row for every running sequence"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `max_tokens` 0 means as many as fit."""

    seq_id: int
    prompt: tuple[int, ...]
    max_tokens: int = 0
    # Tokens that end the sequence; empty to continue past them.
    eos_ids: frozenset[int] = frozenset()
    # False: take no pages of other sequences, and leave none for them.
    prefix_cache: bool = True
    # Only sequences of the same salt share pages.
    salt: bytes = b""
    # Known tokens after the prompt whose logits are wanted, too. They come as if they were sampled,
    # and none of them ends the sequence. `max_tokens` covers them.
    follow: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One sequence's rows of a step: `tokens` at positions `position`, `position + 1`, ...

    Its page table is the first `kept_pages` pages of its previous table, then `new_pages`. It
    covers positions 0 .. position + len(tokens), in order.
    """

    seq_id: int
    tokens: tuple[int, ...]
    position: int
    kept_pages: int
    new_pages: tuple[int, ...]
    # Number of last rows that return logits: 0, or 1 plus the number of draft tokens.
    outputs: int
    # Tokens of the prompt whose pages were found in the prefix cache so far.
    cached: int = 0
    # Snapshots from which its state begins, and to which it is copied after the step.
    restore: int | None = None
    save: int | None = None
    # The next step may begin so many positions before this one's end.
    undo: int = 0

    @property
    def drafts(self) -> tuple[int, ...]:
        """The draft tokens among `tokens`, to be verified."""
        return self.tokens[len(self.tokens) - self.outputs + 1 :] if self.outputs > 1 else ()

    def accepted(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns `tokens` if they can come from this step's outputs; else raises ValueError."""
        if not 1 <= len(tokens) <= self.outputs:
            raise ValueError(
                f"sequence {self.seq_id} has logits of {self.outputs} rows "
                f"but received {len(tokens)} tokens"
            )
        drafts = self.drafts[: len(tokens) - 1]
        if tuple(tokens[:-1]) != drafts:
            raise ValueError(
                f"sequence {self.seq_id} has the drafts {drafts} to verify, "
                f"but {tuple(tokens[:-1])} were accepted"
            )
        return tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: the rows of `sequences`, one after another; decode first, then prefill.

    It carries no epoch. Each plan has streams of its own, opened with its lease, and steps are
    counted on each stream. A row that continues a sequence keeps pages, or takes over pages that
    were filled since the last reset. Nodes of a new plan have neither: they refuse it.
    """

    sequences: tuple[SequenceStep, ...]
    # Tokens of all rows, and the rows (ascending) whose logits are returned.
    tokens: tuple[int, ...]
    output_rows: tuple[int, ...]
    # Number of decode rows, including draft tokens; the others are prefill.
    decode_rows: int
    # Sequences whose page tables the nodes forget before they read `sequences`.
    ended: tuple[int, ...] = ()
    # The nodes first forget all page tables: the KV cache starts empty.
    reset: bool = False

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def brief(self) -> str:
        """Each sequence as id@position+rows, for errors."""
        parts = (f"{s.seq_id}@{s.position}+{len(s.tokens)}" for s in self.sequences)
        return f"[{' '.join(parts)}]"


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's logits and times, in seconds of the root's clock."""

    # f32 [output rows, vocab_size]; with candidates [output rows, n], and their u32 token ids.
    logits: npt.NDArray[np.float32]
    ids: npt.NDArray[np.uint32] | None = None
    wall_seconds: float = 0.0
    # Compute time of the slowest node; the rest of the wall time is sync, transport and waiting.
    compute_seconds: float = 0.0
    # (compute, sync) of each node, in rank order, by its own clock.
    node_seconds: tuple[tuple[float, float], ...] = ()
    sent_bytes: int = 0
    received_bytes: int = 0
    # Addresses of workers that first reported in this step that they are shutting down.
    leaving: tuple[str, ...] = ()
    # Rows of the batch whose values are infinite or NaN: their sequences cannot go on. For each the
    # address of the worker from which that comes, or "".
    not_finite: Mapping[int, str] = field(default_factory=dict)
    # Final hidden states (after the last norm) of all rows, f32 [batch rows, hidden_size], where
    # they are asked for.
    hidden: npt.NDArray[np.float32] | None = None
    # Of output rows with a nucleus: each rank's best logit, f32 [ranks], and the counts of its
    # logits, u32 [ranks, LOGIT_STEPS].
    tails: Mapping[int, tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class Sampled:
    """One new token of a sequence, and the reason if the sequence ended with it."""

    seq_id: int
    token: int
    finish: FinishReason | None
