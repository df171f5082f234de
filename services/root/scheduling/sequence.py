"""State of one sequence: its tokens, how far they are computed, and its pages."""

from dataclasses import dataclass

from hearth.root.scheduling.batch import FinishReason, Request, SequenceStep


@dataclass(slots=True, eq=False)
class Sequence:
    """Known to the scheduler from `submit` until it ended and no batch in flight uses its pages.

    0 <= computed <= scheduled. Between them lie the rows of the batches in flight. A decode step
    schedules its draft tokens too, so `scheduled` may exceed len(tokens) until that step is done.
    """

    request: Request
    arrival: int
    # Prompt and generated tokens; the KV of the first `computed` is in `pages`.
    tokens: list[int]
    # Number of tokens at which it ends, and with what reason.
    limit: int
    limit_reason: FinishReason
    # Positions handed out to batches, and positions done.
    scheduled: int = 0
    computed: int = 0
    pages: tuple[int, ...] = ()
    # Pages of its table in its last batch: what the nodes have.
    table: int = 0
    # Batches in flight that have rows of it.
    in_flight: int = 0
    # Tokens to verify in the next decode step.
    drafts: tuple[int, ...] = ()

    @property
    def seq_id(self) -> int:
        return self.request.seq_id

    @property
    def pending(self) -> int:
        """Known tokens that no batch has computed or is computing."""
        return len(self.tokens) - self.scheduled

    @property
    def most_drafts(self) -> int:
        """Draft tokens worth verifying: all accepted, and one more sampled, reach the limit."""
        return max(0, self.limit - len(self.tokens) - 1)

    def story(self) -> str:
        """The counts of this sequence, for errors."""
        return (
            f"sequence {self.seq_id} has {len(self.tokens)} tokens, {self.scheduled} scheduled, "
            f"{self.computed} computed, {len(self.pages)} pages, {self.in_flight} batches in flight"
        )

    def advance(self, count: int, page_size: int) -> SequenceStep:
        """The next `count` rows, draft tokens after the known ones; they are in flight then."""
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
        return SequenceStep(self.seq_id, tuple(chunk), begin, kept, new_pages, outputs)

    def finish(self, token: int) -> FinishReason | None:
        """The reason if the sequence ends with `token`, its newest; None when it goes on."""
        if token in self.request.eos_ids:
            return FinishReason.EOS
        if len(self.tokens) >= self.limit:
            return self.limit_reason
        return None
