"""State of one sequence: tokens, computed positions, pages."""

from collections.abc import Sequence as Pages
from dataclasses import dataclass, field

from hearth.root.scheduling.batch import FinishReason, Request, SequenceStep


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence, from `submit` until it has ended and no batch in flight uses its pages.

    0 <= computed <= scheduled. The rows between them are in batches in flight. A decode step
    schedules its draft tokens too, so `scheduled` may exceed len(tokens) until that step is done.
    """

    request: Request
    arrival: int
    # Prompt and generated tokens; the KV of the first `computed` is in `pages`.
    tokens: list[int]
    # Number of tokens at which it ends, and the reason then.
    limit: int
    limit_reason: FinishReason
    # Positions assigned to batches, and positions computed.
    scheduled: int = 0
    computed: int = 0
    pages: tuple[int, ...] = ()
    # Pages of its table in its last batch, which the nodes hold.
    table: int = 0
    # Batches in flight with rows of this sequence.
    in_flight: int = 0
    # Tokens to verify in the next decode step.
    drafts: tuple[int, ...] = ()
    # Keys of its prefix (prefix.py): before the first page, then after each full page, as far as
    # they were needed. Empty: the sequence takes no part in the prefix cache.
    keys: list[bytes] = field(default_factory=list)
    # The snapshot to begin from; the one to take, and the position that it serves.
    restore: int | None = None
    save: tuple[int, int] | None = None
    # The key of the last snapshot behind its prompt, which the next one replaces.
    answered: bytes | None = None
    # Pages before the snapshot that it fetches from disk; None: not looked for yet.
    on_disk: int | None = None
    # Full pages that were found in the index, or offered to it.
    indexed: int = 0
    # Prompt tokens whose pages were found there before anything was computed for them.
    cached: int = 0
    # The highest `scheduled` so far, also before a preemption.
    reached: int = 0

    @property
    def seq_id(self) -> int:
        return self.request.seq_id

    @property
    def pending(self) -> int:
        """Number of known tokens not yet in any batch."""
        return len(self.tokens) - self.scheduled

    @property
    def following(self) -> tuple[int, ...]:
        """The known tokens that come next; () for a sequence that goes on by itself."""
        follow = self.request.follow
        return follow[len(self.tokens) - len(self.request.prompt) :] if follow else ()

    @property
    def most_drafts(self) -> int:
        """Limit on draft tokens: if all are accepted, one more sampled token reaches the limit."""
        return max(0, self.limit - len(self.tokens) - 1)

    def story(self) -> str:
        """The counts of this sequence, for errors."""
        return (
            f"sequence {self.seq_id} has {len(self.tokens)} tokens, {self.scheduled} scheduled, "
            f"{self.computed} computed, {len(self.pages)} pages, {self.in_flight} batches in flight"
        )

    def advance(self, count: int, page_size: int) -> SequenceStep:
        """Takes the next `count` rows, draft tokens after known ones, and marks them in flight."""
        begin = self.scheduled
        chunk = self.tokens[begin : begin + count]
        chunk += self.drafts[: count - len(chunk)]
        outputs = max(0, begin + count - len(self.tokens) + 1)
        table = -(-(begin + count) // page_size)
        kept = min(self.table, table)
        new_pages = self.pages[kept:table]
        self.table = table
        self.scheduled += count
        self.in_flight += 1
        self.reached = max(self.reached, self.scheduled)
        save = self.save[0] if self.save and begin < self.save[1] <= self.scheduled else None
        return SequenceStep(
            self.seq_id,
            tuple(chunk),
            begin,
            kept,
            new_pages,
            outputs,
            self.cached,
            self.restore,
            save,
            undo=max(0, outputs - 1),
        )

    def adopt(self, pages: Pages[int], page_size: int) -> None:
        """Takes over full pages that hold its next positions; none of its rows is in flight."""
        begin = self.scheduled
        self.pages += tuple(pages)
        self.scheduled = self.computed = begin + len(pages) * page_size
        self.indexed += len(pages)
        end = min(self.scheduled, len(self.request.prompt))
        self.cached += max(0, end - max(begin, self.reached))
        self.reached = max(self.reached, self.scheduled)

    def finish(self, token: int) -> FinishReason | None:
        """The finish reason if the sequence ends with its newest `token`; None if it continues."""
        known = len(self.request.prompt) + len(self.request.follow)
        if token in self.request.eos_ids and len(self.tokens) > known:
            return FinishReason.EOS
        if len(self.tokens) >= self.limit:
            return self.limit_reason
        return None
